package model_test

import (
	"math"
	"strings"
	"testing"

	"tinkerlocal/engine/model"
)

// TestAloneOrTogether: a sequence's log-probabilities have the same bits alone, in a batch, and in a batch
// in another order.
func TestAloneOrTogether(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		w := weightsOf(adapter(t, b, g.Dir, g.Adapter.AdapterName))
		its, _ := items(g.Batch, w)
		_, together := forward(t, b, its, false)
		turned := append(append([]model.Item{}, its[2:]...), its[:2]...)
		_, other := forward(t, b, turned, true)
		for i, it := range its {
			_, alone := forward(t, b, []model.Item{it}, false)
			j := (i + len(its) - 2) % len(its)
			for p := range alone[0] {
				a := math.Float32bits(alone[0][p])
				if a != math.Float32bits(together[i][p]) || a != math.Float32bits(other[j][p]) {
					t.Fatalf("datum %d position %d: %v alone, %v and %v in batches", i, p, alone[0][p], together[i][p], other[j][p])
				}
			}
		}
	})
}

// TestPrefillInChunks: feeding a prompt whole, in pieces, or together with other sequences gives the same logits.
func TestPrefillInChunks(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		kv, err := b.NewKV(6 * model.PageLen)
		if err != nil {
			t.Fatal(err)
		}
		defer kv.Free()
		var text []int32
		for _, d := range g.Batch {
			for _, id := range d.Tokens {
				text = append(text, int32(id))
			}
		}
		text = text[:model.PageLen+3] // over a page's end
		extend := func(feeds ...model.Feed) []float32 {
			t.Helper()
			lg, err := b.Extend(feeds)
			if err != nil {
				t.Fatal(err)
			}
			last := len(feeds) - 1
			return append(append([]float32{}, lg.Z[last]...), lg.LSE[last])
		}
		same := func(what string, a, b []float32) {
			t.Helper()
			for i := range a {
				if math.Float32bits(a[i]) != math.Float32bits(b[i]) {
					t.Fatalf("%s: logit %d is %v, whole it is %v", what, i, b[i], a[i])
				}
			}
		}
		whole := extend(model.Feed{Cache: kv.NewCache(), Tokens: text})
		c := kv.NewCache()
		extend(model.Feed{Cache: c, Tokens: text[:5]})
		fork, err := c.Fork()
		if err != nil {
			t.Fatal(err)
		}
		extend(model.Feed{Cache: c, Tokens: text[5:6]})
		pieces := extend(model.Feed{Cache: c, Tokens: text[6:]})
		same("in pieces", whole, pieces)
		c.Release()
		other := kv.NewCache()
		same("forked, beside another sequence", whole,
			extend(model.Feed{Cache: other, Tokens: text[3:9]}, model.Feed{Cache: fork, Tokens: text[5:]}))
	})
}

// TestKVPool: pages are shared by forks, given back, and a full pool is an error that changes nothing.
func TestKVPool(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		kv, err := b.NewKV(2 * model.PageLen)
		if err != nil {
			t.Fatal(err)
		}
		defer kv.Free()
		long := make([]int32, model.PageLen)
		c := kv.NewCache()
		if _, err := b.Extend([]model.Feed{{Cache: c, Tokens: long}}); err != nil {
			t.Fatal(err)
		}
		f, err := c.Fork()
		if err != nil {
			t.Fatal(err)
		}
		if got := kv.FreePositions(); got != model.PageLen {
			t.Errorf("%d positions free after a fork at a page's end, wanted %d", got, model.PageLen)
		}
		_, err = b.Extend([]model.Feed{{Cache: c, Tokens: long}, {Cache: f, Tokens: long}})
		if err == nil || !strings.Contains(err.Error(), "kv pool is full") {
			t.Errorf("got %v, wanted a full pool", err)
		}
		if c.Len() != model.PageLen || f.Len() != model.PageLen {
			t.Errorf("lengths %d and %d after a refused step, wanted %d", c.Len(), f.Len(), model.PageLen)
		}
		c.Release()
		f.Release()
		f.Release()
		if got := kv.FreePositions(); got != 2*model.PageLen {
			t.Errorf("%d positions free at the end, wanted %d", got, 2*model.PageLen)
		}
	})
}

// TestItemsRefused: what cannot be a sequence is refused by its number.
func TestItemsRefused(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		ok := model.Item{Tokens: []int32{1, 2}, Targets: []int32{2, 3}}
		for _, c := range []struct {
			item model.Item
			want string
		}{
			{model.Item{}, "item 1: no tokens"},
			{model.Item{Tokens: []int32{1, int32(b.Spec.Vocab)}, Targets: []int32{1, 1}}, "item 1: token 1 has id"},
			{model.Item{Tokens: []int32{-1}, Targets: []int32{1}}, "item 1: token 0 has id -1"},
			{model.Item{Tokens: []int32{1, 2}, Targets: []int32{1, 2, 3}}, "item 1: 3 targets for 2 tokens"},
			{model.Item{Tokens: make([]int32, b.Spec.MaxPositions+1), Targets: make([]int32, b.Spec.MaxPositions+1)}, "the model's context is"},
			{model.Item{Tokens: []int32{1}, Targets: []int32{int32(b.Spec.Vocab)}}, "target"},
		} {
			tape, err := b.Forward([]model.Item{ok, c.item}, true)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, wanted %q", err, c.want)
			}
			if tape != nil && err == nil {
				tape.Release()
			}
		}
		tape, _ := forward(t, b, []model.Item{ok}, true)
		for _, w := range [][][]float32{nil, {{1}}, {{1, float32(math.NaN())}}} {
			if err := tape.Backward(w); err == nil {
				t.Errorf("backward took the weights %v", w)
			}
		}
	})
}
