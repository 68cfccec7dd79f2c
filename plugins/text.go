package plugins

import (
	"strings"
	"unicode"
)

// cleanText makes a guest's bytes fit for logs and errors: valid UTF-8 without control characters.
func cleanText(b []byte) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar || !unicode.IsPrint(r) && !unicode.IsSpace(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(strings.TrimSpace(string(b)), "?"))
}

// clip shortens s to most bytes, at the border of a character.
func clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && s[most]&0xc0 == 0x80 {
		most--
	}
	return s[:most] + "…"
}
