package token

import (
	_ "embed" // for classes.bin
	"encoding/binary"
	"sync"
	"unicode/utf8"
)

// class is what the splitting rules ask of a character, as bits.
type class uint8

const (
	upper   class = 1 << iota // Lu, Lt
	lower                     // Ll
	uncased                   // Lm, Lo
	mark                      // M
	numeral                   // N
	space                     // White_Space
	wordy                     // \w in the sense of single_word
	letter  = upper | lower | uncased
)

//go:embed classes.bin
var classBytes []byte // made by testdata/make_classes.py, which describes the format

// categories are the general categories in the order of classes.bin. All of C counts as none.
var categories = [...]string{"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe",
	"Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp"}

const noCategory = 31

var categoryClass = [32]class{0: upper, 1: lower, 2: upper, 3: uncased, 4: uncased, 5: mark, 6: mark, 7: mark,
	8: numeral, 9: numeral, 10: numeral}

// classTable is a two-level table: most pages of 256 code points are alike.
type classTable struct {
	page       [0x110000 >> 8]uint16
	pages      [][256]class
	categories [][256]uint8
}

var classes = sync.OnceValue(func() *classTable {
	t := &classTable{}
	seen := map[[256]uint8]uint16{}
	var cur [256]uint8
	at := 0
	for b := classBytes; len(b) > 0; {
		n, k := binary.Uvarint(b[1:])
		for ; n > 0; n-- {
			cur[at&255] = b[0]
			if at++; at&255 == 0 {
				i, ok := seen[cur]
				if !ok {
					i = uint16(len(t.pages))
					seen[cur] = i
					t.addPage(&cur)
				}
				t.page[at>>8-1] = i
			}
		}
		b = b[1+k:]
	}
	return t
})

func (t *classTable) addPage(bits *[256]uint8) {
	var c [256]class
	var g [256]uint8
	for i, b := range bits {
		g[i] = b & 31
		c[i] = categoryClass[g[i]]
		if b&32 != 0 {
			c[i] |= wordy
		}
		if b&64 != 0 {
			c[i] |= space
		}
	}
	t.pages, t.categories = append(t.pages, c), append(t.categories, g)
}

func (t *classTable) of(r rune) class { return t.pages[t.page[r>>8]][r&255] }

// category returns an index of categories, or noCategory.
func (t *classTable) category(r rune) uint8 { return t.categories[t.page[r>>8]][r&255] }

// at returns the class and length of the character at s[i]; i may be len(s), which gives 0, 0.
// s is valid UTF-8.
func (t *classTable) at(s string, i int) (class, int) {
	if i >= len(s) {
		return 0, 0
	}
	if c := s[i]; c < utf8.RuneSelf {
		return t.pages[t.page[0]][c], 1
	}
	r, n := utf8.DecodeRuneInString(s[i:])
	return t.of(r), n
}

// before returns the class and length of the character that ends at s[i]; 0, 0 at the start.
func (t *classTable) before(s string, i int) (class, int) {
	if i <= 0 {
		return 0, 0
	}
	r, n := utf8.DecodeLastRuneInString(s[:i])
	return t.of(r), n
}

// run returns the end of the run of characters at s[i] that have one of the wanted bits.
func (t *classTable) run(s string, i int, want class) int {
	for {
		c, n := t.at(s, i)
		if c&want == 0 {
			return i
		}
		i += n
	}
}

// runWithout returns the end of the run of characters at s[i] that have none of the bits.
func (t *classTable) runWithout(s string, i int, bits class) int {
	for {
		c, n := t.at(s, i)
		if n == 0 || c&bits != 0 {
			return i
		}
		i += n
	}
}
