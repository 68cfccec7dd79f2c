package token

import (
	"slices"
	"strings"
)

// piece is a part of the text on its way through the pre-tokenizer.
type piece struct {
	text  string
	first bool // it begins where the whole input begins
}

// splitter is one step of the pre-tokenizer. It emits the parts of p in order; empty ones are ignored.
type splitter interface {
	split(p piece, emit func(piece)) error
}

// scanSplit cuts at the ends that a hand-written scanner finds.
type scanSplit struct{ next scanner }

func (s scanSplit) split(p piece, emit func(piece)) error {
	for i := 0; i < len(p.text); {
		end := s.next(p.text, i)
		emit(piece{p.text[i:end], p.first && i == 0})
		i = end
	}
	return nil
}

// prefixSpace is ByteLevel's add_prefix_space.
type prefixSpace struct{}

func (prefixSpace) split(p piece, emit func(piece)) error {
	if !strings.HasPrefix(p.text, " ") {
		p.text = " " + p.text
	}
	emit(p)
	return nil
}

// behavior says what becomes of a match: the Split pre-tokenizer's five choices.
type behavior int

const (
	isolated behavior = iota
	removed
	mergedWithPrevious
	mergedWithNext
	contiguous
)

var behaviors = map[string]behavior{
	"Isolated": isolated, "Removed": removed, "MergedWithPrevious": mergedWithPrevious,
	"MergedWithNext": mergedWithNext, "Contiguous": contiguous,
}

// matchSplit is the Split pre-tokenizer in general: find gives the matches.
type matchSplit struct {
	find   func(s string, match func(from, to int)) error
	invert bool
	what   behavior
}

func (m matchSplit) split(p piece, emit func(piece)) error {
	// The text as spans, alternately outside and inside matches; then joined as the behaviour says.
	type span struct {
		from, to int
		match    bool
	}
	var spans []span
	at := 0
	err := m.find(p.text, func(from, to int) {
		if at < from {
			spans = append(spans, span{at, from, m.invert})
		}
		spans = append(spans, span{from, to, !m.invert})
		at = to
	})
	if err != nil {
		return err
	}
	if at < len(p.text) {
		spans = append(spans, span{at, len(p.text), m.invert})
	}
	out := spans[:0]
	switch m.what {
	case isolated:
		out = spans
	case removed:
		for _, s := range spans {
			if !s.match {
				out = append(out, s)
			}
		}
	case contiguous:
		for _, s := range spans {
			if k := len(out) - 1; k >= 0 && out[k].match == s.match {
				out[k].to = s.to
			} else {
				out = append(out, s)
			}
		}
	case mergedWithPrevious:
		before := false // the span before was a match
		for _, s := range spans {
			if k := len(out) - 1; s.match && !before && k >= 0 {
				out[k].to = s.to
			} else {
				out = append(out, s)
			}
			before = s.match
		}
	case mergedWithNext: // the same from the other end
		out = nil
		after := false
		for _, s := range slices.Backward(spans) {
			if k := len(out) - 1; s.match && !after && k >= 0 {
				out[k].from = s.from
			} else {
				out = append(out, s)
			}
			after = s.match
		}
		slices.Reverse(out)
	}
	for _, s := range out {
		emit(piece{p.text[s.from:s.to], p.first && s.from == 0})
	}
	return nil
}

// findString returns the matches of a literal.
func findString(literal string) func(string, func(int, int)) error {
	return func(s string, match func(from, to int)) error {
		for at := 0; ; {
			i := strings.Index(s[at:], literal)
			if i < 0 {
				return nil
			}
			match(at+i, at+i+len(literal))
			at += i + len(literal)
		}
	}
}
