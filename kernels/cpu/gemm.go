package cpu

import "tinkerlocal/kernels"

// Matrix products on tiles of up to 6 rows by 16 columns.
//
// Per element: the steps of the reduction are cut into segments of 256 from its start; each segment is one chain (sum = fma(a, b, sum), from
// zero, ascending), and the segments' sums are added in ascending order. Columns are vector lanes and rows are registers, so no
// other element of the product has a say in it. The idea of tile and panel is Goto & van de Geijn 2008, doi 10.1145/1356052.1356053.

// tiles: c[rows, ncol] (+)= a * b for one panel segment of kn steps. a(i, k) lies at a + i*rs + k*ks floats; b at bs bytes per step with 16
// readable columns; c has ldc floats per row and only ncol <= 16 of its columns are written.
func (wk *worker) tiles(c *float32, ldc int, a *float32, rs, ks, rows int, b *float32, bs uintptr, kn, ncol int, add bool) {
	// Pointers are formed only where there is data: the garbage collector does not suffer others.
	rsb, ksb, cs, k, flag := bytesOf(rs), bytesOf(ks), bytesOf(ldc), uintptr(kn), addFlag(add)
	for i := 0; i < rows; i += tileRows {
		m, ai, ci := min(rows-i, tileRows), step(a, uintptr(i)*rsb), step(c, uintptr(i)*cs)
		if ncol == panelRows {
			wk.vec.tile[m](ai, rsb, ksb, b, bs, ci, cs, k, flag)
			continue
		}
		wk.vec.tile[m](ai, rsb, ksb, b, bs, &wk.tmp[0], 4*panelRows, k, 0)
		wk.putTile(ci, ldc, m, ncol, add)
	}
}

// putTile writes or adds the first ncol columns of the worker's tile to c.
func (wk *worker) putTile(c *float32, ldc, m, ncol int, add bool) {
	for i := range m {
		dst := slice(step(c, bytesOf(i*ldc)), uintptr(ncol))
		for j, v := range wk.tmp[i*panelRows : i*panelRows+ncol] {
			if add {
				dst[j] += v
			} else {
				dst[j] = v
			}
		}
	}
}

// wideRows is the token count up to which bfloat16 weights are widened in registers. From there on a panel is widened once for all rows.
const wideRows = 2 * tileRows

// forward: c[rows, panels p0..p1) = x W^T; c points at the first column of panel p0.
func (wk *worker) forward(c *float32, ldc int, x *float32, ldx, rows int, w *weight, p0, p1 int) {
	for k0 := 0; k0 < w.cols; k0 += segment {
		kn := min(segment, w.cols-k0)
		p := p0
		if rows == 1 {
			p = wk.forwardRow(c, step(x, bytesOf(k0)), w, p0, p1, k0, kn)
		}
		for ; p < p1; p++ {
			ncol := min(panelRows, w.rows-p*panelRows)
			cp, xp := step(c, bytesOf((p-p0)*panelRows)), step(x, bytesOf(k0))
			if w.f32 == nil && rows <= wideRows {
				wk.tilesBF16(cp, ldc, xp, ldx, rows, &w.bf16[(p*w.cols+k0)*panelRows], kn, ncol, k0 > 0)
				continue
			}
			wk.tiles(cp, ldc, xp, ldx, 1, rows, w.widened(wk, p, k0, kn), 4*panelRows, kn, ncol, k0 > 0)
		}
	}
}

// forwardRow does four full panels at a time for one row and returns the first panel that is left.
func (wk *worker) forwardRow(c, x *float32, w *weight, p0, p1, k0, kn int) int {
	p := p0
	for ; p+4 <= p1 && (p+4)*panelRows <= w.rows; p += 4 {
		cp, at := step(c, bytesOf((p-p0)*panelRows)), (p*w.cols+k0)*panelRows
		if w.f32 != nil {
			wk.vec.wide(x, &w.f32[at], bytesOf(w.cols*panelRows), cp, uintptr(kn), addFlag(k0 > 0))
		} else {
			wk.vec.wideBF16(x, &w.bf16[at], bytesOf(w.cols*panelRows)/2, cp, uintptr(kn), addFlag(k0 > 0))
		}
	}
	return p
}

// tilesBF16 is tiles for a panel that stays bfloat16.
func (wk *worker) tilesBF16(c *float32, ldc int, a *float32, lda, rows int, b *uint16, kn, ncol int, add bool) {
	for i := 0; i < rows; i += tileRows {
		m, ai, ci := min(rows-i, tileRows), step(a, bytesOf(i*lda)), step(c, bytesOf(i*ldc))
		if ncol == panelRows {
			wk.vec.tileBF16[m](ai, bytesOf(lda), 4, b, 2*panelRows, ci, bytesOf(ldc), uintptr(kn), addFlag(add))
			continue
		}
		wk.vec.tileBF16[m](ai, bytesOf(lda), 4, b, 2*panelRows, &wk.tmp[0], 4*panelRows, uintptr(kn), 0)
		wk.putTile(ci, ldc, m, ncol, add)
	}
}

// backward: c[rows, column panels q0..q1) (+)= dy W over the weight rows [o0, o1); o0 is a multiple of segment. dy points at column o0.
func (wk *worker) backward(c *float32, ldc int, dy *float32, ldy, rows int, w *weight, q0, q1, o0, o1 int, add bool) {
	for o := o0; o < o1; o += segment {
		on := min(segment, o1-o)
		for q := q0; q < q1; q++ {
			ncol := min(panelRows, w.cols-q*panelRows)
			b := w.transposed(wk, q, o, on)
			wk.tiles(step(c, bytesOf((q-q0)*panelRows)), ldc, step(dy, bytesOf(o-o0)), ldy, 1, rows, b, 4*panelRows, on, ncol, add || o > o0)
		}
	}
}

// turn fills the worker's panel with rows [o0, o1) of m at the lanes from lane on: panel[j][lane+i] = m[o0+i, j0+j], other lanes zero.
func (wk *worker) turn(m []float32, ld, o0, o1, lane, j0, n int) *float32 {
	if o1-o0 == panelRows {
		wk.vec.transpose16(&wk.panel[0], &m[o0*ld+j0], bytesOf(ld), uintptr(n))
		return &wk.panel[0]
	}
	clear(wk.panel[:n*panelRows])
	for o := o0; o < o1; o++ {
		for j, v := range m[o*ld+j0 : o*ld+j0+n] {
			wk.panel[j*panelRows+lane+o-o0] = v
		}
	}
	return &wk.panel[0]
}

// columns fills the worker's panel with ncol columns of n rows of m, from row i0 and column j0 on: panel[i][j] = m[i0+i, j0+j], other lanes zero.
func (wk *worker) columns(m []float32, ld, i0, n, j0, ncol int) *float32 {
	if ncol == panelRows {
		wk.vec.copy16(&wk.panel[0], &m[i0*ld+j0], bytesOf(ld), uintptr(n))
		return &wk.panel[0]
	}
	clear(wk.panel[:n*panelRows])
	for i := range n {
		copy(wk.panel[i*panelRows:], m[(i0+i)*ld+j0:(i0+i)*ld+j0+ncol])
	}
	return &wk.panel[0]
}

// group is a run of tokens that use one adapter.
type group struct {
	begin, end     int
	rank           int
	scale          float32
	a, b, da, db   []float32
	aBuf, bBuf     kernels.Tensor // to tell equal adapters
	daTens, dbTens kernels.Tensor
}

// groups lists the spans that have an adapter. With merge, neighbours with the same adapter become one.
func groups(dst []group, spans []kernels.Span, merge bool) []group {
	dst = dst[:0]
	for i := range spans {
		s := &spans[i]
		l := s.LoRA
		if l == nil {
			continue
		}
		if n := len(dst); merge && n > 0 {
			g := &dst[n-1]
			if g.end == s.Begin && g.aBuf == l.A && g.bBuf == l.B && g.rank == l.Rank && g.scale == l.Scale {
				g.end = s.End
				continue
			}
		}
		dst = append(dst, group{begin: s.Begin, end: s.End, rank: l.Rank, scale: l.Scale, a: floats(l.A), b: floats(l.B),
			da: floats(l.DA), db: floats(l.DB), aBuf: l.A, bBuf: l.B, daTens: l.DA, dbTens: l.DB})
	}
	return dst
}

// up adds the adapter product v B^T to c, rows [r0, r1) and panels [p0, p1); c points at row r0 and panel p0. Its chains run over the rank, in
// segments from zero. A panel that holds rows of two parts takes both parts' products, the foreign rows being zero.
func (wk *worker) up(c *float32, ldc, r0, r1 int, w *weight, p0, p1 int, gs []group, v []float32, ldv int) {
	for i := range gs {
		g := &gs[i]
		lo, hi := max(r0, g.begin), min(r1, g.end)
		if lo >= hi {
			continue
		}
		for p := p0; p < p1; p++ {
			ncol := min(panelRows, w.rows-p*panelRows)
			cp := step(c, bytesOf((lo-r0)*ldc+(p-p0)*panelRows))
			first := 0
			for part, n := range w.parts {
				o0, o1 := max(first, p*panelRows), min(first+n, p*panelRows+ncol)
				first += n
				if o0 >= o1 {
					continue
				}
				for j := 0; j < g.rank; j += segment {
					jn := min(segment, g.rank-j)
					b := wk.turn(g.b, g.rank, o0, o1, o0-p*panelRows, j, jn)
					wk.tiles(cp, ldc, &v[lo*ldv+part*g.rank+j], ldv, 1, hi-lo, b, 4*panelRows, jn, ncol, true)
				}
			}
		}
	}
}

// upBackward adds dv A to c, rows [r0, r1) and column panels [q0, q1). The reduction runs over the parts' ranks in stacked order.
func (wk *worker) upBackward(c *float32, ldc, r0, r1 int, w *weight, q0, q1 int, gs []group, dv []float32, ldv int) {
	for i := range gs {
		g := &gs[i]
		lo, hi := max(r0, g.begin), min(r1, g.end)
		if lo >= hi {
			continue
		}
		steps := g.rank * len(w.parts)
		for q := q0; q < q1; q++ {
			ncol := min(panelRows, w.cols-q*panelRows)
			for j := 0; j < steps; j += segment {
				jn := min(segment, steps-j)
				b := wk.columns(g.a, w.cols, j, jn, q*panelRows, ncol)
				wk.tiles(step(c, bytesOf((lo-r0)*ldc+(q-q0)*panelRows)), ldc, &dv[lo*ldv+j], ldv, 1, hi-lo, b, 4*panelRows, jn, ncol, true)
			}
		}
	}
}

// down sets v = scale * x A^T for the group's rows [lo, hi) and the columns of panel q (16 rows of A).
func (wk *worker) down(v []float32, ldv int, x []float32, w *weight, g *group, lo, hi, q int) {
	steps := g.rank * len(w.parts)
	i0 := q * panelRows
	ncol := min(panelRows, steps-i0)
	wk.need((hi - lo) * panelRows)
	for k := 0; k < w.cols; k += segment {
		kn := min(segment, w.cols-k)
		b := wk.turn(g.a, w.cols, i0, i0+ncol, 0, k, kn)
		wk.tiles(&wk.strip[0], panelRows, &x[lo*w.cols+k], w.cols, 1, hi-lo, b, 4*panelRows, kn, panelRows, k > 0)
	}
	wk.putScaled(v, ldv, lo, hi, i0, ncol, g.scale)
}

// downBackward sets dv = scale * dy B for the group's rows [lo, hi), part and columns of panel q of the rank. The reduction runs over the
// part's rows.
func (wk *worker) downBackward(dv []float32, ldv int, dy []float32, ldy int, first, n, part int, g *group, lo, hi, q int) {
	j0 := q * panelRows
	ncol := min(panelRows, g.rank-j0)
	wk.need((hi - lo) * panelRows)
	for o := 0; o < n; o += segment {
		on := min(segment, n-o)
		b := wk.columns(g.b, g.rank, first+o, on, j0, ncol)
		wk.tiles(&wk.strip[0], panelRows, &dy[lo*ldy+first+o], ldy, 1, hi-lo, b, 4*panelRows, on, panelRows, o > 0)
	}
	wk.putScaled(dv, ldv, lo, hi, part*g.rank+j0, ncol, g.scale)
}

// putScaled writes scale * strip to the columns [j0, j0+ncol) of v's rows [lo, hi).
func (wk *worker) putScaled(v []float32, ldv, lo, hi, j0, ncol int, s float32) {
	for r := lo; r < hi; r++ {
		wk.vec.scale(&v[r*ldv+j0], &wk.strip[(r-lo)*panelRows], uintptr(ncol), s)
	}
}

// need makes the strip hold n floats.
func (wk *worker) need(n int) {
	if len(wk.strip) < n {
		wk.strip = alignedFloats(n + n/4)
	}
}
