package ref

import (
	"slices"

	"tinkerlocal/kernels"
)

// routing is a routing's memory.
type routing[F float] struct {
	ids, rows, slots, begin []int32
	gate, prob              []F
	experts, top            int
}

func (o ops[F]) routing(op string, r *kernels.Routing) (routing[F], error) {
	if err := o.d.own(op, r.IDs, r.Gate, r.Prob, r.Rows, r.Slots, r.Begin); err != nil {
		return routing[F]{}, err
	}
	return routing[F]{
		ids: view[int32](r.IDs), rows: view[int32](r.Rows), slots: view[int32](r.Slots), begin: view[int32](r.Begin),
		gate: view[F](r.Gate), prob: view[F](r.Prob), experts: r.Prob.Shape[1], top: r.IDs.Shape[1],
	}, nil
}

// inside checks the values that index memory.
func (r *routing[F]) inside(op string) error {
	if err := inRange(op, "ids", r.ids, 0, r.experts-1); err != nil {
		return err
	}
	n := len(r.slots)
	if err := inRange(op, "rows", r.rows, 0, n-1); err != nil {
		return err
	}
	return inRange(op, "slots", r.slots, 0, n-1)
}

func (o ops[F]) Route(a kernels.RouteArgs) error {
	const op = "route"
	if err := a.Check(o.d.act); err != nil {
		return err
	}
	w, err := o.d.weight(op, a.W)
	if err != nil {
		return err
	}
	if err := o.d.own(op, a.X); err != nil {
		return err
	}
	r, err := o.routing(op, &a.Routing)
	if err != nil {
		return err
	}
	x := view[F](a.X)
	for t := range a.X.Shape[0] {
		p := rowOf(r.prob, t, r.experts)
		for e := range p {
			p[e] = dot(w.row(e), rowOf(x, t, w.cols))
		}
		softmax(p)
		r.choose(p, r.ids[t*r.top:(t+1)*r.top], rowOf(r.gate, t, r.top), a.Normalize)
	}
	r.sort()
	return nil
}

// choose finds the experts of one token: the largest probabilities, of equal ones the lower ids.
func (r *routing[F]) choose(p []F, ids []int32, gate []F, normalize bool) {
	for j := range ids {
		best := -1
		for e := range p {
			if !slices.Contains(ids[:j], int32(e)) && (best < 0 || p[e] > p[best]) {
				best = e
			}
		}
		ids[j] = int32(best)
	}
	slices.Sort(ids)
	var sum F
	for j, e := range ids {
		gate[j] = p[e]
		sum += p[e]
	}
	if normalize {
		for j := range gate {
			gate[j] /= sum
		}
	}
}

// sort puts the slots in rows by expert and, within an expert, by token.
func (r *routing[F]) sort() {
	row := int32(0)
	for e := range r.experts {
		r.begin[e] = row
		for s, id := range r.ids {
			if int(id) == e {
				r.rows[s], r.slots[row] = row, int32(s)
				row++
			}
		}
	}
	r.begin[r.experts] = row
}

func (o ops[F]) RouteBackward(a kernels.RouteBackwardArgs) error {
	const op = "route backward"
	if err := a.Check(o.d.act); err != nil {
		return err
	}
	w, err := o.d.weight(op, a.W)
	if err != nil {
		return err
	}
	if err := o.d.own(op, a.DX, a.DGate); err != nil {
		return err
	}
	r, err := o.routing(op, &a.Routing)
	if err != nil {
		return err
	}
	if err := r.inside(op); err != nil {
		return err
	}
	dx, dgate := view[F](a.DX), view[F](a.DGate)
	dz := o.d.scores(r.experts)
	for t := range a.DX.Shape[0] {
		ids, gate, dg := r.ids[t*r.top:(t+1)*r.top], rowOf(r.gate, t, r.top), rowOf(dgate, t, r.top)
		c := dot(dg, gate)
		clear(dz)
		for j, e := range ids {
			dz[e] = dg[j]
		}
		for e, p := range rowOf(r.prob, t, r.experts) {
			switch j := slices.Index(ids, int32(e)); {
			case !a.Normalize:
				dz[e] = p * (dz[e] - c)
			case j >= 0:
				dz[e] = gate[j] * (dz[e] - c)
			}
		}
		for k := range w.cols {
			var sum F
			for e, d := range dz {
				sum += d * w.data[e*w.cols+k]
			}
			dx[t*w.cols+k] += sum
		}
	}
	return nil
}
