package kerneltest

import (
	"fmt"

	"tinkerlocal/kernels"
	"tinkerlocal/kernels/ref"
)

// linearShape is the shape of one linear case.
type linearShape struct {
	tokens, k int
	parts     []int
}

// The tiles that kernels are likely to have (6, 8, 16) minus, plus and exactly one, and K across segments of 256 and 512.
var linearShapes = []linearShape{
	{1, 1, []int{1}},
	{1, 7, []int{5}},
	{5, 8, []int{6}},
	{6, 9, []int{7}},
	{7, 16, []int{8}},
	{8, 17, []int{9}},
	{9, 5, []int{15}},
	{15, 6, []int{16}},
	{16, 255, []int{17}},
	{17, 257, []int{33}},
	{2, 700, []int{3, 1, 2}},
	{13, 513, []int{16, 8, 8}},
	{33, 64, []int{40, 20, 20}},
	{1, 700, []int{19}},
	{70, 24, []int{10, 6}},
}

// linearProblem is the inputs of a linear layer.
type linearProblem struct {
	linearShape
	spans    []hostSpan
	loras    []hostLoRA
	w        hostWeight
	x, res   host
	bias     host
	dy, dx   host // for the backward; dx is what it adds to
	hasBias  bool
	hasRes   bool
	resAlias bool // y is res
}

func drawLinear(g *gen, s linearShape, store kernels.DType, pattern int) *linearProblem {
	p := &linearProblem{linearShape: s}
	p.w = g.weight(store, s.k, s.tokens%2 == 1, s.parts...)
	n := p.w.rows()
	spans, ranks := spanPattern(pattern, s.tokens)
	p.spans = spans
	for _, r := range ranks {
		p.loras = append(p.loras, g.lora(r, len(s.parts), n, s.k))
	}
	p.x, p.res = g.normal(1, s.tokens, s.k), g.normal(1, s.tokens, n)
	p.dy, p.dx = g.normal(1, s.tokens, n), g.normal(1, s.tokens, s.k)
	p.bias = g.normal(1, n)
	return p
}

// width is the columns of v: more than are needed, to see that nobody counts on equality.
func (p *linearProblem) width() int {
	w := 0
	for _, l := range p.loras {
		w = max(w, l.rank*len(p.parts)+1)
	}
	return w
}

// forward places the forward's arguments.
func (p *linearProblem) forward(r *rig) kernels.LinearArgs {
	a := kernels.LinearArgs{X: r.in("x", p.x), W: r.pack(p.w), Spans: spansOf(p.spans, r.adapters(p.loras, false))}
	if w := p.width(); w > 0 {
		a.V = r.out("v", p.tokens, w)
		r.slot(a.V).skip = skipOutside(p.tokens, w, len(p.parts), p.spans, p.loras)
	}
	if p.hasBias {
		a.Bias = r.in("bias", p.bias)
	}
	switch {
	case p.resAlias:
		a.Y = r.inout("y", p.res)
		a.Res = a.Y
	case p.hasRes:
		a.Res = r.in("res", p.res)
		fallthrough
	default:
		a.Y = r.out("y", p.tokens, p.w.rows())
	}
	return a
}

// kept is v as the reference's forward leaves it, NaN where it is not defined.
func (p *linearProblem) kept() (v host, err error) {
	dev := ref.Open()
	defer dev.Close()
	err = onRig(dev, 0, func(r *rig) {
		a := p.forward(r)
		r.must(r.ops.Linear(a))
		if !a.V.None() {
			v = r.floats(a.V)
		}
	})
	return v, err
}

// linearBackwardForm is a variant of the backward call.
type linearBackwardForm int

const (
	overwriteDX linearBackwardForm = iota
	addDX
	noDX
)

// backward places the backward's arguments.
func (p *linearProblem) backward(r *rig, form linearBackwardForm) kernels.LinearBackwardArgs {
	v, err := p.kept()
	r.must(err)
	a := kernels.LinearBackwardArgs{
		DY: r.in("dy", p.dy), X: r.in("x", p.x), W: r.pack(p.w),
		Spans: spansOf(p.spans, r.adapters(p.loras, true)),
	}
	if w := p.width(); w > 0 {
		a.V = r.in("v", v)
		a.DV = r.scratch("dv", p.tokens, w)
	}
	switch form {
	case overwriteDX:
		a.DX = r.out("dx", p.tokens, p.k)
	case addDX:
		a.DX = r.inout("dx", p.dx)
		a.AddDX = true
	}
	return a
}

func linearCases() []opCase {
	var fwd, bwd []opCase
	for i, s := range linearShapes {
		for j, store := range []kernels.DType{kernels.F32, kernels.BF16} {
			for _, pattern := range []int{i + j, i + j + 2} {
				res, bias := (i+j)%3, (i+pattern/2)%2 == 0
				form := linearBackwardForm((i + j + pattern) % 3)
				name := fmt.Sprintf("T=%d K=%d N=%v %v spans %d", s.tokens, s.k, s.parts, store, pattern%5)
				fwd = append(fwd, opCase{"linear", fmt.Sprintf("%s res %d bias %t", name, res, bias), 2, seedsFor(s.tokens * 4), func(r *rig) func() error {
					p := drawLinear(r.g, s, store, pattern)
					p.hasBias, p.hasRes, p.resAlias = bias, res > 0, res == 2
					a := p.forward(r)
					return func() error { return r.ops.Linear(a) }
				}})
				bwd = append(bwd, opCase{"linear backward", fmt.Sprintf("%s dx %d", name, form), 3, seedsFor(s.tokens * 4), func(r *rig) func() error {
					a := drawLinear(r.g, s, store, pattern).backward(r, form)
					return func() error { return r.ops.LinearBackward(a) }
				}})
			}
		}
	}
	return append(fwd, bwd...)
}

// seedsFor is how many draws to pool so that about 64 elements are judged.
func seedsFor(elements int) int { return min(max(64/elements, 1), 8) }
