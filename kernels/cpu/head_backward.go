package cpu

import "tinkerlocal/kernels"

// Backward of the log-probabilities: dz = (sum_j w_j) softmax(z) - sum_j w_j e(target_j), then dh = dz W + s dv A, dv = dz B, and the adapters'
// gradients, as in linear.go. Logits are computed again, by the forward's code, so softmax(z) = exp(z - lse) has their bits.
//
// Only tokens with a non-zero weight take part; they are copied together first. The vocabulary is taken in chunks of whole segments:
// dz of a chunk exists for all of these tokens, so the sums over the vocabulary (dh, dv; segments of 256 rows from row 0, ascending) and over
// tokens (dB; segments of 128 from a span's start) both keep their order, and the chunk's size shows in no bit.

// chunkFloats bounds dz (16 MiB), above one segment of the vocabulary.
const chunkFloats = 1 << 22

// headBackwardTask runs its phases one after the other; each is cut by g.
type headBackwardTask struct {
	phase        headPhase
	g            grid
	w            *weight
	groups       []group // in compact rows
	index        []int   // active tokens
	dout, lse    []float32
	target       []int32
	perToken     int
	h, v, dh, dv []float32 // compact
	ldv, lddv    int
	dz           []float32
	ld           int
	o0, o1       int
	memory       []float32
}

type headPhase int

const (
	formDZ headPhase = iota // dz of the chunk
	formDH                  // dh += dz W
	formDV                  // dv += dz B
	addDV                   // dv *= s, dh += dv A
)

// LogProbsBackward overwrites dh and adds to the adapters' gradients.
func (o *ops) LogProbsBackward(a kernels.LogProbsBackwardArgs) error {
	const op = "logprobs backward"
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	w, err := o.mine(op, a.W, a.Spans, a.DH, a.DV, a.DOut, a.LSE, a.V, a.H, a.Target)
	if err != nil {
		return err
	}
	if err := checkTargets(op, ints(a.Target), w.rows); err != nil {
		return err
	}
	t := &o.headB
	*t = headBackwardTask{w: w, dout: floats(a.DOut), lse: floats(a.LSE), target: ints(a.Target), perToken: a.Target.Shape[1],
		index: t.index[:0], groups: t.groups, memory: t.memory}
	dh, cols := floats(a.DH), w.cols
	clear(dh)
	for r := range a.H.Shape[0] {
		for j := r * t.perToken; j < (r+1)*t.perToken; j++ {
			if t.dout[j] != 0 && t.target[j] >= 0 {
				t.index = append(t.index, r)
				break
			}
		}
	}
	n := len(t.index)
	if n == 0 {
		return nil
	}
	t.compact(&a)
	for i, r := range t.index {
		copy(t.h[i*cols:(i+1)*cols], floats(a.H)[r*cols:])
		if t.ldv > 0 {
			copy(t.v[i*t.ldv:(i+1)*t.ldv], floats(a.V)[r*t.ldv:])
		}
	}
	o.spans = groups(o.spans, a.Spans, false)
	grads := gradTask{w: w, spans: o.spans, x: t.h, v: t.v, dv: t.dv, dy: t.dz, ldv: t.ldv, lddv: t.lddv, ldy: t.ld, index: t.index}
	for t.o0 = 0; t.o0 < w.rows; t.o0 = t.o1 {
		t.o1 = min(w.rows, t.o0+max(segment, t.ld/segment*segment))
		o.runHeadPhase(formDZ, o.cut(n, ceilDiv(t.o1-t.o0, panelRows), cols))
		o.runHeadPhase(formDH, o.cut(n, ceilDiv(cols, panelRows), t.o1-t.o0))
		if len(t.groups) > 0 {
			o.runHeadPhase(formDV, o.rowGrid(n))
			grads.o0, grads.o1, grads.skipA, grads.skipB = t.o0, t.o1, true, false
			o.runGrads(grads)
		}
	}
	if len(t.groups) > 0 {
		o.runHeadPhase(addDV, o.rowGrid(n))
		grads.skipA, grads.skipB, grads.o0, grads.o1 = false, true, 0, 0
		o.runGrads(grads)
	}
	for i, r := range t.index {
		copy(dh[r*cols:(r+1)*cols], t.dh[i*cols:])
	}
	return nil
}

// compact finds room for the active rows and the groups in their numbering.
func (t *headBackwardTask) compact(a *kernels.LogProbsBackwardArgs) {
	n, cols := len(t.index), t.w.cols
	t.ldv = 0
	if !a.V.None() {
		t.ldv = a.V.Cols()
	}
	t.groups = groups(t.groups, a.Spans, true)
	kept := t.groups[:0]
	t.lddv = 0
	r := 0
	for _, g := range t.groups {
		for r < n && t.index[r] < g.begin {
			r++
		}
		first := r
		for r < n && t.index[r] < g.end {
			r++
		}
		if first < r {
			g.begin, g.end = first, r
			kept = append(kept, g)
			t.lddv = max(t.lddv, g.rank*len(t.w.parts))
		}
	}
	t.groups = kept
	t.ld = roundUp(t.w.rows, panelRows)
	if t.ld > segment && n*t.ld > chunkFloats {
		t.ld = max(segment, min(t.ld, chunkFloats/n)/segment*segment)
	}
	need := n * (2*cols + t.ldv + t.lddv + t.ld)
	if len(t.memory) < need {
		t.memory = alignedFloats(need)
	}
	m := t.memory
	take := func(k int) []float32 {
		part := m[:k:k]
		m = m[k:]
		return part
	}
	t.dz, t.h, t.dh, t.v, t.dv = take(n*t.ld), take(n*cols), take(n*cols), take(n*t.ldv), take(n*t.lddv)
}

// rowGrid cuts rows only.
func (o *ops) rowGrid(rows int) grid {
	return grid{rows: rows, panels: 1, pb: 1, rb: min(rowBlock, roundUp(ceilDiv(rows, 2*o.pool.threads()), tileRows))}
}

func (o *ops) runHeadPhase(phase headPhase, g grid) {
	o.headB.phase, o.headB.g = phase, g
	o.pool.run(&o.headB, g.pieces())
}

func (t *headBackwardTask) run(wk *worker, i int) {
	r0, r1, p0, p1 := t.g.piece(i)
	cols := t.w.cols
	switch t.phase {
	case formDZ:
		t.form(wk, r0, r1, p0, p1)
	case formDH:
		wk.backward(&t.dh[r0*cols+p0*panelRows], cols, &t.dz[r0*t.ld], t.ld, r1-r0, t.w, p0, p1, t.o0, t.o1, t.o0 > 0)
	case formDV:
		for gi := range t.groups {
			t.down(wk, &t.groups[gi], r0, r1)
		}
	case addDV:
		for gi := range t.groups {
			g := &t.groups[gi]
			for r := max(r0, g.begin); r < min(r1, g.end); r++ {
				row := &t.dv[r*t.lddv]
				wk.vec.scale(row, row, uintptr(g.rank*len(t.w.parts)), g.scale)
			}
		}
		wk.upBackward(&t.dh[r0*cols], cols, r0, r1, t.w, 0, ceilDiv(cols, panelRows), t.groups, t.dv, t.lddv)
	}
}

// form computes dz for the rows [r0, r1) and the chunk's panels [p0, p1).
func (t *headBackwardTask) form(wk *worker, r0, r1, p0, p1 int) {
	first := t.o0 / panelRows
	a, b := p0*panelRows, min(p1*panelRows, t.o1-t.o0) // columns of dz
	c := &t.dz[r0*t.ld+a]
	wk.forward(c, t.ld, &t.h[r0*t.w.cols], t.w.cols, r1-r0, t.w, first+p0, first+p1)
	wk.up(c, t.ld, r0, r1, t.w, first+p0, first+p1, t.groups, t.v, t.ldv)
	for r := r0; r < r1; r++ {
		token := t.index[r]
		targets := t.target[token*t.perToken : (token+1)*t.perToken]
		weights := t.dout[token*t.perToken : (token+1)*t.perToken]
		total := float32(0)
		for j, id := range targets {
			if id >= 0 {
				total += weights[j]
			}
		}
		row := t.dz[r*t.ld : (r+1)*t.ld]
		wk.vec.expScale(&row[a], uintptr(b-a), t.lse[token], total)
		for j, id := range targets {
			if at := int(id) - t.o0; at >= a && at < b {
				row[at] -= weights[j]
			}
		}
	}
}

// down adds the chunk's part of dz B to dv, unscaled. A part's chains are cut at multiples of 256 weight rows.
func (t *headBackwardTask) down(wk *worker, g *group, r0, r1 int) {
	lo, hi := max(r0, g.begin), min(r1, g.end)
	if lo >= hi {
		return
	}
	first := 0
	for part, n := range t.w.parts {
		end := first + n
		for o := t.o0; o < t.o1; o += segment {
			a, b := max(o, first), min(o+segment, t.o1, end)
			if a >= b {
				continue
			}
			for j := 0; j < g.rank; j += panelRows {
				ncol := min(panelRows, g.rank-j)
				panel := wk.columns(g.b, g.rank, a, b-a, j, ncol)
				wk.tiles(&t.dv[lo*t.lddv+part*g.rank+j], t.lddv, &t.dz[lo*t.ld+a-t.o0], t.ld, 1, hi-lo, panel, 4*panelRows, b-a, ncol, a > first)
			}
		}
		first = end
	}
}
