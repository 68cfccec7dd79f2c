package cpu

import (
	"fmt"
	"math/rand/v2"
	"runtime"
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

// now reads the clock: processor time of this thread where there are no other threads, else time.
func (r *rig) now() time.Duration {
	if r.dev.pool.threads() == 1 {
		return threadTime()
	}
	return time.Duration(time.Now().UnixNano())
}

// best runs f for a while and returns the shortest time of one call.
func (b *bench) best(f func() error) time.Duration {
	runtime.LockOSThread() // the clock is this thread's
	defer runtime.UnlockOSThread()
	shortest := time.Duration(1 << 62)
	b.b.ResetTimer()
	for b.b.Loop() {
		start := b.now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		shortest = min(shortest, b.now()-start)
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

// BenchmarkAttention counts the work of the causal triangle: 2 products forward, 5 backward.
func BenchmarkAttention(b *testing.B) {
	for _, threads := range []int{1, 2} {
		for _, s := range []struct{ seqs, n, heads, kvHeads, c int }{{16, 80, 4, 2, 32}, {2, 512, 16, 8, 128}, {1, 2048, 4, 2, 128}} {
			r := newBench(b, threads)
			t := s.seqs * s.n
			q, k := s.heads*s.c, s.kvHeads*s.c
			f := kernels.AttentionArgs{O: r.tensor(t, q), LSE: r.tensor(t, s.heads), Q: r.tensor(t, q), K: r.tensor(t, k), V: r.tensor(t, k),
				Heads: s.heads, KVHeads: s.kvHeads, Scale: 0.1}
			for i := range s.seqs {
				f.Seqs = append(f.Seqs, kernels.Seq{Begin: i * s.n, End: (i + 1) * s.n, KV: i * s.n})
			}
			g := kernels.AttentionBackwardArgs{DQ: r.tensor(t, q), DK: r.tensor(t, k), DV: r.tensor(t, k), DO: r.tensor(t, q), O: f.O, LSE: f.LSE,
				Q: f.Q, K: f.K, V: f.V, Seqs: f.Seqs, Heads: s.heads, KVHeads: s.kvHeads, Scale: 0.1}
			work := 2 * float64(s.seqs*s.heads*s.c) * float64(s.n) * float64(s.n+1) / 2
			name := fmt.Sprintf("t%d/%dx%d/H=%d/C=%d", threads, s.seqs, s.n, s.heads, s.c)
			b.Run("forward/"+name, func(b *testing.B) {
				r.b = b
				r.gflops(2*work, func() error { return r.ops.Attention(f) })
			})
			b.Run("backward/"+name, func(b *testing.B) {
				r.b = b
				r.gflops(5*work, func() error { return r.ops.AttentionBackward(g) })
			})
		}
	}
}

// BenchmarkHead counts the base products: 1 forward, 2 backward.
func BenchmarkHead(b *testing.B) {
	for _, threads := range []int{1, 2} {
		for _, s := range []struct{ t, v, d int }{{1280, 320, 128}, {256, 32768, 1024}, {1, 32768, 1024}} {
			r := newBench(b, threads)
			f := kernels.LogProbsArgs{Out: r.tensor(s.t, 1), LSE: r.tensor(s.t), H: r.tensor(s.t, s.d), W: r.weight(kernels.BF16, s.d, s.v),
				Target: r.ints(s.t, s.v).Reshape(s.t, 1)}
			g := kernels.LogProbsBackwardArgs{DH: r.tensor(s.t, s.d), DOut: r.tensor(s.t, 1), LSE: f.LSE, H: f.H, W: f.W, Target: f.Target}
			work := 2 * float64(s.t) * float64(s.v) * float64(s.d)
			name := fmt.Sprintf("t%d/T=%d/V=%d/D=%d", threads, s.t, s.v, s.d)
			b.Run("forward/"+name, func(b *testing.B) {
				r.b = b
				r.gflops(work, func() error { return r.ops.LogProbs(f) })
			})
			b.Run("backward/"+name, func(b *testing.B) {
				r.b = b
				r.gflops(2*work, func() error { return r.ops.LogProbsBackward(g) })
			})
		}
	}
}
