package cpu

// Gradients of adapters: dA += dv^T x and dB += dy^T v, with v and dv already scaled.
//
// Per element: each span (a datum) is cut into segments of 128 tokens from its first token; a segment is one chain over ascending
// tokens, from zero; the segments' sums are added to the gradient one by one, in span order. So what a datum adds does not depend on
// what it is packed with, and a batch adds the same as its data would in calls of their own.

// gradSegment is the token count of one chain.
const gradSegment = 128

// gradTask does dA by panels of x's columns, then dB by panels of dy's columns. For the head the rows are a compact list of active tokens
// (index, ascending), and dy holds the weight rows [o0, o1) only.
type gradTask struct {
	w              *weight
	spans          []group
	x, v, dv, dy   []float32
	ldv, lddv, ldy int
	o0, o1         int
	index          []int // nil: row r is token r
	skipA, skipB   bool
	aPieces        int
	perPiece       int
}

func (o *ops) runGrads(t gradTask) {
	if len(t.spans) == 0 {
		return
	}
	na, nb := ceilDiv(t.w.cols, panelRows), ceilDiv(t.o1-t.o0, panelRows)
	t.perPiece = max(1, (na+nb)/(8*o.pool.threads()))
	if !t.skipA {
		t.aPieces = ceilDiv(na, t.perPiece)
	}
	n := t.aPieces
	if !t.skipB {
		n += ceilDiv(nb, t.perPiece)
	}
	o.grad = t
	o.pool.run(&o.grad, n)
}

func (t *gradTask) run(wk *worker, i int) {
	if i < t.aPieces {
		for q := i * t.perPiece; q < min((i+1)*t.perPiece, ceilDiv(t.w.cols, panelRows)); q++ {
			t.gradA(wk, q)
		}
		return
	}
	i -= t.aPieces
	for q := i * t.perPiece; q < min((i+1)*t.perPiece, ceilDiv(t.o1-t.o0, panelRows)); q++ {
		t.gradB(wk, t.o0+q*panelRows, min(t.o1, t.o0+(q+1)*panelRows))
	}
}

// gradA does the columns [16q, 16q+16) of every dA.
func (t *gradTask) gradA(wk *worker, q int) {
	cols := t.w.cols
	ncol := min(panelRows, cols-q*panelRows)
	r := 0
	for i := range t.spans {
		g := &t.spans[i]
		for s := g.begin; s < g.end; s += gradSegment {
			r0, r1 := t.rowsOf(&r, s, min(s+gradSegment, g.end))
			if r0 == r1 {
				continue
			}
			b := wk.columns(t.x, cols, r0, r1-r0, q*panelRows, ncol)
			wk.tiles(&g.da[q*panelRows], cols, &t.dv[r0*t.lddv], 1, t.lddv, g.rank*len(t.w.parts), b, 4*panelRows, r1-r0, ncol, true)
		}
	}
}

// gradB does the rows [o0, o1) of every dB, at most 16. The tiles have the rank as rows and o as columns, so dB is turned on the way in
// and out, once per run of spans that share it.
func (t *gradTask) gradB(wk *worker, o0, o1 int) {
	ncol := o1 - o0
	first := 0
	for part, n := range t.w.parts { // a panel may hold rows of several parts
		lo, hi := max(o0, first), min(o1, first+n)
		first += n
		if lo >= hi {
			continue
		}
		r := 0
		for i := 0; i < len(t.spans); {
			g := &t.spans[i]
			acc := wk.scratch(0, g.rank*panelRows)
			clear(acc)
			for o := lo; o < hi; o++ {
				for j, v := range g.db[o*g.rank : (o+1)*g.rank] {
					acc[j*panelRows+o-o0] = v
				}
			}
			j := i
			for ; j < len(t.spans) && t.spans[j].dbTens == g.dbTens; j++ {
				h := &t.spans[j]
				for s := h.begin; s < h.end; s += gradSegment {
					r0, r1 := t.rowsOf(&r, s, min(s+gradSegment, h.end))
					if r0 == r1 {
						continue
					}
					b := wk.columns(t.dy, t.ldy, r0, r1-r0, o0-t.o0, ncol)
					wk.tiles(&acc[0], panelRows, &t.v[r0*t.ldv+part*g.rank], 1, t.ldv, g.rank, b, 4*panelRows, r1-r0, panelRows, true)
				}
			}
			for o := lo; o < hi; o++ {
				dst := g.db[o*g.rank : (o+1)*g.rank]
				for j := range dst {
					dst[j] = acc[j*panelRows+o-o0]
				}
			}
			i = j
		}
	}
}

// rowsOf returns the rows of the tokens [s, e); r is where the search starts, and moves on with it.
func (t *gradTask) rowsOf(r *int, s, e int) (r0, r1 int) {
	if t.index == nil {
		return s, e
	}
	for *r < len(t.index) && t.index[*r] < s {
		*r++
	}
	r0 = *r
	for *r < len(t.index) && t.index[*r] < e {
		*r++
	}
	return r0, *r
}
