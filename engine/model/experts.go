package model

import (
	"tinkerlocal/kernels"
)

// The mixture of experts in place of a layer's feed-forward.

// experts is a frame's memory that all sparse layers share.
type experts struct {
	// Per layer, none in a dense one: what loads are read from.
	begin []kernels.Tensor // [E+1] I32: the row each expert begins at
	ids   []kernels.Tensor // [T,TopK] I32: the experts of each token

	h    kernels.Tensor // [T*TopK,F] scratch
	lows kernels.Tensor // [T*TopK,2R] scratch

	// backward only
	dh, dgu, dgate kernels.Tensor // [T*TopK,F], [T*TopK,2F], [T,TopK]
}

// layoutRouting cuts what one sparse layer keeps.
func (s *Spec) layoutRouting(a *arena, l *layerTape, T int) {
	l.routing = kernels.Routing{
		Gate: a.floats(T, s.TopK), Prob: a.floats(T, s.Experts),
		Rows: a.ints(T, s.TopK), Slots: a.ints(T * s.TopK),
	}
	l.gus = a.floats(T*s.TopK, 2*s.ExpertFFN)
}

// layoutExperts cuts what the sparse layers share.
func (s *Spec) layoutExperts(a *arena, f *frame, sh shape) {
	if s.sparseLayers() == 0 {
		return
	}
	m, S, F := &f.moe, sh.tokens*s.TopK, s.ExpertFFN
	m.begin, m.ids = make([]kernels.Tensor, s.Layers), make([]kernels.Tensor, s.Layers)
	for i := range m.begin {
		if s.IsSparse(i) {
			m.begin[i], m.ids[i] = a.ints(s.Experts+1), a.ints(sh.tokens, s.TopK)
		}
	}
	m.h = a.floats(S, F)
	if sh.rank > 0 {
		m.lows = a.floats(S, 2*sh.rank)
	}
	if sh.keep {
		m.dh, m.dgu, m.dgate = a.floats(S, F), a.floats(S, 2*F), a.floats(sh.tokens, s.TopK)
	}
}

// routing is layer i's routing; what loads are read from is kept apart, per layer also when the rest is not.
func (f *frame) routing(i int, l *layerTape) kernels.Routing {
	r := l.routing
	r.Begin, r.IDs = f.moe.begin[i], f.moe.ids[i]
	return r
}

// sparse runs the feed-forward half of sparse layer i: from the normalised input f.xn and the residual l.mid to next.
func (b *Base) sparse(f *frame, i int, l *layerTape, next kernels.Tensor, site [][]kernels.Span, u use) error {
	ops, w, r := b.dev.Ops(), &b.layers[i], f.routing(i, l)
	return firstErr(
		func() error {
			return ops.Route(kernels.RouteArgs{Routing: r, X: f.xn, W: w.router, Normalize: b.Spec.NormTopK})
		},
		func() error {
			b.countExperts(u, i, f.xn.Shape[0])
			return ops.Experts(kernels.ExpertsArgs{
				Routing: r, Y: next, X: f.xn, Res: l.mid, GU: l.gus, V: l.low[siteGateUp], VSum: l.low[siteDown],
				H: f.moe.h, Lows: f.moe.lows, W: w.experts, Up: site[siteGateUp], Down: site[siteDown],
			})
		},
	)
}

// sparseBackward sets f.dxn to the gradient of the feed-forward's normalised input, which is made again in f.xn.
func (t *Tape) sparseBackward(ops kernels.Ops, i int, site [][]kernels.Span) error {
	b, f := t.base, t.f
	w, l := &b.layers[i], &f.layers[i]
	r := f.routing(i, l)
	return firstErr(
		func() error { return ops.RMSNorm(f.xn, l.rstd2, l.mid, w.norm2, b.Spec.Eps) },
		func() error {
			b.countExperts(backwardUse, i, f.xn.Shape[0])
			return ops.ExpertsBackward(kernels.ExpertsBackwardArgs{
				Routing: r, DX: f.dxn, DGate: f.moe.dgate, DY: f.dx, X: f.xn, GU: l.gus, V: l.low[siteGateUp], VSum: l.low[siteDown],
				H: f.moe.h, DH: f.moe.dh, DGU: f.moe.dgu, Low: f.dlow, Lows: f.moe.lows,
				W: w.experts, Up: site[siteGateUp], Down: site[siteDown],
			})
		},
		func() error {
			return ops.RouteBackward(kernels.RouteBackwardArgs{Routing: r, DX: f.dxn, DGate: f.moe.dgate, W: w.router, Normalize: b.Spec.NormTopK})
		},
	)
}

// ExpertLoads counts the tokens of items [lo, hi) that each expert of each sparse layer was given, [sparse layer][expert]. It is nil for
// a model without experts, and waits for the forward. Counts of several tapes may be added.
func (t *Tape) ExpertLoads(lo, hi int) ([][]int, error) {
	var loads [][]int
	m, dev := &t.f.moe, t.base.dev
	for i := range m.begin {
		if m.begin[i].None() {
			continue
		}
		counts := make([]int, t.base.Spec.Experts)
		if lo == 0 && hi == len(t.items) {
			at, err := kernels.ReadInts(dev, m.begin[i])
			if err != nil {
				return nil, err
			}
			for e := range counts {
				counts[e] = int(at[e+1] - at[e])
			}
		} else {
			ids, err := kernels.ReadInts(dev, m.ids[i].RowRange(t.seqs[lo].Begin, t.ends[hi-1]))
			if err != nil {
				return nil, err
			}
			for _, e := range ids {
				counts[e]++
			}
		}
		loads = append(loads, counts)
	}
	return loads, nil
}

// RouterMetrics are the statistics of [Tape.ExpertLoads] under the names of the official SDK (0.38, types/forward_backward_output.py). With fair the
// tokens per expert of perfect balance: the fraction of experts with any tokens, the fraction with more than fair, and how far the largest and
// the smallest load are from fair, as a fraction of it; all averaged over layers, and for the largest also the maximum. It is
// nil without experts.
func RouterMetrics(loads [][]int) map[string]float64 {
	if len(loads) == 0 {
		return nil
	}
	var some, over, most, least, worst float64
	for i, counts := range loads {
		sum, low, high, busy, above := 0, counts[0], counts[0], 0, 0
		for _, n := range counts {
			sum, low, high = sum+n, min(low, n), max(high, n)
			if n > 0 {
				busy++
			}
		}
		E := len(counts)
		for _, n := range counts {
			if n*E > sum {
				above++
			}
		}
		fair := max(float64(sum), 1) / float64(E)
		some, over = some+float64(busy)/float64(E), over+float64(above)/float64(E)
		violation := (float64(high) - fair) / fair
		most, least = most+violation, least+(float64(low)-fair)/fair
		if i == 0 || violation > worst {
			worst = violation
		}
	}
	n := float64(len(loads))
	return map[string]float64{
		"e_frac_with_tokens:mean": some / n, "e_frac_oversubscribed:mean": over / n,
		"e_max_violation:mean": most / n, "e_max_violation:max": worst, "e_min_violation:mean": least / n,
	}
}
