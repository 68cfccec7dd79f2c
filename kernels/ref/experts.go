package ref

import "tinkerlocal/kernels"

// block is the weights and the adapters' memory of a mixture-of-experts block.
type block[F float] struct {
	w                *kernels.Experts
	experts, d, f, t int
}

func (o ops[F]) block(op string, w *kernels.Experts, ups, downs []kernels.Span, tokens int, grads bool) (block[F], error) {
	b := block[F]{w: w, experts: len(w.Down), d: w.Down[0].Rows(), f: w.Down[0].Cols(), t: tokens}
	for e := range w.Down {
		if _, err := o.d.weight(op, w.GateUp[e]); err != nil {
			return b, err
		}
		if _, err := o.d.weight(op, w.Down[e]); err != nil {
			return b, err
		}
	}
	if err := o.d.ownSpans(op, ups, grads); err != nil {
		return b, err
	}
	return b, o.d.ownSpans(op, downs, grads)
}

func (b *block[F]) gateUp(e int) *matrix[F] { return b.w.GateUp[e].(*matrix[F]) }
func (b *block[F]) down(e int) *matrix[F]   { return b.w.Down[e].(*matrix[F]) }

// factorsOf is the adapter that token t uses; its rank is 0 when there is none.
func factorsOf[F float](spans []kernels.Span, t int) adapter[F] {
	l := spanOf(spans, t)
	if l == nil {
		return adapter[F]{}
	}
	return newAdapter[F](l, false)
}

// upB is row out of part p of expert e in a gate/up adapter's B (or DB).
func (b *block[F]) upB(m []F, rank, p, e, out int) []F {
	row := (p*b.experts+e)*b.f + out
	return m[row*rank : (row+1)*rank]
}

// downA is row i of expert e in a down adapter's A (or DA).
func (b *block[F]) downA(m []F, rank, e, i int) []F {
	row := e*rank + i
	return m[row*b.f : (row+1)*b.f]
}

func (o ops[F]) Experts(a kernels.ExpertsArgs) error {
	const op = "experts"
	if err := a.Check(o.d.act); err != nil {
		return err
	}
	if err := o.d.own(op, a.Y, a.X, a.Res, a.GU, a.V, a.VSum, a.H, a.Lows); err != nil {
		return err
	}
	r, err := o.routing(op, &a.Routing)
	if err != nil {
		return err
	}
	if err := r.inside(op); err != nil {
		return err
	}
	b, err := o.block(op, a.W, a.Up, a.Down, a.X.Shape[0], false)
	if err != nil {
		return err
	}
	y, x, res, gu, h := view[F](a.Y), view[F](a.X), optional[F](a.Res), view[F](a.GU), view[F](a.H)
	v, vsum, low := optional[F](a.V), optional[F](a.VSum), optional[F](a.Lows)
	for t := range b.t {
		up, down := factorsOf[F](a.Up, t), factorsOf[F](a.Down, t)
		xt, yt, vt, vsumt := rowOf(x, t, b.d), rowOf(y, t, b.d), rowOf(v, t, a.V.Cols()), rowOf(vsum, t, a.VSum.Cols())
		clear(yt)
		if up.rank > 0 {
			up.down(vt, xt)
		}
		if down.rank > 0 {
			clear(vsumt[:down.rank])
		}
		for j := range r.top {
			slot := t*r.top + j
			e, gate, row := int(r.ids[slot]), r.gate[slot], int(r.rows[slot])
			g, hr := rowOf(gu, row, 2*b.f), rowOf(h, row, b.f)
			for p := range 2 {
				for out := range b.f {
					sum := dot(b.gateUp(e).row(p*b.f+out), xt)
					if up.rank > 0 {
						sum += dot(b.upB(up.b, up.rank, p, e, out), vt[p*up.rank:(p+1)*up.rank])
					}
					g[p*b.f+out] = sum
				}
			}
			for c := range hr {
				hr[c] = g[c] * sigmoid(g[c]) * g[b.f+c]
			}
			for k := range yt {
				yt[k] += gate * dot(b.down(e).row(k), hr)
			}
			if down.rank > 0 {
				lows := rowOf(low, row, a.Lows.Cols())
				for i := range down.rank {
					lows[i] = down.scale * dot(b.downA(down.a, down.rank, e, i), hr)
					vsumt[i] += gate * lows[i]
				}
			}
		}
		for k := range yt {
			if down.rank > 0 {
				yt[k] += dot(down.b[k*down.rank:(k+1)*down.rank], vsumt[:down.rank])
			}
			if res != nil {
				yt[k] += res[t*b.d+k]
			}
		}
	}
	return nil
}

func (o ops[F]) ExpertsBackward(a kernels.ExpertsBackwardArgs) error {
	const op = "experts backward"
	if err := a.Check(o.d.act); err != nil {
		return err
	}
	if err := o.d.own(op, a.DX, a.DGate, a.DY, a.X, a.GU, a.V, a.VSum, a.H, a.DH, a.DGU, a.Low, a.Lows); err != nil {
		return err
	}
	r, err := o.routing(op, &a.Routing)
	if err != nil {
		return err
	}
	if err := r.inside(op); err != nil {
		return err
	}
	b, err := o.block(op, a.W, a.Up, a.Down, a.DY.Shape[0], true)
	if err != nil {
		return err
	}
	low, lows := optional[F](a.Low), optional[F](a.Lows)
	// Down: u, then dh, dgate and dgu of every slot. lows keeps u times the gate.
	dy, dgate, gu, h, dh, dgu := view[F](a.DY), view[F](a.DGate), view[F](a.GU), view[F](a.H), view[F](a.DH), view[F](a.DGU)
	for t := range b.t {
		down, dyt, u := factorsOf[F](a.Down, t), rowOf(dy, t, b.d), rowOf(low, t, a.Low.Cols())
		if down.rank > 0 {
			clear(u[:down.rank])
			for k, d := range dyt {
				for i := range down.rank {
					u[i] += d * down.b[k*down.rank+i]
				}
			}
		}
		for j := range r.top {
			slot := t*r.top + j
			e, gate, row := int(r.ids[slot]), r.gate[slot], int(r.rows[slot])
			g, dg, hr, dhr := rowOf(gu, row, 2*b.f), rowOf(dgu, row, 2*b.f), rowOf(h, row, b.f), rowOf(dh, row, b.f)
			for c := range hr {
				hr[c] = g[c] * sigmoid(g[c]) * g[b.f+c]
				var sum F
				for k, d := range dyt {
					sum += d * b.down(e).data[k*b.f+c]
				}
				if down.rank > 0 {
					var lo F
					for i := range down.rank {
						lo += u[i] * b.downA(down.a, down.rank, e, i)[c]
					}
					sum += down.scale * lo
				}
				dhr[c] = sum
			}
			dgate[slot] = dot(hr, dhr)
			for c, d := range dhr {
				s := sigmoid(g[c])
				dg[c] = gate * d * g[b.f+c] * s * (1 + g[c]*(1-s))
				dg[b.f+c] = gate * d * g[c] * s
			}
			if down.rank > 0 {
				for i := range down.rank {
					lows[row*a.Lows.Cols()+i] = gate * u[i]
				}
			}
		}
	}
	o.downGradients(&b, &r, &a)
	// Gate and up: dv and dx; low holds dv from here on.
	dx := view[F](a.DX)
	for t := range b.t {
		up, dxt, dv := factorsOf[F](a.Up, t), rowOf(dx, t, b.d), rowOf(low, t, a.Low.Cols())
		clear(dxt)
		if up.rank > 0 {
			clear(dv[:2*up.rank])
		}
		for j := range r.top {
			slot := t*r.top + j
			e, dg := int(r.ids[slot]), rowOf(dgu, int(r.rows[slot]), 2*b.f)
			for k := range dxt {
				var sum F
				for out, d := range dg {
					sum += d * b.gateUp(e).data[out*b.d+k]
				}
				dxt[k] += sum
			}
			if up.rank == 0 {
				continue
			}
			for p := range 2 {
				for i := range up.rank {
					var sum F
					for out := range b.f {
						sum += dg[p*b.f+out] * b.upB(up.b, up.rank, p, e, out)[i]
					}
					dv[p*up.rank+i] += sum
				}
			}
		}
		if up.rank > 0 {
			for k := range dxt {
				var sum F
				for i := range 2 * up.rank {
					sum += dv[i] * up.a[i*b.d+k]
				}
				dxt[k] += up.scale * sum
			}
		}
	}
	o.upGradients(&b, &r, &a)
	return nil
}

// downGradients adds to DA and DB of the down adapters, a span's sum at a time. Lows holds gate_j*u.
func (o ops[F]) downGradients(b *block[F], r *routing[F], a *kernels.ExpertsBackwardArgs) {
	mem := o.d.scores(gradLen(a.Down))
	dy, h := view[F](a.DY), view[F](a.H)
	vsum, lows := optional[F](a.VSum), optional[F](a.Lows)
	for _, s := range a.Down {
		if s.LoRA == nil {
			continue
		}
		l := newAdapter[F](s.LoRA, true)
		g := l.sums(mem)
		for t := s.Begin; t < s.End; t++ {
			for k, d := range rowOf(dy, t, b.d) {
				for i := range l.rank {
					g.db[k*l.rank+i] += d * vsum[t*a.VSum.Cols()+i]
				}
			}
			for j := range r.top {
				slot := t*r.top + j
				e, row := int(r.ids[slot]), int(r.rows[slot])
				for i := range l.rank {
					u := l.scale * lows[row*a.Lows.Cols()+i]
					da := b.downA(g.da, l.rank, e, i)
					for c, v := range rowOf(h, row, b.f) {
						da[c] += u * v
					}
				}
			}
		}
		g.flush(&l)
	}
}

// upGradients adds to DA and DB of the gate and up adapters, a span's sum at a time. Low holds dv.
func (o ops[F]) upGradients(b *block[F], r *routing[F], a *kernels.ExpertsBackwardArgs) {
	mem := o.d.scores(gradLen(a.Up))
	dgu := view[F](a.DGU)
	x, v, low := optional[F](a.X), optional[F](a.V), optional[F](a.Low)
	for _, s := range a.Up {
		if s.LoRA == nil {
			continue
		}
		l := newAdapter[F](s.LoRA, true)
		g := l.sums(mem)
		for t := s.Begin; t < s.End; t++ {
			dv, vt := rowOf(low, t, a.Low.Cols()), rowOf(v, t, a.V.Cols())
			for i := range 2 * l.rank {
				for k, xk := range rowOf(x, t, b.d) {
					g.da[i*b.d+k] += l.scale * dv[i] * xk
				}
			}
			for j := range r.top {
				slot := t*r.top + j
				e := int(r.ids[slot])
				for out, d := range rowOf(dgu, int(r.rows[slot]), 2*b.f) {
					p := out / b.f
					db := b.upB(g.db, l.rank, p, e, out%b.f)
					for i := range l.rank {
						db[i] += d * vt[p*l.rank+i]
					}
				}
			}
		}
		g.flush(&l)
	}
}
