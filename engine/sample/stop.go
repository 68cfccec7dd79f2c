package sample

import (
	"slices"
	"strings"
)

// Detokenizer turns a sequence's token ids into text, piece by piece. Push returns the text that id
// completes: bytes of an unfinished character wait for their rest. Flush returns what is left.
type Detokenizer interface {
	Push(id int32) string
	Flush() string
}

// stops decides when one sequence ends.
type stops struct {
	ids     []int32
	strings []string
	keep    int // bytes of text that may be the beginning of a stop string
	detok   Detokenizer
	tail    string // the last keep bytes, at most
}

// newStops makes the rule: any of ids ends the sequence, and so does any of strs in the text that detok
// makes, also across token borders. detok may be nil when there are no strings.
func newStops(ids []int32, strs []string, detok Detokenizer) *stops {
	s := &stops{ids: ids, strings: strs, detok: detok}
	for _, str := range strs {
		s.keep = max(s.keep, len(str)-1)
	}
	return s
}

// push adds the next token and reports whether it ends the sequence.
func (s *stops) push(id int32) bool {
	if slices.Contains(s.ids, id) {
		return true
	}
	if len(s.strings) == 0 {
		return false
	}
	text := s.tail + s.detok.Push(id)
	for _, str := range s.strings {
		if strings.Contains(text, str) {
			return true
		}
	}
	s.tail = text[max(0, len(text)-s.keep):]
	return false
}
