package main

import (
	"math/rand/v2"
	"strings"
	"testing"

	"tinkerlocal/engine/local"
)

func TestPigLatin(t *testing.T) {
	for english, want := range map[string]string{
		"coffee break":  "offee-cay eak-bray",
		"apple":         "apple-way",
		"yellow rhythm": "ellow-yay ythm-rhay",
		"quick":         "uick-qay",
		"squid":         "uid-sqay",
		"pl":            "-play",
	} {
		if got := pigLatin(english); got != want {
			t.Errorf("pigLatin(%q) = %q, want %q", english, got, want)
		}
	}
}

// TestQuickstartDataIsDisjoint proves that nothing of the held-out set, not even a word, is in training.
func TestQuickstartDataIsDisjoint(t *testing.T) {
	trainWords, heldoutWords := local.Words()
	known := map[string]bool{}
	for _, w := range trainWords {
		known[w] = true
	}
	for _, w := range heldoutWords {
		if known[w] {
			t.Errorf("the word %q is in both lists", w)
		}
		if strings.ToLower(w) != w || strings.Trim(w, "abcdefghijklmnopqrstuvwxyz") != "" {
			t.Errorf("the held-out word %q is not plain lower case", w)
		}
	}
	for seed := int64(1); seed <= 4; seed++ {
		train, heldout := quickData(seed)
		if len(heldout) < 200 {
			t.Fatalf("%d held-out phrases, wanted at least 200", len(heldout))
		}
		phrases, lengths := map[string]bool{}, map[int]int{}
		for _, p := range train {
			phrases[p.English] = true
		}
		for _, p := range heldout {
			lengths[len(strings.Fields(p.English))]++
			if phrases[p.English] {
				t.Errorf("seed %d: %q is in training and held out", seed, p.English)
			}
			for w := range strings.FieldsSeq(p.English) {
				if known[w] {
					t.Errorf("seed %d: the held-out phrase %q has the training word %q", seed, p.English, w)
				}
			}
		}
		for n := 1; n <= quickWords; n++ {
			if lengths[n] < len(heldout)/quickWords {
				t.Errorf("seed %d: %d held-out phrases of %d words, wanted %d", seed, lengths[n], n, len(heldout)/quickWords)
			}
		}
	}
}

func TestPhrasesAreDistinctAndRepeatable(t *testing.T) {
	words := []string{"ab", "cd", "ef"}
	a := phrases(words, 9, 3, rand.New(rand.NewPCG(1, 1)))
	b := phrases(words, 9, 3, rand.New(rand.NewPCG(1, 1)))
	seen := map[string]bool{}
	for i := range a {
		if a[i] != b[i] {
			t.Fatalf("item %d: %v and %v from one seed", i, a[i], b[i])
		}
		if seen[a[i].English] {
			t.Errorf("%q twice", a[i].English)
		}
		seen[a[i].English] = true
	}
}
