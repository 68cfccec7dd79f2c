package token

import (
	"fmt"
	"strings"
)

// vocabulary collects the tokens of the model and the added ones while the file is read.
type vocabulary struct {
	model  *bpe
	text   []string // by id, as the file writes it
	key    []string // by id, what the token matches: bytes in a byte-level vocabulary
	known  []bool
	tokens int // of the model
	buf    []byte
}

// put gives id to the token text, of the model or added.
func (v *vocabulary) put(text string, id int, added bool) error {
	for id >= len(v.known) {
		v.known = append(v.known, false)
		v.text = append(v.text, "")
		v.key = append(v.key, "")
	}
	if v.known[id] {
		return fmt.Errorf("tokens %q and %q have the same id %d", clip(v.text[id]), clip(text), id)
	}
	key, into := text, v.model.vocab
	if v.model.byteLevel {
		b, ok := fromAlphabet(v.buf[:0], text)
		v.buf = b
		switch {
		case !ok:
			into = v.model.odd
		case string(b) != text:
			key = string(b)
		}
	}
	if added {
		v.model.added[text] = int32(id)
	} else if _, again := into[key]; again {
		return fmt.Errorf("token %q appears twice", clip(text))
	} else {
		into[key] = int32(id)
	}
	v.known[id], v.text[id], v.key[id] = true, text, key
	return nil
}

func (v *vocabulary) readModel(b []byte) error {
	f, err := fields(b, "type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
		"fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges")
	if err != nil {
		// Another kind of model has other fields: its name says more than the first of them.
		if kind, e := typeOf(b); e == nil && kind != "BPE" {
			return unsupported("type %q is not supported, want \"BPE\"", clip(kind))
		}
		return err
	}
	if kind := f.value("type"); !isNull(kind) && string(kind) != `"BPE"` { // the oldest files do not say
		return unsupported("type %s is not supported, want \"BPE\"", clip(string(kind)))
	}
	if d := string(f.value("dropout")); d != "null" && d != "0" && d != "0.0" {
		return unsupported("dropout %s is not supported", clip(d))
	}
	for _, name := range []string{"continuing_subword_prefix", "end_of_word_suffix"} {
		if s := string(f.value(name)); s != "null" && s != `""` {
			return unsupported("%s %s is not supported", name, clip(s))
		}
	}
	m := v.model
	if err := f.flags(map[string]*bool{"fuse_unk": &m.fuseUnk, "byte_fallback": &m.byteFallback,
		"ignore_merges": &m.ignoreMerges}); err != nil {
		return err
	}
	if err := v.readVocab(f.value("vocab")); err != nil {
		return fmt.Errorf("vocab: %w", err)
	}
	if err := v.readMerges(f.value("merges")); err != nil {
		return fmt.Errorf("merges: %w", err)
	}
	m.unk = -1
	if unk := f.value("unk_token"); !isNull(unk) {
		s, err := str(unk)
		if err != nil {
			return fmt.Errorf("unk_token: %w", err)
		}
		id, ok := m.lookup(s)
		if !ok {
			return fmt.Errorf("unk_token %q is not in the vocabulary", clip(s))
		}
		m.unk = id
	}
	return v.byteTokens()
}

func (v *vocabulary) readVocab(b []byte) error {
	size := len(b) / 16
	v.model.vocab = make(map[string]int32, size)
	v.model.odd, v.model.added = map[string]int32{}, map[string]int32{}
	v.text, v.key, v.known = make([]string, 0, size), make([]string, 0, size), make([]bool, 0, size)
	err := object(b, func(text string, value []byte) error {
		if v.tokens++; v.tokens > maxTokens {
			return fmt.Errorf("more than %d tokens", maxTokens)
		}
		// Room for holes in the ids, in proportion to the file: a short file cannot ask for much memory.
		id, err := number(value, min(maxTokens, len(b)/4+maxHoles))
		if err != nil {
			return fmt.Errorf("token %q: id: %w", clip(text), err)
		}
		return v.put(text, id, false)
	})
	if err == nil && v.tokens == 0 {
		err = fmt.Errorf("no tokens")
	}
	if err == nil && len(v.known)-v.tokens > maxHoles {
		err = fmt.Errorf("%d tokens have ids up to %d, want at most %d ids unused", v.tokens, len(v.known)-1, maxHoles)
	}
	return err
}

// readMerges reads the merges: "a b", or ["a", "b"], which also allows spaces in tokens.
func (v *vocabulary) readMerges(b []byte) error {
	m := v.model
	m.merges.m = make(map[uint64]mergeResult, len(b)/24)
	if isNull(b) {
		return fmt.Errorf("missing")
	}
	rank := uint32(0)
	var joined []byte
	return list(b, func(value []byte) error {
		left, right, comment, err := readMerge(value)
		if err != nil {
			return fmt.Errorf("merge %d: %w", rank, err)
		}
		if comment {
			return nil
		}
		a, okA := m.lookup(left)
		c, okC := m.lookup(right)
		joined = append(append(joined[:0], left...), right...)
		both, ok := m.lookup(string(joined))
		for _, part := range []struct {
			ok   bool
			text string
		}{{okA, left}, {okC, right}, {ok, string(joined)}} {
			if !part.ok {
				return fmt.Errorf("merge %d: %q is not in the vocabulary", rank, clip(part.text))
			}
		}
		m.merges.put(a, c, mergeResult{rank, both})
		rank++
		return nil
	})
}

func readMerge(value []byte) (left, right string, comment bool, err error) {
	if len(value) > 0 && value[0] == '"' {
		s, err := str(value)
		if err != nil {
			return "", "", false, err
		}
		if strings.HasPrefix(s, "#version") {
			return "", "", true, nil
		}
		left, right, ok := strings.Cut(s, " ")
		if !ok || strings.Contains(right, " ") {
			return "", "", false, fmt.Errorf("want two tokens with one space between them, got %q", clip(s))
		}
		return left, right, false, nil
	}
	n := 0
	err = list(value, func(part []byte) error {
		s, err := str(part)
		if n++; n == 1 {
			left = s
		} else {
			right = s
		}
		return err
	})
	if err == nil && n != 2 {
		err = fmt.Errorf("want two tokens, got %d", n)
	}
	return left, right, false, err
}

// byteTokens finds the token of each byte.
func (v *vocabulary) byteTokens() error {
	m := v.model
	for b := range m.bytes {
		key := string([]byte{byte(b)})
		if !m.byteLevel {
			key = fmt.Sprintf("<0x%02X>", b)
		}
		id, ok := m.vocab[key]
		if !ok {
			id = -1
			if m.byteLevel && m.byteFallback {
				return unsupported("byte_fallback with a byte-level vocabulary that lacks byte %#02x is not supported", b)
			}
		}
		m.bytes[b] = id
	}
	return nil
}

// readAdded reads the added tokens and gives them their ids: that of the vocabulary if the token is in
// it, else the next free one. The reference does not use the ids in the file; where they differ,
// somebody's ids are wrong, so we refuse.
func (v *vocabulary) readAdded(b []byte) ([]addedToken, error) {
	if isNull(b) {
		return nil, nil
	}
	var all []addedToken
	seen := map[string]bool{}
	next := v.tokens
	err := list(b, func(value []byte) error {
		f, err := fields(value, "id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")
		if err != nil {
			return err
		}
		var t addedToken
		if t.content, err = f.text("content"); err != nil {
			return err
		}
		if err := f.flags(map[string]*bool{"single_word": &t.singleWord, "lstrip": &t.lstrip,
			"rstrip": &t.rstrip, "normalized": &t.normalized, "special": &t.special}); err != nil {
			return fmt.Errorf("token %q: %w", clip(t.content), err)
		}
		fileID, err := number(f.value("id"), maxTokens)
		if err != nil {
			return fmt.Errorf("token %q: id: %w", clip(t.content), err)
		}
		switch {
		case t.content == "":
			return fmt.Errorf("token %d has no content", fileID)
		case len(t.content) > maxContent:
			return fmt.Errorf("token %q has %d bytes, want at most %d", clip(t.content), len(t.content), maxContent)
		case seen[t.content]:
			return fmt.Errorf("token %q appears twice", clip(t.content))
		case len(all) == maxAdded:
			return fmt.Errorf("more than %d tokens", maxAdded)
		}
		seen[t.content] = true
		id, inModel := v.model.lookup(t.content)
		if !inModel {
			id = int32(next)
		}
		if int(id) != fileID {
			return fmt.Errorf("token %q has id %d in the file, but the reference library gives it %d", clip(t.content), fileID, id)
		}
		if !inModel {
			if err := v.put(t.content, next, true); err != nil {
				return err
			}
		}
		if int(id) >= next {
			next = int(id) + 1
		}
		t.id = id
		all = append(all, t)
		return nil
	})
	return all, err
}

// finish gives the tokenizer its tables. A token that is looked for in normalised text is, when
// decoding, its normalised content; whether it is special is asked of that content, too. So it is in
// the reference.
func (v *vocabulary) finish(t *Tokenizer, added []addedToken) error {
	t.model, t.known, t.text, t.out = v.model, v.known, v.text, v.key
	t.model.self = make([]uint32, len(v.known))
	t.special = make([]bool, len(v.known))
	special := map[string]bool{}
	for _, a := range added {
		if a.special {
			special[a.content] = true
		}
	}
	patterns := map[string]string{}
	for i := range added {
		a := &added[i]
		a.pattern = a.content
		if a.normalized {
			for _, n := range t.normalize {
				a.pattern = n.apply(a.pattern)
			}
			if other, again := patterns[a.pattern]; again || a.pattern == "" {
				return unsupported("tokens %q and %q, both %q when normalised, are not supported", clip(other), clip(a.content), clip(a.pattern))
			}
			patterns[a.pattern] = a.content
			t.text[a.id] = a.pattern
			if b, ok := fromAlphabet(nil, a.pattern); ok && v.model.byteLevel {
				t.out[a.id] = string(b)
			} else {
				t.out[a.id] = a.pattern
			}
		}
		t.special[a.id] = special[a.pattern]
	}
	t.raw = newMatcher(added, false)
	t.normal = newMatcher(added, true)
	return nil
}
