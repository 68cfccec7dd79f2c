package ref

import "tinkerlocal/kernels"

// rotate applies y[c] = x[c]*cos - x[c+h]*sin, y[c+h] = x[c+h]*cos + x[c]*sin in place, h = C/2.
func rotate[F float](x, cos, sin []F) {
	h := len(cos)
	for c := range h {
		lo, hi := x[c], x[c+h]
		x[c] = lo*cos[c] - hi*sin[c]
		x[c+h] = hi*cos[c] + lo*sin[c]
	}
}

// unrotate is the transpose of rotate.
func unrotate[F float](x, cos, sin []F) {
	h := len(cos)
	for c := range h {
		lo, hi := x[c], x[c+h]
		x[c] = lo*cos[c] + hi*sin[c]
		x[c+h] = hi*cos[c] - lo*sin[c]
	}
}

func (o ops[F]) RoPE(a kernels.RoPEArgs) error {
	if err := a.Check(o.d.act); err != nil {
		return err
	}
	if err := o.d.own("rope", a.Q, a.K, a.V, a.QKV, a.QNorm, a.KNorm, a.Cos, a.Sin, a.Pos, a.Rows); err != nil {
		return err
	}
	pos, rows := view[int32](a.Pos), optional[int32](a.Rows)
	if err := inRange("rope", "pos", pos, 0, a.Cos.Shape[0]-1); err != nil {
		return err
	}
	if err := inRange("rope", "rows", rows, 0, a.K.Shape[0]-1); err != nil {
		return err
	}
	q, k, v, qkv := view[F](a.Q), view[F](a.K), view[F](a.V), view[F](a.QKV)
	qnorm, knorm := optional[F](a.QNorm), optional[F](a.KNorm)
	cos, sin := view[F](a.Cos), view[F](a.Sin)
	half := a.Cos.Shape[1]
	c, width := 2*half, a.QKV.Shape[1]
	for t, p := range pos {
		row := t
		if rows != nil {
			row = int(rows[t])
		}
		cs, sn := rowOf(cos, int(p), half), rowOf(sin, int(p), half)
		in := rowOf(qkv, t, width)
		outQ, outK, outV := rowOf(q, t, a.Heads*c), rowOf(k, row, a.KVHeads*c), rowOf(v, row, a.KVHeads*c)
		for h := range a.Heads {
			turn(outQ[h*c:(h+1)*c], in[h*c:(h+1)*c], qnorm, cs, sn, F(a.Eps))
		}
		in = in[a.Heads*c:]
		for h := range a.KVHeads {
			turn(outK[h*c:(h+1)*c], in[h*c:(h+1)*c], knorm, cs, sn, F(a.Eps))
		}
		copy(outV, in[a.KVHeads*c:])
	}
	return nil
}

// turn norms (unless gain is nil) and rotates one head.
func turn[F float](y, x, gain, cos, sin []F, eps F) {
	if gain == nil {
		copy(y, x)
	} else {
		normRow(y, x, gain, eps)
	}
	rotate(y, cos, sin)
}

func (o ops[F]) RoPEBackward(a kernels.RoPEBackwardArgs) error {
	const op = "rope backward"
	if err := a.Check(o.d.act); err != nil {
		return err
	}
	if err := o.d.own(op, a.DQKV, a.DQ, a.DK, a.DV, a.QKV, a.QNorm, a.KNorm, a.Cos, a.Sin, a.Pos); err != nil {
		return err
	}
	pos := view[int32](a.Pos)
	if err := inRange(op, "pos", pos, 0, a.Cos.Shape[0]-1); err != nil {
		return err
	}
	dqkv, dq, dk, dv, qkv := view[F](a.DQKV), view[F](a.DQ), view[F](a.DK), view[F](a.DV), view[F](a.QKV)
	qnorm, knorm := optional[F](a.QNorm), optional[F](a.KNorm)
	cos, sin := view[F](a.Cos), view[F](a.Sin)
	half := a.Cos.Shape[1]
	c, width := 2*half, a.QKV.Shape[1]
	for t, p := range pos {
		cs, sn := rowOf(cos, int(p), half), rowOf(sin, int(p), half)
		dx, x := rowOf(dqkv, t, width), rowOf(qkv, t, width)
		copy(dx, rowOf(dq, t, a.Heads*c))
		copy(dx[a.Heads*c:], rowOf(dk, t, a.KVHeads*c))
		copy(dx[(a.Heads+a.KVHeads)*c:], rowOf(dv, t, a.KVHeads*c))
		for h := range a.Heads + a.KVHeads {
			gain := qnorm
			if h >= a.Heads {
				gain = knorm
			}
			turnBack(dx[h*c:(h+1)*c], x[h*c:(h+1)*c], gain, cs, sn, F(a.Eps))
		}
	}
	return nil
}

// turnBack turns the gradient d of turn's y into that of its x, in place.
func turnBack[F float](d, x, gain, cos, sin []F, eps F) {
	unrotate(d, cos, sin)
	if gain == nil {
		return
	}
	r := rstdOf(x, eps)
	mean := normDot(d, x, gain, r)
	for c := range d {
		d[c] = normGrad(d[c], x[c], gain[c], r, mean)
	}
}
