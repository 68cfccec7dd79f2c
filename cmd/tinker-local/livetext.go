package main

import (
	"io"
	"strings"

	"tinkerlocal/engine/token"
)

// liveText prints a text as its tokens come: never half a character, and line ends only when something follows them.
type liveText struct {
	w       io.Writer
	decoder *token.Decoder
	held    string // line ends that may turn out to be the last ones
	err     error
}

func newLiveText(w io.Writer, t *token.Tokenizer) *liveText {
	return &liveText{w: w, decoder: t.NewDecoder(true)}
}

// push takes the next token.
func (l *liveText) push(id int32) { l.print(l.decoder.Push(id)) }

// end prints what was held back, without line ends, and one line end.
func (l *liveText) end() error {
	l.print(l.decoder.Flush())
	l.held = ""
	l.write("\n")
	return l.err
}

func (l *liveText) print(s string) {
	s = l.held + s
	text := strings.TrimRight(s, "\n")
	l.held = s[len(text):]
	l.write(text)
}

func (l *liveText) write(s string) {
	if s != "" && l.err == nil {
		_, l.err = io.WriteString(l.w, s)
	}
}

// Tags around what a model thinks before it answers.
const thinkBegin, thinkEnd = "<think>", "</think>"

// reveal lets a reply through as it comes, without the text that ends it, and without its thoughts if they are hidden.
// What may be the beginning of either is held until it is known.
type reveal struct {
	hide  bool     // thoughts
	stops []string // texts that end a reply
	state revealState
	buf   string
}

type revealState int

const (
	atBegin revealState = iota
	inThoughts
	afterThoughts // that are hidden: the blank lines behind them are, too
	inAnswer
	pastEnd
)

// hiddenThoughts stands for thoughts that are not shown.
const hiddenThoughts = "(thinking …)\n"

// push takes the next piece of the reply and returns what can be shown.
func (r *reveal) push(s string) (shown string) {
	r.buf += s
	for {
		switch r.state {
		case atBegin:
			rest := strings.TrimLeft(r.buf, " \n")
			switch {
			case strings.HasPrefix(rest, thinkBegin):
				r.state, r.buf = inThoughts, rest
				if r.hide {
					shown += hiddenThoughts
				}
			case strings.HasPrefix(thinkBegin, rest):
				return shown
			default:
				r.state = inAnswer
			}
		case inThoughts:
			at := strings.Index(r.buf, thinkEnd)
			if at < 0 {
				keep := partial(r.buf, thinkEnd)
				shown += r.thoughts(r.buf[:len(r.buf)-keep])
				r.buf = r.buf[len(r.buf)-keep:]
				return shown
			}
			shown += r.thoughts(r.buf[:at+len(thinkEnd)])
			r.state, r.buf = inAnswer, r.buf[at+len(thinkEnd):]
			if r.hide {
				r.state = afterThoughts
			}
		case afterThoughts:
			if r.buf = strings.TrimLeft(r.buf, "\n"); r.buf == "" {
				return shown
			}
			r.state = inAnswer
		case inAnswer:
			keep := 0
			for _, stop := range r.stops {
				if at := strings.Index(r.buf, stop); at >= 0 {
					r.buf, r.state = r.buf[:at], pastEnd
				}
				keep = max(keep, partial(r.buf, stop))
			}
			if r.state == pastEnd {
				shown += r.buf
				r.buf = ""
				return shown
			}
			shown += r.buf[:len(r.buf)-keep]
			r.buf = r.buf[len(r.buf)-keep:]
			return shown
		case pastEnd:
			r.buf = ""
			return shown
		}
	}
}

// end returns what is still held: the reply has ended without the rest of a tag.
func (r *reveal) end() string {
	s := r.buf
	r.buf = ""
	if r.state == inThoughts {
		s = r.thoughts(s)
	}
	return s
}

func (r *reveal) thoughts(s string) string {
	if r.hide {
		return ""
	}
	return s
}

// partial is how many bytes at the end of s are the beginning of word.
func partial(s, word string) int {
	for n := min(len(word)-1, len(s)); n > 0; n-- {
		if strings.HasSuffix(s, word[:n]) {
			return n
		}
	}
	return 0
}
