package plugins

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tinkerlocal/engine/loss"
)

// endless is a loop that does nothing.
func endless() []byte { return lop(br(0)) }

// limit is how a call ends that would not end by itself: its fuel is used up, or its time, when the machine is slow or the module makes it wait.
const limit = "limit"

// ends reports whether an error says what was wanted.
func ends(err error, want string) bool {
	if err == nil {
		return false
	}
	before, isLimit := strings.CutSuffix(want, limit)
	if !isLimit {
		return strings.Contains(err.Error(), want)
	}
	return strings.Contains(err.Error(), before+"it used more fuel than") || strings.Contains(err.Error(), before+"it took longer than")
}

// behaviours are what a hostile module does inside a function of its choice. Each gets the guest to add what it needs to, and
// returns the code; what says how the host must describe the end.
var behaviours = []struct {
	name, want string
	code       func(g *guest) []byte
}{
	{"spin", limit, func(*guest) []byte { return endless() }},
	{"spin in a call", limit, func(g *guest) []byte { return call1(g.fn("", "", "", endless())) }},
	{"spin over vectors", limit, func(g *guest) []byte {
		f := g.fn("", "", "\x7b", lop(get(0), get(0), vec(0xf3), get(0), vec(0xf3), vec(0xef), set(0), br(0)))
		return call1(f)
	}},
	{"spin with divisions", limit, func(g *guest) []byte {
		return call1(g.fn("", "", i64, lc(3), set(0), lop(lc(math.MaxInt64), get(0), op(0x7f), set(0), lc(3), set(0), br(0))))
	}},
	{"loads from everywhere", limit, func(g *guest) []byte {
		return call1(g.fn("", "", i32, ic(40), op(opMemoryGrow, 0), op(drop),
			lop(get(0), ic(1664525), op(i32Mul), ic(1013904223), op(i32Add), tee(0), ic(8), op(i32ShrU), ic(0x1fffff), op(i32And), mem(i32Load, 0), get(0), op(i32Add), set(0), br(0))))
	}},
	{"loads that wait for each other", limit, func(g *guest) []byte {
		// All the memory there can be as a list of nodes of 256 bytes, in an order that no cache foresees; then a walk along it, of which each step costs
		// one unit of fuel and the time of a miss.
		g.pages = 4096
		next := join(get(0), ic(1664525), op(i32Mul), ic(1013904223), op(i32Add), ic(1<<20-1), op(i32And), ic(8), op(i32Shl))
		return call1(g.fn("", "", i32,
			lop(get(0), ic(8), op(i32Shl), next, mem(i32Store, 96), get(0), ic(1), op(i32Add), tee(0), ic(1<<20), op(i32LtU), brIf(0)),
			ic(0), set(0),
			lop(get(0), bytes.Repeat(mem(i32Load, 96), 100), set(0), br(0))))
	}},
	{"call tree", limit, func(g *guest) []byte {
		f := g.fn("", "", "")
		for range 40 {
			f = g.fn("", "", "", call1(f), call1(f))
		}
		return call1(f)
	}},
	{"bulk fill", limit, func(*guest) []byte {
		one := join(ic(0), ic(1), ic(128<<10), misc1(miscMemoryFill), op(0))
		return lop(bytes.Repeat(one, 400), br(0))
	}},
	{"bulk copy", limit, func(*guest) []byte {
		return lop(ic(0), ic(8), ic(100<<10), misc1(miscMemoryCopy), op(0, 0), br(0))
	}},
	{"bulk copy of all memory", limit, func(g *guest) []byte {
		g.pages = 4096
		return lop(ic(128<<20), ic(128<<10), ic(127<<20), misc1(miscMemoryCopy), op(0, 0), br(0))
	}},
	{"bulk init", limit, func(g *guest) []byte {
		g.data = append(g.data, join([]byte{1}, appendSized(nil, make([]byte, 64<<10)))) // passive
		n := byte(len(g.data) - 1)
		return lop(ic(0), ic(0), ic(64<<10), misc1(miscMemoryInit), op(n, 0), br(0))
	}},
	{"table fill", limit, func(g *guest) []byte {
		g.tables = append(g.tables, join(op(0x70, 0), appendU32(nil, 90_000)))
		return lop(ic(0), op(0xd0, 0x70), ic(90_000), misc1(miscTableFill), op(0), br(0))
	}},
	{"table growth", limit, func(g *guest) []byte {
		g.tables = append(g.tables, op(0x70, 0, 0))
		return lop(op(0xd0, 0x70), ic(1<<30), misc1(miscTableGrow), op(0, drop), br(0))
	}},
	{"memory growth", limit, func(*guest) []byte { return lop(ic(1), op(opMemoryGrow, 0), op(drop), br(0)) }},
	{"huge growth", limit, func(*guest) []byte { return lop(ic(-1), op(opMemoryGrow, 0), op(drop), br(0)) }},
	{"recursion", "nested too deeply", func(g *guest) []byte {
		self := uint32(len(g.imports) + len(g.funcs))
		return call1(g.fn("", "", "", call1(self)))
	}},
	{"recursion with large frames", "nested too deeply", func(g *guest) []byte {
		self := uint32(len(g.imports) + len(g.funcs))
		var live, use []byte
		for i := range 2000 {
			live = append(live, join(get(i%100), op(f64Sqrt))...)
		}
		use = bytes.Repeat(op(f64Add), 1999)
		f := g.fn("", f64, strings.Repeat(f64, 100), live, call1(self), set(0), use)
		return join(call1(f), op(drop))
	}},
	{"recursion by a table", "nested too deeply", func(g *guest) []byte {
		g.tables = append(g.tables, op(0x70, 0, 1))
		t := byte(g.typ("", ""))
		f := g.fn("", "", "", ic(0), op(opCallIndirect, t, 0))
		g.elems = append(g.elems, join(op(0), ic(0), op(opEnd), vector([][]byte{appendU32(nil, f)})))
		return call1(f)
	}},
	{"unreachable", "unreachable", func(*guest) []byte { return op(unreachable) }},
	{"store out of bounds", "out of bounds", func(*guest) []byte { return join(ic(-4), ic(1), mem(i32Store, 0)) }},
	{"division by zero", "divide by zero", func(*guest) []byte { return join(ic(1), ic(0), op(0x6d, drop)) }},
	{"conversion", "invalid conversion", func(*guest) []byte { return join(dc(math.NaN()), op(0xaa, drop)) }},
	{"abort", "it aborted: enough of this", func(g *guest) []byte {
		g.segment(256, []byte("enough\x1bof this"))
		return join(ic(256), ic(14), call1(hostAbortIndex))
	}},
	{"log flood", limit, func(g *guest) []byte { return lop(ic(3), ic(1024), ic(1<<30), call1(hostLogIndex), br(0)) }},
	{"write flood", limit, func(g *guest) []byte {
		for i := range 1024 {
			g.segment(4096+8*i, op(0, 0, 0, 0, 0, 0x80, 0, 0)) // 32 KiB from 0
		}
		return lop(ic(1), ic(4096), ic(1024), ic(0), call1(fdWriteIndex), op(drop), br(0))
	}},
	{"random flood", limit, func(*guest) []byte { return lop(ic(0), ic(64<<10), call1(randomIndex), op(drop), br(0)) }},
	{"exit", "exited with code 7", func(*guest) []byte { return join(ic(7), call1(procExitIndex)) }},
}

const f64Sqrt = 0x9f

// Imports of a hostile guest.
const (
	hostLogIndex = iota
	hostAbortIndex
	fdWriteIndex
	randomIndex
	procExitIndex
)

func hostileGuest(call ...[]byte) *guest {
	g := newGuest(crossEntropyMeta, call...)
	g.imp("loss_host", "log", i32+i32+i32, "")
	g.imp("loss_host", "abort", i32+i32, "")
	g.imp("wasi_snapshot_preview1", "fd_write", i32+i32+i32+i32, i32)
	g.imp("wasi_snapshot_preview1", "random_get", i32+i32, i32)
	g.imp("wasi_snapshot_preview1", "proc_exit", i32, "")
	return g
}

// honest copies the weights and says 0.
func honest() []byte {
	ce := crossEntropy()
	return ce.call[:len(ce.call)-len(oneMetric(len("ce/tokens:sum"), 6, get(0), mem(i32Load, offElems), op(0xb8)))-len(ic(0))]
}

// onlyLarge runs code in calls of more than 1000 log-probabilities, and is honest in all others.
func onlyLarge(code []byte) []byte {
	return join(honest(), get(0), mem(i32Load, offElems), ic(1000), op(0x4b), iff(code), ic(0))
}

// promptly wants f to end in half a second, while the garbage collector runs and another plugin answers. On a machine that is busy with other
// things, the best of some tries counts.
func promptly(t *testing.T, other *Module, f func()) {
	t.Helper()
	var took time.Duration
	for range patience {
		if took = meanwhile(t, other, f); took <= 500*time.Millisecond || !timed {
			return
		}
	}
	t.Errorf("took %v, wanted at most half a second", took)
}

const patience = 6

// meanwhile runs f beside a garbage collector and another plugin.
func meanwhile(t *testing.T, other *Module, f func()) time.Duration {
	t.Helper()
	b, err := other.madeUp(4, 100, true)
	if err != nil {
		t.Fatal(err)
	}
	in := loss.Input{Data: b.Data, LogProbs: b.LogProbs}
	var calls atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			runtime.GC()
			if _, err := other.Loss().Eval(context.Background(), in); err != nil {
				t.Errorf("another plugin, meanwhile: %v", err)
			}
			calls.Add(1)
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	start := time.Now()
	f()
	took := time.Since(start)
	close(stop)
	<-stopped
	if calls.Load() == 0 {
		t.Error("nothing else was served meanwhile")
	}
	runtime.GC()
	if _, err := other.Loss().Eval(context.Background(), in); err != nil {
		t.Errorf("another plugin, afterwards: %v", err)
	}
	return took
}

// ordinary is a batch of 64 datums of some 500 tokens.
func ordinary(t testing.TB, m *Module) loss.Input {
	t.Helper()
	b, err := m.madeUp(64, 511, true)
	if err != nil {
		t.Fatal(err)
	}
	return loss.Input{Data: b.Data, LogProbs: b.LogProbs, Config: b.Config}
}

// heapGrowth is how many bytes f allocates.
func heapGrowth(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestHostileCalls: whatever a module does in a call ends soon, in an error that says what it was: while it is checked when it always
// does it, and in a call when it waits for one.
func TestHostileCalls(t *testing.T) {
	h := openHost(t, Options{})
	other := load(t, h, crossEntropy().build())
	for _, x := range behaviours {
		t.Run(x.name, func(t *testing.T) {
			g := hostileGuest()
			g.call = join(x.code(g), ic(0))
			binary := g.build()
			promptly(t, other, func() {
				if _, err := h.Check(context.Background(), binary); !ends(err, x.want) {
					t.Errorf("check: got %v, wanted %q", err, x.want)
				}
			})
			g = hostileGuest()
			code := x.code(g)
			g.call, g.locals = onlyLarge(code), crossEntropy().locals
			m := load(t, h, g.build())
			defer m.Close()
			in := ordinary(t, m)
			promptly(t, other, func() {
				_, err := m.Loss().Eval(context.Background(), in)
				if !ends(err, x.want) {
					t.Errorf("call: got %v, wanted %q", err, x.want)
				} else if !strings.HasPrefix(err.Error(), "plugin ce 1.0.0 ("+m.Digest()[:12]+"): ") {
					t.Errorf("the error does not begin with the plugin: %v", err)
				}
			})
		})
	}
}

// TestHostilePhases: the same holds where a module runs before its first call.
func TestHostilePhases(t *testing.T) {
	h := openHost(t, Options{})
	other := load(t, h, crossEntropy().build())
	for _, c := range []struct {
		name, want string
		edit       func(g *guest)
	}{
		{"start function", "start: " + limit, func(g *guest) { g.start = int(g.fn("", "", "", endless())) }},
		{"initialize", "_initialize: " + limit, func(g *guest) { g.export(exportInitialize, g.fn("", "", "", endless())) }},
		{"version", "loss_abi_version: " + limit, func(g *guest) { g.version = join(endless(), ic(0)) }},
		{"describe", "loss_describe: " + limit, func(g *guest) { g.describe = join(endless(), lc(0)) }},
		{"alloc", "loss_alloc: " + limit, func(g *guest) { g.alloc = join(endless(), ic(0)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := hostileGuest(onlyLarge(nil))
			g.locals = crossEntropy().locals
			c.edit(g)
			binary := g.build()
			promptly(t, other, func() {
				if _, err := h.Check(context.Background(), binary); !ends(err, c.want) {
					t.Errorf("got %v, wanted %q", err, c.want)
				}
			})
		})
	}
}

// TestHostileMemory: a module has its memory, and the host's stack that its calls take is bounded as well.
func TestHostileMemory(t *testing.T) {
	h := openHost(t, Options{Limits: Limits{MemoryPages: 256, FuelBase: 1e9}})
	grow := hostileGuest()
	grow.call = join(lop(ic(1), op(opMemoryGrow, 0), ic(-1), op(0x47), brIf(0)), op(0x3f, 0), ic(256), op(0x47), iff(op(unreachable)), ic(0))
	if _, err := h.Check(context.Background(), grow.build()); err == nil || !strings.Contains(err.Error(), "loss is NaN") {
		t.Errorf("growing to the limit: %v", err) // it went through, and then gave no loss
	}
	for _, x := range behaviours {
		if !strings.HasPrefix(x.name, "recursion") {
			continue
		}
		g := hostileGuest()
		g.call = join(x.code(g), ic(0))
		binary := g.build()
		if n := heapGrowth(func() { h.Check(context.Background(), binary) }); n > 96<<20 {
			t.Errorf("%s: %d MiB of host memory", x.name, n>>20)
		}
	}
}

// TestFreshMemory: an instance finds nothing of another one's, though memory is used again.
func TestFreshMemory(t *testing.T) {
	h := openHost(t, Options{})
	g := newGuest(crossEntropyMeta)
	g.call = join(
		honest(),
		// Loss: whether any of the 40 pages that this call adds has a byte that is not zero. Then all are filled.
		ic(40), op(opMemoryGrow, 0), ic(16), op(i32Shl), set(2),
		get(2), set(3), ic(0), set(4),
		blk(lop(
			get(3), op(0x3f, 0), ic(16), op(i32Shl), op(i32GeU), brIf(1),
			get(4), get(3), mem(i32Load, 0), op(0x72), set(4), step(3, 4), br(0))),
		get(0), get(4), op(i32Eqz), op(i32Eqz), op(0xb8), mem(f64Store, offOutLoss),
		get(2), ic(0xff), ic(40<<16), misc1(miscMemoryFill), op(0),
		ic(0))
	g.locals = crossEntropy().locals
	m := load(t, h, g.build())
	for range 5 {
		out, err := m.Loss().Eval(context.Background(), raggedInput(m, 3))
		if err != nil || out.Metrics["loss:sum"] != 0 {
			t.Fatalf("%v, %v", out.Metrics, err)
		}
	}
	if len(h.memory.free) == 0 {
		t.Error("no memory was used again: the test shows nothing")
	}
}

// TestWatchdog: a context that ends, ends a call long before its fuel does.
func TestWatchdog(t *testing.T) {
	h := openHost(t, Options{Limits: Limits{FuelBase: 1e15}})
	for _, x := range behaviours {
		if x.want != limit {
			continue
		}
		t.Run(x.name, func(t *testing.T) {
			g := hostileGuest()
			code := x.code(g)
			g.call, g.locals = onlyLarge(code), crossEntropy().locals
			m := load(t, h, g.build())
			defer m.Close()
			in := ordinary(t, m)
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
			defer cancel()
			start := time.Now()
			_, err := m.Loss().Eval(ctx, in)
			if took := time.Since(start); err == nil || !strings.Contains(err.Error(), "deadline exceeded") || timed && took > patience*200*time.Millisecond {
				t.Errorf("after %v: %v", took, err)
			}
		})
	}
}

// TestCallTime: without a context of the caller's, the host's own clock ends a call.
func TestCallTime(t *testing.T) {
	h := openHost(t, Options{Limits: Limits{FuelBase: 1e15, CallTime: 50 * time.Millisecond, TimePerElement: time.Nanosecond}})
	g := hostileGuest(endless(), ic(0))
	if _, err := h.Check(context.Background(), g.build()); err == nil || !strings.Contains(err.Error(), "it took longer than the 50.000027ms that the call had") {
		t.Error(err)
	}
}

// TestHostileInterpreted: without a compiler, the same things end the same way.
func TestHostileInterpreted(t *testing.T) {
	h := openHost(t, Options{Interpreter: true, Limits: Limits{FuelBase: 1e7}})
	for _, x := range behaviours {
		g := hostileGuest()
		g.call = join(x.code(g), ic(0))
		want := x.want
		if want == limit {
			want = "it used more fuel than" // an interpreter has much time
		}
		if _, err := h.Check(context.Background(), g.build()); !ends(err, want) {
			t.Errorf("%s: got %v, wanted %q", x.name, err, want)
		}
	}
}

// TestHostileOutputs: what a module returns is held to the ABI before anything of it is used.
func TestHostileOutputs(t *testing.T) {
	h := openHost(t, Options{})
	put32 := func(off int, v int) []byte { return join(get(0), ic(v), mem(i32Store, off)) }
	loss := func(v float64) []byte { return join(get(0), dc(v), mem(f64Store, offOutLoss)) }
	weight := func(v float32) []byte { return join(outWeights(2), get(2), fc(v), mem(f32Store, 12)) }
	metric := func(name string, v float64) []byte { // at 512, put there by store
		code := []byte{}
		for i := range len(name) {
			code = append(code, join(ic(512+i), ic(int(name[i])), mem(0x3a, 0))...)
		}
		return join(code, oneMetric(len(name), 2, dc(v)))
	}
	status := func(v int, text string) []byte {
		code := join(get(0), mem(i32Load, offErrorAt), get(0), op(i32Add), set(2))
		for i := range len(text) {
			code = append(code, join(get(2), ic(int(text[i])), mem(0x3a, i))...)
		}
		return join(code, put32(offOutError, len(text)), ic(v), op(opReturn))
	}
	for _, c := range []struct {
		name, want string
		code       []byte
	}{
		{"no loss", "its loss is NaN, wanted a finite number", loss(math.NaN())},
		{"infinite loss", "its loss is -Inf", loss(math.Inf(-1))},
		{"NaN weight", "datum 0: weight 3 is NaN, wanted a number from -1e+06 to 1e+06", weight(float32(math.NaN()))},
		{"infinite weight", "weight 3 is +Inf", weight(float32(math.Inf(1)))},
		{"large weight", "weight 3 is -1.1e+06", weight(-1.1e6)},
		{"too many metrics", "returned 65 metrics, the limit is 64", put32(offOutMetrics, 65)},
		{"all the metrics there are", "returned 4294967295 metrics", put32(offOutMetrics, -1)},
		{"empty metrics", `metric ""`, put32(offOutMetrics, 3)},
		{"long metric name", "the name of its metric 0 has 49 bytes, the limit is 48", join(metric("a", 1), get(0), mem(i32Load, offMetricsAt), get(0), op(i32Add), ic(49), mem(i32Store, 8))},
		{"huge metric name", "has 4294967295 bytes", join(metric("a", 1), get(0), mem(i32Load, offMetricsAt), get(0), op(i32Add), ic(-1), mem(i32Store, 8))},
		{"metric name with two colons", `metric "a:b:sum"`, metric("a:b:sum", 1)},
		{"metric with an unknown reduction", `metric "a:median"`, metric("a:median", 1)},
		{"the host's metric", `metric "loss:sum" is the host's own`, metric("loss:sum", 1)},
		{"the host's metrics", `metric "plugin/fuel:sum" is the host's own`, metric("plugin/fuel:sum", 1)},
		{"status 2", "numerical failure: too small", status(2, "too small")},
		{"status 3", "failed with status 3: no", status(3, "no\n")},
		{"unknown status", "failed with status -5: (no text)", status(-5, "")},
		{"a lie about the error's length", "failed with status 9: ab", join(put32(offOutError, -1), status(9, "ab")[:len(status(9, "ab"))-len(join(put32(offOutError, 2), ic(9), op(opReturn)))], put32(offOutError, -1), ic(9), op(opReturn))},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGuest(crossEntropyMeta)
			g.call, g.locals = join(honest(), c.code, ic(0)), crossEntropy().locals
			if _, err := h.Check(context.Background(), g.build()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("check: got %v, wanted %q", err, c.want)
			}
			g = newGuest(crossEntropyMeta)
			g.call, g.locals = onlyLarge(c.code), crossEntropy().locals
			m := load(t, h, g.build())
			defer m.Close()
			in := ordinary(t, m)
			if out, err := m.Loss().Eval(context.Background(), in); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("call: got %v, wanted %q", err, c.want)
			} else if out.Weights != nil || out.Metrics != nil {
				t.Error("a failed call has a partial result")
			}
		})
	}

	t.Run("metrics that are not finite are dropped", func(t *testing.T) {
		g := newGuest(crossEntropyMeta)
		g.call, g.locals = join(honest(), metric("ok:max", math.Inf(1)), ic(0)), crossEntropy().locals
		m := load(t, h, g.build())
		defer m.Close()
		out, err := m.Loss().Eval(context.Background(), ordinary(t, m))
		if _, there := out.Metrics["ok:max"]; err != nil || there {
			t.Errorf("%v, %v", out.Metrics, err)
		}
	})

	t.Run("status 1 is the caller's", func(t *testing.T) {
		g := newGuest(crossEntropyMeta)
		g.call, g.locals = join(honest(), status(1, "weights must add up to one")), crossEntropy().locals
		m := load(t, h, g.build())
		defer m.Close()
		if w := fmt.Sprint(m.Report().Warnings); !strings.Contains(w, "the gradient is not checked on it: weights must add up to one") {
			t.Errorf("warnings: %s", w)
		}
		if _, err := m.Loss().Eval(context.Background(), ordinary(t, m)); !isInput(err) {
			t.Errorf("got %v", err)
		}
	})
}

// TestHostilePointers: the only pointers that the host takes from a guest are checked.
func TestHostilePointers(t *testing.T) {
	h := openHost(t, Options{})
	for _, c := range []struct {
		name, want string
		edit       func(g *guest)
	}{
		{"alloc 0", "loss_alloc has no", func(g *guest) { g.alloc = ic(0) }},
		{"alloc odd", "loss_alloc returned 65537, which is not a multiple of 16", func(g *guest) { g.alloc = ic(65537) }},
		{"alloc at the end", "loss_alloc returned 131056 for", func(g *guest) { g.alloc = ic(131072 - 16) }},
		{"alloc far outside", "loss_alloc returned 4294967280 for", func(g *guest) { g.alloc = ic(-16) }},
		{"describe outside", "outside its memory of 131072", func(g *guest) { g.describe = lc(131000<<32 | 100) }},
		{"describe far outside", "outside its memory", func(g *guest) { g.describe = lc(-1<<32 | 100) }},
		{"describe too long", "its metadata has 65537 bytes, the limit is 65536", func(g *guest) { g.describe = lc(65537) }},
		{"describe much too long", "its metadata has 4294967295 bytes", func(g *guest) { g.describe = lc(-1) }},
		{"describe nothing", "its metadata has 0 bytes", func(g *guest) { g.describe = lc(1024 << 32) }},
		{"major version", "it speaks version 2.0 of the ABI, this host 1.0", func(g *guest) { g.version = ic(2 << 16) }},
		{"minor version", "it speaks version 1.1", func(g *guest) { g.version = ic(1<<16 | 1) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := crossEntropy()
			c.edit(g)
			if _, err := h.Check(context.Background(), g.build()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, wanted %q", err, c.want)
			}
		})
	}
}
