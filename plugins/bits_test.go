package plugins

import (
	"context"
	"maps"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
)

// raggedInput is a batch of datums of very different lengths, some of them empty, for a module of two float inputs. Numbers are multiples of 1/64, so that sums
// of them are exact in float64 in any order.
func raggedInput(m *Module, datums int) loss.Input {
	rng := rand.New(rand.NewPCG(5, 6))
	exact := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(rng.IntN(256)-128) / 64
		}
		return v
	}
	in := loss.Input{Config: map[string]float64{}}
	for i := range datums {
		n := []int{0, 1, 3, 17, 100, 900, 4000}[rng.IntN(7)]
		d := map[string]api.TensorData{"target_tokens": {Ints: make([]int64, n), Shape: []int{n}}}
		if i%5 == 4 && n%2 == 0 { // two targets at each position
			d["target_tokens"] = api.TensorData{Ints: make([]int64, n), Shape: []int{n / 2, 2}}
		}
		for _, x := range m.meta.Inputs {
			if x.Like != "" {
				d[x.Name] = api.TensorData{Floats: exact(n), Shape: d["target_tokens"].Shape}
			}
		}
		in.Data = append(in.Data, api.Datum{LossInputs: d})
		in.LogProbs = append(in.LogProbs, exact(n))
	}
	return in
}

// TestCutsAndWorkers: weights are the same bits however a batch is cut, and everything is the same bits on any number of instances.
func TestCutsAndWorkers(t *testing.T) {
	h := openHost(t, Options{Limits: Limits{Calls: 8}})
	for _, binary := range [][]byte{crossEntropy().build(), dpo().build()} {
		m := load(t, h, binary)
		in := raggedInput(m, 120)
		eval := func(o evalOptions) loss.Output { return must(m.eval(context.Background(), in, o)) }
		whole := eval(evalOptions{workers: 1, elements: 1 << 30})
		if whole.Metrics["plugin/calls:sum"] != 1 {
			t.Fatal("the whole batch was cut")
		}
		for _, elements := range []int{1, 500, 5000, chunkElements} {
			one := eval(evalOptions{workers: 1, elements: elements})
			if !sameBits(one.Weights, whole.Weights) {
				t.Errorf("%s: chunks of %d: other weights than unchunked", m, elements)
			}
			for name, v := range whole.Metrics {
				if !strings.HasPrefix(name, "plugin/") && math.Abs(one.Metrics[name]-v) > 1e-12*math.Abs(v) {
					t.Errorf("%s: chunks of %d: %s is %v, unchunked %v", m, elements, name, one.Metrics[name], v)
				}
			}
			if m.meta.Scope == ScopeDatum && one.Metrics["loss:sum"] != whole.Metrics["loss:sum"] {
				t.Errorf("%s: chunks of %d: loss %v, unchunked %v", m, elements, one.Metrics["loss:sum"], whole.Metrics["loss:sum"])
			}
			for _, workers := range []int{2, 8} {
				if got := eval(evalOptions{workers: workers, elements: elements}); !sameBits(got.Weights, one.Weights) || !maps.Equal(got.Metrics, one.Metrics) {
					t.Errorf("%s: chunks of %d on %d instances: %v, on one %v", m, elements, workers, got.Metrics, one.Metrics)
				}
			}
		}
	}
}

// TestEngines: compiler and interpreter give the same bits and use the same fuel, and a second call gives those of the first.
func TestEngines(t *testing.T) {
	compiler, interpreter := openHost(t, Options{}), openHost(t, Options{Interpreter: true})
	for _, binary := range [][]byte{crossEntropy().build(), dpo().build()} {
		a, b := load(t, compiler, binary), load(t, interpreter, binary)
		in := raggedInput(a, 20)
		x := must(a.Loss().Eval(context.Background(), in))
		again := must(a.Loss().Eval(context.Background(), in))
		y := must(b.Loss().Eval(context.Background(), in))
		for _, o := range []loss.Output{again, y} {
			if !sameBits(x.Weights, o.Weights) || !maps.Equal(x.Metrics, o.Metrics) {
				t.Errorf("%s: %v and %v", a, x.Metrics, o.Metrics)
			}
		}
		ra, rb := a.Report(), b.Report()
		if ra.StartFuel != rb.StartFuel || ra.Error != rb.Error {
			t.Errorf("reports differ: %+v, %+v", ra, rb)
		}
	}
}

// TestUnmetered: the rewritten module computes what the original does, in wazero without a host of ours.
func TestUnmetered(t *testing.T) {
	h := openHost(t, Options{})
	for _, g := range []*guest{crossEntropy(), dpo()} {
		binary := g.build()
		m := load(t, h, binary)
		in := raggedInput(m, 10)
		want := must(m.Loss().Eval(context.Background(), in))

		ctx := context.Background()
		mod := must(h.rt.InstantiateModule(ctx, must(h.rt.CompileModule(ctx, binary)), h.config))
		b := must(m.meta.input(in))
		c := m.meta.cut(b, 1<<30)[0]
		l := must(m.meta.plan(b, &c))
		at := uint32(must(mod.ExportedFunction(exportAlloc).Call(ctx, uint64(l.total)))[0])
		view, _ := mod.Memory().Read(at, uint32(l.total))
		l.fill(view, b, &c)
		if status := must(mod.ExportedFunction(exportCall).Call(ctx, uint64(at), uint64(l.total)))[0]; status != 0 {
			t.Fatalf("status %d", status)
		}
		view, _ = mod.Memory().Read(at, uint32(l.total))
		off := l.weights
		for i, w := range want.Weights {
			if got, ok := takeFloats(view[off:][:4*len(w)], math.Float32bits(1e6)); !ok || !sameBits([][]float32{got}, [][]float32{w}) {
				t.Fatalf("%s: datum %d: other weights", m, i)
			}
			off += 4 * len(w)
		}
		var res result
		if err := m.read(&res, view, l, &batch{evaluate: true}, &c, nil); err != nil || res.loss != want.Metrics["loss:sum"] {
			t.Errorf("%s: loss %v, metered %v (%v)", m, res.loss, want.Metrics["loss:sum"], err)
		}
	}
}

// TestGroups: a group is never cut, and chunks number theirs from 0.
func TestGroups(t *testing.T) {
	const meta = `{"name":"g","version":"1","scope":"group","grouping":{"by":"input","name":"id"},"inputs":[{"name":"id","dtype":"int64","shape":[1]}]}`
	m := must(parseMeta([]byte(meta)))
	for _, ids := range [][]int64{{5, 5, 9, 9, 9, 2}, {1, 2, 1, 2, 3, 4, 4}, {1, 2, 3, 4, 1}, {7}, {1, 2, 3}, {3, 3, 1, 2, 1, 2, 8, 8}} {
		var data []api.Datum
		for _, id := range ids {
			data = append(data, api.Datum{LossInputs: map[string]api.TensorData{"id": api.Ints([]int64{id}), "target_tokens": api.Ints(make([]int64, 10))}})
		}
		b := must(m.prepare(data, nil, nil))
		for _, most := range []int{1, 10, 25, 1000} {
			at, groups := 0, 0
			where := map[int64]int{}
			for i, c := range m.cut(b, most) {
				if c.index != i || c.lo != at || c.hi <= c.lo || c.elems != 10*(c.hi-c.lo) || int(c.first) != groups {
					t.Fatalf("%v cut at %d: chunk %+v", ids, most, c)
				}
				seen := map[uint32]bool{}
				for j := c.lo; j < c.hi; j++ {
					if old, met := where[ids[j]]; met && old != i {
						t.Fatalf("%v cut at %d: group %d is in chunks %d and %d", ids, most, ids[j], old, i)
					}
					where[ids[j]] = i
					seen[b.groups[j]-c.first] = true
					if b.groups[j]-c.first >= uint32(c.groups) {
						t.Fatalf("%v cut at %d: group number %d of %d", ids, most, b.groups[j]-c.first, c.groups)
					}
				}
				if len(seen) != c.groups {
					t.Fatalf("%v cut at %d: %d groups, wanted %d", ids, most, len(seen), c.groups)
				}
				at, groups = c.hi, groups+c.groups
			}
			if at != len(ids) || groups != b.nGroups {
				t.Fatalf("%v cut at %d: %d datums, %d groups", ids, most, at, groups)
			}
		}
	}
}

// TestEvaluateOnly: a forward without backward asks for no weights, and gets the same metrics.
func TestEvaluateOnly(t *testing.T) {
	h := openHost(t, Options{})
	m := load(t, h, dpo().build())
	in := raggedInput(m, 12)
	want := must(m.Loss().Eval(context.Background(), in))
	in.ValueOnly = true
	got := must(m.Loss().Eval(context.Background(), in))
	if !maps.Equal(got.Metrics, want.Metrics) || got.Weights != nil {
		t.Errorf("got %+v, with weights %v", got, want.Metrics)
	}
	flag := newGuest(crossEntropyMeta)
	flag.call = join(honest(), get(0), get(0), mem(i32Load, offFlags), op(0xb8), mem(f64Store, offOutLoss), ic(0))
	flag.locals = crossEntropy().locals
	f := load(t, h, flag.build())
	in = ordinary(t, f)
	in.ValueOnly = true
	if out := must(f.Loss().Eval(context.Background(), in)); out.Metrics["loss:sum"] != flagEvaluate {
		t.Errorf("the plugin saw flags %v", out.Metrics["loss:sum"])
	}
}

// TestLanes: a small batch does not wait for large ones.
func TestLanes(t *testing.T) {
	h := openHost(t, Options{Limits: Limits{Calls: 1}})
	m := load(t, h, crossEntropy().build())
	h.running <- struct{}{} // a large batch runs
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := m.Loss().Eval(ctx, raggedInput(m, 3)); err != nil {
		t.Error(err)
	}
	quit, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := m.Loss().Eval(quit, raggedInput(m, 120)); api.CodeOf(err) != api.Cancelled {
		t.Errorf("another large batch: %v", err)
	}
	<-h.running
}
