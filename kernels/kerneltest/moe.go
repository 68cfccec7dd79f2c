package kerneltest

import (
	"fmt"
	"math"

	"tinkerlocal/kernels"
	"tinkerlocal/kernels/ref"
)

// moeShape is the shape of one mixture-of-experts case.
type moeShape struct {
	tokens, d, f, experts, top int
	load                       load
	normalize                  bool
}

// load is how tokens choose their experts.
type load int

const (
	spread  load = iota // as chance has it
	alike               // every token has the same experts
	missing             // the first and the last expert get nothing
	ties                // experts in equal pairs: the lower id wins
)

var moeShapes = []moeShape{
	{1, 1, 1, 1, 1, spread, true},
	{1, 7, 5, 4, 2, spread, false},
	{1, 24, 17, 6, 6, spread, true},
	{6, 8, 16, 3, 1, spread, true},
	{7, 17, 6, 5, 2, spread, false},
	{13, 33, 24, 6, 3, missing, true},
	{17, 16, 9, 8, 2, alike, true},
	{40, 20, 33, 17, 4, spread, true},
	{130, 9, 7, 3, 1, alike, false},
	{150, 30, 12, 4, 2, spread, true},
	{12, 270, 40, 5, 2, spread, false},
	{5, 24, 260, 4, 4, spread, false},
	{9, 12, 10, 6, 2, ties, true},
}

// moeProblem is the inputs of a block.
type moeProblem struct {
	moeShape
	store      kernels.DType
	router     hostWeight
	gateUp     []hostWeight
	down       []hostWeight
	spans      []hostSpan
	ups, downs []hostLoRA
	x, res, dy host
	hasRes     bool
	oneSide    int // 1: no adapters on gate and up, 2: none on down
}

func drawMoE(g *gen, s moeShape, store kernels.DType, pattern int) *moeProblem {
	p := &moeProblem{moeShape: s, store: store, hasRes: pattern%2 == 1, oneSide: pattern % 7}
	p.router = g.weight(store, s.d, false, s.experts)
	for i := range p.router.parts[0].data { // decided routers, as trained ones are
		p.router.parts[0].data[i] *= 2
	}
	p.x, p.res, p.dy = g.normal(1, s.tokens, s.d), g.normal(1, s.tokens, s.d), g.normal(1, s.tokens, s.d)
	p.steer()
	for range s.experts {
		p.gateUp, p.down = append(p.gateUp, g.weight(store, s.d, false, s.f, s.f)), append(p.down, g.weight(store, s.f, false, s.d))
	}
	spans, ranks := spanPattern(pattern, s.tokens)
	p.spans = spans
	for _, r := range ranks {
		p.ups, p.downs = append(p.ups, g.expertLoRA(r, s, true)), append(p.downs, g.expertLoRA(r, s, false))
	}
	return p
}

// steer changes inputs and router so that tokens choose as load says.
func (p *moeProblem) steer() {
	w := p.router.parts[0].data
	row := func(e int) []float32 { return w[e*p.d : (e+1)*p.d] }
	switch p.load {
	case alike: // the first input is large and the same everywhere, and decides
		for t := range p.tokens {
			p.x.data[t*p.d] = 4
		}
		for e := range p.experts {
			row(e)[0] = float32(2 * ((e*5)%p.experts - p.experts/2))
		}
	case missing:
		for t := range p.tokens {
			p.x.data[t*p.d] = 4
		}
		row(0)[0], row(p.experts - 1)[0] = -8, -8
	case ties:
		for e := 1; e < p.experts; e += 2 {
			copy(row(e), row(e-1))
		}
	}
}

// expertLoRA draws a shared-outer adapter: for gate and up, or for down.
func (g *gen) expertLoRA(rank int, s moeShape, up bool) hostLoRA {
	l := hostLoRA{rank: rank, scale: float32(0.25 + g.Float64())}
	ar, ac, br := s.experts*rank, s.f, s.d
	if up {
		ar, ac, br = 2*rank, s.d, 2*s.experts*s.f
	}
	l.a, l.b = g.normal(1/math.Sqrt(float64(ac)), ar, ac), g.normal(1/math.Sqrt(float64(rank)), br, rank)
	l.da, l.db = g.normal(1, ar, ac), g.normal(1, br, rank)
	return l
}

// width is the columns of scratch: more than are needed.
func (p *moeProblem) width(parts int) int {
	w := 0
	for _, l := range p.ups {
		w = max(w, l.rank*parts+1)
	}
	return w
}

// route places the router's arguments; its results are outputs.
func (p *moeProblem) route(r *rig) kernels.RouteArgs {
	return kernels.RouteArgs{X: r.in("x", p.x), W: r.pack(p.router), Normalize: p.normalize, Routing: kernels.Routing{
		IDs: r.ints("ids", p.tokens, p.top), Gate: r.out("gate", p.tokens, p.top), Prob: r.out("prob", p.tokens, p.experts),
		Rows: r.ints("rows", p.tokens, p.top), Slots: r.ints("slots", p.tokens*p.top), Begin: r.ints("begin", p.experts+1)}}
}

// ints places an integer output.
func (r *rig) ints(name string, shape ...int) kernels.Tensor {
	return r.place(name, output, integers(shape, filled(size(shape), -1))).t
}

func filled(n int, v int32) []int32 {
	s := make([]int32, n)
	for i := range s {
		s[i] = v
	}
	return s
}

// kept is what the reference's forward leaves for a backward.
type kept struct {
	routing     [6]host // ids, rows, slots, begin, gate, prob
	gu, v, vsum host
	dgate       host // a gradient of the gates to go on from
}

func (p *moeProblem) kept() (k kept, err error) {
	dev := ref.Open()
	defer dev.Close()
	err = onRig(dev, 0, func(r *rig) {
		route := p.route(r)
		r.must(r.ops.Route(route))
		a := p.forward(r, &route.Routing, nil)
		r.must(r.ops.Experts(a))
		for i, t := range []kernels.Tensor{route.IDs, route.Rows, route.Slots, route.Begin} {
			k.routing[i] = r.integers(t)
		}
		k.routing[4], k.routing[5], k.gu = r.floats(route.Gate), r.floats(route.Prob), r.floats(a.GU)
		if !a.V.None() {
			k.v = r.floats(a.V)
		}
		if !a.VSum.None() {
			k.vsum = r.floats(a.VSum)
		}
	})
	k.dgate = newGen(3).normal(1, p.tokens, p.top)
	return k, err
}

// integers is an integer tensor on the host.
func (r *rig) integers(t kernels.Tensor) host {
	v, err := kernels.ReadInts(r.dev, t)
	r.must(err)
	return integers(append([]int(nil), t.Shape[:t.Rank]...), v)
}

// given places a routing that was computed before, as inputs.
func (r *rig) given(k *kept) *kernels.Routing {
	h := &k.routing
	return &kernels.Routing{IDs: r.in("ids", h[0]), Rows: r.in("rows", h[1]), Slots: r.in("slots", h[2]), Begin: r.in("begin", h[3]),
		Gate: r.in("gate", h[4]), Prob: r.in("prob", h[5])}
}

func (p *moeProblem) weights(r *rig) *kernels.Experts {
	w := &kernels.Experts{}
	for e := range p.experts {
		w.GateUp, w.Down = append(w.GateUp, r.pack(p.gateUp[e])), append(w.Down, r.pack(p.down[e]))
	}
	return w
}

// adapters places both lists of spans.
func (p *moeProblem) adapters(r *rig, grads bool) (up, down []kernels.Span) {
	if p.oneSide != 1 {
		up = spansOf(p.spans, r.adapters(p.ups, grads))
	}
	if p.oneSide != 2 {
		down = spansOf(p.spans, r.adapters(p.downs, grads))
	}
	return up, down
}

// forward places the experts' arguments on a routing. skips marks what no span defines.
func (p *moeProblem) forward(r *rig, routing *kernels.Routing, skips []hostSpan) kernels.ExpertsArgs {
	s := p.tokens * p.top
	a := kernels.ExpertsArgs{Routing: *routing, Y: r.out("y", p.tokens, p.d), X: r.in("x", p.x), GU: r.out("gu", s, 2*p.f),
		H: r.scratch("h", s, p.f), W: p.weights(r)}
	if p.hasRes {
		a.Res = r.in("res", p.res)
	}
	a.Up, a.Down = p.adapters(r, false)
	if w := p.width(2); w > 0 && len(a.Up) > 0 {
		a.V = r.out("v", p.tokens, w)
		r.slot(a.V).skip = skipOutside(p.tokens, w, 2, skips, p.ups)
	}
	if w := p.width(1); w > 0 && len(a.Down) > 0 {
		a.VSum, a.Lows = r.out("vsum", p.tokens, w), r.scratch("lows", s, w)
		r.slot(a.VSum).skip = skipOutside(p.tokens, w, 1, skips, p.downs)
	}
	return a
}

func (p *moeProblem) backward(r *rig, k *kept) kernels.ExpertsBackwardArgs {
	s := p.tokens * p.top
	a := kernels.ExpertsBackwardArgs{Routing: *r.given(k), DX: r.out("dx", p.tokens, p.d), DGate: r.out("dgate", p.tokens, p.top),
		DY: r.in("dy", p.dy), X: r.in("x", p.x), GU: r.in("gu", k.gu), H: r.scratch("h", s, p.f), DH: r.scratch("dh", s, p.f),
		DGU: r.scratch("dgu", s, 2*p.f), W: p.weights(r)}
	a.Up, a.Down = p.adapters(r, true)
	if len(a.Up) > 0 {
		a.V = r.in("v", k.v)
	}
	if len(a.Down) > 0 {
		a.VSum = r.in("vsum", k.vsum)
	}
	if w := p.width(2); w > 0 {
		a.Low, a.Lows = r.scratch("low", p.tokens, w), r.scratch("lows", s, w)
	}
	return a
}

func moeCases() []opCase {
	var route, routeBack, experts, back []opCase
	for i, s := range moeShapes {
		for j, store := range []kernels.DType{kernels.F32, kernels.BF16} {
			pattern := i + 3*j
			name := fmt.Sprintf("T=%d D=%d F=%d E=%d top %d load %d %v spans %d", s.tokens, s.d, s.f, s.experts, s.top, s.load, store, pattern)
			draw := func(r *rig) *moeProblem { return drawMoE(r.g, s, store, pattern) }
			seeds := seedsFor(s.tokens * 4)
			route = append(route, opCase{"route", name, 2, seeds, func(r *rig) func() error {
				a := draw(r).route(r)
				return func() error { return r.ops.Route(a) }
			}})
			routeBack = append(routeBack, opCase{"route backward", name, 3, seeds, func(r *rig) func() error {
				p := draw(r)
				k, err := p.kept()
				r.must(err)
				a := kernels.RouteBackwardArgs{Routing: *r.given(&k), DX: r.inout("dx", p.dy), DGate: r.in("dgate", k.dgate), W: r.pack(p.router), Normalize: p.normalize}
				return func() error { return r.ops.RouteBackward(a) }
			}})
			experts = append(experts, opCase{"experts", name, 2, seeds, func(r *rig) func() error {
				p := draw(r)
				k, err := p.kept()
				r.must(err)
				a := p.forward(r, r.given(&k), p.spans)
				return func() error { return r.ops.Experts(a) }
			}})
			back = append(back, opCase{"experts backward", name, 3, seeds, func(r *rig) func() error {
				p := draw(r)
				k, err := p.kept()
				r.must(err)
				a := p.backward(r, &k)
				return func() error { return r.ops.ExpertsBackward(a) }
			}})
		}
	}
	return append(append(append(route, routeBack...), experts...), back...)
}
