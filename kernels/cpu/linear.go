package cpu

import "tinkerlocal/kernels"

// Linear and its backward. Sums: the base product of gemm.go, plus the bias, plus the adapter product, plus the residual (or dx when it is added to), in
// that order, two terms at a time.

// ops is the device's operations and the tasks they reuse, so that a call allocates nothing.
type ops struct {
	dev  *Device
	pool *pool
	vec  *vectors

	groups  []group // neighbours merged
	spans   []group // as given, for the gradients
	pack    packTask
	down    downTask
	lin     linearTask
	grad    gradTask
	rows    rowsTask
	attn    attentionTask
	attnB   attentionBackwardTask
	head    headTask
	headB   headBackwardTask
	route   routeTask
	experts expertsTask
	sums    sumsTask
	offsets []int     // first piece of each sequence
	ones    []float32 // the gain of heads without a norm
	next    []int32   // next free row of each expert
}

// rowBlock is the most rows that one piece of a product takes: enough to pay for transposing and widening a panel, few enough to share.
const rowBlock = 96

// grid cuts a product of rows x panels into pieces of rb rows and pb panels.
type grid struct{ rows, panels, rb, pb int }

// cut chooses the pieces for a product with the given number of multiply-adds per row and panel.
func (o *ops) cut(rows, panels, steps int) grid {
	g := grid{rows: rows, panels: panels, rb: rows, pb: panels}
	most := rowBlock
	if steps > 2*segment { // panels come from further away: more rows for each
		most *= 2
	}
	n := o.pool.threads()
	if n == 1 || rows*panels*steps < 1<<12 { // a piece that takes about two microseconds is not worth the hand-over
		g.rb = min(rows, most)
		return g
	}
	g.rb = min(most, roundUp(ceilDiv(rows, 2*n), tileRows))
	if blocks := ceilDiv(rows, g.rb); blocks < 2*n {
		g.pb = max(1, panels*blocks/(4*n))
		if rows == 1 && g.pb > 4 {
			g.pb = roundUp(g.pb, 4)
		}
	}
	g.pb = max(g.pb, ceilDiv(panels*ceilDiv(rows, g.rb), maxPieces))
	return g
}

func (g *grid) pieces() int { return ceilDiv(g.rows, g.rb) * ceilDiv(g.panels, g.pb) }

func (g *grid) piece(i int) (r0, r1, p0, p1 int) {
	across := ceilDiv(g.panels, g.pb)
	r0, p0 = i/across*g.rb, i%across*g.pb
	return r0, min(r0+g.rb, g.rows), p0, min(p0+g.pb, g.panels)
}

// linearTask is y = x W^T + bias + v B^T + res, or dx = dy W + dv A (+ dx) when back is set.
type linearTask struct {
	grid
	w       *weight
	groups  []group
	y, x, v []float32
	bias    []float32
	res     []float32
	ldv     int
	back    bool
}

// subPanels is how many panels get their base product, adapter product and residual before the next ones: their sums stay in cache.
const subPanels = 8

func (t *linearTask) run(wk *worker, i int) {
	r0, r1, p0, p1 := t.piece(i)
	for ; p0 < p1; p0 += subPanels {
		t.block(wk, r0, r1, p0, min(p0+subPanels, p1))
	}
}

func (t *linearTask) block(wk *worker, r0, r1, p0, p1 int) {
	in, out := t.w.cols, t.w.rows
	if t.back {
		in, out = out, in
	}
	n := min(p1*panelRows, out) - p0*panelRows
	c, ldc := &t.y[r0*out+p0*panelRows], out
	if t.res != nil { // y may be res, so the sum waits in scratch
		ldc = (p1 - p0) * panelRows
		wk.need((r1 - r0) * ldc)
		c = &wk.strip[0]
	}
	if t.back {
		wk.backward(c, ldc, &t.x[r0*in], in, r1-r0, t.w, p0, p1, 0, t.w.rows, false)
		wk.upBackward(c, ldc, r0, r1, t.w, p0, p1, t.groups, t.v, t.ldv)
	} else {
		wk.forward(c, ldc, &t.x[r0*in], in, r1-r0, t.w, p0, p1)
		if t.bias != nil {
			for r := range r1 - r0 {
				row := step(c, bytesOf(r*ldc))
				wk.vec.add(row, row, &t.bias[p0*panelRows], uintptr(n))
			}
		}
		wk.up(c, ldc, r0, r1, t.w, p0, p1, t.groups, t.v, t.ldv)
	}
	if t.res != nil {
		for r := r0; r < r1; r++ {
			at := r*out + p0*panelRows
			wk.vec.add(&t.y[at], &wk.strip[(r-r0)*ldc], &t.res[at], uintptr(n))
		}
	}
}

// downTask is v = s x A^T for every group, or dv = s dy B per part when back is set.
type downTask struct {
	w        *weight
	groups   []group
	v, x     []float32
	ldv, rb  int
	rows     int
	back     bool
	perGroup int // panels of the widest group
}

func (o *ops) runDown(t downTask) {
	if len(t.groups) == 0 {
		return
	}
	for i := range t.groups {
		n := ceilDiv(len(t.w.parts)*t.groups[i].rank, panelRows)
		if t.back {
			n = len(t.w.parts) * ceilDiv(t.groups[i].rank, panelRows)
		}
		t.perGroup = max(t.perGroup, n)
	}
	g := o.cut(t.rows, t.perGroup, t.w.cols)
	t.rb = g.rb
	o.down = t
	blocks := ceilDiv(t.rows, t.rb)
	if blocks >= o.pool.threads() || t.rows*t.w.cols*t.perGroup < 1<<12 {
		o.down.perGroup = 0
		o.pool.run(&o.down, blocks)
		return
	}
	o.pool.run(&o.down, min(maxPieces, blocks*t.perGroup))
}

func (t *downTask) run(wk *worker, i int) {
	first, only := i, -1
	if t.perGroup > 0 {
		first, only = i/t.perGroup, i%t.perGroup
	}
	r0 := first * t.rb
	r1 := min(r0+t.rb, t.rows)
	for gi := range t.groups {
		g := &t.groups[gi]
		lo, hi := max(r0, g.begin), min(r1, g.end)
		if lo >= hi {
			continue
		}
		if !t.back {
			for q := range ceilDiv(len(t.w.parts)*g.rank, panelRows) {
				if only < 0 || only == q {
					wk.down(t.v, t.ldv, t.x, t.w, g, lo, hi, q)
				}
			}
			continue
		}
		across, o := ceilDiv(g.rank, panelRows), 0
		for part, n := range t.w.parts {
			for q := range across {
				if only < 0 || only == part*across+q {
					wk.downBackward(t.v, t.ldv, t.x, t.w.rows, o, n, part, g, lo, hi, q)
				}
			}
			o += n
		}
	}
}

// Linear is y = x W^T (+ bias) + v B^T (+ res), v = s * x A^T.
func (o *ops) Linear(a kernels.LinearArgs) error {
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	w, err := o.mine("linear", a.W, a.Spans, a.Y, a.V, a.X, a.Bias, a.Res)
	if err != nil {
		return err
	}
	o.groups = groups(o.groups, a.Spans, true)
	x, v, rows := floats(a.X), floats(a.V), a.X.Shape[0]
	o.runDown(downTask{w: w, groups: o.groups, v: v, x: x, ldv: a.V.Cols(), rows: rows})
	o.lin = linearTask{grid: o.cut(rows, w.panels(), w.cols), w: w, groups: o.groups, y: floats(a.Y), x: x, v: v, bias: floats(a.Bias), res: floats(a.Res), ldv: a.V.Cols()}
	o.pool.run(&o.lin, o.lin.pieces())
	return nil
}

// LinearBackward forms dv, dx and the adapters' gradients. dv is left scaled: s * dy B.
func (o *ops) LinearBackward(a kernels.LinearBackwardArgs) error {
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	w, err := o.mine("linear backward", a.W, a.Spans, a.DX, a.DV, a.DY, a.V, a.X)
	if err != nil {
		return err
	}
	o.groups = groups(o.groups, a.Spans, true)
	dy, dv, rows := floats(a.DY), floats(a.DV), a.DY.Shape[0]
	o.runDown(downTask{w: w, groups: o.groups, v: dv, x: dy, ldv: a.DV.Cols(), rows: rows, back: true})
	if !a.DX.None() {
		o.lin = linearTask{grid: o.cut(rows, ceilDiv(w.cols, panelRows), w.rows), w: w, groups: o.groups, y: floats(a.DX), x: dy, v: dv,
			ldv: a.DV.Cols(), back: true}
		if a.AddDX {
			o.lin.res = o.lin.y
		}
		o.pool.run(&o.lin, o.lin.pieces())
	}
	o.spans = groups(o.spans, a.Spans, false)
	o.runGrads(gradTask{w: w, spans: o.spans, x: floats(a.X), v: floats(a.V), dv: dv, dy: dy, ldv: a.V.Cols(), lddv: a.DV.Cols(),
		ldy: w.rows, o1: w.rows})
	return nil
}

// mine checks that the weight, the tensors and the spans' factors belong to this device and that it is open.
func (o *ops) mine(op string, w kernels.Weight, spans []kernels.Span, ts ...kernels.Tensor) (*weight, error) {
	cw, ok := w.(*weight)
	if !ok || cw.dev != o.dev {
		return nil, kernels.ForeignError(op, "weight")
	}
	if err := o.own(op, ts...); err != nil {
		return nil, err
	}
	for i := range spans {
		if l := spans[i].LoRA; l != nil {
			if err := o.own(op, l.A, l.B, l.DA, l.DB); err != nil {
				return nil, err
			}
		}
	}
	return cw, nil
}

// own checks that tensors, where present, lie in this device's memory.
func (o *ops) own(op string, ts ...kernels.Tensor) error {
	if o.dev.closed {
		return closedError(op)
	}
	for i := range ts {
		if ts[i].Buf == nil {
			continue
		}
		if b, ok := ts[i].Buf.(*buffer); !ok || b.dev != o.dev {
			return kernels.ForeignError(op, "tensor")
		}
	}
	return nil
}
