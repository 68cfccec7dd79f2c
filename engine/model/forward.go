package model

import (
	"fmt"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
	"tinkerlocal/kernels"
)

// Item is one sequence of a training batch. Position i of Tokens predicts Targets[i*J : (i+1)*J].
type Item struct {
	Tokens  []int32
	Targets []int32       // len(Tokens)*J values; -1 asks for nothing
	Adapter *lora.Weights // nil: the bare base
}

// Tape is one forward and what its backward needs. Release it.
type Tape struct {
	base  *Base
	fresh int // the layer whose activations are in the memory that recomputed layers share
	buf   kernels.Buffer
	f     *frame
	items []Item
	ends  []int
	j     []int // targets per position of each item
	seqs  []kernels.Seq
	spans [][]kernels.Span // per site
	keep  bool
}

// Forward packs batch without padding and computes the target log-probabilities. With keep the
// activations are kept for one Backward.
func (b *Base) Forward(batch []Item, keep bool) (*Tape, error) { return b.forward(batch, keep, 0) }

// ForwardRecompute is Forward with keep, except that of the first recompute layers only the input is kept, and Backward
// runs them forward again. At most all layers but one are: the last one of those is still there. Results have the same bits.
func (b *Base) ForwardRecompute(batch []Item, recompute int) (*Tape, error) {
	return b.forward(batch, true, min(max(recompute, 0), b.Spec.Layers-1))
}

func (b *Base) forward(batch []Item, keep bool, recompute int) (_ *Tape, err error) {
	t := &Tape{base: b, items: batch, keep: keep, fresh: recompute, ends: make([]int, len(batch)), j: make([]int, len(batch))}
	sh := shape{keep: keep, recompute: recompute}
	longest := 0
	weights := make([]*lora.Weights, len(batch))
	for i, it := range batch {
		if err := b.check(it); err != nil {
			return nil, fmt.Errorf("item %d: %w", i, err)
		}
		n := len(it.Tokens)
		t.seqs = append(t.seqs, kernels.Seq{Begin: sh.tokens, End: sh.tokens + n, KV: sh.tokens})
		sh.tokens += n
		t.ends[i], t.j[i], weights[i] = sh.tokens, len(it.Targets)/n, it.Adapter
		sh.targets = max(sh.targets, t.j[i])
		if it.Adapter != nil {
			sh.rank = max(sh.rank, it.Adapter.Rank)
		}
		longest = max(longest, n)
	}
	if sh.tokens == 0 {
		return nil, api.Errorf(api.BadRequest, "the batch is empty")
	}
	if err := b.rope.grow(b.dev, b.Spec, longest); err != nil {
		return nil, err
	}
	if t.buf, err = b.take(b.Spec.bytes(b.act, sh)); err != nil {
		return nil, err
	}
	ok := false
	defer func() {
		if !ok { // also when a kernel panics
			t.Release()
		}
	}()
	t.f = b.Spec.layout(&arena{buf: t.buf, act: b.act}, sh)
	t.spans = make([][]kernels.Span, len(b.Sites))
	for s := range b.Sites {
		t.spans[s] = spans(s, t.ends, weights)
	}
	ids, pos := make([]int32, 0, sh.tokens), make([]int32, 0, sh.tokens)
	target := make([]int32, 0, sh.tokens*sh.targets)
	for i, it := range batch {
		ids = append(ids, it.Tokens...)
		for p := range it.Tokens {
			pos = append(pos, int32(p))
			target = append(target, it.Targets[p*t.j[i]:(p+1)*t.j[i]]...)
			for range sh.targets - t.j[i] {
				target = append(target, -1)
			}
		}
	}
	for _, u := range []struct {
		dst kernels.Tensor
		src []int32
	}{{t.f.ids, ids}, {t.f.pos, pos}, {t.f.target, target}} {
		if err := kernels.WriteInts(b.dev, u.dst, u.src); err != nil {
			return nil, err
		}
	}
	if err := b.decode(t.f, t.seqs, t.spans, nil); err != nil {
		return nil, err
	}
	if sh.targets > 0 {
		err := b.dev.Ops().LogProbs(kernels.LogProbsArgs{
			Out: t.f.out, LSE: t.f.lse.RowRange(0, sh.tokens), V: t.f.vHead, H: t.f.xn,
			W: b.head, Spans: t.spans[len(b.Sites)-1], Target: t.f.target,
		})
		if err != nil {
			return nil, err
		}
		b.work[len(b.layers)].add(forwardUse, sh.tokens, b.head)
	}
	ok = true
	return t, nil
}

func (b *Base) check(it Item) error {
	n := len(it.Tokens)
	if n == 0 {
		return api.Errorf(api.BadRequest, "no tokens")
	}
	if n > b.Spec.MaxPositions {
		return api.Errorf(api.BadRequest, "%d tokens, the model's context is %s", n, b.Spec.Context())
	}
	if len(it.Targets)%n != 0 {
		return api.Errorf(api.BadRequest, "%d targets for %d tokens, wanted a multiple", len(it.Targets), n)
	}
	return b.CheckTokens(it.Tokens)
}

// CheckTokens says which token id the model does not have. Any goroutine may call it.
func (b *Base) CheckTokens(ids []int32) error {
	for i, id := range ids {
		if id < 0 || int(id) >= b.Spec.Vocab {
			return api.Errorf(api.BadRequest, "token %d has id %d, the vocabulary is 0..%d", i, id, b.Spec.Vocab-1)
		}
	}
	return nil
}

// decode runs embedding, layers and final norm; the normalised hidden states are left in f.xn. With a
// KV pool, keys and values are written to and read from it.
func (b *Base) decode(f *frame, seqs []kernels.Seq, spans [][]kernels.Span, kv *KV) error {
	ops, u := b.dev.Ops(), forwardUse
	if kv != nil {
		u = sampleUse
	}
	if err := ops.Embed(f.layers[0].x, b.embed, f.ids); err != nil {
		return err
	}
	for i := range b.layers {
		if err := b.layer(f, i, seqs, spans, kv, u); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return ops.RMSNorm(f.xn, f.rstd, f.xLast, b.norm, b.Spec.Eps)
}

// layer runs layer i from its input to the next one's, which a recomputation of a dense layer leaves out: it is known.
func (b *Base) layer(f *frame, i int, seqs []kernels.Seq, spans [][]kernels.Span, kv *KV, u use) error {
	ops, s, w := b.dev.Ops(), b.Spec, &b.layers[i]
	l, next := &f.layers[0], f.xLast
	if len(f.layers) > 1 || len(b.layers) == 1 {
		l = &f.layers[i]
		if i+1 < len(f.layers) {
			next = f.layers[i+1].x
		}
	}
	k, v, rows, pageLen := l.k, l.v, kernels.Tensor{}, 0
	if kv != nil {
		k, v, rows, pageLen = kv.k[i], kv.v[i], f.rows, PageLen
	}
	site := spans[i*sitesPerLayer:]
	return firstErr(
		func() error { return ops.RMSNorm(f.xn, l.rstd1, l.x, w.norm1, s.Eps) },
		func() error {
			return b.linear(u, i, kernels.LinearArgs{Y: l.qkv, V: l.low[siteQKV], X: f.xn, W: w.qkv, Bias: w.qkvBias, Spans: site[siteQKV]})
		},
		func() error {
			return ops.RoPE(kernels.RoPEArgs{
				Q: l.q, K: k, V: v, QKV: l.qkv, QNorm: w.qNorm, KNorm: w.kNorm,
				Cos: b.rope.cos, Sin: b.rope.sin, Pos: f.pos, Rows: rows,
				Heads: s.Heads, KVHeads: s.KVHeads, Eps: s.Eps,
			})
		},
		func() error {
			return ops.Attention(kernels.AttentionArgs{
				O: l.o, LSE: l.lse, Q: l.q, K: k, V: v, Seqs: seqs, PageLen: pageLen,
				Heads: s.Heads, KVHeads: s.KVHeads, Scale: s.attentionScale(),
			})
		},
		func() error {
			return b.linear(u, i, kernels.LinearArgs{Y: l.mid, V: l.low[siteO], X: l.o, W: w.o, Spans: site[siteO], Res: l.x})
		},
		func() error { return ops.RMSNorm(f.xn, l.rstd2, l.mid, w.norm2, s.Eps) },
		func() error {
			if w.experts != nil {
				return b.sparse(f, i, l, next, site, u)
			}
			return b.dense(f, i, l, next, site, u)
		},
	)
}

// dense runs the feed-forward half of layer i: from the normalised input f.xn and the residual l.mid to next.
func (b *Base) dense(f *frame, i int, l *layerTape, next kernels.Tensor, site [][]kernels.Span, u use) error {
	ops, w := b.dev.Ops(), &b.layers[i]
	err := b.linear(u, i, kernels.LinearArgs{Y: l.gu, V: l.low[siteGateUp], X: f.xn, W: w.gateUp, Spans: site[siteGateUp]})
	if err != nil || u == recomputeUse {
		return err
	}
	if err := ops.SwiGLU(f.h, l.gu); err != nil {
		return err
	}
	return b.linear(u, i, kernels.LinearArgs{Y: next, V: l.low[siteDown], X: f.h, W: w.down, Spans: site[siteDown], Res: l.mid})
}

// firstErr runs steps in order until one fails.
func firstErr(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// LogProbs waits for the forward and returns the log-probabilities of each item's targets, in the order of Targets.
func (t *Tape) LogProbs() ([][]float32, error) {
	out := make([][]float32, len(t.items))
	if t.f.out.None() {
		return out, nil
	}
	all, err := kernels.ReadFloats(t.base.dev, t.f.out)
	if err != nil {
		return nil, err
	}
	wide, row := t.f.out.Cols(), 0
	for i, it := range t.items {
		out[i] = make([]float32, 0, len(it.Targets))
		for range it.Tokens {
			out[i] = append(out[i], all[row*wide:row*wide+t.j[i]]...)
			row++
		}
	}
	return out, nil
}

// Release gives the tape's memory back. Releasing twice does nothing.
func (t *Tape) Release() {
	t.base.give(t.buf)
	t.buf, t.f = nil, nil
}
