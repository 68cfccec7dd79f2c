package token

import "unicode/utf8"

// appendLossy appends src with each maximal ill-formed part replaced by one U+FFFD (The Unicode
// Standard, section 3.9, "substitution of maximal subparts"). Neither ranging over a string (one per
// byte) nor strings.ToValidUTF8 (one per run) does this.
func appendLossy(dst, src []byte) []byte {
	for len(src) > 0 {
		n, ok := charPart(src)
		if ok {
			dst = append(dst, src[:n]...)
		} else {
			dst = append(dst, "\uFFFD"...)
		}
		src = src[n:]
	}
	return dst
}

// charPart returns the length of the character that b begins with and true, or the length of the
// maximal ill-formed part and false. b is not empty.
func charPart(b []byte) (int, bool) {
	if b[0] < utf8.RuneSelf {
		return 1, true
	}
	need, low, high := leadByte(b[0])
	for i := 1; i < need; i++ {
		if i >= len(b) || b[i] < low || b[i] > high {
			return i, false
		}
		low, high = 0x80, 0xBF
	}
	return max(need, 1), need > 0
}

// leadByte returns the length of a character that begins with b and the bounds of its second byte;
// the length is 0 if no character begins so.
func leadByte(b byte) (need int, low, high byte) {
	switch {
	case b < 0x80:
		return 1, 0, 0
	case b < 0xC2 || b > 0xF4:
		return 0, 0, 0
	case b < 0xE0:
		return 2, 0x80, 0xBF
	case b == 0xE0:
		return 3, 0xA0, 0xBF
	case b == 0xED:
		return 3, 0x80, 0x9F
	case b < 0xF0:
		return 3, 0x80, 0xBF
	case b == 0xF0:
		return 4, 0x90, 0xBF
	case b == 0xF4:
		return 4, 0x80, 0x8F
	}
	return 4, 0x80, 0xBF
}

// incompleteTail returns the length (0..3) of a proper beginning of a character that b ends with.
func incompleteTail(b []byte) int {
	for n := 1; n <= 3 && n <= len(b); n++ {
		tail := b[len(b)-n:]
		if utf8.RuneStart(tail[0]) {
			need, _, _ := leadByte(tail[0])
			if k, ok := charPart(tail); need > n && !ok && k == n {
				return n
			}
			return 0
		}
	}
	return 0
}
