package token

import "unicode/utf8"

// A byte-level vocabulary is written with one printable character for each byte: the printable bytes
// of Latin-1 stand for themselves, the 68 others for U+0100 and up, in order. It is GPT-2's
// bytes_to_unicode. We work on the bytes; the written form exists in the file alone.

// charBytes is the byte that each character stands for, or -1.
var charBytes = func() (bytes [0x144]int16) {
	for i := range bytes {
		bytes[i] = -1
	}
	next := rune(0x100)
	for b := range 256 {
		r := rune(b)
		if !(b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE) {
			r = next
			next++
		}
		bytes[r] = int16(b)
	}
	return bytes
}()

// fromAlphabet appends the bytes that the written form s stands for, or returns false if a character
// of s stands for no byte.
func fromAlphabet(dst []byte, s string) ([]byte, bool) {
	for i := 0; i < len(s); {
		r, n := rune(s[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRuneInString(s[i:])
		}
		if int(r) >= len(charBytes) || charBytes[r] < 0 {
			return dst, false
		}
		dst = append(dst, byte(charBytes[r]))
		i += n
	}
	return dst, true
}
