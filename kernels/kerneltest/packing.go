package kerneltest

import (
	"fmt"

	"tinkerlocal/kernels"
)

// packing is a set of items (tokens, sequences or data) that can be put in any order into one batch.
// run computes the batch of the items in order and returns the bits of each of them. The canonical
// reductions promise that an item's bits do not depend on its batch.
type packing struct {
	op, name string
	items    int
	run      func(r *rig, order []int) [][]byte
}

// check compares every item alone with itself in many batches.
func (p packing) check(dev kernels.Device) error {
	alone := make([][]byte, p.items)
	for i := range alone {
		got, err := p.batch(dev, []int{i})
		if err != nil {
			return err
		}
		alone[i] = got[0]
	}
	for _, order := range batches(p.items) {
		got, err := p.batch(dev, order)
		if err != nil {
			return err
		}
		for place, i := range order {
			if d := sameBits(alone[i], got[place]); d != "" {
				return fmt.Errorf("item %d alone and at place %d of a batch of %d (%v) differ: %s", i, place, len(order), order, d)
			}
		}
	}
	return nil
}

func (p packing) batch(dev kernels.Device, order []int) (bits [][]byte, err error) {
	err = onRig(dev, 0, func(r *rig) { bits = p.run(r, order) })
	return bits, err
}

// batches are orders of some of n items: all, backwards, and windows of a shuffle with sizes around tiles.
func batches(n int) [][]int {
	g := newGen(99)
	all, back := make([]int, n), make([]int, n)
	for i := range n {
		all[i], back[n-1-i] = i, i
	}
	orders := [][]int{all, back}
	for _, size := range []int{2, 3, 5, 6, 7, 8, 9, 15, 16, 17, 33} {
		if size <= n {
			orders = append(orders, g.Perm(n)[:size])
		}
	}
	return orders
}

// itemGen draws the data of one item, whatever batch it is in.
func itemGen(item int) *gen { return newGen(1000 + uint64(item)) }

// lenOf is the item's length in a list that repeats.
func lenOf(lens []int, item int) int { return lens[item%len(lens)] }

// cutRows returns the bits of each item's rows of t, appended to bits.
func (r *rig) cutRows(bits [][]byte, t kernels.Tensor, lens []int, order []int) {
	all := r.bytesOf(t)
	row := len(all) / t.Shape[0]
	at := 0
	for place, i := range order {
		n := lenOf(lens, i) * row
		bits[place] = append(bits[place], all[at:at+n]...)
		at += n
	}
}

// linearPacking is data of given lengths through one linear layer, each with an adapter of its own
// or none. Without grads only the forward runs, and neighbours with the same adapter share a span.
type linearPacking struct {
	k     int
	parts []int
	store kernels.DType
	lens  []int
	ranks []int // of the adapters; 0 is none; item i has adapter i % len
	grads bool
}

func (p linearPacking) run(r *rig, order []int) [][]byte {
	g := newGen(5)
	hw := g.weight(p.store, p.k, false, p.parts...)
	n := hw.rows()
	w := r.pack(hw)
	width := 1
	for _, rank := range p.ranks {
		width = max(width, rank*len(p.parts))
	}
	var xs, rs, dys []host
	var spans []kernels.Span
	shared := make([]*kernels.LoRA, len(p.ranks))
	at := 0
	for _, i := range order {
		ig := itemGen(i)
		l := lenOf(p.lens, i)
		xs, rs, dys = append(xs, ig.normal(1, l, p.k)), append(rs, ig.normal(1, l, n)), append(dys, ig.normal(1, l, n))
		s := kernels.Span{Begin: at, End: at + l}
		at += l
		if a := i % len(p.ranks); p.ranks[a] > 0 {
			if p.grads || shared[a] == nil {
				shared[a] = r.adapters([]hostLoRA{newGen(uint64(50+a)).lora(p.ranks[a], len(p.parts), n, p.k)}, p.grads)[0]
			}
			s.LoRA = shared[a]
		}
		if last := len(spans) - 1; !p.grads && last >= 0 && spans[last].LoRA == s.LoRA {
			spans[last].End = s.End
			continue
		}
		spans = append(spans, s)
	}
	a := kernels.LinearArgs{
		Y: r.out("y", at, n), V: r.out("v", at, width), X: r.in("x", stack(xs...)), W: w,
		Bias: r.in("bias", g.normal(1, n)), Spans: spans, Res: r.in("res", stack(rs...)),
	}
	r.must(r.ops.Linear(a))
	bits := make([][]byte, len(order))
	r.cutRows(bits, a.Y, p.lens, order)
	if !p.grads {
		return bits
	}
	b := kernels.LinearBackwardArgs{
		DX: r.out("dx", at, p.k), DV: r.scratch("dv", at, width), DY: r.in("dy", stack(dys...)),
		V: a.V, X: a.X, W: w, Spans: spans,
	}
	r.must(r.ops.LinearBackward(b))
	r.cutRows(bits, b.DX, p.lens, order)
	for place, s := range spans {
		if s.LoRA != nil {
			bits[place] = append(append(bits[place], r.bytesOf(s.LoRA.DA)...), r.bytesOf(s.LoRA.DB)...)
		}
	}
	return bits
}

// headPacking is the same for the unembedding: log-probabilities, logits and the backward.
type headPacking struct {
	d, vocab int
	store    kernels.DType
	lens     []int
	ranks    []int
}

func (p headPacking) run(r *rig, order []int) [][]byte {
	w := r.pack(newGen(6).weight(p.store, p.d, false, p.vocab))
	width := 1
	var hs, targets, douts []host
	var spans []kernels.Span
	at := 0
	for _, i := range order {
		ig := itemGen(i)
		l := lenOf(p.lens, i)
		hs, targets, douts = append(hs, ig.normal(1, l, p.d)), append(targets, ig.ids(-1, p.vocab-1, l, 2)), append(douts, ig.normal(1, l, 2))
		s := kernels.Span{Begin: at, End: at + l}
		at += l
		if rank := lenOf(p.ranks, i); rank > 0 {
			width = max(width, rank)
			s.LoRA = r.adapters([]hostLoRA{newGen(uint64(60+rank)).lora(rank, 1, p.vocab, p.d)}, true)[0]
		}
		spans = append(spans, s)
	}
	a := kernels.LogProbsArgs{
		Out: r.out("out", at, 2), LSE: r.out("lse", at), V: r.out("v", at, width), H: r.in("h", stack(hs...)), W: w,
		Spans: spans, Target: r.in("target", stack(targets...)),
	}
	r.must(r.ops.LogProbs(a))
	z := kernels.LogitsArgs{
		Z: r.out("z", at, p.vocab), LSE: r.out("lse of z", at), V: r.scratch("v of z", at, width), H: a.H, W: w, Spans: spans,
	}
	r.must(r.ops.Logits(z))
	b := kernels.LogProbsBackwardArgs{
		DH: r.out("dh", at, p.d), DV: r.scratch("dv", at, width), DOut: r.in("dout", stack(douts...)),
		LSE: a.LSE, V: a.V, H: a.H, W: w, Spans: spans, Target: a.Target,
	}
	r.must(r.ops.LogProbsBackward(b))
	bits := make([][]byte, len(order))
	for _, t := range []kernels.Tensor{a.Out, a.LSE, z.Z, z.LSE, b.DH} {
		r.cutRows(bits, t, p.lens, order)
	}
	for place, s := range spans {
		if s.LoRA != nil {
			bits[place] = append(append(bits[place], r.bytesOf(s.LoRA.DA)...), r.bytesOf(s.LoRA.DB)...)
		}
	}
	return bits
}

// attentionPacking is sequences through attention and its backward.
type attentionPacking struct {
	heads, kv, c int
	lens         []int
}

func (p attentionPacking) run(r *rig, order []int) [][]byte {
	var q, k, v, do []host
	var seqs []kernels.Seq
	at := 0
	for _, i := range order {
		ig := itemGen(i)
		n := lenOf(p.lens, i)
		q, do = append(q, ig.normal(1, n, p.heads*p.c)), append(do, ig.normal(1, n, p.heads*p.c))
		k, v = append(k, ig.normal(1, n, p.kv*p.c)), append(v, ig.normal(1, n, p.kv*p.c))
		seqs = append(seqs, kernels.Seq{Begin: at, End: at + n, KV: at})
		at += n
	}
	a := kernels.AttentionArgs{
		O: r.out("o", at, p.heads*p.c), LSE: r.out("lse", at, p.heads),
		Q: r.in("q", stack(q...)), K: r.in("k", stack(k...)), V: r.in("v", stack(v...)),
		Seqs: seqs, Heads: p.heads, KVHeads: p.kv, Scale: 0.3,
	}
	r.must(r.ops.Attention(a))
	b := kernels.AttentionBackwardArgs{
		DQ: r.out("dq", at, p.heads*p.c), DK: r.out("dk", at, p.kv*p.c), DV: r.out("dv", at, p.kv*p.c),
		DO: r.in("do", stack(do...)), O: a.O, LSE: a.LSE, Q: a.Q, K: a.K, V: a.V,
		Seqs: seqs, Heads: p.heads, KVHeads: p.kv, Scale: 0.3,
	}
	r.must(r.ops.AttentionBackward(b))
	bits := make([][]byte, len(order))
	for _, t := range []kernels.Tensor{a.O, a.LSE, b.DQ, b.DK, b.DV} {
		r.cutRows(bits, t, p.lens, order)
	}
	return bits
}

// one is the length of items that are single tokens.
var one = []int{1}

// rowPacking runs tokens through the ops that work on rows.
func rowPacking(d int) func(r *rig, order []int) [][]byte {
	return func(r *rig, order []int) [][]byte {
		var x, dy, gu []host
		for _, i := range order {
			ig := itemGen(i)
			x, dy, gu = append(x, ig.normal(1, 1, d)), append(dy, ig.normal(1, 1, d)), append(gu, ig.normal(2, 1, 2*d))
		}
		t := len(order)
		bits := make([][]byte, t)
		tx, tdy, tgu, g := r.in("x", stack(x...)), r.in("dy", stack(dy...)), r.in("gu", stack(gu...)), r.in("g", newGen(8).normal(1, d))
		y, rstd, dx := r.out("y", t, d), r.out("rstd", t), r.out("dx", t, d)
		r.must(r.ops.RMSNorm(y, rstd, tx, g, 1e-6))
		r.must(r.ops.RMSNormBackward(dx, tdy, tx, rstd, g, tx))
		h, dgu, sum := r.out("h", t, d), r.out("dgu", t, 2*d), r.out("sum", t, d)
		r.must(r.ops.SwiGLU(h, tgu))
		r.must(r.ops.SwiGLUBackward(dgu, tdy, tgu))
		r.must(r.ops.Add(sum, tx, tdy))
		for _, out := range []kernels.Tensor{y, rstd, dx, h, dgu, sum} {
			r.cutRows(bits, out, one, order)
		}
		return bits
	}
}

// ropePacking runs tokens through RoPE and its backward.
func ropePacking(heads, kv, c int) func(r *rig, order []int) [][]byte {
	return func(r *rig, order []int) [][]byte {
		t := len(order)
		var ps []*ropeProblem
		for _, i := range order {
			ps = append(ps, drawRope(itemGen(i), ropeShape{1, heads, kv, c, 0, true, true}))
		}
		p := drawRope(newGen(9), ropeShape{t, heads, kv, c, 0, true, true})
		p.gq, p.gk = newGen(10).normal(1, c), newGen(11).normal(1, c)
		for i, q := range ps {
			pos := itemGen(order[i]).ids(0, maxPos-1, 1).ints[0]
			p.pos.ints[i] = pos
			copy(p.qkv.data[i*len(q.qkv.data):], q.qkv.data)
			copy(p.dq.data[i*len(q.dq.data):], q.dq.data)
			copy(p.dk.data[i*len(q.dk.data):], q.dk.data)
			copy(p.dv.data[i*len(q.dv.data):], q.dv.data)
		}
		a, b := p.forward(r), p.backward(r)
		r.must(r.ops.RoPE(a))
		r.must(r.ops.RoPEBackward(b))
		bits := make([][]byte, t)
		for _, out := range []kernels.Tensor{a.Q, a.K, a.V, b.DQKV} {
			r.cutRows(bits, out, one, order)
		}
		return bits
	}
}

func packingChecks() []check {
	f32, bf16 := kernels.F32, kernels.BF16
	ps := []packing{
		{"packing", "rows D=9", 40, rowPacking(9)},
		{"packing", "rows D=700", 20, rowPacking(700)},
		{"packing", "rope C=16", 40, ropePacking(4, 2, 16)},
		{"packing", "rope C=64", 20, ropePacking(1, 1, 64)},
	}
	for i, l := range []linearPacking{
		{700, []int{19, 3, 16}, f32, one, []int{0, 4, 9}, false},
		{700, []int{19, 3, 16}, bf16, one, []int{0, 4, 9}, false},
		{17, []int{6}, f32, one, []int{8, 1}, false},
		{64, []int{33, 16}, bf16, []int{1, 2, 3, 6, 7, 17}, []int{0, 16}, false},
		{1030, []int{9}, f32, one, []int{0}, false},
		{20, []int{5, 4}, f32, []int{1, 3, 6, 7, 16, 17, 64, 65, 130, 300}, []int{3, 8, 0}, true},
		{300, []int{33}, bf16, []int{1, 2, 5, 8, 40}, []int{5, 16}, true},
		{16, []int{600}, f32, []int{1, 6, 9}, []int{4}, true},
	} {
		items := 40
		if l.grads {
			items = 2 * len(l.lens)
		}
		ps = append(ps, packing{"packing", fmt.Sprintf("linear %d K=%d", i, l.k), items, l.run})
	}
	for _, h := range []headPacking{
		{20, 300, f32, []int{1, 2, 5, 6, 7, 16, 17, 40}, []int{4, 0, 9}},
		{700, 33, bf16, []int{1, 3, 8}, []int{8}},
		{12, 1100, f32, []int{1, 6, 9, 70}, []int{3}},
	} {
		ps = append(ps, packing{"packing", fmt.Sprintf("head D=%d V=%d", h.d, h.vocab), 12, h.run})
	}
	for _, a := range []attentionPacking{
		{4, 2, 16, []int{1, 2, 7, 16, 33, 65, 130}},
		{3, 1, 5, []int{1, 6, 9, 17, 40}},
		{1, 1, 64, []int{1, 8, 31}},
	} {
		ps = append(ps, packing{"packing", fmt.Sprintf("attention H=%d C=%d", a.heads, a.c), 7, a.run})
	}
	for _, m := range moePackings {
		ps = append(ps, packing{"packing", fmt.Sprintf("experts D=%d F=%d E=%d top %d", m.d, m.f, m.experts, m.top), 12, m.run})
	}
	var all []check
	for _, p := range ps {
		all = append(all, check{p.op, p.name, p.check})
	}
	return all
}
