package cpu

import (
	"math"

	"tinkerlocal/kernels"
)

// RMSNorm and its backward. The sum of squares of a row runs in the variant's fixed lanes (see the package comment).

// rstd is 1/sqrt(sum/n + eps), rounded once to float32 at the end.
func rstd(sum float32, n int, eps float32) float32 {
	return float32(1 / math.Sqrt(float64(sum)/float64(n)+float64(eps)))
}

// RMSNorm: y = (x*rstd)*g.
func (o *ops) RMSNorm(y, r, x, g kernels.Tensor, eps float32) error {
	if err := kernels.CheckRMSNorm(y, r, x, g, eps, kernels.F32); err != nil {
		return err
	}
	if err := o.own("rmsnorm", y, r, x, g); err != nil {
		return err
	}
	o.rows = rowsTask{f: normRows, rows: x.Shape[0], cols: x.Shape[1], a: floats(y), b: floats(r), c: floats(x), d: floats(g), eps: eps}
	o.runRows(x.Shape[1])
	return nil
}

func normRows(t *rowsTask, wk *worker, r0, r1 int) {
	n := uintptr(t.cols)
	for r := r0; r < r1; r++ {
		x := &t.c[r*t.cols]
		s := rstd(wk.vec.sumSq(x, n), t.cols, t.eps)
		t.b[r] = s
		wk.vec.normScale(&t.a[r*t.cols], x, &t.d[0], n, s)
	}
}

// RMSNormBackward: dx = rstd*(g*dy - x*c) + dres, c = rstd^2 * sum(g*dy*x)/D.
func (o *ops) RMSNormBackward(dx, dy, x, r, g, dres kernels.Tensor) error {
	if err := kernels.CheckRMSNormBackward(dx, dy, x, r, g, dres, kernels.F32); err != nil {
		return err
	}
	if err := o.own("rmsnorm backward", dx, dy, x, r, g, dres); err != nil {
		return err
	}
	o.rows = rowsTask{f: normGradRows, rows: x.Shape[0], cols: x.Shape[1], a: floats(dx), b: floats(dy), c: floats(x), d: floats(g),
		e: floats(dres), qnorm: floats(r)}
	o.runRows(2 * x.Shape[1])
	return nil
}

func normGradRows(t *rowsTask, wk *worker, r0, r1 int) {
	n := uintptr(t.cols)
	for r := r0; r < r1; r++ {
		at := r * t.cols
		if t.e == nil {
			wk.normGrad(&t.a[at], &t.b[at], &t.c[at], &t.d[0], t.cols, t.qnorm[r])
			continue
		}
		out := wk.scratch(0, t.cols)
		wk.normGrad(&out[0], &t.b[at], &t.c[at], &t.d[0], t.cols, t.qnorm[r])
		wk.vec.add(&t.a[at], &out[0], &t.e[at], n)
	}
}

// normGrad is the gradient of one row.
func (wk *worker) normGrad(dx, dy, x, g *float32, n int, r float32) {
	sum := wk.vec.dot3(g, dy, x, uintptr(n))
	c := float32(float64(r) * float64(r) * float64(sum) / float64(n))
	wk.vec.normGrad(dx, dy, x, g, uintptr(n), r, c)
}
