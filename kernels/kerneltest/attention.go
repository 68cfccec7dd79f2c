package kerneltest

import (
	"fmt"
	"math"

	"tinkerlocal/kernels"
	"tinkerlocal/kernels/ref"
)

// attentionShape is packed sequences: query counts and, per sequence, the position of the first query.
type attentionShape struct {
	heads, kv, c int
	lens, pos    []int
	pageLen      int     // 0: contiguous keys
	size         float64 // of queries and keys; large makes softmax nearly one-hot
}

var attentionShapes = []attentionShape{
	{1, 1, 1, []int{1}, nil, 0, 1},
	{2, 1, 5, []int{1, 2, 1}, nil, 0, 1},
	{2, 2, 8, []int{5, 6, 7}, nil, 0, 1},
	{4, 2, 16, []int{8, 1, 9, 15}, nil, 0, 1},
	{3, 1, 17, []int{16, 17}, nil, 0, 1},
	{6, 2, 32, []int{33, 3}, nil, 0, 1},
	{2, 1, 64, []int{63, 65}, nil, 0, 1},
	{1, 1, 128, []int{70}, nil, 0, 1},
	{4, 4, 8, []int{130, 1, 20}, nil, 0, 1},
	{2, 1, 16, []int{300}, nil, 0, 1},
	{2, 2, 16, []int{40}, nil, 0, 12},
	{2, 1, 16, []int{1, 1, 1}, []int{0, 17, 64}, 0, 1},
	{2, 1, 16, []int{5, 1, 16}, []int{3, 130, 16}, 0, 1},
	{2, 1, 16, []int{5, 1, 16}, []int{3, 130, 16}, 16, 1},
	{4, 2, 8, []int{7, 9}, []int{0, 1}, 3, 1},
}

// attentionProblem is the inputs of an attention op.
type attentionProblem struct {
	attentionShape
	tokens  int
	q, k, v host
	do      host
	seqs    []kernels.Seq
}

func drawAttention(g *gen, s attentionShape) *attentionProblem {
	p := &attentionProblem{attentionShape: s}
	keys, pages := 0, 0
	for i, n := range s.lens {
		q := kernels.Seq{Begin: p.tokens, End: p.tokens + n}
		if s.pos != nil {
			q.Pos = s.pos[i]
			keys += i // a gap before the keys, so that kv is not the batch row
		}
		q.KV = keys
		p.tokens += n
		keys += q.Pos + n
		if s.pageLen > 0 {
			q.KV = -1 // must not be looked at
			q.Pages = make([]int32, (q.Pos+n+s.pageLen-1)/s.pageLen)
			pages += len(q.Pages)
		}
		p.seqs = append(p.seqs, q)
	}
	if pages > 0 {
		keys = (pages + 2) * s.pageLen
		order := g.Perm(pages + 2)
		for i := range p.seqs {
			for j := range p.seqs[i].Pages {
				p.seqs[i].Pages[j] = int32(order[0])
				order = order[1:]
			}
		}
	}
	p.q = g.normal(s.size, p.tokens, s.heads*s.c)
	p.k, p.v = g.normal(s.size, keys, s.kv*s.c), g.normal(1, keys, s.kv*s.c)
	p.do = g.normal(1, p.tokens, s.heads*s.c)
	return p
}

func (p *attentionProblem) scale() float32 { return float32(1 / math.Sqrt(float64(p.c))) }

func (p *attentionProblem) forward(r *rig) kernels.AttentionArgs {
	return kernels.AttentionArgs{
		O: r.out("o", p.tokens, p.heads*p.c), LSE: r.out("lse", p.tokens, p.heads),
		Q: r.in("q", p.q), K: r.in("k", p.k), V: r.in("v", p.v),
		Seqs: p.seqs, PageLen: p.pageLen, Heads: p.heads, KVHeads: p.kv, Scale: p.scale(),
	}
}

// kept is o and lse of the reference's forward.
func (p *attentionProblem) kept() (o, lse host, err error) {
	dev := ref.Open()
	defer dev.Close()
	err = onRig(dev, 0, func(r *rig) {
		a := p.forward(r)
		r.must(r.ops.Attention(a))
		o, lse = r.floats(a.O), r.floats(a.LSE)
	})
	return o, lse, err
}

func (p *attentionProblem) backward(r *rig) kernels.AttentionBackwardArgs {
	o, lse, err := p.kept()
	r.must(err)
	a := kernels.AttentionBackwardArgs{
		DQ: r.out("dq", p.q.shape...), DK: r.out("dk", p.k.shape...), DV: r.out("dv", p.v.shape...),
		DO: r.in("do", p.do), O: r.in("o", o), LSE: r.in("lse", lse),
		Q: r.in("q", p.q), K: r.in("k", p.k), V: r.in("v", p.v),
		Seqs: p.seqs, Heads: p.heads, KVHeads: p.kv, Scale: p.scale(),
	}
	// With one key the softmax is constant and dq = dk = 0: what cancels is scale * (do.v) k.
	r.slot(a.DQ).scale, r.slot(a.DK).scale = p.size, p.size
	return a
}

func attentionCases() []opCase {
	var fwd, bwd []opCase
	for _, s := range attentionShapes {
		name := fmt.Sprintf("H=%d K=%d C=%d lens %v pos %v page %d size %v", s.heads, s.kv, s.c, s.lens, s.pos, s.pageLen, s.size)
		seeds := seedsFor(s.lens[0] * s.c)
		if s.size > 1 { // a nearly one-hot softmax: few rows have any error at all
			seeds = 8
		}
		fwd = append(fwd, opCase{"attention", name, 2, seeds, func(r *rig) func() error {
			a := drawAttention(r.g, s).forward(r)
			return func() error { return r.ops.Attention(a) }
		}})
		if s.lens[0] == 16 || s.lens[0] == 1 {
			fwd = append(fwd, opCase{"attention", name + " without lse", 2, seeds, func(r *rig) func() error {
				a := drawAttention(r.g, s).forward(r)
				r.slot(a.LSE).role = scratch
				a.LSE = kernels.Tensor{}
				return func() error { return r.ops.Attention(a) }
			}})
		}
		if s.pos != nil {
			continue
		}
		bwd = append(bwd, opCase{"attention backward", name, 3, seeds, func(r *rig) func() error {
			a := drawAttention(r.g, s).backward(r)
			return func() error { return r.ops.AttentionBackward(a) }
		}})
	}
	return append(fwd, bwd...)
}
