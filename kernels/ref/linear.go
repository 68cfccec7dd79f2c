package ref

import "tinkerlocal/kernels"

// adapter is a LoRA's memory.
type adapter[F float] struct {
	rank   int
	scale  F
	a, b   []F // [P*R, K], [N, R]
	da, db []F // the same shapes; nil in forward ops
}

func newAdapter[F float](l *kernels.LoRA, grads bool) adapter[F] {
	r := adapter[F]{rank: l.Rank, scale: F(l.Scale), a: view[F](l.A), b: view[F](l.B)}
	if grads {
		r.da, r.db = view[F](l.DA), view[F](l.DB)
	}
	return r
}

// down sets v[i] = s * (a_i . x) for all P*R rows of A.
func (l *adapter[F]) down(v, x []F) {
	for i := range len(l.a) / len(x) {
		v[i] = l.scale * dot(l.a[i*len(x):(i+1)*len(x)], x)
	}
}

// up is the adapter's contribution to output o of a part: b_o . v_part.
func (l *adapter[F]) up(v []F, o, part int) F {
	return dot(l.b[o*l.rank:(o+1)*l.rank], v[part*l.rank:(part+1)*l.rank])
}

func dot[F float](a, b []F) F {
	var s F
	for i, v := range a {
		s += v * b[i]
	}
	return s
}

// spanOf returns the adapter that token t uses, or nil.
func spanOf(spans []kernels.Span, t int) *kernels.LoRA {
	for _, s := range spans {
		if t >= s.Begin && t < s.End {
			return s.LoRA
		}
	}
	return nil
}

// project sets y = W x (+ bias) + B v (+ res) for one token, v = s * A x.
func project[F float](y, v, x []F, w *matrix[F], bias []F, l *kernels.LoRA, res []F) {
	var ad adapter[F]
	if l != nil {
		ad = newAdapter[F](l, false)
		ad.down(v, x)
	}
	for o := range w.rows {
		sum := dot(w.row(o), x)
		if bias != nil {
			sum += bias[o]
		}
		if l != nil {
			sum += ad.up(v, o, w.part[o])
		}
		if res != nil {
			sum += res[o]
		}
		y[o] = sum
	}
}

// rowOf is row t of a [T, n] slice, or nil when there is none.
func rowOf[F float](v []F, t, n int) []F {
	if v == nil {
		return nil
	}
	return v[t*n : (t+1)*n]
}

func (o ops[F]) Linear(a kernels.LinearArgs) error {
	if err := a.Check(o.d.act); err != nil {
		return err
	}
	w, err := o.d.weight("linear", a.W)
	if err != nil {
		return err
	}
	if err := o.d.own("linear", a.Y, a.V, a.X, a.Bias, a.Res); err != nil {
		return err
	}
	if err := o.d.ownSpans("linear", a.Spans, false); err != nil {
		return err
	}
	y, v, x, bias, res := view[F](a.Y), optional[F](a.V), view[F](a.X), optional[F](a.Bias), optional[F](a.Res)
	for t := range a.X.Shape[0] {
		project(rowOf(y, t, w.rows), rowOf(v, t, a.V.Cols()), rowOf(x, t, w.cols), w, bias, spanOf(a.Spans, t), rowOf(res, t, w.rows))
	}
	return nil
}

// projectBack is the transpose of project for one token: it sets dv = dy B per part and, unless dx
// is nil, dx = dy W + s * dv A, added to what dx holds when add is set.
func projectBack[F float](dx, dv, dy []F, w *matrix[F], l *kernels.LoRA, add bool) {
	var ad adapter[F]
	if l != nil {
		ad = newAdapter[F](l, false)
		for i := range len(w.parts) * ad.rank {
			dv[i] = 0
		}
		for o, d := range dy {
			for j := range ad.rank {
				dv[w.part[o]*ad.rank+j] += d * ad.b[o*ad.rank+j]
			}
		}
	}
	for k := range dx {
		var sum F
		for o, d := range dy {
			sum += d * w.data[o*w.cols+k]
		}
		if l != nil {
			var low F
			for i := range len(w.parts) * ad.rank {
				low += dv[i] * ad.a[i*w.cols+k]
			}
			sum += ad.scale * low
		}
		if add {
			sum += dx[k]
		}
		dx[k] = sum
	}
}

// gradSums is scratch for the gradients of one span: they are summed here token by token, and added
// to the adapter's DA and DB when the span is complete.
type gradSums[F float] struct{ da, db []F }

// sums takes the scratch for an adapter's gradients out of mem, and clears it.
func (l *adapter[F]) sums(mem []F) gradSums[F] {
	g := gradSums[F]{mem[:len(l.da)], mem[len(l.da) : len(l.da)+len(l.db)]}
	clear(g.da)
	clear(g.db)
	return g
}

// gradLen is the scratch that any span's gradients need.
func gradLen(spans []kernels.Span) int {
	n := 0
	for _, s := range spans {
		if s.LoRA != nil {
			n = max(n, s.LoRA.A.Len()+s.LoRA.B.Len())
		}
	}
	return n
}

// add adds one token's s * dv^T x and dy^T v.
func (g *gradSums[F]) add(l *adapter[F], w *matrix[F], dy, dv, v, x []F) {
	for i := range len(w.parts) * l.rank {
		for k, xk := range x {
			g.da[i*len(x)+k] += l.scale * dv[i] * xk
		}
	}
	for o, d := range dy {
		for j := range l.rank {
			g.db[o*l.rank+j] += d * v[w.part[o]*l.rank+j]
		}
	}
}

// flush adds the sums to the adapter's gradients.
func (g *gradSums[F]) flush(l *adapter[F]) {
	for i, v := range g.da {
		l.da[i] += v
	}
	for i, v := range g.db {
		l.db[i] += v
	}
}

func (o ops[F]) LinearBackward(a kernels.LinearBackwardArgs) error {
	const op = "linear backward"
	if err := a.Check(o.d.act); err != nil {
		return err
	}
	w, err := o.d.weight(op, a.W)
	if err != nil {
		return err
	}
	if err := o.d.own(op, a.DX, a.DV, a.DY, a.V, a.X); err != nil {
		return err
	}
	if err := o.d.ownSpans(op, a.Spans, true); err != nil {
		return err
	}
	dx, dv, dy := optional[F](a.DX), optional[F](a.DV), view[F](a.DY)
	v, x := optional[F](a.V), optional[F](a.X)
	for t := range a.DY.Shape[0] {
		projectBack(rowOf(dx, t, w.cols), rowOf(dv, t, a.DV.Cols()), rowOf(dy, t, w.rows), w, spanOf(a.Spans, t), a.AddDX)
	}
	mem := o.d.scores(gradLen(a.Spans))
	for _, s := range a.Spans {
		if s.LoRA == nil {
			continue
		}
		l := newAdapter[F](s.LoRA, true)
		g := l.sums(mem)
		for t := s.Begin; t < s.End; t++ {
			g.add(&l, w, rowOf(dy, t, w.rows), rowOf(dv, t, a.DV.Cols()), rowOf(v, t, a.V.Cols()), rowOf(x, t, w.cols))
		}
		g.flush(&l)
	}
	return nil
}
