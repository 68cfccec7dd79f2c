package chat

import "tinkerlocal/engine/api"

// Tokenizer is what [Tokens] needs: engine/token's has these methods.
type Tokenizer interface {
	// TryEncode returns the ids of text, in which names of added tokens become their ids; special
	// adds the tokens that the tokenizer puts around a text of its own.
	TryEncode(text string, special bool) ([]int32, error)
	// ID returns the id of a token by its name.
	ID(content string) (int32, bool)
}

// Tokens returns the ids of segments and for each whether it is trained. Text is encoded in one piece
// as far as it is trained alike, so that a prompt has the ids which the transformers library gives its
// whole text, and a trained turn begins where sampling would.
func Tokens(t Tokenizer, segments []Segment) (ids []int32, trained []bool, err error) {
	for k := 0; k < len(segments); {
		text, from := "", k
		for ; k < len(segments) && segments[k].Trained == segments[from].Trained; k++ {
			if s := segments[k]; s.Special {
				if _, ok := t.ID(s.Text); !ok {
					return nil, nil, api.Errorf(api.BadRequest, "the tokenizer has no token %s, which the chat format needs", s.Text)
				}
			}
			text += segments[k].Text
		}
		piece, err := t.TryEncode(text, false)
		if err != nil {
			return nil, nil, err
		}
		ids = append(ids, piece...)
		for range piece {
			trained = append(trained, segments[from].Trained)
		}
	}
	return ids, trained, nil
}

// TokenIDs returns the ids of s.Tokens that the tokenizer has. The format's own must be among them.
func (s Stops) TokenIDs(t Tokenizer) ([]int32, error) {
	var ids []int32
	for k, name := range s.Tokens {
		id, ok := t.ID(name)
		if ok {
			ids = append(ids, id)
		} else if k == 0 {
			return nil, api.Errorf(api.BadRequest, "the tokenizer has no token %s, which ends a turn of the chat format", name)
		}
	}
	return ids, nil
}
