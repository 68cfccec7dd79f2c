package cpu

import (
	"math"

	"tinkerlocal/kernels"
)

// AdamW and the norm it is clipped by.

// AdamW is one step in float32; its scalars are formed in float64 and rounded once, as torch does. Each element:
//
//	g *= scale;  p *= 1 - lr*decay
//	m += (g-m)*(1-beta1);  v = v*beta2 + ((1-beta2)*g)*g
//	p += (-lr/(1-beta1^t) * m) / (sqrt(v)/sqrt(1-beta2^t) + eps);  g = 0
func (o *ops) AdamW(a kernels.AdamWArgs) error {
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	if err := o.own("adamw", a.P, a.G, a.M, a.V); err != nil {
		return err
	}
	t := o.flat(adamRows, a.P.Len())
	t.a, t.b, t.c, t.d = floats(a.P), floats(a.G), floats(a.M), floats(a.V)
	t.coef = [8]float32{
		float32(a.GradScale), float32(1 - float64(a.LR*a.WeightDecay)), float32(1 - a.Beta1), float32(a.Beta2), float32(1 - a.Beta2),
		float32(-a.LR / (1 - power(a.Beta1, a.Step))), float32(math.Sqrt(1 - power(a.Beta2, a.Step))), float32(a.Eps),
	}
	o.runRows(chunk)
	return nil
}

func adamRows(t *rowsTask, wk *worker, r0, r1 int) {
	i, n := t.span(r0, r1)
	wk.vec.adamw(&t.a[i], &t.b[i], &t.c[i], &t.d[i], uintptr(n), &t.coef)
}

// power is x^n for n >= 0 by repeated squaring: the same bits everywhere (the conversions forbid fused products).
func power(x float64, n int64) float64 {
	r := 1.0
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			r = float64(r * x)
		}
		x = float64(x * x)
	}
	return r
}

// sumsTask sums pieces of a fixed 64 Ki elements into partial sums.
type sumsTask struct {
	x       []float32
	partial []float64
}

const sumPiece = 1 << 16

func (t *sumsTask) run(wk *worker, i int) {
	x := t.x[i*sumPiece : min((i+1)*sumPiece, len(t.x))]
	t.partial[i] = wk.vec.sumSq64(&x[0], uintptr(len(x)))
}

// SumSquares: pieces of 65536 elements, each in the variant's order, then their sums in ascending order, all float64.
func (o *ops) SumSquares(x kernels.Tensor) (float64, error) {
	if err := kernels.CheckSumSquares(x, kernels.F32); err != nil {
		return 0, err
	}
	if err := o.own("sumsquares", x); err != nil {
		return 0, err
	}
	all, total := floats(x), 0.0
	for len(all) > 0 {
		part := all[:min(len(all), maxPieces*sumPiece)]
		all = all[len(part):]
		n := ceilDiv(len(part), sumPiece)
		if len(o.sums.partial) < n {
			o.sums.partial = make([]float64, n)
		}
		o.sums.x = part
		o.pool.run(&o.sums, n)
		for _, s := range o.sums.partial[:n] {
			total += s
		}
	}
	return total, nil
}
