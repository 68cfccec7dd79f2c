package cpu

import (
	"slices"

	"tinkerlocal/kernels"
)

// The router of a mixture-of-experts block. Logits are products as in gemm.go, the softmax is that of the package comment (lanes from expert 0
// on), each probability one division. The choice compares these probabilities.

// routing is a routing's memory.
type routing struct {
	ids, rows, slots, begin []int32
	gate, prob              []float32
	experts, top            int
}

func (o *ops) routing(op string, r *kernels.Routing) (routing, error) {
	if err := o.own(op, r.IDs, r.Gate, r.Prob, r.Rows, r.Slots, r.Begin); err != nil {
		return routing{}, err
	}
	return routing{ids: ints(r.IDs), rows: ints(r.Rows), slots: ints(r.Slots), begin: ints(r.Begin), gate: floats(r.Gate), prob: floats(r.Prob),
		experts: r.Prob.Shape[1], top: r.IDs.Shape[1]}, nil
}

// inside checks what the other ops use as an index.
func (r *routing) inside(op string) error {
	n := int32(len(r.slots))
	for i, v := range r.ids {
		if v < 0 || int(v) >= r.experts {
			return kernels.RangeError(op, "ids", i, v, 0, r.experts-1)
		}
	}
	for i, v := range r.rows {
		if v < 0 || v >= n {
			return kernels.RangeError(op, "rows", i, v, 0, int(n)-1)
		}
	}
	last := int32(0)
	for i, v := range r.begin {
		if v < last || v > n || i == 0 && v != 0 || i == r.experts && v != n {
			return kernels.RangeError(op, "begin", i, v, int(last), int(n))
		}
		for row := last; row < v; row++ {
			s := r.slots[row]
			if s < 0 || s >= n {
				return kernels.RangeError(op, "slots", int(row), s, 0, int(n)-1)
			}
			if row > last && s <= r.slots[row-1] {
				return kernels.RangeError(op, "slots", int(row), s, int(r.slots[row-1])+1, int(n)-1)
			}
		}
		last = v
	}
	return nil
}

// token is the token of a row.
func (r *routing) token(row int) int { return int(r.slots[row]) / r.top }

// routeTask does ranges of tokens: the choice, or the gradient through it when back is set.
type routeTask struct {
	routing
	w         *weight
	x, dgate  []float32 // x is dx when back is set
	per       int
	normalize bool
	back      bool
}

// Route chooses TopK experts for each token.
func (o *ops) Route(a kernels.RouteArgs) error {
	const op = "route"
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	w, err := o.mine(op, a.W, nil, a.X)
	if err != nil {
		return err
	}
	r, err := o.routing(op, &a.Routing)
	if err != nil {
		return err
	}
	o.runRoute(routeTask{routing: r, w: w, x: floats(a.X), normalize: a.Normalize})
	o.sortSlots(&r)
	return nil
}

// RouteBackward adds to dx.
func (o *ops) RouteBackward(a kernels.RouteBackwardArgs) error {
	const op = "route backward"
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	w, err := o.mine(op, a.W, nil, a.DX, a.DGate)
	if err != nil {
		return err
	}
	r, err := o.routing(op, &a.Routing)
	if err != nil {
		return err
	}
	if err := r.inside(op); err != nil {
		return err
	}
	o.runRoute(routeTask{routing: r, w: w, x: floats(a.DX), dgate: floats(a.DGate), normalize: a.Normalize, back: true})
	return nil
}

func (o *ops) runRoute(t routeTask) {
	tokens := len(t.ids) / t.top
	t.per = min(rowBlock, roundUp(ceilDiv(tokens, 2*o.pool.threads()), tileRows))
	t.per = max(t.per, ceilDiv(tokens, maxPieces))
	o.route = t
	o.pool.run(&o.route, ceilDiv(tokens, t.per))
}

func (t *routeTask) run(wk *worker, i int) {
	r0, r1 := i*t.per, min((i+1)*t.per, len(t.ids)/t.top)
	if t.back {
		t.gradient(wk, r0, r1)
		return
	}
	n, d := t.experts, t.w.cols
	wk.forward(&t.prob[r0*n], n, &t.x[r0*d], d, r1-r0, t.w, 0, t.w.panels())
	for r := r0; r < r1; r++ {
		p := t.prob[r*n : (r+1)*n]
		sum := wk.vec.expSum(&p[0], uintptr(n), wk.vec.rowMax(&p[0], uintptr(n)))
		for e := range p {
			p[e] /= sum
		}
		t.choose(p, t.ids[r*t.top:(r+1)*t.top], t.gate[r*t.top:(r+1)*t.top])
	}
}

// choose finds one token's experts by insertion: ids holds the best so far in falling order. Equal probabilities stay in the order of ids.
func (t *routeTask) choose(p []float32, ids []int32, gate []float32) {
	n := 0
	for e := range p {
		if n == len(ids) && !(p[e] > p[ids[n-1]]) {
			continue
		}
		n = min(n+1, len(ids))
		j := n - 1
		for ; j > 0 && p[e] > p[ids[j-1]]; j-- {
			ids[j] = ids[j-1]
		}
		ids[j] = int32(e)
	}
	slices.Sort(ids)
	sum := float32(0)
	for j, e := range ids {
		gate[j] = p[e]
		sum += p[e]
	}
	if t.normalize {
		for j := range gate {
			gate[j] /= sum
		}
	}
}

// gradient adds dz W to dx for the tokens [r0, r1).
func (t *routeTask) gradient(wk *worker, r0, r1 int) {
	n, d := t.experts, t.w.cols
	dz := wk.scratch(0, (r1-r0)*n)
	clear(dz)
	for r := r0; r < r1; r++ {
		ids, gate, dgate := t.ids[r*t.top:(r+1)*t.top], t.gate[r*t.top:(r+1)*t.top], t.dgate[r*t.top:(r+1)*t.top]
		row := dz[(r-r0)*n : (r-r0+1)*n]
		c := float32(0)
		for j, g := range gate {
			c += float32(g * dgate[j])
		}
		if t.normalize {
			for j, e := range ids {
				row[e] = gate[j] * (dgate[j] - c)
			}
			continue
		}
		for j, e := range ids {
			row[e] = dgate[j]
		}
		for e, p := range t.prob[r*n : (r+1)*n] {
			row[e] = p * (row[e] - c)
		}
	}
	wk.need((r1 - r0) * d)
	wk.backward(&wk.strip[0], d, &dz[0], n, r1-r0, t.w, 0, ceilDiv(d, panelRows), 0, n, false)
	for r := r0; r < r1; r++ {
		wk.vec.add(&t.x[r*d], &t.x[r*d], &wk.strip[(r-r0)*d], uintptr(d))
	}
}

// sortSlots gives each slot its row, by counting: slots in their order, each to the end of its expert's rows.
func (o *ops) sortSlots(r *routing) {
	clear(r.begin)
	for _, e := range r.ids {
		r.begin[e+1]++
	}
	for e := range r.experts {
		r.begin[e+1] += r.begin[e]
	}
	o.next = append(o.next[:0], r.begin...)
	for s, e := range r.ids {
		row := o.next[e]
		o.next[e]++
		r.rows[s], r.slots[row] = row, int32(s)
	}
}
