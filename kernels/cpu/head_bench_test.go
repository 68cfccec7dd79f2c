package cpu

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"tinkerlocal/kernels"
)

// plainSoftmax turns stored logits into their gradient.
type plainSoftmax struct {
	z, lse []float32
	target []int32
	vocab  int
}

func (p *plainSoftmax) run(wk *worker, t int) {
	row := p.z[t*p.vocab : (t+1)*p.vocab]
	wk.vec.expScale(&row[0], uintptr(p.vocab), p.lse[t], 1)
	row[p.target[t]]--
}

// BenchmarkHeadMemory compares the loss head, which never stores logits, with one that does: both forward and backward of T tokens
// with a weight each, by turns. MB are what one pass allocates for the first time, without weights, inputs and the gradient of the input.
func BenchmarkHeadMemory(b *testing.B) {
	for _, vocab := range []int{32768, 151936} {
		const tokens, hidden = 512, 1024
		b.Run(fmt.Sprintf("T=%d/V=%d/D=%d", tokens, vocab, hidden), func(b *testing.B) {
			r := newBench(b, 2)
			w, h, dh, dout := r.weight(kernels.BF16, hidden, vocab), r.tensor(tokens, hidden), r.tensor(tokens, hidden), r.tensor(tokens, 1)
			for i := range floats(dout) {
				floats(dout)[i] = 1
			}
			target := r.ints(tokens, vocab).Reshape(tokens, 1)
			check := func(err error) {
				if err != nil {
					b.Fatal(err)
				}
			}
			var out, lse, z, plainLSE kernels.Tensor
			fused := func() {
				if out.None() {
					out, lse = r.tensor(tokens, 1), r.tensor(tokens)
				}
				check(r.ops.LogProbs(kernels.LogProbsArgs{Out: out, LSE: lse, H: h, W: w, Target: target}))
				check(r.ops.LogProbsBackward(kernels.LogProbsBackwardArgs{DH: dh, DOut: dout, LSE: lse, H: h, W: w, Target: target}))
			}
			plain := func() {
				if z.None() {
					var err error
					z, err = kernels.NewTensor(r.dev, kernels.F32, tokens, vocab)
					check(err)
					plainLSE = r.tensor(tokens)
				}
				check(r.ops.Logits(kernels.LogitsArgs{Z: z, LSE: plainLSE, H: h, W: w}))
				r.dev.pool.run(&plainSoftmax{floats(z), floats(plainLSE), ints(target), vocab}, tokens)
				check(r.ops.LinearBackward(kernels.LinearBackwardArgs{DX: dh, DY: z, X: h, W: w}))
			}
			allocated := func(f func()) float64 {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				f()
				runtime.ReadMemStats(&after)
				return float64(after.TotalAlloc-before.TotalAlloc) / 1e6
			}
			fusedMB := allocated(fused) // first: what both need is counted against it
			want := append([]float32(nil), floats(dh)...)
			plainMB := allocated(plain)
			for i, v := range floats(dh) {
				if d := v - want[i]; d > 1e-4 || d < -1e-4 {
					b.Fatalf("dh[%d] is %v, with logits stored %v", i, want[i], v)
				}
			}
			var fusedTime, plainTime time.Duration
			for b.Loop() {
				begin := time.Now()
				fused()
				middle := time.Now()
				plain()
				fusedTime += middle.Sub(begin)
				plainTime += time.Since(middle)
			}
			b.ReportMetric(fusedMB, "MB")
			b.ReportMetric(plainMB, "MB-stored")
			b.ReportMetric(1e3*fusedTime.Seconds()/float64(b.N), "ms")
			b.ReportMetric(1e3*plainTime.Seconds()/float64(b.N), "ms-stored")
			b.ReportMetric(fusedTime.Seconds()/plainTime.Seconds(), "time-ratio")
		})
	}
}
