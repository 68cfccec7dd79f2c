package cpu

import "tinkerlocal/kernels"

// The backward of the experts, stage by stage; see experts.go. low and lows hold s*u and then s*dv, scaled as everywhere in this package.

// ExpertsBackward forms dx, the gradient of the gates, and the adapters' gradients.
func (o *ops) ExpertsBackward(a kernels.ExpertsBackwardArgs) error {
	const op = "experts backward"
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	if err := o.own(op, a.DX, a.DGate, a.DY, a.X, a.GU, a.V, a.VSum, a.H, a.DH, a.DGU, a.Low, a.Lows); err != nil {
		return err
	}
	t, err := o.startExperts(op, &a.Routing, a.W, a.Up, a.Down)
	if err != nil {
		return err
	}
	t.upSpans, t.downSpans = groups(t.upSpans, a.Up, false), groups(t.downSpans, a.Down, false)
	t.dx, t.dgate, t.dy, t.x, t.gu, t.v, t.vsum = floats(a.DX), floats(a.DGate), floats(a.DY), floats(a.X), floats(a.GU), floats(a.V), floats(a.VSum)
	t.h, t.dh, t.dgu, t.low, t.lows = floats(a.H), floats(a.DH), floats(a.DGU), floats(a.Low), floats(a.Lows)
	t.ldv, t.ldsum, t.ldlow, t.ldlows = a.V.Cols(), a.VSum.Cols(), a.Low.Cols(), a.Lows.Cols()
	tokens := a.DY.Shape[0]

	o.runDown(downTask{w: &t.inner, groups: t.downs, v: t.low, x: t.dy, ldv: t.ldlow, rows: tokens, back: true})
	o.rows = rowsTask{f: swigluRows, rows: len(t.ids), cols: t.f, a: t.h, b: t.gu}
	o.runRows(2 * t.f)
	o.eachBlock(dhStage, ceilDiv(t.f, panelRows))
	t.stage, t.across = gateStage, min(len(t.ids), 4*o.pool.threads())
	o.pool.run(t, t.across)
	if len(t.downs) > 0 {
		o.runGrads(gradTask{w: &t.inner, spans: t.downSpans, v: t.vsum, dy: t.dy, ldv: t.ldsum, ldy: t.d, o1: t.d, skipA: true})
		o.eachExpert(downFactorStage)
	}
	if len(t.ups) > 0 {
		o.eachBlock(slotLowStage, 1)
		o.eachTokens(tokenLowStage)
	}
	o.eachColumns(dxStage)
	if len(t.ups) > 0 {
		o.runGrads(gradTask{w: &t.hidden, spans: t.upSpans, x: t.x, dv: t.low, lddv: t.ldlow, skipB: true})
		o.eachExpert(upFactorStage)
	}
	return nil
}

// eachExpert runs a stage whose pieces are experts, each cut so that one busy expert keeps all threads at work.
func (o *ops) eachExpert(stage func(t *expertsTask, wk *worker, i int)) {
	t := &o.experts
	t.stage, t.across = stage, 1
	if o.pool.threads() > 1 {
		t.across = min(4*o.pool.threads(), ceilDiv(t.f, panelRows))
	}
	t.across = max(1, min(t.across, maxPieces/t.experts))
	o.pool.run(t, t.experts*t.across)
}

// dhStage: dh = dy D_e + low A_e for a block, not yet times the gate.
func dhStage(t *expertsTask, wk *worker, i int) {
	b := t.blocks[i/t.across]
	rows, w := b.r1-b.r0, t.downWeight(b.e)
	q0, q1 := t.part(i%t.across, ceilDiv(t.f, panelRows))
	if q0 == q1 {
		return
	}
	dy := t.gather(wk, 1, t.dy, t.d, b.r0, b.r1)
	wk.backward(&t.dh[b.r0*t.f+q0*panelRows], t.f, dy, t.d, rows, w, q0, q1, 0, t.d, false)
	if len(t.downs) == 0 {
		return
	}
	low := t.gather(wk, 2, t.low, t.ldlow, b.r0, b.r1)
	for g := range t.downs {
		own := [1]group{t.downs[g]}
		g := &own[0]
		lo, hi := t.within(b.r0, b.r1, g.begin, g.end)
		if lo == hi {
			continue
		}
		g.begin, g.end, g.a = 0, hi-lo, g.a[b.e*g.rank*t.f:][:g.rank*t.f]
		dv := slice(step(low, bytesOf((lo-b.r0)*t.ldlow)), uintptr((hi-lo-1)*t.ldlow+g.rank))
		wk.upBackward(&t.dh[lo*t.f+q0*panelRows], t.f, 0, hi-lo, &t.inner, q0, q1, own[:], dv, t.ldlow)
	}
}

// gateStage: dgate = h . dh, dgu from gate * dh, for some rows.
func gateStage(t *expertsTask, wk *worker, i int) {
	r0, r1 := t.part(i, len(t.ids))
	f, n := t.f, uintptr(t.f)
	for r := r0; r < r1; r++ {
		dh, s := &t.dh[r*f], t.slots[r]
		t.dgate[s] = wk.vec.dot(&t.h[r*f], dh, n)
		wk.vec.scale(dh, dh, n, t.gate[s])
		wk.vec.swigluGrad(&t.dgu[2*r*f], &t.dgu[2*r*f+f], dh, &t.gu[2*r*f], &t.gu[2*r*f+f], n)
	}
}

// slotLowStage: lows = s * dgu B_e for a block, per row and part.
func slotLowStage(t *expertsTask, wk *worker, i int) {
	b := t.blocks[i]
	for g := range t.ups {
		own := t.ups[g]
		lo, hi := t.within(b.r0, b.r1, own.begin, own.end)
		if lo == hi {
			continue
		}
		for part := range 2 {
			// downBackward counts rows of B and columns of dgu alike from part*F.
			own.b = t.ups[g].b[(part*t.experts+b.e-part)*t.f*own.rank:]
			for q := range ceilDiv(own.rank, panelRows) {
				wk.downBackward(t.lows, t.ldlows, t.dgu, 2*t.f, part*t.f, t.f, part, &own, lo, hi, q)
			}
		}
	}
}

// tokenLowStage: low = sum_j lows_j for a range of tokens.
func tokenLowStage(t *expertsTask, _ *worker, i int) {
	r0, r1 := t.part(i, len(t.ids)/t.top)
	for g := range t.ups {
		g := &t.ups[g]
		for tok := max(r0, g.begin); tok < min(r1, g.end); tok++ {
			sum := t.low[tok*t.ldlow:][:2*g.rank]
			clear(sum)
			for s := tok * t.top; s < (tok+1)*t.top; s++ {
				for c, v := range t.lows[int(t.rows[s])*t.ldlows:][:2*g.rank] {
					sum[c] += v
				}
			}
		}
	}
}

// dxStage: dx = sum_j dgu_j W_e + low A for some columns of all tokens.
func dxStage(t *expertsTask, wk *worker, i int) {
	q0, q1 := t.part(i, ceilDiv(t.d, panelRows))
	c0, tokens := q0*panelRows, len(t.ids)/t.top
	n := min(q1*panelRows, t.d) - c0
	for tok := range tokens {
		clear(t.dx[tok*t.d+c0:][:n])
	}
	ld := (q1 - q0) * panelRows
	for _, b := range t.blocks {
		wk.need((b.r1 - b.r0) * ld)
		wk.backward(&wk.strip[0], ld, &t.dgu[2*b.r0*t.f], 2*t.f, b.r1-b.r0, t.upWeight(b.e), q0, q1, 0, 2*t.f, false)
		for r := b.r0; r < b.r1; r++ {
			dx := &t.dx[t.token(r)*t.d+c0]
			wk.vec.add(dx, dx, &wk.strip[(r-b.r0)*ld], uintptr(n))
		}
	}
	wk.upBackward(&t.dx[c0], t.d, 0, tokens, &t.hidden, q0, q1, t.ups, t.low, t.ldlow)
}

// eachSegment calls f with the rows of expert e that each segment of each span has, in the order of gradients.go.
func (t *expertsTask) eachSegment(b0, b1 int, g *group, f func(r0, r1 int)) {
	lo, end := t.within(b0, b1, g.begin, g.end)
	for s := g.begin; s < g.end && lo < end; s += gradSegment {
		hi := t.firstRow(lo, end, s+gradSegment)
		if lo < hi {
			f(lo, hi)
		}
		lo = hi
	}
}

// downFactorStage: DA_e += (gate * low)^T h for some columns of one expert's factor.
func downFactorStage(t *expertsTask, wk *worker, i int) {
	e := i / t.across
	b0, b1 := int(t.begin[e]), int(t.begin[e+1])
	q0, q1 := t.part(i%t.across, ceilDiv(t.f, panelRows))
	if b0 == b1 || q0 == q1 {
		return
	}
	ld := t.ldlow
	u := wk.scratch(1, (b1-b0)*ld)
	for g := range t.downSpans {
		g := &t.downSpans[g]
		lo, hi := t.within(b0, b1, g.begin, g.end)
		for r := lo; r < hi; r++ {
			wk.vec.scale(&u[(r-b0)*ld], &t.low[t.token(r)*ld], uintptr(g.rank), t.gate[t.slots[r]])
		}
		da := g.da[e*g.rank*t.f:][:g.rank*t.f]
		t.eachSegment(b0, b1, g, func(r0, r1 int) {
			for q := q0; q < q1; q++ {
				ncol := min(panelRows, t.f-q*panelRows)
				h := wk.columns(t.h, t.f, r0, r1-r0, q*panelRows, ncol)
				wk.tiles(&da[q*panelRows], t.f, &u[(r0-b0)*ld], 1, ld, g.rank, h, 4*panelRows, r1-r0, ncol, true)
			}
		})
	}
}

// upFactorStage: DB_e += dgu^T v for some rows of both parts of one expert's factor. As in gradTask.gradB the tiles are turned, and a run
// of spans with one adapter shares the turning.
func upFactorStage(t *expertsTask, wk *worker, i int) {
	e := i / t.across
	b0, b1 := int(t.begin[e]), int(t.begin[e+1])
	q0, q1 := t.part(i%t.across, ceilDiv(t.f, panelRows))
	if b0 == b1 || q0 == q1 {
		return
	}
	v := slice(t.gather(wk, 1, t.v, t.ldv, b0, b1), uintptr((b1-b0)*t.ldv))
	for j := 0; j < len(t.upSpans); {
		g := &t.upSpans[j]
		end := j + 1
		for end < len(t.upSpans) && t.upSpans[end].dbTens == g.dbTens {
			end++
		}
		if lo, hi := t.within(b0, b1, g.begin, t.upSpans[end-1].end); lo < hi {
			for part := range 2 {
				db := g.db[(part*t.experts+e)*t.f*g.rank:][:t.f*g.rank]
				for q := q0; q < q1; q++ {
					t.upFactorPanel(wk, t.upSpans[j:end], db, v, part, q, b0, b1)
				}
			}
		}
		j = end
	}
}

// upFactorPanel adds to the rows [16q, 16q+16) of one part of DB_e. All spans have one adapter.
func (t *expertsTask) upFactorPanel(wk *worker, spans []group, db, v []float32, part, q, b0, b1 int) {
	rank, o0 := spans[0].rank, q*panelRows
	ncol := min(panelRows, t.f-o0)
	acc := wk.scratch(0, rank*panelRows)
	clear(acc)
	for o := range ncol {
		for c, x := range db[(o0+o)*rank : (o0+o+1)*rank] {
			acc[c*panelRows+o] = x
		}
	}
	for g := range spans {
		t.eachSegment(b0, b1, &spans[g], func(r0, r1 int) {
			dgu := wk.columns(t.dgu, 2*t.f, r0, r1-r0, part*t.f+o0, ncol)
			wk.tiles(&acc[0], panelRows, &v[(r0-b0)*t.ldv+part*rank], 1, t.ldv, rank, dgu, 4*panelRows, r1-r0, panelRows, true)
		})
	}
	for o := range ncol {
		for c := range rank {
			db[(o0+o)*rank+c] = acc[c*panelRows+o]
		}
	}
}
