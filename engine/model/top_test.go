package model

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"

	"tinkerlocal/engine/api"
)

// TestTop: the heap's choice is a full sort's, with many ties, for every k.
func TestTop(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 7, 100, 1000} {
		for _, levels := range []int{1, 3, 1 << 20} {
			z := make([]float32, n)
			for i := range z {
				z[i] = float32(rng.IntN(levels)) / 7
			}
			const lse = 0.3
			all := make([]api.TokenLogProb, n)
			for i, v := range z {
				all[i] = api.TokenLogProb{Token: int32(i), LogProb: v - lse}
			}
			slices.SortStableFunc(all, func(a, b api.TokenLogProb) int { return cmp.Compare(b.LogProb, a.LogProb) })
			for _, k := range []int{1, 2, 5, 64, n - 1, n} {
				if k < 1 || k > n {
					continue
				}
				if got := Top(z, lse, k); !slices.Equal(got, all[:k]) {
					t.Fatalf("%d of %d tokens with %d levels: %v, wanted %v", k, n, levels, got, all[:k])
				}
			}
		}
	}
}
