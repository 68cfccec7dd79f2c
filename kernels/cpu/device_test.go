package cpu

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"tinkerlocal/kernels"
)

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Threads: -1}, "threads is -1"},
		{Options{Threads: 1 << 20}, "wanted 0..1024"},
		{Options{MemoryLimit: -1}, "memory limit is -1"},
		{Options{Variant: "sse"}, `variant "sse"`},
	} {
		if _, err := Open(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, wanted an error with %q", c.o, err, c.want)
		}
	}
}

func TestMemory(t *testing.T) {
	d, err := Open(Options{MemoryLimit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b, err := d.Alloc(1 << 19)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Alloc(1<<19 + 1)
	if !errors.Is(err, kernels.ErrMemory) || !strings.Contains(err.Error(), "wanted 524289 bytes, free 524288") {
		t.Errorf("over the limit: got %v", err)
	}
	if _, err := d.Pack([]kernels.Matrix{{Rows: 1024, Cols: 256, DType: kernels.BF16, Data: make([]byte, 1<<19)}}, kernels.F32); !errors.Is(err, kernels.ErrMemory) {
		t.Errorf("pack over the limit: got %v", err)
	}
	d.Free(b)
	d.Free(b)
	if free := d.Info().Free; free != 1<<20 {
		t.Errorf("after free twice: %d bytes free, wanted all", free)
	}
	big, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer big.Close()
	for _, n := range []int64{-1, 1 << 50, math.MaxInt64} {
		if _, err := big.Alloc(n); err == nil {
			t.Errorf("alloc of %d bytes did not fail", n)
		}
	}
}

// TestFreedMemory: a device that has freed much asks the Go runtime to give it back to the system, so that Info's Free is true.
func TestFreedMemory(t *testing.T) {
	d, err := Open(Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	kept := func() int64 { // by the Go runtime: in use, garbage, or free but not given back
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapSys - m.HeapReleased)
	}
	d.limbo = 48 << 20
	for _, size := range []int64{32 << 20, 64 << 20} { // too little to be worth it; enough
		debug.FreeOSMemory()
		before := kept()
		b, err := d.Alloc(size)
		if err != nil {
			t.Fatal(err)
		}
		d.Free(b)
		d.Info()
		if left := kept() - before; (left > 16<<20) != (size < d.limbo) {
			t.Errorf("%d bytes were freed, %d of them are not given back", size, left)
		}
		d.freed.Store(0)
	}
}

func TestClosed(t *testing.T) {
	before := runtime.NumGoroutine()
	d, err := Open(Options{Threads: 3})
	if err != nil {
		t.Fatal(err)
	}
	x, err := kernels.NewTensor(d, kernels.F32, 8)
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	d.Close()
	if err := d.Ops().Add(x, x, x); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("op on a closed device: got %v", err)
	}
	if _, err := d.Alloc(8); err == nil {
		t.Error("alloc on a closed device did not fail")
	}
	for i := 0; runtime.NumGoroutine() > before; i++ {
		if i > 100 {
			t.Fatalf("%d goroutines, %d before open", runtime.NumGoroutine(), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// countTask notes who did which piece.
type countTask struct{ seen []int }

func (c *countTask) run(_ *worker, i int) {
	c.seen[i]++
	if i == 1000 {
		panic("planted")
	}
}

// TestPool runs many small tasks with pauses in which the helpers fall asleep, and one that panics.
func TestPool(t *testing.T) {
	p := newPool(4, &portable)
	defer p.close()
	for round := range 3000 {
		c := &countTask{make([]int, 1+round%17)}
		p.run(c, len(c.seen))
		for i, n := range c.seen {
			if n != 1 {
				t.Fatalf("round %d: piece %d ran %d times", round, i, n)
			}
		}
		if round%300 == 0 {
			time.Sleep(2 * time.Millisecond)
		}
	}
	c := &countTask{make([]int, 2000)}
	func() {
		defer func() {
			if v := recover(); v != "planted" {
				t.Errorf("recovered %v, wanted the piece's panic", v)
			}
		}()
		p.run(c, len(c.seen))
	}()
	for i, n := range c.seen {
		if n != 1 {
			t.Fatalf("piece %d ran %d times", i, n)
		}
	}
}

// TestExp holds both variants to 2 ulp, over all of the range and densely near zero.
func TestExp(t *testing.T) {
	for _, v := range Variants() {
		vec := vectorsOf(v)
		x := make([]float32, 1024)
		in := make([]float32, len(x))
		worst := 0.0
		for block := range 2000 {
			for i := range x {
				f := float32(block*len(x)+i) / (2000 * 1024)
				in[i] = -87 + 175*f
				if block%2 == 1 {
					in[i] = -f
				}
			}
			copy(x, in)
			vec.expScale(&x[0], uintptr(len(x)), 0, 1)
			for i, got := range x {
				want := math.Exp(float64(in[i]))
				ulp := float64(math.Nextafter32(float32(want), 2*float32(want)) - float32(want))
				worst = max(worst, math.Abs(float64(got)-want)/ulp)
			}
		}
		t.Logf("%s: %.2f ulp", v, worst)
		if worst > 2 {
			t.Errorf("%s: exp is off by %.2f ulp", v, worst)
		}
		edges := []float32{float32(math.Inf(-1)), -1e9, -87.34, float32(math.NaN()), 0, 0, 0, 0, 0}
		vec.expScale(&edges[0], uintptr(len(edges)), 0, 1)
		for i, want := range []float32{0, 0, 0, float32(math.NaN()), 1, 1, 1, 1, 1} {
			if edges[i] != want && (want == want || edges[i] == edges[i]) {
				t.Errorf("%s: exp of edge %d is %v, wanted %v", v, i, edges[i], want)
			}
		}
	}
	for _, x := range []float64{1e-300, 0.1, 0.7071, 1, 1.5, 2, 10, 12345.678, 1e300} {
		if got, want := ln(x), math.Log(x); math.Abs(got-want) > 4e-16*max(1, math.Abs(want)) {
			t.Errorf("ln(%g) is %v, wanted %v", x, got, want)
		}
	}
}

// TestPortableBits pins the portable variant: one number for a forward, backward and step of a small stack, the same on every architecture
// (GOAMD64=v3 lets the compiler fuse products on amd64 as it does on arm64, so it shows a product that may be fused).
func TestPortableBits(t *testing.T) {
	const want = "2e6325e5af4e0ba8"
	sum := sha256.New()
	for _, threads := range []int{1, 2} {
		d, err := Open(Options{Variant: "portable", Threads: threads})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		s := newStack(newRig(t, d), 3, 21)
		s.step()
		l := s.gu.spans[0].LoRA
		a := kernels.AdamWArgs{P: l.A, G: l.DA, M: s.moment(l.A), V: s.moment(l.A), LR: 1e-3, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, WeightDecay: 0.1, GradScale: 0.5, Step: 3}
		if err := s.ops.AdamW(a); err != nil {
			t.Fatal(err)
		}
		sum.Reset()
		for _, x := range []kernels.Tensor{s.x, s.out, s.dx, s.dqkv, l.A, l.DB, s.qkv.spans[0].LoRA.DA, s.head.spans[0].LoRA.DB} {
			for _, v := range floats(x) {
				fmt.Fprintf(sum, "%08x", math.Float32bits(v))
			}
		}
		if got := hex.EncodeToString(sum.Sum(nil))[:16]; got != want {
			t.Errorf("%d threads: bits %s, wanted %s", threads, got, want)
		}
	}
}
