package model_test

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/model"
	"tinkerlocal/kernels"
)

// sorted is every token of a row of logits with its log-probability, as Scores.Top orders them.
func sorted(z []float32, lse float32) []api.TokenLogProb {
	all := make([]api.TokenLogProb, len(z))
	for i, v := range z {
		all[i] = api.TokenLogProb{Token: int32(i), LogProb: v - lse}
	}
	slices.SortStableFunc(all, func(a, b api.TokenLogProb) int { return cmp.Compare(b.LogProb, a.LogProb) })
	return all
}

// TestScores: what Extend scores equals torch's values and has the bits of Forward, for each adapter, with all
// sequences side by side and in pieces of several sizes; the lists are the first ones of a full sort.
func TestScores(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		kv, err := b.NewKV(30 * model.PageLen)
		if err != nil {
			t.Fatal(err)
		}
		defer kv.Free()
		exact := b.Device().Info().Act == kernels.F32
		for _, e := range []goldenEval{g.Base, g.Adapter, g.AdapterAttn} {
			its, _ := items(g.Batch, weightsOf(adapter(t, b, g.Dir, e.AdapterName)))
			_, want := forward(t, b, its, false)
			sort := rows(t, b, kv, its)
			for piece, k := range map[int]int{1: 3, 5: 0, 40: b.Spec.Vocab, 1000: 1} {
				caches := make([]*model.Cache, len(its))
				for i := range caches {
					caches[i] = kv.NewCache()
				}
				scores := make([]model.Scores, len(its))
				for {
					var feeds []model.Feed
					var of []int
					for i, it := range its {
						lo := caches[i].Len()
						if hi := min(lo+piece, len(it.Tokens)); lo < hi {
							fd := model.Feed{Cache: caches[i], Tokens: it.Tokens[lo:hi], Adapter: it.Adapter, Targets: it.Targets[lo:hi]}
							if i != 1 { // one without lists beside those with
								fd.Top = k
							}
							feeds, of = append(feeds, fd), append(of, i)
						}
					}
					if len(feeds) == 0 {
						break
					}
					lg, err := b.Extend(feeds)
					if err != nil {
						t.Fatal(err)
					}
					for j, s := range lg.Scores {
						to := &scores[of[j]]
						to.LogProbs, to.Top = append(to.LogProbs, s.LogProbs...), append(to.Top, s.Top...)
					}
				}
				for i := range its {
					checkClose(t, "logprobs", e.LogprobsF64[i], wide(scores[i].LogProbs), noiseFactor*e.LogprobsNoise)
					if exact && !slices.Equal(scores[i].LogProbs, want[i]) {
						t.Fatalf("pieces of %d: datum %d has %v, forward %v", piece, i, scores[i].LogProbs, want[i])
					}
					if k == 0 || i == 1 {
						if scores[i].Top != nil {
							t.Fatalf("datum %d has lists that nobody asked for", i)
						}
						continue
					}
					for p, list := range scores[i].Top {
						if !slices.Equal(list, sort[i][p][:k]) {
							t.Fatalf("pieces of %d: datum %d position %d lists %v, wanted %v", piece, i, p, list, sort[i][p][:k])
						}
					}
				}
				for _, c := range caches {
					c.Release()
				}
			}
		}
	})
}

// rows sorts the logits of every position, computed token by token.
func rows(t *testing.T, b *model.Base, kv *model.KV, its []model.Item) [][][]api.TokenLogProb {
	t.Helper()
	out := make([][][]api.TokenLogProb, len(its))
	for i, it := range its {
		c := kv.NewCache()
		for _, tok := range it.Tokens {
			lg, err := b.Extend([]model.Feed{{Cache: c, Tokens: []int32{tok}, Adapter: it.Adapter}})
			if err != nil {
				t.Fatal(err)
			}
			out[i] = append(out[i], sorted(lg.Z[0], lg.LSE[0]))
		}
		c.Release()
	}
	return out
}

// TestTopGolden: every listed token has torch's log-probability, and no other token a higher one.
func TestTopGolden(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		kv, err := b.NewKV(256)
		if err != nil {
			t.Fatal(err)
		}
		defer kv.Free()
		const k = 4
		it := item(g.Batch[g.Base.LogitsDatum], nil)
		lg, err := b.Extend([]model.Feed{{Cache: kv.NewCache(), Tokens: it.Tokens, Targets: it.Targets, Top: k}})
		if err != nil {
			t.Fatal(err)
		}
		V, tol := b.Spec.Vocab, 2*noiseFactor*g.Base.LogitsNoise
		for p, list := range lg.Scores[0].Top {
			z := slices.Clone(g.Base.LogitsF64.Data[p*V : (p+1)*V])
			sum := 0.0
			for _, v := range z {
				sum += math.Exp(v)
			}
			var want, got []float64
			for _, x := range list {
				want, got = append(want, z[x.Token]-math.Log(sum)), append(got, float64(x.LogProb))
			}
			checkClose(t, "listed", want, got, tol)
			slices.SortFunc(z, func(a, b float64) int { return cmp.Compare(b, a) })
			if least := z[k-1] - math.Log(sum); got[k-1] < least-tol {
				t.Errorf("position %d: the last of %d has %v, wanted %v", p, k, got[k-1], least)
			}
		}
	})
}

// TestScoresMemory: listing tokens for a long prompt takes no more than 32 rows of logits beyond what reading it takes.
func TestScoresMemory(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		kv, err := b.NewKV(256)
		if err != nil {
			t.Fatal(err)
		}
		defer kv.Free()
		ids := make([]int32, 100)
		var bytes [2]int64
		for i, fd := range []model.Feed{{Tokens: ids}, {Tokens: ids, Targets: ids, Top: 3}} {
			fd.Cache = kv.NewCache()
			if _, err := b.Extend([]model.Feed{fd}); err != nil {
				t.Fatal(err)
			}
			fd.Cache.Release()
			bytes[i] = b.SpareBytes()
		}
		size := int64(b.Device().Info().Act.Size())
		if more, limit := bytes[1]-bytes[0], 32*int64(b.Spec.Vocab+b.Spec.Hidden)*size; more <= 0 || more > limit {
			t.Errorf("%d bytes more for the lists, wanted at most %d", more, limit)
		}
	})
}

// TestScoresRefused: what cannot be scored is refused by the feed's number, and no cache grows.
func TestScoresRefused(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		kv, err := b.NewKV(model.PageLen)
		if err != nil {
			t.Fatal(err)
		}
		defer kv.Free()
		V := b.Spec.Vocab
		for _, c := range []struct {
			targets []int32
			top     int
			want    string
		}{
			{[]int32{1, 2, 3}, 0, "feed 0: 3 targets for 2 tokens"},
			{[]int32{1, int32(V)}, 0, fmt.Sprintf("feed 0: target 1 has id %d, the vocabulary is 0..%d", V, V-1)},
			{[]int32{-1}, 0, "feed 0: target 0 has id -1"},
			{[]int32{1}, V + 1, fmt.Sprintf("feed 0: the %d most probable tokens are wanted, the vocabulary has %d", V+1, V)},
			{nil, -1, "feed 0: the -1 most probable tokens are wanted"},
		} {
			cache := kv.NewCache()
			_, err := b.Extend([]model.Feed{{Cache: cache, Tokens: []int32{1, 2}, Targets: c.targets, Top: c.top}})
			if api.CodeOf(err) != api.BadRequest || !strings.Contains(err.Error(), c.want) || cache.Len() != 0 {
				t.Errorf("got %v and %d positions, wanted %q", err, cache.Len(), c.want)
			}
		}
	})
}
