package cpu

import "tinkerlocal/kernels"

// The experts of a mixture-of-experts block. Every product is that of gemm.go, per element; the rows of one expert are computed together, in
// blocks, and a token's sum over its experts runs in the order of their ids, because the loops over blocks do.

// expertRows is a block of rows of one expert.
type expertRows struct{ e, r0, r1 int }

// expertsTask is one stage of the block, forward or backward. The stages share everything else.
type expertsTask struct {
	routing
	stage func(t *expertsTask, wk *worker, i int)

	w      *kernels.Experts
	d, f   int
	blocks []expertRows
	across int // pieces that a block, or the columns of a stage, is cut into

	ups, downs         []group // neighbours merged
	upSpans, downSpans []group // as given
	hidden             weight  // only the shape [2F,D] of two parts
	inner              weight  // only the shape [D,F] of one part
	parts              [3]int

	x, y, res          []float32
	gu, h, v, vsum     []float32
	dx, dy, dgate      []float32
	dh, dgu, low, lows []float32
	ldv, ldsum         int
	ldlow, ldlows      int
}

func (t *expertsTask) run(wk *worker, i int) { t.stage(t, wk, i) }

func (t *expertsTask) upWeight(e int) *weight   { return t.w.GateUp[e].(*weight) }
func (t *expertsTask) downWeight(e int) *weight { return t.w.Down[e].(*weight) }

// startExperts prepares o.experts for a call whose other arguments have been checked.
func (o *ops) startExperts(op string, r *kernels.Routing, w *kernels.Experts, ups, downs []kernels.Span) (*expertsTask, error) {
	rt, err := o.routing(op, r)
	if err != nil {
		return nil, err
	}
	if err := rt.inside(op); err != nil {
		return nil, err
	}
	for e := range w.Down {
		if _, err := o.mine(op, w.GateUp[e], nil); err != nil {
			return nil, err
		}
		if _, err := o.mine(op, w.Down[e], nil); err != nil {
			return nil, err
		}
	}
	if err := o.ownFactors(op, ups); err != nil {
		return nil, err
	}
	if err := o.ownFactors(op, downs); err != nil {
		return nil, err
	}
	t := &o.experts
	*t = expertsTask{routing: rt, w: w, d: w.Down[0].Rows(), f: w.Down[0].Cols(), blocks: t.blocks[:0],
		ups: groups(t.ups, ups, true), downs: groups(t.downs, downs, true), upSpans: t.upSpans[:0], downSpans: t.downSpans[:0]}
	t.parts = [3]int{t.f, t.f, t.d}
	t.hidden = weight{rows: 2 * t.f, cols: t.d, parts: t.parts[:2]}
	t.inner = weight{rows: t.d, cols: t.f, parts: t.parts[2:]}
	for e := range rt.experts {
		b0, b1 := int(rt.begin[e]), int(rt.begin[e+1])
		if b0 == b1 {
			continue
		}
		per := roundUp(ceilDiv(b1-b0, ceilDiv(b1-b0, rowBlock)), tileRows)
		for r := b0; r < b1; r += per {
			t.blocks = append(t.blocks, expertRows{e, r, min(r+per, b1)})
		}
	}
	return t, nil
}

// ownFactors checks that adapters lie in this device's memory.
func (o *ops) ownFactors(op string, spans []kernels.Span) error {
	for i := range spans {
		if l := spans[i].LoRA; l != nil {
			if err := o.own(op, l.A, l.B, l.DA, l.DB); err != nil {
				return err
			}
		}
	}
	return nil
}

// eachBlock runs a stage whose pieces are blocks, times runs of panels when there are few blocks.
func (o *ops) eachBlock(stage func(t *expertsTask, wk *worker, i int), panels int) {
	t := &o.experts
	t.stage, t.across = stage, 1
	if n := 2 * o.pool.threads(); o.pool.threads() > 1 && panels > 1 && len(t.blocks) < n {
		t.across = min(ceilDiv(n, len(t.blocks)), ceilDiv(panels, 4))
	}
	o.pool.run(t, len(t.blocks)*t.across)
}

// eachColumns runs a stage whose pieces are panels of the hidden size, all rows of them.
func (o *ops) eachColumns(stage func(t *expertsTask, wk *worker, i int)) {
	t := &o.experts
	panels := ceilDiv(t.d, panelRows)
	per := max(1, min(subPanels, panels/(4*o.pool.threads())))
	if per > 4 {
		per = roundUp(per, 4)
	}
	t.stage, t.across = stage, ceilDiv(panels, per)
	o.pool.run(t, t.across)
}

// eachTokens runs a stage whose pieces are ranges of tokens.
func (o *ops) eachTokens(stage func(t *expertsTask, wk *worker, i int)) {
	t := &o.experts
	tokens := len(t.ids) / t.top
	t.stage, t.across = stage, min(ceilDiv(tokens, 8), 4*o.pool.threads())
	o.pool.run(t, t.across)
}

// part is piece i's share of n things.
func (t *expertsTask) part(i, n int) (lo, hi int) { return n * i / t.across, n * (i + 1) / t.across }

// within finds the rows of block b whose tokens are in [begin, end): they lie together.
func (t *expertsTask) within(r0, r1, begin, end int) (lo, hi int) {
	return t.firstRow(r0, r1, begin), t.firstRow(r0, r1, end)
}

// firstRow is the first row in [r0, r1) of one expert whose token is at least tok, or r1.
func (t *expertsTask) firstRow(r0, r1, tok int) int {
	for r0 < r1 {
		mid := (r0 + r1) / 2
		if t.token(mid) < tok {
			r0 = mid + 1
		} else {
			r1 = mid
		}
	}
	return r0
}

// gather copies the tokens' rows of m, n of ld columns each, for the rows [r0, r1) into the worker's room; one row is used where it lies.
func (t *expertsTask) gather(wk *worker, room int, m []float32, ld, r0, r1 int) *float32 {
	if r1-r0 == 1 {
		return &m[t.token(r0)*ld]
	}
	dst := wk.scratch(room, (r1-r0)*ld)
	for r := r0; r < r1; r++ {
		at := t.token(r) * ld
		copy(dst[(r-r0)*ld:(r-r0+1)*ld], m[at:at+ld])
	}
	return &dst[0]
}

// Experts is the forward of the block.
func (o *ops) Experts(a kernels.ExpertsArgs) error {
	const op = "experts"
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	if err := o.own(op, a.Y, a.X, a.Res, a.GU, a.V, a.VSum, a.H, a.Lows); err != nil {
		return err
	}
	t, err := o.startExperts(op, &a.Routing, a.W, a.Up, a.Down)
	if err != nil {
		return err
	}
	t.x, t.y, t.res, t.gu, t.h = floats(a.X), floats(a.Y), floats(a.Res), floats(a.GU), floats(a.H)
	t.v, t.vsum, t.lows = floats(a.V), floats(a.VSum), floats(a.Lows)
	t.ldv, t.ldsum, t.ldlows = a.V.Cols(), a.VSum.Cols(), a.Lows.Cols()
	tokens := a.X.Shape[0]
	o.runDown(downTask{w: &t.hidden, groups: t.ups, v: t.v, x: t.x, ldv: t.ldv, rows: tokens})
	o.eachBlock(gateUpStage, ceilDiv(2*t.f, panelRows))
	o.rows = rowsTask{f: swigluRows, rows: len(t.ids), cols: t.f, a: t.h, b: t.gu}
	o.runRows(2 * t.f)
	if len(t.downs) > 0 {
		o.eachBlock(lowStage, 1)
		o.eachTokens(lowSumStage)
	}
	o.eachColumns(downStage)
	return nil
}

// gateUpStage: gu = x W_e^T + v B_e^T for a block.
func gateUpStage(t *expertsTask, wk *worker, i int) {
	b := t.blocks[i/t.across]
	rows, n, w := b.r1-b.r0, 2*t.f, t.upWeight(b.e)
	p0, p1 := t.part(i%t.across, w.panels())
	x := t.gather(wk, 1, t.x, t.d, b.r0, b.r1)
	var v *float32
	if len(t.ups) > 0 {
		v = t.gather(wk, 2, t.v, t.ldv, b.r0, b.r1)
	}
	for ; p0 < p1; p0 += subPanels {
		end := min(p0+subPanels, p1)
		wk.forward(&t.gu[b.r0*n+p0*panelRows], n, x, t.d, rows, w, p0, end)
		for g := range t.ups {
			g := &t.ups[g]
			lo, hi := t.within(b.r0, b.r1, g.begin, g.end)
			if lo < hi {
				t.expertUp(wk, b.e, lo, hi, p0, end, g, step(v, bytesOf((lo-b.r0)*t.ldv)))
			}
		}
	}
}

// expertUp adds v B_e^T to the rows [lo, hi) and panels [p0, p1) of gu, as worker.up does for a stacked weight.
func (t *expertsTask) expertUp(wk *worker, e, lo, hi, p0, p1 int, g *group, v *float32) {
	n := 2 * t.f
	for p := p0; p < p1; p++ {
		ncol := min(panelRows, n-p*panelRows)
		for part := range 2 {
			o0, o1 := max(part*t.f, p*panelRows), min((part+1)*t.f, p*panelRows+ncol)
			if o0 >= o1 {
				continue
			}
			own := g.b[(part*t.experts+e)*t.f*g.rank:][:t.f*g.rank]
			for j := 0; j < g.rank; j += segment {
				jn := min(segment, g.rank-j)
				b := wk.turn(own, g.rank, o0-part*t.f, o1-part*t.f, o0-p*panelRows, j, jn)
				wk.tiles(&t.gu[lo*n+p*panelRows], n, step(v, bytesOf(part*g.rank+j)), t.ldv, 1, hi-lo, b, 4*panelRows, jn, ncol, true)
			}
		}
	}
}

// lowStage: lows = s * h A_e^T for a block, per row.
func lowStage(t *expertsTask, wk *worker, i int) {
	b := t.blocks[i]
	for g := range t.downs {
		own := t.downs[g]
		lo, hi := t.within(b.r0, b.r1, own.begin, own.end)
		if lo == hi {
			continue
		}
		own.a = own.a[b.e*own.rank*t.f:][:own.rank*t.f]
		for q := range ceilDiv(own.rank, panelRows) {
			wk.down(t.lows, t.ldlows, t.h, &t.inner, &own, lo, hi, q)
		}
	}
}

// lowSumStage: vsum = sum_j gate_j * lows_j for a range of tokens.
func lowSumStage(t *expertsTask, _ *worker, i int) {
	r0, r1 := t.part(i, len(t.ids)/t.top)
	for g := range t.downs {
		g := &t.downs[g]
		for tok := max(r0, g.begin); tok < min(r1, g.end); tok++ {
			sum := t.vsum[tok*t.ldsum:][:g.rank]
			clear(sum)
			for s := tok * t.top; s < (tok+1)*t.top; s++ {
				gate := t.gate[s]
				for c, v := range t.lows[int(t.rows[s])*t.ldlows:][:g.rank] {
					sum[c] += float32(gate * v)
				}
			}
		}
	}
}

// downStage: y = sum_j gate_j * (h_j D_e^T) + vsum B^T (+ res) for some columns of all tokens.
func downStage(t *expertsTask, wk *worker, i int) {
	p0, p1 := t.part(i, ceilDiv(t.d, panelRows))
	c0, tokens := p0*panelRows, len(t.ids)/t.top
	n := min(p1*panelRows, t.d) - c0
	for tok := range tokens {
		clear(t.y[tok*t.d+c0:][:n])
	}
	ld := (p1 - p0) * panelRows
	for _, b := range t.blocks {
		wk.need((b.r1 - b.r0) * ld)
		wk.forward(&wk.strip[0], ld, &t.h[b.r0*t.f], t.f, b.r1-b.r0, t.downWeight(b.e), p0, p1)
		for r := b.r0; r < b.r1; r++ {
			term, y := &wk.strip[(r-b.r0)*ld], &t.y[t.token(r)*t.d+c0]
			wk.vec.scale(term, term, uintptr(n), t.gate[t.slots[r]])
			wk.vec.add(y, y, term, uintptr(n))
		}
	}
	wk.up(&t.y[c0], t.d, 0, tokens, &t.inner, p0, p1, t.downs, t.vsum, t.ldsum)
	if t.res != nil {
		for tok := range tokens {
			at := tok*t.d + c0
			wk.vec.add(&t.y[at], &t.y[at], &t.res[at], uintptr(n))
		}
	}
}
