package model

import (
	"fmt"
	"math"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/kernels"
)

// Backward differentiates L = -sum w*logprob with w held constant and ADDS the gradients to the
// adapters' DA and DB. w has the shape of LogProbs. It can be called once per Forward with keep.
func (t *Tape) Backward(w [][]float32) error {
	if t.f == nil || !t.keep {
		return fmt.Errorf("backward of a tape that kept no activations")
	}
	if t.f.out.None() {
		return api.Errorf(api.BadRequest, "backward without targets")
	}
	dout, err := t.weights(w)
	if err != nil {
		return err
	}
	b, f := t.base, t.f
	ops := b.dev.Ops()
	if err := kernels.WriteFloats(b.dev, f.dout, dout); err != nil {
		return err
	}
	// Rows without a weight cost nothing; of the others the logits are made again.
	active, wide := 0, f.out.Cols()
	for r := range len(dout) / wide {
		if slices.ContainsFunc(dout[r*wide:(r+1)*wide], func(v float32) bool { return v != 0 }) {
			active++
		}
	}
	head := &b.work[len(b.layers)]
	head.add(backwardUse, active, b.head)
	head.add(recomputeUse, active, b.head)
	err = firstErr(
		func() error {
			return ops.LogProbsBackward(kernels.LogProbsBackwardArgs{
				DH: f.dxn, DV: f.dlow, DOut: f.dout, LSE: f.lse.RowRange(0, f.dout.Shape[0]), V: f.vHead, H: f.xn,
				W: b.head, Spans: t.spans[len(b.Sites)-1], Target: f.target,
			})
		},
		func() error {
			return ops.RMSNormBackward(f.dx, f.dxn, f.xLast, f.rstd, b.norm, kernels.Tensor{})
		},
	)
	if err != nil {
		return err
	}
	for i := len(b.layers) - 1; i >= 0; i-- {
		if i < t.fresh { // its activations were overwritten
			if err := b.layer(f, i, t.seqs, t.spans, nil, recomputeUse); err != nil {
				return fmt.Errorf("layer %d again: %w", i, err)
			}
			t.fresh = i
		}
		if err := t.layerBackward(ops, i); err != nil {
			return fmt.Errorf("layer %d backward: %w", i, err)
		}
	}
	return nil
}

// layerBackward turns dx from the gradient after layer i into the gradient before it.
func (t *Tape) layerBackward(ops kernels.Ops, i int) error {
	b, f, s := t.base, t.f, t.base.Spec
	w, l := &b.layers[i], &f.layers[i]
	site := t.spans[i*sitesPerLayer:]
	dxn := f.dxn
	if i == 0 {
		dxn = kernels.Tensor{} // the embedding is frozen: nothing below needs it
	}
	return firstErr(
		func() error {
			if w.experts != nil {
				return t.sparseBackward(ops, i, site)
			}
			return t.denseBackward(ops, i, site)
		},
		func() error { return ops.RMSNormBackward(f.dx, f.dxn, l.mid, l.rstd2, w.norm2, f.dx) },
		func() error {
			return b.linearBackward(i, kernels.LinearBackwardArgs{
				DX: f.do, DV: f.dlow, DY: f.dx, V: l.low[siteO], X: l.o, W: w.o, Spans: site[siteO]})
		},
		func() error {
			return ops.AttentionBackward(kernels.AttentionBackwardArgs{
				DQ: f.dq, DK: f.dk, DV: f.dv, DO: f.do, O: l.o, LSE: l.lse, Q: l.q, K: l.k, V: l.v,
				Seqs: t.seqs, Heads: s.Heads, KVHeads: s.KVHeads, Scale: s.attentionScale(),
			})
		},
		func() error {
			return ops.RoPEBackward(kernels.RoPEBackwardArgs{
				DQKV: f.dqkv, DQ: f.dq, DK: f.dk, DV: f.dv, QKV: l.qkv, QNorm: w.qNorm, KNorm: w.kNorm,
				Cos: b.rope.cos, Sin: b.rope.sin, Pos: f.pos, Heads: s.Heads, KVHeads: s.KVHeads, Eps: s.Eps,
			})
		},
		func() error { return ops.RMSNorm(f.xn, l.rstd1, l.x, w.norm1, s.Eps) },
		func() error {
			return b.linearBackward(i, kernels.LinearBackwardArgs{
				DX: dxn, DV: f.dlow, DY: f.dqkv, V: l.low[siteQKV], X: f.xn, W: w.qkv, Spans: site[siteQKV]})
		},
		func() error {
			if dxn.None() {
				return nil
			}
			return ops.RMSNormBackward(f.dx, f.dxn, l.x, l.rstd1, w.norm1, f.dx)
		},
	)
}

// denseBackward sets f.dxn to the gradient of the feed-forward's normalised input, which is made again in f.xn.
func (t *Tape) denseBackward(ops kernels.Ops, i int, site [][]kernels.Span) error {
	b, f := t.base, t.f
	w, l := &b.layers[i], &f.layers[i]
	return firstErr(
		func() error { return ops.SwiGLU(f.h, l.gu) },
		func() error {
			return b.linearBackward(i, kernels.LinearBackwardArgs{
				DX: f.dh, DV: f.dlow, DY: f.dx, V: l.low[siteDown], X: f.h, W: w.down, Spans: site[siteDown]})
		},
		func() error { return ops.SwiGLUBackward(f.dgu, f.dh, l.gu) },
		func() error { return ops.RMSNorm(f.xn, l.rstd2, l.mid, w.norm2, b.Spec.Eps) },
		func() error {
			return b.linearBackward(i, kernels.LinearBackwardArgs{
				DX: f.dxn, DV: f.dlow, DY: f.dgu, V: l.low[siteGateUp], X: f.xn, W: w.gateUp, Spans: site[siteGateUp]})
		},
	)
}

// weights lays w out as [T,J], zero where an item has fewer targets.
func (t *Tape) weights(w [][]float32) ([]float32, error) {
	if len(w) != len(t.items) {
		return nil, api.Errorf(api.BadRequest, "%d weight rows for %d items", len(w), len(t.items))
	}
	wide := t.f.out.Cols()
	out := make([]float32, 0, t.f.out.Len())
	for i, it := range t.items {
		if len(w[i]) != len(it.Targets) {
			return nil, api.Errorf(api.BadRequest, "datum %d: %d weights for %d targets", i, len(w[i]), len(it.Targets))
		}
		for k, v := range w[i] {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				return nil, api.Errorf(api.BadRequest, "datum %d: weight %d is %v, wanted a finite number", i, k, v)
			}
		}
		for p := range it.Tokens {
			out = append(out, w[i][p*t.j[i]:(p+1)*t.j[i]]...)
			for range wide - t.j[i] {
				out = append(out, 0)
			}
		}
	}
	return out, nil
}
