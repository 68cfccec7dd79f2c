package losses

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

// This file runs modules for the tests of this package: it lays out a request as section 4 of the ABI says and reads the answer. It has no limits.

type tensor struct {
	floats []float32
	ints   []int64
}

type datum struct {
	dims     [2]int
	logprobs []float32
	inputs   map[string]tensor
}

// batch is one call of a user, or a chunk of one when the counts of the whole are set.
type batch struct {
	data     []datum
	config   map[string]float64
	evaluate bool
	absent   bool // send the columns of optional inputs that no datum has
	whole    []datum
}

type answer struct {
	loss    float64
	weights [][]float32
	metrics map[string]float64
}

type input struct {
	Name, Dtype, Like, Summary string
	Shape                      []int
	Optional                   bool
}

type description struct {
	Name, Version, Summary, License, Scope string
	Grouping                               struct {
		By, Name string
		Size     int
	}
	Inputs []input
	Params []struct {
		Name, Type, Summary string
		Default, Min, Max   *float64
		Values              []string
	}
	Metrics []string
}

type module struct {
	mod  api.Module
	desc description
}

// compiled spares the tests most of the compiling.
var compiled = wazero.NewCompilationCache()

// load compiles and instantiates a module; a second instance is another load.
func load(t testing.TB, wasm []byte) *module {
	t.Helper()
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().WithMemoryLimitPages(4096).WithCompilationCache(compiled))
	t.Cleanup(func() { rt.Close(ctx) })
	wasi_snapshot_preview1.MustInstantiate(ctx, rt) // Go guests
	for _, host := range []struct {
		module string
		abort  any
	}{
		{"env", func(_, _, _, _ uint32) { panic("abort") }},
		{"loss_host", func(_ context.Context, m api.Module, at, n uint32) {
			text, _ := m.Memory().Read(at, n)
			panic(string(text))
		}},
	} {
		if _, err := rt.NewHostModuleBuilder(host.module).NewFunctionBuilder().WithFunc(host.abort).Export("abort").Instantiate(ctx); err != nil {
			t.Fatal(err)
		}
	}
	mod, err := rt.InstantiateWithConfig(ctx, wasm, wazero.NewModuleConfig().WithStartFunctions("_initialize"))
	if err != nil {
		t.Fatal(err)
	}
	m := &module{mod: mod}
	at := m.call(t, "loss_describe")
	text, ok := mod.Memory().Read(uint32(at>>32), uint32(at))
	if !ok {
		t.Fatal("loss_describe points outside memory")
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m.desc); err != nil {
		t.Fatalf("loss_describe: %v", err)
	}
	return m
}

func (m *module) call(t testing.TB, name string, args ...uint64) uint64 {
	t.Helper()
	out, err := m.mod.ExportedFunction(name).Call(context.Background(), args...)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out[0]
}

type layout struct{ buf []byte }

// array adds size bytes at a multiple of 16 and returns their offset.
func (l *layout) array(size int) int {
	off := (len(l.buf) + 15) &^ 15
	l.buf = append(l.buf, make([]byte, off-len(l.buf)+size)...)
	return off
}

func (l *layout) u32(off int, v ...int) {
	for i, x := range v {
		binary.LittleEndian.PutUint32(l.buf[off+4*i:], uint32(x))
	}
}

func (l *layout) f64(off int, v float64) {
	binary.LittleEndian.PutUint64(l.buf[off:], math.Float64bits(v))
}

func (l *layout) text(s string) int {
	off := l.array(len(s))
	copy(l.buf[off:], s)
	return off
}

const metricsCap, errorCap = 64, 4096

// groups numbers the groups of data in order of appearance.
func (m *module) groups(data []datum) (of []int, n int) {
	g := m.desc.Grouping
	seen := map[int64]int{}
	for i, d := range data {
		key := int64(i / max(g.Size, 1))
		if g.By == "input" {
			key = d.inputs[g.Name].ints[0]
		}
		if _, ok := seen[key]; !ok {
			seen[key] = len(seen)
		}
		of = append(of, seen[key])
	}
	return of, len(seen)
}

// encode lays out the request; it also returns where the metrics, the error and the weights are.
func (m *module) encode(t testing.TB, b batch) []byte {
	t.Helper()
	whole := b.whole
	if whole == nil {
		whole = b.data
	}
	batchElems := 0
	for _, d := range whole {
		batchElems += len(d.logprobs)
	}
	columns := []input{{Name: "$logprobs", Dtype: "float32"}}
	for _, in := range m.desc.Inputs {
		for _, d := range b.data {
			if _, ok := d.inputs[in.Name]; ok || !in.Optional || b.absent {
				columns = append(columns, in)
				break
			}
		}
	}
	l := &layout{}
	l.array(128)
	table := l.array(32 * len(columns))
	elems := 0
	for c, in := range columns {
		spans, total := l.array(16*len(b.data)), 0
		floats, ints := []float32{}, []int64{}
		for i, d := range b.data {
			x, ok := d.inputs[in.Name]
			dims := [2]int{1, 1}
			if c == 0 {
				x, ok = tensor{floats: d.logprobs}, true
			}
			if c == 0 || in.Like != "" {
				dims = d.dims
			}
			if !ok {
				if !in.Optional {
					t.Fatalf("datum %d: %s is missing", i, in.Name)
				}
				continue
			}
			if n := len(x.floats) + len(x.ints); n != dims[0]*dims[1] {
				t.Fatalf("datum %d: %s has %d entries, want %v", i, in.Name, n, dims)
			}
			l.u32(spans+16*i, total, dims[0], dims[1], 1)
			floats, ints, total = append(floats, x.floats...), append(ints, x.ints...), total+dims[0]*dims[1]
		}
		name := l.text(in.Name)
		data, dtype := 0, 1
		if in.Dtype == "int64" {
			dtype, data = 2, l.array(8*len(ints))
			for i, v := range ints {
				binary.LittleEndian.PutUint64(l.buf[data+8*i:], uint64(v))
			}
		} else {
			data = l.array(4 * len(floats))
			for i, v := range floats {
				binary.LittleEndian.PutUint32(l.buf[data+4*i:], math.Float32bits(v))
			}
		}
		l.u32(table+32*c, name, len(in.Name), dtype, spans, data, total)
		if c == 0 {
			elems = total
		}
	}
	groups, nGroups, batchGroups := 0, 0, 0
	if m.desc.Grouping.By != "" {
		var of []int
		of, nGroups = m.groups(b.data)
		_, batchGroups = m.groups(whole)
		groups = l.array(4 * len(of))
		l.u32(groups, of...)
	}
	params := l.array(8 * len(m.desc.Params))
	known := 0
	for i, p := range m.desc.Params {
		v, ok := b.config[p.Name]
		if !ok {
			v = *p.Default
		} else {
			known++
		}
		l.f64(params+8*i, v)
	}
	if known != len(b.config) {
		t.Fatalf("config %v has names that %s lacks", b.config, m.desc.Name)
	}
	weights, metrics, errText := l.array(4*elems), l.array(64*metricsCap), l.array(errorCap)
	flags := 0
	if b.evaluate {
		flags = 1
	}
	l.u32(0, 0x53534F4C, 0x10000, len(l.buf), flags, len(b.data), len(columns), table, groups, params, len(m.desc.Params), 0, 0,
		weights, elems, metrics, metricsCap, errText, errorCap, len(whole), nGroups, batchElems, 0)
	l.f64(96, math.NaN())
	l.u32(104, batchGroups)
	return l.buf
}

// run calls the loss; an error has the status and the text.
func (m *module) run(t testing.TB, b batch) (answer, error) {
	t.Helper()
	return m.exec(t, m.encode(t, b), b)
}

func (m *module) exec(t testing.TB, req []byte, b batch) (answer, error) {
	t.Helper()
	at := uint32(m.call(t, "loss_alloc", uint64(len(req))))
	if at == 0 || at%16 != 0 || !m.mod.Memory().Write(at, req) {
		t.Fatalf("loss_alloc(%d) gave %d", len(req), at)
	}
	status := m.call(t, "loss_call", uint64(at), uint64(len(req)))
	out, ok := m.mod.Memory().Read(at, uint32(len(req)))
	if !ok {
		t.Fatal("the request has gone")
	}
	u := func(off int) int { return int(binary.LittleEndian.Uint32(out[off:])) }
	if status != 0 {
		return answer{}, fmt.Errorf("status %d: %s", status, out[u(64):][:u(92)])
	}
	a := answer{loss: math.Float64frombits(binary.LittleEndian.Uint64(out[96:])), metrics: map[string]float64{}}
	weights := out[u(48):]
	for _, d := range b.data {
		w := make([]float32, len(d.logprobs))
		for i := range w {
			w[i] = math.Float32frombits(binary.LittleEndian.Uint32(weights[4*i:]))
		}
		weights = weights[4*len(w):]
		a.weights = append(a.weights, w)
	}
	for i := range u(88) {
		slot := out[u(56)+64*i:]
		name := string(slot[16:][:binary.LittleEndian.Uint32(slot[8:])])
		if _, twice := a.metrics[name]; twice {
			t.Fatalf("metric %s came twice", name)
		}
		a.metrics[name] = math.Float64frombits(binary.LittleEndian.Uint64(slot))
	}
	return a, nil
}
