package cpu

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tinkerlocal/kernels"
)

// rig is a device with random tensors at hand.
type rig struct {
	testing.TB
	dev *Device
	ops kernels.Ops
	rng *rand.Rand
}

func newRig(tb testing.TB, dev *Device) *rig {
	return &rig{tb, dev, dev.Ops(), rand.New(rand.NewPCG(1, 2))}
}

func (r *rig) tensor(shape ...int) kernels.Tensor {
	t, err := kernels.NewTensor(r.dev, kernels.F32, shape...)
	if err != nil {
		r.Fatal(err)
	}
	v := floats(t)
	for i := range v {
		v[i] = r.random() * 0.4
	}
	return t
}

// random is a number in [-0.5, 0.5), made by exact arithmetic.
func (r *rig) random() float32 { return float32(r.rng.Uint32()>>8)/(1<<24) - 0.5 }

func (r *rig) ints(n, limit int) kernels.Tensor {
	t, err := kernels.NewTensor(r.dev, kernels.I32, n)
	if err != nil {
		r.Fatal(err)
	}
	v := ints(t)
	for i := range v {
		v[i] = int32(r.rng.IntN(limit))
	}
	return t
}

func (r *rig) weight(store kernels.DType, k int, rows ...int) kernels.Weight {
	var parts []kernels.Matrix
	for _, n := range rows {
		data := make([]byte, 2*n*k)
		for i := range n * k {
			w := kernels.F32ToBF16(r.random() * 0.2)
			data[2*i], data[2*i+1] = byte(w), byte(w>>8)
		}
		parts = append(parts, kernels.Matrix{Rows: n, Cols: k, DType: kernels.BF16, Data: data})
	}
	w, err := r.dev.Pack(parts, store)
	if err != nil {
		r.Fatal(err)
	}
	return w
}

// bench is a rig with a clock.
type bench struct {
	*rig
	b *testing.B
}

func newBench(b *testing.B, threads int) *bench {
	dev, err := Open(Options{Threads: threads})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { dev.Close() })
	return &bench{newRig(b, dev), b}
}

// best runs f for a while and returns the shortest time of one call.
func (b *bench) best(f func() error) time.Duration {
	shortest := time.Duration(1 << 62)
	b.b.ResetTimer()
	for b.b.Loop() {
		start := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		shortest = min(shortest, time.Since(start))
	}
	return shortest
}

// gflops reports the best call's rate and its share of what the threads' registers can do, measured now.
func (b *bench) gflops(flop float64, f func() error) {
	took := b.best(f)
	rate := flop / took.Seconds() / 1e9
	b.b.ReportMetric(rate, "GFLOP/s")
	b.b.ReportMetric(float64(took.Nanoseconds())/1e3, "µs-best")
	if p := peakRate(); p > 0 {
		b.b.ReportMetric(100*rate/(p*float64(b.dev.pool.threads())), "%peak")
	}
}

var shapes = []struct{ m, n, k int }{
	{1, 1024, 1024}, {1, 4096, 1024}, {4, 1024, 1024}, {16, 1024, 1024}, {512, 1024, 1024}, {1600, 1024, 1024}, {512, 3072, 1024}, {512, 1024, 3072},
	{1, 768, 128}, {16, 768, 128}, {1300, 256, 128}, {1300, 768, 128}, {1300, 128, 384}, {1300, 320, 128},
}

func BenchmarkLinear(b *testing.B) {
	for _, threads := range []int{1, 2} {
		for _, store := range []kernels.DType{kernels.F32, kernels.BF16} {
			for _, s := range shapes {
				b.Run(fmt.Sprintf("t%d/%s/M=%d/N=%d/K=%d", threads, store, s.m, s.n, s.k), func(b *testing.B) {
					r := newBench(b, threads)
					a := kernels.LinearArgs{Y: r.tensor(s.m, s.n), X: r.tensor(s.m, s.k), W: r.weight(store, s.k, s.n)}
					r.gflops(2*float64(s.m)*float64(s.n)*float64(s.k), func() error { return r.ops.Linear(a) })
				})
			}
		}
	}
}

func BenchmarkLinearBackward(b *testing.B) {
	for _, threads := range []int{1, 2} {
		for _, s := range shapes {
			if s.m < 512 {
				continue
			}
			b.Run(fmt.Sprintf("t%d/M=%d/N=%d/K=%d", threads, s.m, s.n, s.k), func(b *testing.B) {
				r := newBench(b, threads)
				a := kernels.LinearBackwardArgs{DY: r.tensor(s.m, s.n), DX: r.tensor(s.m, s.k), W: r.weight(kernels.F32, s.k, s.n)}
				r.gflops(2*float64(s.m)*float64(s.n)*float64(s.k), func() error { return r.ops.LinearBackward(a) })
			})
		}
	}
}
