package token

import (
	"sync"

	"tinkerlocal/engine/api"
)

// Tokenizer turns text into ids and back. It does not change after Parse: any number of goroutines
// may use one at the same time.
type Tokenizer struct {
	model     *bpe
	known     []bool   // by id: some token has it
	text      []string // by id: the token as the decoder reads it
	out       []string // by id: the bytes a ByteLevel decoder makes of it
	special   []bool   // by id: dropped by skipSpecial
	raw       *matcher // added tokens looked for in the text as given
	normal    *matcher // added tokens looked for in the normalised text
	normalize []normalizer
	split     []splitter
	prefix    []int32 // what the post-processor puts before a text
	suffix    []int32 // and after it
	dec       decodePlan
	scratch   sync.Pool // *merger
}

// Size is one more than the largest id: ids are 0..Size()-1. Not each of them need have a token, and
// a model's embedding table may have more rows.
func (t *Tokenizer) Size() int { return len(t.known) }

// ID returns the id of the token that the file writes as content: the text of an added token such as
// <|im_end|>, or a vocabulary entry in the file's spelling ("Ġthe" in a byte-level vocabulary).
func (t *Tokenizer) ID(content string) (int32, bool) {
	return t.model.lookup(content)
}

// IsSpecial tells whether skipSpecial drops id: the file marks its added token as special. Added
// tokens that are not special (<think>, <tool_call>) are text.
func (t *Tokenizer) IsSpecial(id int32) bool {
	return id >= 0 && int(id) < len(t.special) && t.special[id]
}

// Encode returns the ids of text. With special, the post-processor's tokens (such as a beginning of
// sequence) are put around it. Added tokens that stand in the text become their ids in both cases, as
// in the reference library: escape or refuse untrusted text before it gets here.
//
// Bytes that are not UTF-8 count as U+FFFD, one for each maximal ill-formed part. Encode panics with
// an *api.Error where TryEncode returns one.
func (t *Tokenizer) Encode(text string, special bool) []int32 {
	ids, err := t.TryEncode(text, special)
	if err != nil {
		panic(err)
	}
	return ids
}

// TryEncode is Encode for files from strangers: a splitting pattern that is not one of the known ones
// runs in a backtracking engine, and one that exceeds its time limit on this text is an error here.
// With the published patterns it never fails.
func (t *Tokenizer) TryEncode(text string, special bool) ([]int32, error) {
	m := t.scratch.Get().(*merger)
	defer m.release(&t.scratch)
	ids := make([]int32, 0, len(text)/3+len(t.prefix)+len(t.suffix)+2)
	if special {
		ids = append(ids, t.prefix...)
	}
	text = validUTF8(text)
	var failed error
	word := func(p piece) {
		ids = t.model.encode(ids, p.text, m)
	}
	chunk := func(p piece) { // text with no added token in it, normalised
		if failed == nil {
			failed = t.pieces(0, p, word)
		}
	}
	t.raw.each(text, func(id int32, from, to int) {
		if id >= 0 {
			ids = append(ids, id)
			return
		}
		rest := text[from:to]
		for _, n := range t.normalize {
			rest = n.apply(rest)
		}
		t.normal.each(rest, func(id int32, f, to int) {
			if id >= 0 {
				ids = append(ids, id)
			} else {
				chunk(piece{text: rest[f:to], first: from == 0 && f == 0})
			}
		})
	})
	if failed != nil {
		return nil, api.Errorf(api.BadRequest, "encode: %w", failed)
	}
	if special {
		ids = append(ids, t.suffix...)
	}
	return ids, nil
}

// pieces runs the pre-tokenizer's steps from the k-th on.
func (t *Tokenizer) pieces(k int, p piece, emit func(piece)) error {
	if k == len(t.split) {
		emit(p)
		return nil
	}
	var failed error
	err := t.split[k].split(p, func(q piece) {
		switch {
		case q.text == "" || failed != nil:
		case k+1 == len(t.split):
			emit(q)
		default:
			failed = t.pieces(k+1, q, emit)
		}
	})
	if err == nil {
		err = failed
	}
	return err
}
