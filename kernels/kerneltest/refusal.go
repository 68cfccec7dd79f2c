package kerneltest

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"tinkerlocal/kernels"
)

// refusalChecks are calls that an op must refuse, with an error that names it and without writing.
func refusalChecks() []check {
	var all []check
	for _, c := range []struct {
		op  string
		run func(r *rig, t *refuser)
	}{
		{"linear", refuseLinear}, {"rope", refuseRope}, {"attention", refuseAttention}, {"head", refuseHead}, {"moe", refuseMoE}, {"rows", refuseRows},
	} {
		all = append(all, check{"refusals", c.op, func(dev kernels.Device) error {
			var t refuser
			err := onRig(dev, 0, func(r *rig) {
				t.rig = r
				c.run(r, &t)
			})
			return errors.Join(err, errors.Join(t.wrong...))
		}})
	}
	return all
}

// refuser makes calls that must fail.
type refuser struct {
	rig   *rig
	wrong []error
}

// call expects an error that begins with the op's name; a device that only finds bad values while it
// works may say so at Wait, and then may have written.
func (t *refuser) call(op, what string, err error) {
	if errors.Is(err, kernels.ErrUnimplemented) {
		return
	}
	if err == nil {
		if t.rig.dev.Wait(context.Background()) != nil {
			t.rig.restore()
			return
		}
		t.wrong = append(t.wrong, fmt.Errorf("%s with %s: no error", op, what))
		t.rig.restore()
		return
	}
	if !strings.HasPrefix(err.Error(), op+": ") {
		t.wrong = append(t.wrong, fmt.Errorf("%s with %s: error %q does not begin with the op", op, what, err))
	}
	for _, s := range t.rig.slots {
		if d := sameBits(s.initial, t.rig.bytesOf(s.whole())); d != "" {
			t.wrong = append(t.wrong, fmt.Errorf("%s with %s: refused, but %s was written: %s", op, what, s.name, d))
			t.rig.restore()
			return
		}
	}
}

// wrongs are ways to spoil a tensor.
func (r *rig) wrongs(t kernels.Tensor) map[string]kernels.Tensor {
	wide, short, flat, outside, dtype := t, t, t, t, t
	wide.Shape[t.Rank-1]++
	short.Shape[0]--
	flat.Rank = 3
	flat.Shape[2] = 1
	outside.Off += t.Buf.Len()
	dtype.DType = kernels.F16
	return map[string]kernels.Tensor{"wide": wide, "short": short, "rank 3": flat, "outside": outside, "float16": dtype}
}

// spoil makes the call with each wrong form of one of its tensors.
func (t *refuser) spoil(op, name string, field *kernels.Tensor, call func() error) {
	right := *field
	for how, bad := range t.rig.wrongs(right) {
		*field = bad
		t.call(op, name+" "+how, call())
	}
	*field = right
}

func refuseLinear(r *rig, t *refuser) {
	p := drawLinear(r.g, linearShape{5, 8, []int{3, 4}}, kernels.F32, 1)
	p.hasRes, p.hasBias = true, true
	a := p.forward(r)
	call := func() error { return r.ops.Linear(a) }
	t.spoil("linear", "x", &a.X, call)
	t.spoil("linear", "y", &a.Y, call)
	t.spoil("linear", "bias", &a.Bias, call)
	t.spoil("linear", "res", &a.Res, call)
	l := a.Spans[0].LoRA
	t.spoil("linear", "a", &l.A, call)
	t.spoil("linear", "b", &l.B, call)
	spans := func(op string, list *[]kernels.Span, call func() error) {
		right := *list
		for what, s := range map[string][]kernels.Span{
			"a span past the end":   {{Begin: 0, End: 6, LoRA: l}},
			"a span before 0":       {{Begin: -1, End: 2, LoRA: l}},
			"an empty span":         {{Begin: 2, End: 2, LoRA: l}},
			"a backward span":       {{Begin: 3, End: 2, LoRA: l}},
			"overlapping spans":     {{Begin: 0, End: 3, LoRA: l}, {Begin: 2, End: 4, LoRA: l}},
			"spans out of order":    {{Begin: 3, End: 4, LoRA: l}, {Begin: 0, End: 2}},
			"a nil span past all":   {{Begin: 5, End: 6}},
			"another rank":          {{Begin: 0, End: 5, LoRA: &kernels.LoRA{Rank: 7, A: l.A, B: l.B, DA: l.DA, DB: l.DB}}},
			"rank 0":                {{Begin: 0, End: 5, LoRA: &kernels.LoRA{A: l.A, B: l.B, DA: l.DA, DB: l.DB}}},
			"an absurd rank":        {{Begin: 0, End: 5, LoRA: &kernels.LoRA{Rank: 1 << 62, A: l.A, B: l.B, DA: l.DA, DB: l.DB}}},
			"an adapter of nothing": {{Begin: 0, End: 5, LoRA: &kernels.LoRA{Rank: 8}}},
		} {
			*list = s
			t.call(op, what, call())
		}
		*list = right
	}
	spans("linear", &a.Spans, call)
	none := a
	none.V = kernels.Tensor{}
	t.call("linear", "no v", r.ops.Linear(none))
	none = a
	none.W = nil
	t.call("linear", "no weight", r.ops.Linear(none))
	none = a
	none.X = kernels.Tensor{}
	t.call("linear", "no x", r.ops.Linear(none))

	b := p.backward(r, overwriteDX)
	l = b.Spans[0].LoRA
	back := func() error { return r.ops.LinearBackward(b) }
	t.spoil("linear backward", "dy", &b.DY, back)
	t.spoil("linear backward", "dx", &b.DX, back)
	t.spoil("linear backward", "x", &b.X, back)
	t.spoil("linear backward", "da", &l.DA, back)
	t.spoil("linear backward", "db", &l.DB, back)
	spans("linear backward", &b.Spans, back)
	bare := b
	bare.DV = kernels.Tensor{}
	t.call("linear backward", "no dv", r.ops.LinearBackward(bare))
}

func refuseRope(r *rig, t *refuser) {
	p := drawRope(r.g, ropeShape{5, 2, 1, 8, 9, true, true})
	a := p.forward(r)
	call := func() error { return r.ops.RoPE(a) }
	t.spoil("rope", "q", &a.Q, call)
	t.spoil("rope", "qkv", &a.QKV, call)
	t.spoil("rope", "qnorm", &a.QNorm, call)
	t.spoil("rope", "sin", &a.Sin, call)
	t.spoil("rope", "pos", &a.Pos, call)
	t.spoil("rope", "rows", &a.Rows, call)
	t.spoil("rope", "v", &a.V, call)
	for what, heads := range map[string][2]int{"no heads": {0, 1}, "no kv heads": {2, 0}, "3 kv heads": {2, 3}, "negative heads": {-2, -1}} {
		c := a
		c.Heads, c.KVHeads = heads[0], heads[1]
		t.call("rope", what, r.ops.RoPE(c))
	}
	values := func(op string, field *kernels.Tensor, call func() error, bad ...int32) {
		right := *field
		for _, v := range bad {
			ints := append([]int32(nil), 0, 1, 2, 3, v)
			*field = r.in("bad", integers([]int{5}, ints))
			t.call(op, fmt.Sprint("the value ", v), call())
		}
		*field = right
	}
	values("rope", &a.Pos, call, -1, maxPos)
	values("rope", &a.Rows, call, -1, 9)
	few := a
	few.Rows = kernels.Tensor{}
	few.K, few.V = a.K.RowRange(0, 4), a.V.RowRange(0, 4)
	t.call("rope", "too few rows", r.ops.RoPE(few))
	b := p.backward(r)
	back := func() error { return r.ops.RoPEBackward(b) }
	t.spoil("rope backward", "dqkv", &b.DQKV, back)
	t.spoil("rope backward", "dk", &b.DK, back)
	values("rope backward", &b.Pos, back, -1, maxPos)
}

func refuseAttention(r *rig, t *refuser) {
	p := drawAttention(r.g, attentionShape{heads: 2, kv: 1, c: 8, lens: []int{3, 4}, size: 1})
	a, b := p.forward(r), p.backward(r)
	call := func() error { return r.ops.Attention(a) }
	t.spoil("attention", "o", &a.O, call)
	t.spoil("attention", "lse", &a.LSE, call)
	t.spoil("attention", "v", &a.V, call)
	for what, s := range map[string][]kernels.Seq{
		"no sequences":     nil,
		"a gap":            {{End: 3}, {Begin: 4, End: 7, KV: 3}},
		"a missing end":    {{End: 3}, {Begin: 3, End: 6, KV: 3}},
		"past the end":     {{End: 3}, {Begin: 3, End: 8}},
		"an empty one":     {{End: 0}, {Begin: 0, End: 7}},
		"keys past rows":   {{End: 7, KV: 1}},
		"negative keys":    {{End: 7, KV: -1}},
		"negative pos":     {{End: 7, Pos: -1}},
		"pos past rows":    {{End: 7, Pos: 1}},
		"huge pos":         {{End: 7, Pos: 1<<63 - 1}},
		"huge kv":          {{End: 7, KV: 1<<63 - 1}},
		"too few pages":    {{End: 7, Pages: []int32{0, 1, 2}}},
		"empty page table": {{End: 7, Pages: []int32{}}},
		"a page past rows": {{End: 7, Pages: []int32{0, 1, 2, 3}}},
		"a negative page":  {{End: 7, Pages: []int32{0, -1, 2, 1}}},
	} {
		c, d := a, b
		c.Seqs, c.PageLen, d.Seqs = s, 2, s
		t.call("attention", what, r.ops.Attention(c))
		t.call("attention backward", what, r.ops.AttentionBackward(d))
	}
	unpaged := a
	unpaged.Seqs = []kernels.Seq{{End: 7, Pages: make([]int32, 7)}}
	t.call("attention", "page length 0", r.ops.Attention(unpaged))
	odd := a
	odd.Heads, odd.KVHeads = 3, 1
	t.call("attention", "3 heads", r.ops.Attention(odd))
	back := func() error { return r.ops.AttentionBackward(b) }
	t.spoil("attention backward", "dq", &b.DQ, back)
	t.spoil("attention backward", "dk", &b.DK, back)
	t.spoil("attention backward", "lse", &b.LSE, back)
}

func refuseHead(r *rig, t *refuser) {
	p := drawHead(r.g, headShape{5, 8, 6, 2, 1}, kernels.F32, 1)
	a, b, z := p.forward(r), p.backward(r), p.logits(r)
	call, back := func() error { return r.ops.LogProbs(a) }, func() error { return r.ops.LogProbsBackward(b) }
	t.spoil("logprobs", "out", &a.Out, call)
	t.spoil("logprobs", "h", &a.H, call)
	t.spoil("logprobs", "lse", &a.LSE, call)
	t.spoil("logprobs backward", "dh", &b.DH, back)
	t.spoil("logprobs backward", "dout", &b.DOut, back)
	logits := func() error { return r.ops.Logits(z) }
	t.spoil("logits", "z", &z.Z, logits)
	t.spoil("logits", "lse", &z.LSE, logits)
	for _, v := range []int32{-2, 6, 1 << 30} {
		ints := make([]int32, 10)
		ints[7] = v
		bad := r.in("bad", integers([]int{5, 2}, ints))
		c, d := a, b
		c.Target, d.Target = bad, bad
		t.call("logprobs", fmt.Sprint("target ", v), r.ops.LogProbs(c))
		t.call("logprobs backward", fmt.Sprint("target ", v), r.ops.LogProbsBackward(d))
	}
	c := a
	c.V = kernels.Tensor{}
	t.call("logprobs", "no v", r.ops.LogProbs(c))
}

func refuseRows(r *rig, t *refuser) {
	x, y, g := r.in("x", r.g.normal(1, 3, 4)), r.out("y", 3, 4), r.in("g", r.g.normal(1, 4))
	rstd := r.out("rstd", 3)
	ids := r.in("ids", integers([]int{3}, []int32{0, 5, 1}))
	bad := r.in("ids", integers([]int{3}, []int32{0, 6, 1}))
	low := r.in("ids", integers([]int{3}, []int32{0, -1, 1}))
	w := r.pack(r.g.weight(kernels.F32, 4, false, 6))
	t.call("embed", "an id past the vocabulary", r.ops.Embed(y, w, bad))
	t.call("embed", "a negative id", r.ops.Embed(y, w, low))
	t.spoil("embed", "y", &y, func() error { return r.ops.Embed(y, w, ids) })
	t.spoil("rmsnorm", "x", &x, func() error { return r.ops.RMSNorm(y, rstd, x, g, 1e-6) })
	t.spoil("rmsnorm", "g", &g, func() error { return r.ops.RMSNorm(y, rstd, x, g, 1e-6) })
	t.call("rmsnorm", "eps -1", r.ops.RMSNorm(y, rstd, x, g, -1))
	t.spoil("rmsnorm backward", "rstd", &rstd, func() error { return r.ops.RMSNormBackward(y, x, x, rstd, g, x) })
	t.spoil("add", "y", &y, func() error { return r.ops.Add(y, x, x) })
	h, gu := r.out("h", 3, 2), x
	t.spoil("swiglu", "h", &h, func() error { return r.ops.SwiGLU(h, gu) })
	t.spoil("swiglu backward", "gu", &gu, func() error { return r.ops.SwiGLUBackward(y, h, gu) })
	t.call("copy", "another size", r.ops.Copy(y, h))
	t.call("copy", "another dtype", r.ops.Copy(ids, rstd))
	_, err := r.ops.SumSquares(ids)
	t.call("sumsquares", "ints", err)
	adam := kernels.AdamWArgs{P: y, G: y, M: y, V: y, LR: 1, Beta1: 0.9, Beta2: 0.9, GradScale: 1, Step: 1}
	for what, spoil := range map[string]func(a *kernels.AdamWArgs){
		"step 0":        func(a *kernels.AdamWArgs) { a.Step = 0 },
		"beta1 of 1":    func(a *kernels.AdamWArgs) { a.Beta1 = 1 },
		"negative beta": func(a *kernels.AdamWArgs) { a.Beta2 = -0.1 },
		"negative lr":   func(a *kernels.AdamWArgs) { a.LR = -1 },
		"another size":  func(a *kernels.AdamWArgs) { a.G = rstd },
		"no moments":    func(a *kernels.AdamWArgs) { a.M = kernels.Tensor{} },
	} {
		a := adam
		spoil(&a)
		t.call("adamw", what, r.ops.AdamW(a))
	}
}
