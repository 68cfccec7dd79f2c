package kerneltest

import "tinkerlocal/kernels"

// moePacking is data of given lengths through one routed block, forward and backward, each with an adapter of its own or none. An
// expert's load, and so its tiles, change with every batch.
type moePacking struct {
	moeShape
	store kernels.DType
	lens  []int
	ranks []int // of the adapters; 0 is none; item i has adapter i % len
}

func (m moePacking) run(r *rig, order []int) [][]byte {
	base := drawMoE(newGen(7), m.moeShape, m.store, 0)
	var xs, rs, dys []host
	var ups, downs []kernels.Span
	at, wide := 0, 1
	for _, i := range order {
		ig := itemGen(i)
		l := lenOf(m.lens, i)
		xs, rs, dys = append(xs, ig.normal(1, l, m.d)), append(rs, ig.normal(1, l, m.d)), append(dys, ig.normal(1, l, m.d))
		up, down := kernels.Span{Begin: at, End: at + l}, kernels.Span{Begin: at, End: at + l}
		at += l
		if rank := lenOf(m.ranks, i); rank > 0 {
			wide = max(wide, rank)
			ag := newGen(uint64(70 + rank))
			ls := r.adapters([]hostLoRA{ag.expertLoRA(rank, m.moeShape, true), ag.expertLoRA(rank, m.moeShape, false)}, true)
			up.LoRA, down.LoRA = ls[0], ls[1]
		}
		ups, downs = append(ups, up), append(downs, down)
	}
	base.tokens = at
	base.x = stack(xs...)
	route := base.route(r)
	r.must(r.ops.Route(route))
	s := at * m.top
	a := kernels.ExpertsArgs{Routing: route.Routing, Y: r.out("y", at, m.d), X: route.X, Res: r.in("res", stack(rs...)), GU: r.out("gu", s, 2*m.f),
		V: r.out("v", at, 2*wide), VSum: r.out("vsum", at, wide), H: r.scratch("h", s, m.f), Lows: r.scratch("lows", s, 2*wide), W: base.weights(r), Up: ups, Down: downs}
	r.must(r.ops.Experts(a))
	b := kernels.ExpertsBackwardArgs{Routing: route.Routing, DX: r.out("dx", at, m.d), DGate: r.out("dgate", at, m.top), DY: r.in("dy", stack(dys...)),
		X: a.X, GU: a.GU, V: a.V, VSum: a.VSum, H: a.H, DH: r.scratch("dh", s, m.f), DGU: r.scratch("dgu", s, 2*m.f),
		Low: r.scratch("low", at, 2*wide), Lows: a.Lows, W: a.W, Up: ups, Down: downs}
	r.must(r.ops.ExpertsBackward(b))
	bits := make([][]byte, len(order))
	r.cutRows(bits, b.DX, m.lens, order)
	r.must(r.ops.RouteBackward(kernels.RouteBackwardArgs{Routing: route.Routing, DX: b.DX, DGate: b.DGate, W: route.W, Normalize: m.normalize}))
	for _, t := range []kernels.Tensor{route.IDs, route.Gate, route.Prob, a.Y, b.DX, b.DGate} {
		r.cutRows(bits, t, m.lens, order)
	}
	for place := range ups {
		for _, l := range []*kernels.LoRA{ups[place].LoRA, downs[place].LoRA} {
			if l != nil {
				bits[place] = append(append(bits[place], r.bytesOf(l.DA)...), r.bytesOf(l.DB)...)
			}
		}
	}
	return bits
}

var moePackings = []moePacking{
	{moeShape{0, 24, 10, 6, 2, spread, true}, kernels.F32, []int{1, 2, 5, 6, 7, 17, 40, 130}, []int{4, 0, 9}},
	{moeShape{0, 300, 33, 5, 3, spread, false}, kernels.BF16, []int{1, 3, 8, 20}, []int{5, 16}},
	{moeShape{0, 16, 18, 3, 1, spread, true}, kernels.F32, []int{1, 12, 150}, []int{3}},
}

// refuseMoE spoils the arguments of the four ops.
func refuseMoE(r *rig, t *refuser) {
	p := drawMoE(r.g, moeShape{5, 8, 6, 4, 2, spread, true}, kernels.F32, 8)
	p.hasRes, p.oneSide = true, 0
	k, err := p.kept()
	r.must(err)
	route := p.route(r)
	call := func() error { return r.ops.Route(route) }
	t.spoil("route", "x", &route.X, call)
	t.spoil("route", "gate", &route.Gate, call)
	t.spoil("route", "prob", &route.Prob, call)
	t.spoil("route", "slots", &route.Slots, call)
	t.spoil("route", "begin", &route.Begin, call)
	wide := route
	wide.IDs, wide.Gate, wide.Rows, wide.Slots = r.ints("ids", 5, 5), r.out("gate", 5, 5), r.ints("rows", 5, 5), r.ints("slots", 25)
	t.call("route", "more experts than there are", r.ops.Route(wide))
	none := route
	none.W = nil
	t.call("route", "no weight", r.ops.Route(none))
	rb := kernels.RouteBackwardArgs{Routing: *r.given(&k), DX: r.inout("dx", p.dy), DGate: r.in("dgate", k.dgate), W: route.W, Normalize: true}
	t.spoil("route backward", "dx", &rb.DX, func() error { return r.ops.RouteBackward(rb) })
	t.spoil("route backward", "dgate", &rb.DGate, func() error { return r.ops.RouteBackward(rb) })

	a := p.forward(r, r.given(&k), p.spans)
	experts := func() error { return r.ops.Experts(a) }
	for name, field := range map[string]*kernels.Tensor{"y": &a.Y, "x": &a.X, "res": &a.Res, "gu": &a.GU, "h": &a.H, "ids": &a.IDs, "rows": &a.Rows} {
		t.spoil("experts", name, field, experts)
	}
	for _, l := range []*kernels.LoRA{a.Up[0].LoRA, a.Down[0].LoRA} {
		t.spoil("experts", "a", &l.A, experts)
		t.spoil("experts", "b", &l.B, experts)
	}
	for name, bad := range map[string]kernels.Tensor{"rows": r.in("bad", integers([]int{5, 2}, filled(10, 10))), "ids": r.in("bad", integers([]int{5, 2}, filled(10, 4)))} {
		spoilt := a
		if name == "rows" {
			spoilt.Rows = bad
		} else {
			spoilt.IDs = bad
		}
		t.call("experts", name+" out of range", r.ops.Experts(spoilt))
	}
	for name, field := range map[string]*kernels.Tensor{"v": &a.V, "vsum": &a.VSum, "lows": &a.Lows} {
		right := *field
		*field = kernels.Tensor{}
		t.call("experts", "no "+name, experts())
		*field = right
	}
	for name, w := range map[string]*kernels.Experts{"no weights": nil, "a missing weight": {GateUp: a.W.GateUp, Down: a.W.Down[:3]},
		"weights exchanged": {GateUp: a.W.Down, Down: a.W.GateUp}, "one weight less": {GateUp: a.W.GateUp[:3], Down: a.W.Down[:3]}} {
		spoilt := a
		spoilt.W = w
		t.call("experts", name, r.ops.Experts(spoilt))
	}
	b := p.backward(r, &k)
	back := func() error { return r.ops.ExpertsBackward(b) }
	for name, field := range map[string]*kernels.Tensor{"dx": &b.DX, "dgate": &b.DGate, "dy": &b.DY, "x": &b.X, "gu": &b.GU, "h": &b.H, "dh": &b.DH, "dgu": &b.DGU,
		"prob": &b.Prob, "up da": &b.Up[0].LoRA.DA, "up db": &b.Up[0].LoRA.DB, "down da": &b.Down[0].LoRA.DA, "down db": &b.Down[0].LoRA.DB} {
		t.spoil("experts backward", name, field, back)
	}
	for name, field := range map[string]*kernels.Tensor{"low": &b.Low, "lows": &b.Lows, "v": &b.V, "vsum": &b.VSum} {
		right := *field
		*field = kernels.Tensor{}
		t.call("experts backward", "no "+name, back())
		*field = right
	}
}
