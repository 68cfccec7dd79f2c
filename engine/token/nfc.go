package token

import (
	"cmp"
	"slices"
	"sync"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// NFC as the reference library does it. golang.org/x/text is not used for the whole because it inserts
// a joiner into runs of more than 30 combining marks, and because it knows characters that the
// reference's tables (about Unicode 9.0) do not: those must stay as they are and where they are.

// nfc returns the canonical composition of s, which is valid UTF-8.
func nfc(s string) string {
	// What x/text finds normal is normal to the older tables, too: a character unknown to them only
	// keeps its neighbours apart.
	n := norm.NFC.QuickSpanString(s)
	if n == len(s) {
		return s
	}
	out := make([]byte, 0, len(s)+len(s)/8)
	for {
		// Rework from the last character that combines with nothing before it to the next such one.
		from := n
		for from > 0 {
			r, size := utf8.DecodeLastRuneInString(s[:from])
			if from -= size; r < firstMark {
				break
			}
		}
		end := n
		for end < len(s) {
			r, size := utf8.DecodeRuneInString(s[end:])
			if r < firstMark && end > n {
				break
			}
			end += size
		}
		out = append(out, s[:from]...)
		chars := decompose(s[from:end])
		reorder(chars)
		for _, c := range compose(chars) {
			out = utf8.AppendRune(out, c.r)
		}
		s = s[end:]
		if n = norm.NFC.QuickSpanString(s); n == len(s) {
			return string(append(out, s...))
		}
	}
}

// firstMark is U+0300: no character before it combines with what stands before it.
const firstMark = 0x300

// combining is a character with its canonical combining class.
type combining struct {
	r   rune
	ccc uint8
}

func decompose(s string) []combining {
	out := make([]combining, 0, len(s))
	for i, r := range s {
		if r < 0xC0 || isNewer(r) {
			out = append(out, combining{r, 0})
			continue
		}
		p := norm.NFD.PropertiesString(s[i:])
		d := p.Decomposition()
		if d == nil {
			out = append(out, combining{r, p.CCC()})
			continue
		}
		for len(d) > 0 {
			r, n := utf8.DecodeRune(d)
			out = append(out, combining{r, norm.NFD.Properties(d).CCC()})
			d = d[n:]
		}
	}
	return out
}

// reorder puts each run of combining marks into the order of their classes.
func reorder(chars []combining) {
	for i := 0; i < len(chars); {
		j := i
		for j < len(chars) && chars[j].ccc != 0 {
			j++
		}
		if j-i > 1 {
			slices.SortStableFunc(chars[i:j], func(a, b combining) int { return cmp.Compare(a.ccc, b.ccc) })
		}
		i = j + 1
	}
}

// compose joins, in place, each starter with the marks after it that nothing blocks.
func compose(chars []combining) []combining {
	out := chars[:0]
	starter := -1 // index in out
	for _, c := range chars {
		if starter >= 0 {
			last := out[len(out)-1]
			adjacent := len(out)-1 == starter
			if adjacent || last.ccc != 0 && last.ccc < c.ccc {
				if r, ok := pair(out[starter].r, c.r); ok {
					out[starter].r = r
					continue
				}
			}
		}
		if c.ccc == 0 {
			starter = len(out)
		}
		out = append(out, c)
	}
	return out
}

// Hangul syllables compose by arithmetic (The Unicode Standard, section 3.12).
const (
	hangulS, hangulL, hangulV, hangulT = 0xAC00, 0x1100, 0x1161, 0x11A7
	countL, countV, countT             = 19, 21, 28
)

// pair returns the primary composite of a and b.
func pair(a, b rune) (rune, bool) {
	if b < firstMark {
		return 0, false
	}
	if l, v := a-hangulL, b-hangulV; l >= 0 && l < countL && v >= 0 && v < countV {
		return hangulS + (l*countV+v)*countT, true
	}
	if s, t := a-hangulS, b-hangulT; s >= 0 && s < countL*countV*countT && s%countT == 0 && t > 0 && t < countT {
		return a + t, true
	}
	r, ok := pairs()[[2]rune{a, b}]
	return r, ok
}

// pairs are the primary composites other than Hangul, read out of x/text: a character that NFC leaves
// alone but that has a decomposition is made of its last character and the composition of the rest.
var pairs = sync.OnceValue(func() map[[2]rune]rune {
	m := make(map[[2]rune]rune, 1024)
	for r := rune(0xC0); r < 0x20000; r++ {
		if r == hangulS {
			r += countL * countV * countT
		}
		if isNewer(r) || r >= 0xD800 && r < 0xE000 {
			continue
		}
		s := string(r)
		d := norm.NFD.PropertiesString(s).Decomposition()
		if d == nil || norm.NFC.String(s) != s {
			continue
		}
		last, n := utf8.DecodeLastRune(d)
		if first := []rune(norm.NFC.String(string(d[:len(d)-n]))); len(first) == 1 {
			m[[2]rune{first[0], last}] = r
		}
	}
	return m
})

// isNewer tells whether x/text (Unicode 15.0) gives r a combining class or a decomposition and the
// reference's tables do not. testdata/make_fixtures.py sweeps all code points to hold this list.
func isNewer(r rune) bool {
	if r < newer[0][0] {
		return false
	}
	_, found := slices.BinarySearchFunc(newer[:], r, func(span [2]rune, r rune) int {
		if r < span[0] {
			return 1
		}
		if r > span[1] {
			return -1
		}
		return 0
	})
	return found
}

var newer = [...][2]rune{
	{0x7FD, 0x7FD}, {0x898, 0x89F}, {0x8CA, 0x8D3}, {0x9FE, 0x9FE}, {0xC3C, 0xC3C}, {0xD3B, 0xD3C},
	{0xEBA, 0xEBA}, {0x1715, 0x1715}, {0x1ABF, 0x1ACE}, {0x1DF6, 0x1DFA}, {0xA82C, 0xA82C},
	{0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85},
	{0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11938, 0x11938},
	{0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47},
	{0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42},
	{0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF},
	{0x1E4EC, 0x1E4EF},
}
