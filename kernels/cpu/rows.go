package cpu

import (
	"fmt"

	"tinkerlocal/kernels"
)

// Ops that treat each row, or each element, by itself. Rows are shared out in pieces; no sum crosses a row.

// rowsTask runs f over ranges of rows. The slices mean what f says.
type rowsTask struct {
	f              func(t *rowsTask, wk *worker, r0, r1 int)
	rows, cols     int
	per            int
	a, b, c, d, e  []float32
	i, j           []int32
	w              *weight
	eps            float32
	heads, kvHeads int
	cos, sin       []float32
	qnorm, knorm   []float32
	one            []float32
	coef           [8]float32
}

func (t *rowsTask) run(wk *worker, i int) {
	t.f(t, wk, i*t.per, min((i+1)*t.per, t.rows))
}

// inlineWork is the number of elements below which one thread is faster than two: about two microseconds.
const inlineWork = 1 << 12

// runRows starts the op in o.rows; work is elements per row, weighted by their cost.
func (o *ops) runRows(work int) {
	t := &o.rows
	pieces := 1
	if n := o.pool.threads(); n > 1 && t.rows*work > inlineWork {
		pieces = min(t.rows, 4*n, max(2, t.rows*work/inlineWork))
	}
	t.per = max(1, ceilDiv(t.rows, pieces))
	o.pool.run(t, ceilDiv(t.rows, t.per))
}

func closedError(op string) error { return fmt.Errorf("%s: the device is closed", op) }

// chunk is the row length that flat tensors are cut into.
const chunk = 1024

// flat prepares o.rows for a flat tensor of n elements.
func (o *ops) flat(f func(t *rowsTask, wk *worker, r0, r1 int), n int) *rowsTask {
	o.rows = rowsTask{f: f, rows: ceilDiv(n, chunk), cols: n}
	return &o.rows
}

// span is the elements of the flat rows [r0, r1).
func (t *rowsTask) span(r0, r1 int) (i, n int) {
	i = r0 * chunk
	return i, min(r1*chunk, t.cols) - i
}

// Zero sets x to zero.
func (o *ops) Zero(x kernels.Tensor) error {
	if err := kernels.CheckZero(x); err != nil {
		return err
	}
	if err := o.own("zero", x); err != nil {
		return err
	}
	clear(x.Buf.(*buffer).data[x.Off : x.Off+x.Bytes()])
	return nil
}

// Copy sets dst = src.
func (o *ops) Copy(dst, src kernels.Tensor) error {
	if err := kernels.CheckCopy(dst, src); err != nil {
		return err
	}
	if err := o.own("copy", dst, src); err != nil {
		return err
	}
	copy(dst.Buf.(*buffer).data[dst.Off:], src.Buf.(*buffer).data[src.Off:src.Off+src.Bytes()])
	return nil
}

// Add: y = a + b.
func (o *ops) Add(y, a, b kernels.Tensor) error {
	if err := kernels.CheckAdd(y, a, b, kernels.F32); err != nil {
		return err
	}
	if err := o.own("add", y, a, b); err != nil {
		return err
	}
	t := o.flat(addRows, y.Len())
	t.a, t.b, t.c = floats(y), floats(a), floats(b)
	o.runRows(chunk / 4)
	return nil
}

func addRows(t *rowsTask, wk *worker, r0, r1 int) {
	i, n := t.span(r0, r1)
	wk.vec.add(&t.a[i], &t.b[i], &t.c[i], uintptr(n))
}

// Embed: y[t] = w[ids[t]].
func (o *ops) Embed(y kernels.Tensor, w kernels.Weight, ids kernels.Tensor) error {
	if err := kernels.CheckEmbed(y, w, ids, kernels.F32); err != nil {
		return err
	}
	cw, err := o.mine("embed", w, nil, y, ids)
	if err != nil {
		return err
	}
	list := ints(ids)
	for i, id := range list {
		if id < 0 || int(id) >= cw.rows {
			return kernels.RangeError("embed", "ids", i, id, 0, cw.rows-1)
		}
	}
	o.rows = rowsTask{f: embedRows, rows: len(list), cols: cw.cols, a: floats(y), i: list, w: cw}
	o.runRows(cw.cols)
	return nil
}

func embedRows(t *rowsTask, _ *worker, r0, r1 int) {
	for r := r0; r < r1; r++ {
		t.w.row(t.a[r*t.cols:(r+1)*t.cols], int(t.i[r]))
	}
}

// SwiGLU: h = silu(gu[:, :F]) * gu[:, F:].
func (o *ops) SwiGLU(h, gu kernels.Tensor) error {
	if err := kernels.CheckSwiGLU(h, gu, kernels.F32); err != nil {
		return err
	}
	if err := o.own("swiglu", h, gu); err != nil {
		return err
	}
	o.rows = rowsTask{f: swigluRows, rows: h.Shape[0], cols: h.Shape[1], a: floats(h), b: floats(gu)}
	o.runRows(2 * h.Shape[1])
	return nil
}

func swigluRows(t *rowsTask, wk *worker, r0, r1 int) {
	f := t.cols
	for r := r0; r < r1; r++ {
		wk.vec.swiglu(&t.a[r*f], &t.b[2*r*f], &t.b[2*r*f+f], uintptr(f))
	}
}

// SwiGLUBackward: with s = sigmoid(g), du = dh*g*s and dg = dh*u*(s + g*s*(1-s)).
func (o *ops) SwiGLUBackward(dgu, dh, gu kernels.Tensor) error {
	if err := kernels.CheckSwiGLUBackward(dgu, dh, gu, kernels.F32); err != nil {
		return err
	}
	if err := o.own("swiglu backward", dgu, dh, gu); err != nil {
		return err
	}
	o.rows = rowsTask{f: swigluGradRows, rows: dh.Shape[0], cols: dh.Shape[1], a: floats(dgu), b: floats(dh), c: floats(gu)}
	o.runRows(3 * dh.Shape[1])
	return nil
}

func swigluGradRows(t *rowsTask, wk *worker, r0, r1 int) {
	f := t.cols
	for r := r0; r < r1; r++ {
		wk.vec.swigluGrad(&t.a[2*r*f], &t.a[2*r*f+f], &t.b[r*f], &t.c[2*r*f], &t.c[2*r*f+f], uintptr(f))
	}
}
