package token

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/dlclark/regexp2"
)

// Patterns that no scanner knows run in regexp2, a backtracking engine. The reference's engine
// (Oniguruma) and regexp2 read much syntax differently, so a pattern is accepted only if it is made of
// constructs on which both agree, and only if it cannot take exponential time. regexp2 has Go's Unicode
// tables; where they differ from the pinned ones, it is shown another character of the right category.

const (
	maxPattern   = 16 << 10
	matchTimeout = 5 * time.Second // for one match; the published patterns need microseconds
)

// findRegex returns the matches of pattern.
func findRegex(pattern string) (func(string, func(int, int)) error, error) {
	if len(pattern) > maxPattern {
		return nil, fmt.Errorf("the pattern has %d bytes, want at most %d", len(pattern), maxPattern)
	}
	c := patternCheck{s: pattern}
	if _, err := c.alternatives(0); err != nil {
		return nil, unsupported("pattern %q: %w", clip(pattern), err)
	}
	re, err := regexp2.Compile(c.spelled.String()+pattern[c.copied:], regexp2.None)
	if err != nil {
		return nil, unsupported("pattern %q: %w", clip(pattern), err)
	}
	re.MatchTimeout = matchTimeout
	show := standIns()
	return func(s string, match func(from, to int)) error {
		text := make([]rune, 0, len(s))
		for _, r := range s {
			if other, ok := show[r]; ok {
				r = other
			}
			text = append(text, r)
		}
		runes, at := 0, 0 // regexp2 counts in runes
		bytesOf := func(index int) int {
			for ; runes < index; runes++ {
				_, n := utf8.DecodeRuneInString(s[at:])
				at += n
			}
			return at
		}
		m, err := re.FindRunesMatch(text)
		for ; m != nil && err == nil; m, err = re.FindNextMatch(m) {
			from := bytesOf(m.Index)
			match(from, bytesOf(m.Index+m.Length))
		}
		if err != nil {
			return fmt.Errorf("pattern %q: %w", clip(pattern), err)
		}
		return nil
	}, nil
}

// standIns maps the characters whose category Go's tables and the pinned ones disagree on to one of
// which both say what the pinned table says of the character. They are from the end of the Basic
// Multilingual Plane, where no pattern has literals.
var standIns = sync.OnceValue(func() map[rune]rune {
	t := classes()
	inGo := make([]uint8, unicode.MaxRune+1) // Go's categories
	for r := range inGo {
		inGo[r] = noCategory
	}
	for i, name := range categories {
		table := unicode.Categories[name]
		for _, span := range table.R16 {
			for r := rune(span.Lo); r <= rune(span.Hi); r += rune(span.Stride) {
				inGo[r] = uint8(i)
			}
		}
		for _, span := range table.R32 {
			for r := rune(span.Lo); r <= rune(span.Hi); r += rune(span.Stride) {
				inGo[r] = uint8(i)
			}
		}
	}
	var first [noCategory + 1]rune
	wrong := map[rune]rune{}
	for r := rune(unicode.MaxRune); r >= 0; r-- {
		if want := t.category(r); inGo[r] != want {
			wrong[r] = 0
		} else if r < 0xFFFE && first[want] == 0 && !utf16.IsSurrogate(r) {
			first[want] = r
		}
	}
	for r := range wrong {
		wrong[r] = first[t.category(r)]
	}
	return wrong
})

// folds are the groups without regard to case that are accepted, and their meaning in full: regexp2
// does not know that ſ (U+017F) is an s.
var folds = map[string]string{
	contraction:            `(?:'[sSſ]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])`,
	`(?i:[sdmt]|ll|ve|re)`: `(?:[sSſdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])`,
}

// patternCheck walks a pattern by recursive descent.
type patternCheck struct {
	s       string
	i       int
	spelled strings.Builder // s[:copied] with the folds spelled out
	copied  int
}

// alternatives reads up to a closing parenthesis or the end, and tells whether there is an unbounded
// repeat inside.
func (c *patternCheck) alternatives(depth int) (repeats bool, err error) {
	if depth > 32 {
		return false, fmt.Errorf("groups are more than 32 deep")
	}
	for c.i < len(c.s) && c.s[c.i] != ')' {
		if c.s[c.i] == '|' {
			c.i++
			continue
		}
		inner, quantifiable, err := c.atom(depth)
		if err != nil {
			return false, err
		}
		unbounded, some, err := c.quantifier()
		switch {
		case err != nil:
			return false, err
		case some && !quantifiable:
			return false, fmt.Errorf("a repeat of a look-around")
		case some && inner:
			return false, fmt.Errorf("a repeat inside a repeat can take exponential time")
		}
		repeats = repeats || inner || unbounded
	}
	if depth == 0 && c.i < len(c.s) {
		return false, fmt.Errorf("a closing parenthesis without an opening one")
	}
	return repeats, nil
}

func (c *patternCheck) atom(depth int) (repeats, quantifiable bool, err error) {
	switch ch := c.s[c.i]; ch {
	case '(':
		rest := c.s[c.i:]
		for fold, spelled := range folds {
			if strings.HasPrefix(rest, fold) {
				c.spelled.WriteString(c.s[c.copied:c.i] + spelled)
				c.i += len(fold)
				c.copied = c.i
				return false, true, nil
			}
		}
		quantifiable = true
		switch {
		case strings.HasPrefix(rest, "(?:"):
			c.i += 3
		case strings.HasPrefix(rest, "(?=") || strings.HasPrefix(rest, "(?!"):
			c.i += 3
			quantifiable = false
		case strings.HasPrefix(rest, "(?<=") || strings.HasPrefix(rest, "(?<!"):
			c.i += 4
			quantifiable = false
		case strings.HasPrefix(rest, "(?"):
			return false, false, fmt.Errorf("a group that begins with %q", clip(rest[:min(6, len(rest))]))
		default:
			c.i++
		}
		lookBehind := strings.HasPrefix(rest, "(?<")
		if repeats, err = c.alternatives(depth + 1); err != nil {
			return false, false, err
		}
		if lookBehind && repeats {
			return false, false, fmt.Errorf("a repeat in a look-behind")
		}
		if c.i >= len(c.s) {
			return false, false, fmt.Errorf("a group without an end")
		}
		c.i++
		return repeats, quantifiable, nil
	case '[':
		return false, true, c.set()
	case '\\':
		return false, true, c.escape()
	case '^', '$', '*', '+', '?', '{', '}', ']':
		return false, false, fmt.Errorf("%q at %d", ch, c.i)
	}
	_, n := utf8.DecodeRuneInString(c.s[c.i:])
	c.i += n
	return false, true, nil
}

// quantifier reads one of * + ? {n} {n,} {n,m} with an optional ? after it, if there is one.
func (c *patternCheck) quantifier() (unbounded, some bool, err error) {
	if c.i >= len(c.s) {
		return false, false, nil
	}
	switch c.s[c.i] {
	case '*', '+':
		unbounded = true
	case '?':
	case '{':
		end := strings.IndexByte(c.s[c.i:], '}')
		if end < 0 {
			return false, false, fmt.Errorf("a { without }")
		}
		low, high, two := strings.Cut(c.s[c.i+1:c.i+end], ",")
		for _, n := range []string{low, high} {
			if len(n) > 3 || strings.Trim(n, "0123456789") != "" {
				return false, false, fmt.Errorf("the repeat count %q, want at most 999", n)
			}
		}
		if low == "" || len(high) > 0 && len(low) == len(high) && low > high || len(high) > 0 && len(low) > len(high) {
			return false, false, fmt.Errorf("the repeat {%s}", c.s[c.i+1:c.i+end])
		}
		unbounded = two && high == ""
		c.i += end
	default:
		return false, false, nil
	}
	c.i++
	if c.i < len(c.s) && strings.IndexByte("?+*{", c.s[c.i]) >= 0 {
		return false, false, fmt.Errorf("a lazy, possessive or double repeat at %d", c.i)
	}
	return unbounded, true, nil
}

// set reads [...]; sets in sets and intersections are not accepted.
func (c *patternCheck) set() error {
	c.i++
	if c.i < len(c.s) && c.s[c.i] == '^' {
		c.i++
	}
	for from := c.i; c.i < len(c.s); {
		switch ch := c.s[c.i]; {
		case ch == ']' && c.i > from:
			c.i++
			return nil
		case ch == ']' || ch == '[' || strings.HasPrefix(c.s[c.i:], "&&"):
			return fmt.Errorf("%q inside a set", ch)
		case ch == '\\':
			if err := c.escape(); err != nil {
				return err
			}
		default:
			_, n := utf8.DecodeRuneInString(c.s[c.i:])
			c.i += n
		}
	}
	return fmt.Errorf("a set without an end")
}

// escape reads \s \S \d \D \r \n \t, an escaped punctuation mark, or \p{…} with a general category other
// than C.
func (c *patternCheck) escape() error {
	rest := c.s[c.i+1:]
	if rest == "" {
		return fmt.Errorf("a \\ at the end")
	}
	switch ch := rest[0]; {
	case strings.IndexByte("sSdDrnt", ch) >= 0,
		ch < utf8.RuneSelf && ch > ' ' && !unicode.IsLetter(rune(ch)) && !unicode.IsDigit(rune(ch)):
		c.i += 2
		return nil
	case ch == 'p' || ch == 'P':
		name, _, ok := strings.Cut(strings.TrimPrefix(rest[1:], "{"), "}")
		if !ok || rest[1] != '{' || len(name) != 1 && !slices.Contains(categories[:], name) || !strings.Contains("LMNPSZ", name[:min(1, len(name))]) {
			return fmt.Errorf("the property \\p{%s}", clip(name))
		}
		c.i += len(name) + 4
		return nil
	}
	return fmt.Errorf("the escape \\%s", clip(rest[:1]))
}
