package main

import (
	"math/rand/v2"
	"strings"
)

// pair is one item of the quick-start task.
type pair struct {
	English, PigLatin string
}

// prompt and completion are the texts of a pair as the model sees them.
func (p pair) prompt() string     { return "English: " + p.English + "\nPig Latin:" }
func (p pair) completion() string { return " " + p.PigLatin + "\n" }

// pigLatin translates lower-case words: leading consonants move behind a dash and "ay" is added; a leading "q" takes
// nothing along; y counts as a vowel unless it is first; a word that begins with a vowel gets "-way".
func pigLatin(phrase string) string {
	words := strings.Fields(phrase)
	for i, w := range words {
		n := leadingConsonants(w)
		if n == 0 {
			words[i] = w + "-way"
		} else {
			words[i] = w[n:] + "-" + w[:n] + "ay"
		}
	}
	return strings.Join(words, " ")
}

func leadingConsonants(w string) int {
	for i, r := range w {
		switch {
		case strings.ContainsRune("aeiou", r), r == 'y' && i > 0:
			return i
		case r == 'q' && i == 0:
			return 1
		}
	}
	return len(w)
}

// phrases draws n different phrases of 1 to maxWords words.
func phrases(words []string, n, maxWords int, rng *rand.Rand) []pair {
	seen := make(map[string]bool, n)
	out := make([]pair, 0, n)
	for len(out) < n {
		k := 1 + len(out)%maxWords
		pick := make([]string, k)
		for i := range pick {
			pick[i] = words[rng.IntN(len(words))]
		}
		english := strings.Join(pick, " ")
		if !seen[english] {
			seen[english] = true
			out = append(out, pair{english, pigLatin(english)})
		}
	}
	rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}
