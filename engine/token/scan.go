package token

import "unicode/utf8"

// Hand-written equivalents of the splitting patterns that the well-known models publish, chosen by
// the exact pattern text. Each is a function from a position to the end of the piece that starts
// there; the patterns match at every position, so pieces are adjacent. They are far faster than a
// regular expression engine and use the pinned character classes. scan_test.go compares them with
// the patterns themselves.

const (
	contraction   = `(?i:'s|'t|'re|'ve|'m|'ll|'d)`
	patternGPT2   = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	patternQwen2  = contraction + `|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternQwen35 = contraction + `|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternLlama3 = contraction + `|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternO200k  = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+` + contraction + `?|` +
		`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*` + contraction + `?|` +
		`\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

// scanner returns the end (> i) of the piece of s that starts at i (< len(s)); s is valid UTF-8.
type scanner func(s string, i int) int

// scannerFor returns the hand-written scanner of a known pattern, or nil.
func scannerFor(pattern string) scanner {
	t := classes()
	switch pattern {
	case patternGPT2:
		return t.scanGPT2
	case patternQwen2:
		return func(s string, i int) int { return t.scanWords(s, i, letter, 1) }
	case patternQwen35:
		return func(s string, i int) int { return t.scanWords(s, i, letter|mark, 1) }
	case patternLlama3:
		return func(s string, i int) int { return t.scanWords(s, i, letter, 3) }
	case patternO200k:
		return t.scanO200k
	}
	return nil
}

// contractionEnd returns the end of 's 't 're 've 'm 'll 'd at s[i], or i. With fold, case does not
// matter, which includes ſ (U+017F), the third form of s.
func contractionEnd(s string, i int, fold bool) int {
	if i+1 >= len(s) || s[i] != '\'' {
		return i
	}
	low := func(k int) byte {
		if k >= len(s) {
			return 0
		}
		if c := s[k]; fold && c >= 'A' && c <= 'Z' {
			return c | 0x20
		}
		return s[k]
	}
	switch a, b := low(i+1), low(i+2); {
	case a == 's' || a == 't' || a == 'm' || a == 'd':
		return i + 2
	case (a == 'r' || a == 'v') && b == 'e', a == 'l' && b == 'l':
		return i + 3
	case fold && a == 0xC5 && b == 0xBF: // ſ
		return i + 3
	}
	return i
}

// scanSpace is \s*[\r\n]+|\s+(?!\S)|\s+ (without the first part if !lines) at a white space character.
func (t *classTable) scanSpace(s string, i int, lines bool) int {
	end, afterLine, last := i, -1, i
	for {
		c, n := t.at(s, end)
		if c&space == 0 {
			break
		}
		last = end
		end += n
		if b := s[last]; b == '\n' || b == '\r' {
			afterLine = end
		}
	}
	switch {
	case lines && afterLine >= 0:
		return afterLine
	case end == len(s) || last == i:
		return end
	}
	return last
}

func (t *classTable) scanGPT2(s string, i int) int {
	if j := contractionEnd(s, i, false); j > i {
		return j
	}
	c, _ := t.at(s, i)
	j := i
	if s[i] == ' ' && i+1 < len(s) {
		if next, _ := t.at(s, i+1); next&space == 0 {
			c, j = next, i+1
		}
	}
	switch {
	case c&letter != 0:
		return t.run(s, j, letter)
	case c&numeral != 0:
		return t.run(s, j, numeral)
	case c&space == 0:
		return t.runWithout(s, j, space|letter|numeral)
	}
	return t.scanSpace(s, i, false)
}

// scanWords is the Qwen and Llama 3 family: words are runs of word (letters, perhaps marks), and at
// most digits numerals stand together.
func (t *classTable) scanWords(s string, i int, word class, digits int) int {
	if j := contractionEnd(s, i, true); j > i {
		return j
	}
	c, n := t.at(s, i)
	if c&word != 0 {
		return t.run(s, i+n, word)
	}
	if c&numeral != 0 {
		return t.numerals(s, i, digits)
	}
	next, _ := t.at(s, i+n)
	if next&word != 0 && s[i] != '\r' && s[i] != '\n' {
		return t.run(s, i+n, word)
	}
	if other := space | numeral | word; c&space == 0 || s[i] == ' ' && i+1 < len(s) && next&other == 0 {
		return lineEnds(s, t.runWithout(s, i+n, other), false)
	}
	return t.scanSpace(s, i, true)
}

func (t *classTable) numerals(s string, i, most int) int {
	for ; most > 0; most-- {
		c, n := t.at(s, i)
		if c&numeral == 0 {
			break
		}
		i += n
	}
	return i
}

// lineEnds is [\r\n]*, or [\r\n/]* with slash.
func lineEnds(s string, i int, slash bool) int {
	for i < len(s) && (s[i] == '\r' || s[i] == '\n' || slash && s[i] == '/') {
		i++
	}
	return i
}

func (t *classTable) scanO200k(s string, i int) int {
	c, n := t.at(s, i)
	// [^\r\n\p{L}\p{N}]? is greedy: try with the character, then without. Marks can be either.
	if c&(letter|numeral) == 0 && s[i] != '\r' && s[i] != '\n' {
		if j := t.casedWord(s, i+n, true); j >= 0 {
			return j
		}
	}
	if j := t.casedWord(s, i, true); j >= 0 {
		return j
	}
	if c&(letter|numeral) == 0 && s[i] != '\r' && s[i] != '\n' {
		if j := t.casedWord(s, i+n, false); j >= 0 {
			return j
		}
	}
	if j := t.casedWord(s, i, false); j >= 0 {
		return j
	}
	if c&numeral != 0 {
		return t.numerals(s, i, 3)
	}
	other := space | letter | numeral
	next, m := t.at(s, i+n)
	if c&space == 0 || s[i] == ' ' && m > 0 && next&other == 0 {
		return lineEnds(s, t.runWithout(s, i+n, other), true)
	}
	return t.scanSpace(s, i, true)
}

// casedWord is one of the two word forms of o200k with the contraction after it, or -1: upper* lower+
// if small, else upper+ lower*. Uncased letters and marks count as both.
func (t *classTable) casedWord(s string, i int, small bool) int {
	const both = uncased | mark
	j, lastBoth := i, -1 // lastBoth: the end of the last character of the first run that could be in the second
	for {
		c, n := t.at(s, j)
		if c&(upper|both) == 0 {
			break
		}
		j += n
		if c&both != 0 {
			lastBoth = j
		}
	}
	end := t.run(s, j, lower|both)
	switch {
	case small && end == j: // give back characters of the first run until the second has one
		if end = lastBoth; end < 0 {
			return -1
		}
	case !small && j == i:
		return -1
	}
	return contractionEnd(s, end, true)
}

// validUTF8 returns s with each maximal ill-formed part replaced by U+FFFD.
func validUTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string(appendLossy(nil, []byte(s)))
}
