package model_test

import (
	"slices"
	"testing"

	"tinkerlocal/engine/model"
)

// gradients runs its forward and backward with some layers recomputed, and returns log-probabilities, gradients and what
// the device computed.
func gradients(t *testing.T, b *model.Base, g golden, recompute int) (lp, grads [][]float32, work model.Counters) {
	t.Helper()
	a := adapter(t, b, g.Dir, g.Adapter.AdapterName)
	its, w := items(g.Batch, a.Weights)
	before := b.Counters()
	tape, err := b.ForwardRecompute(its, recompute)
	if err != nil {
		t.Fatal(err)
	}
	defer tape.Release()
	if lp, err = tape.LogProbs(); err != nil {
		t.Fatal(err)
	}
	if err := a.BeginOp(); err != nil {
		t.Fatal(err)
	}
	if err := tape.Backward(w); err != nil {
		t.Fatal(err)
	}
	if err := a.CommitOp(); err != nil {
		t.Fatal(err)
	}
	ts, err := a.Gradients()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range ts {
		grads = append(grads, x.Values)
	}
	work = b.Counters()
	work.Head = work.Head.Sub(before.Head)
	for i := range work.Layers {
		work.Layers[i] = work.Layers[i].Sub(before.Layers[i])
	}
	return lp, grads, work
}

// TestRecompute: however many layers are run forward twice, log-probabilities and gradients have the same bits, the memory is
// less with every one, and the counters tell the products that were made again and no others.
func TestRecompute(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		s := b.Spec
		lp, grads, plain := gradients(t, b, g, 0)
		tokens, active := int64(0), int64(0)
		for _, d := range g.Batch {
			tokens += int64(len(d.Tokens))
			for _, w := range d.Weights {
				if w != 0 {
					active++
				}
			}
		}
		D, qkv := int64(s.Hidden), int64(s.QWidth()+2*s.KVWidth())
		attention := func(i int) int64 { return tokens * D * (qkv + int64(s.QWidth())) }
		experts := tokens * D * int64(s.Experts+3*s.TopK*s.ExpertFFN)
		head := model.Work{Forward: tokens * D * int64(s.Vocab), Backward: active * D * int64(s.Vocab), Recompute: active * D * int64(s.Vocab)}
		if plain.Head != head {
			t.Errorf("head: %+v, wanted %+v", plain.Head, head)
		}
		bytes := b.TrainBytes(int(tokens), 1, 4, true, 0)
		for asked := range s.Layers + 2 {
			r := min(asked, s.Layers-1)
			lp2, grads2, work := gradients(t, b, g, asked)
			if !slices.EqualFunc(lp, lp2, slices.Equal) || !slices.EqualFunc(grads, grads2, slices.Equal) {
				t.Errorf("%d layers recomputed: other bits", r)
			}
			for i, got := range work.Layers {
				want := model.Work{Forward: attention(i) + 3*tokens*D*int64(s.FFN)}
				again := want.Forward - tokens*D*int64(s.FFN)
				if s.IsSparse(i) {
					want.Forward = attention(i) + experts
					again = want.Forward
				}
				want.Backward = want.Forward
				if i == 0 {
					want.Backward -= tokens * D * qkv
				}
				if i < r {
					want.Recompute = again
				}
				if got != want {
					t.Errorf("%d layers recomputed: layer %d: %+v, wanted %+v", r, i, got, want)
				}
			}
			if n := b.TrainBytes(int(tokens), 1, 4, true, r); asked == r && r > 0 && n >= bytes {
				t.Errorf("%d layers recomputed: %d bytes, %d with one less", r, n, bytes)
			} else {
				bytes = n
			}
		}
	})
}

// TestRecomputePoisoned: a frame full of another batch's leftovers changes no bit of a recomputation.
func TestRecomputePoisoned(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		_, want, _ := gradients(t, b, g, b.Spec.Layers-1)
		its, w := items(g.Batch, nil)
		slices.Reverse(its)
		slices.Reverse(w)
		tape, _ := forward(t, b, its, true)
		if err := tape.Backward(w); err != nil {
			t.Fatal(err)
		}
		tape.Release()
		if _, got, _ := gradients(t, b, g, b.Spec.Layers-1); !slices.EqualFunc(want, got, slices.Equal) {
			t.Error("other bits")
		}
	})
}
