package token

import "unicode/utf8"

// symbols splits a piece into the tokens that merging starts from: its bytes, or its characters.
// What has no token becomes its byte tokens (byte fallback), the unknown token, or nothing.
func (m *bpe) symbols(w *merger, piece string) {
	if m.byteLevel {
		unknown := false
		for i := range len(piece) {
			id := m.bytes[piece[i]]
			if id >= 0 {
				w.add(id)
			} else if m.unk >= 0 && !(unknown && m.fuseUnk) {
				w.add(m.unk)
			}
			unknown = id < 0
		}
		return
	}
	// The reference adds an unknown token only when the next known one comes or the piece ends, and
	// byte fallback does not count as known.
	pending := false
	for i := 0; i < len(piece); {
		n := 1
		if piece[i] >= utf8.RuneSelf {
			_, n = utf8.DecodeRuneInString(piece[i:])
		}
		char := piece[i : i+n]
		i += n
		if id, ok := m.vocab[char]; ok {
			if pending {
				w.add(m.unk)
				pending = false
			}
			w.add(id)
			continue
		}
		if m.byteFallback && m.fallback(w, char) {
			continue
		}
		if m.unk >= 0 {
			if pending && !m.fuseUnk {
				w.add(m.unk)
			}
			pending = true
		}
	}
	if pending {
		w.add(m.unk)
	}
}

// fallback adds the byte tokens of char, or returns false if one of them does not exist.
func (m *bpe) fallback(w *merger, char string) bool {
	for i := range len(char) {
		if m.bytes[char[i]] < 0 {
			return false
		}
	}
	for i := range len(char) {
		w.add(m.bytes[char[i]])
	}
	return true
}
