package kerneltest

import (
	"fmt"

	"tinkerlocal/kernels"
	"tinkerlocal/kernels/ref"
)

// headShape is the shape of one case of the unembedding: J targets per token.
type headShape struct {
	tokens, d, vocab, js int
	size                 float64 // of the hidden state; large makes the softmax nearly one-hot
}

var headShapes = []headShape{
	{1, 1, 1, 1, 1},
	{1, 7, 5, 1, 1},
	{5, 8, 6, 3, 1},
	{6, 16, 7, 1, 1},
	{7, 17, 16, 2, 1},
	{8, 33, 17, 1, 1},
	{9, 64, 255, 1, 1},
	{17, 24, 257, 3, 1},
	{16, 12, 1030, 1, 1},
	{1, 700, 33, 1, 1},
	{70, 16, 65, 2, 1},
	{9, 16, 40, 2, 60},
}

// headProblem is the inputs of an op of the unembedding.
type headProblem struct {
	headShape
	spans           []hostSpan
	loras           []hostLoRA
	w               hostWeight
	h, target, dout host
}

func drawHead(g *gen, s headShape, store kernels.DType, pattern int) *headProblem {
	p := &headProblem{headShape: s}
	p.w = g.weight(store, s.d, s.tokens%2 == 1, s.vocab)
	spans, ranks := spanPattern(pattern, s.tokens)
	p.spans = spans
	for _, r := range ranks {
		p.loras = append(p.loras, g.lora(r, 1, s.vocab, s.d))
	}
	p.h = g.normal(s.size, s.tokens, s.d)
	p.target = g.ids(0, s.vocab-1, s.tokens, s.js)
	p.dout = g.normal(1, s.tokens, s.js)
	for t := range s.tokens {
		for j := range s.js {
			i := t*s.js + j
			switch {
			case t%5 == 3: // a whole row without weight
				p.dout.data[i] = 0
			case t%5 == 1 && j == 0: // a missing target among others; its weight is to be ignored
				p.target.ints[i] = -1
			case t%5 == 2 && j > 0: // the same target twice
				p.target.ints[i] = p.target.ints[i-1]
			}
		}
	}
	return p
}

func (p *headProblem) width() int {
	w := 0
	for _, l := range p.loras {
		w = max(w, l.rank+2)
	}
	return w
}

// keepV places v, or nothing when there is no adapter.
func (p *headProblem) keepV(r *rig) kernels.Tensor {
	w := p.width()
	if w == 0 {
		return kernels.Tensor{}
	}
	v := r.out("v", p.tokens, w)
	r.slot(v).skip = skipOutside(p.tokens, w, 1, p.spans, p.loras)
	return v
}

func (p *headProblem) forward(r *rig) kernels.LogProbsArgs {
	a := kernels.LogProbsArgs{
		Out: r.out("out", p.tokens, p.js), LSE: r.out("lse", p.tokens), V: p.keepV(r),
		H: r.in("h", p.h), W: r.pack(p.w), Spans: spansOf(p.spans, r.adapters(p.loras, false)),
		Target: r.in("target", p.target),
	}
	// out = z - lse vanishes when the target has all the probability; z and lse do not.
	r.slot(a.Out).scale = p.size
	return a
}

func (p *headProblem) logits(r *rig) kernels.LogitsArgs {
	return kernels.LogitsArgs{
		Z: r.out("z", p.tokens, p.vocab), LSE: r.out("lse", p.tokens), V: p.keepV(r),
		H: r.in("h", p.h), W: r.pack(p.w), Spans: spansOf(p.spans, r.adapters(p.loras, false)),
	}
}

// kept is v and lse of the reference's forward.
func (p *headProblem) kept() (v, lse host, err error) {
	dev := ref.Open()
	defer dev.Close()
	err = onRig(dev, 0, func(r *rig) {
		a := p.forward(r)
		r.must(r.ops.LogProbs(a))
		lse = r.floats(a.LSE)
		if !a.V.None() {
			v = r.floats(a.V)
		}
	})
	return v, lse, err
}

func (p *headProblem) backward(r *rig) kernels.LogProbsBackwardArgs {
	v, lse, err := p.kept()
	r.must(err)
	a := kernels.LogProbsBackwardArgs{
		DH: r.out("dh", p.tokens, p.d), DOut: r.in("dout", p.dout), LSE: r.in("lse", lse),
		H: r.in("h", p.h), W: r.pack(p.w), Spans: spansOf(p.spans, r.adapters(p.loras, true)),
		Target: r.in("target", p.target),
	}
	if w := p.width(); w > 0 {
		a.V, a.DV = r.in("v", v), r.scratch("dv", p.tokens, w)
	}
	r.slot(a.DH).scale = 0.1 // dz vanishes when the target has all the probability
	return a
}

func headCases() []opCase {
	var fwd, logits, bwd []opCase
	for i, s := range headShapes {
		for j, store := range []kernels.DType{kernels.F32, kernels.BF16} {
			for _, pattern := range []int{i + j, i + j + 2} {
				name := fmt.Sprintf("T=%d D=%d V=%d J=%d size %v %v spans %d", s.tokens, s.d, s.vocab, s.js, s.size, store, pattern%5)
				seeds := seedsFor(s.tokens * s.js)
				if s.size > 1 { // a nearly one-hot softmax: few tokens have any error at all
					seeds = 8
				}
				fwd = append(fwd, opCase{"logprobs", name, 2, seeds, func(r *rig) func() error {
					a := drawHead(r.g, s, store, pattern).forward(r)
					return func() error { return r.ops.LogProbs(a) }
				}})
				logits = append(logits, opCase{"logits", name, 2, seeds, func(r *rig) func() error {
					a := drawHead(r.g, s, store, pattern).logits(r)
					return func() error { return r.ops.Logits(a) }
				}})
				bwd = append(bwd, opCase{"logprobs backward", name, 3, seeds, func(r *rig) func() error {
					a := drawHead(r.g, s, store, pattern).backward(r)
					return func() error { return r.ops.LogProbsBackward(a) }
				}})
			}
		}
	}
	return append(append(fwd, logits...), bwd...)
}
