package chat

import (
	"strings"
	"unicode"
)

// trim takes white space off both ends, in Python's sense of str.strip: Go's and the four separators
// of ASCII.
func trim(s string) string {
	return strings.TrimFunc(s, func(r rune) bool { return unicode.IsSpace(r) || 0x1c <= r && r <= 0x1f })
}
