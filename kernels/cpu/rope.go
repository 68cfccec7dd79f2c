package cpu

import "tinkerlocal/kernels"

// Rotary positions with the optional per-head RMSNorm before them. A head is one row: norm, gain, rotation, in that order.

// rope fills o.rows with what both directions share and checks the integers that live in device memory. limit is the rows of k and v.
func (o *ops) rope(op string, qkv, qnorm, knorm, cos, sin, pos, rows kernels.Tensor, heads, kvHeads int, eps float32, limit int) error {
	positions, places := ints(pos), ints(rows)
	for i, p := range positions {
		if p < 0 || int(p) >= cos.Shape[0] {
			return kernels.RangeError(op, "pos", i, p, 0, cos.Shape[0]-1)
		}
	}
	for i, r := range places {
		if r < 0 || int(r) >= limit {
			return kernels.RangeError(op, "rows", i, r, 0, limit-1)
		}
	}
	half := cos.Shape[1]
	if len(o.ones) < 2*half {
		o.ones = alignedFloats(2 * half)
		for i := range o.ones {
			o.ones[i] = 1
		}
	}
	o.rows = rowsTask{rows: qkv.Shape[0], cols: half, d: floats(qkv), i: positions, j: places, eps: eps, heads: heads, kvHeads: kvHeads,
		cos: floats(cos), sin: floats(sin), qnorm: floats(qnorm), knorm: floats(knorm), one: o.ones}
	return nil
}

// RoPE splits qkv and rotates q and k.
func (o *ops) RoPE(a kernels.RoPEArgs) error {
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	if err := o.own("rope", a.Q, a.K, a.V, a.QKV, a.QNorm, a.KNorm, a.Cos, a.Sin, a.Pos, a.Rows); err != nil {
		return err
	}
	if err := o.rope("rope", a.QKV, a.QNorm, a.KNorm, a.Cos, a.Sin, a.Pos, a.Rows, a.Heads, a.KVHeads, a.Eps, a.K.Shape[0]); err != nil {
		return err
	}
	o.rows.f, o.rows.a, o.rows.b, o.rows.c = ropeRows, floats(a.Q), floats(a.K), floats(a.V)
	o.runRows(2 * a.QKV.Shape[1])
	return nil
}

func ropeRows(t *rowsTask, wk *worker, r0, r1 int) {
	half, c := t.cols, 2*t.cols
	for r := r0; r < r1; r++ {
		src := t.d[r*(t.heads+2*t.kvHeads)*c:]
		row := r
		if t.j != nil {
			row = int(t.j[r])
		}
		p := int(t.i[r])
		cos, sin := &t.cos[p*half], &t.sin[p*half]
		for h := range t.heads + t.kvHeads {
			dst, at, gain := t.a, (r*t.heads+h)*c, t.qnorm
			if h >= t.heads {
				dst, at, gain = t.b, (row*t.kvHeads+h-t.heads)*c, t.knorm
			}
			s, g := float32(1), &t.one[0]
			if gain != nil {
				s, g = rstd(wk.vec.sumSq(&src[h*c], uintptr(c)), c, t.eps), &gain[0]
			}
			wk.vec.rope(&dst[at], &src[h*c], g, cos, sin, uintptr(half), s)
		}
		copy(t.c[row*t.kvHeads*c:(row+1)*t.kvHeads*c], src[(t.heads+t.kvHeads)*c:])
	}
}

// RoPEBackward turns dq and dk back and takes them through the norm, whose factor is recomputed.
func (o *ops) RoPEBackward(a kernels.RoPEBackwardArgs) error {
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	if err := o.own("rope backward", a.DQKV, a.DQ, a.DK, a.DV, a.QKV, a.QNorm, a.KNorm, a.Cos, a.Sin, a.Pos); err != nil {
		return err
	}
	if err := o.rope("rope backward", a.QKV, a.QNorm, a.KNorm, a.Cos, a.Sin, a.Pos, kernels.Tensor{}, a.Heads, a.KVHeads, a.Eps, 0); err != nil {
		return err
	}
	o.rows.f, o.rows.a, o.rows.b, o.rows.c, o.rows.e = ropeGradRows, floats(a.DQ), floats(a.DK), floats(a.DV), floats(a.DQKV)
	o.runRows(3 * a.QKV.Shape[1])
	return nil
}

func ropeGradRows(t *rowsTask, wk *worker, r0, r1 int) {
	half, c := t.cols, 2*t.cols
	turned := wk.scratch(0, c)
	for r := r0; r < r1; r++ {
		at := r * (t.heads + 2*t.kvHeads) * c
		src, dst := t.d[at:], t.e[at:]
		p := int(t.i[r])
		cos, sin := &t.cos[p*half], &t.sin[p*half]
		for h := range t.heads + t.kvHeads {
			dy, from, gain := t.a, (r*t.heads+h)*c, t.qnorm
			if h >= t.heads {
				dy, from, gain = t.b, (r*t.kvHeads+h-t.heads)*c, t.knorm
			}
			if gain == nil {
				wk.vec.unrope(&dst[h*c], &dy[from], cos, sin, uintptr(half))
				continue
			}
			wk.vec.unrope(&turned[0], &dy[from], cos, sin, uintptr(half))
			s := rstd(wk.vec.sumSq(&src[h*c], uintptr(c)), c, t.eps)
			wk.normGrad(&dst[h*c], &turned[0], &src[h*c], &gain[0], c, s)
		}
		copy(dst[(t.heads+t.kvHeads)*c:(t.heads+2*t.kvHeads)*c], t.c[r*t.kvHeads*c:])
	}
}
