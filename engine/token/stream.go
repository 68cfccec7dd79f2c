package token

import (
	"strings"
	"unicode/utf8"
)

// Decoder turns ids into text as they come. What Push returns over all ids, followed by Flush, is what
// Decode returns for the ids at once. A Decoder is for one goroutine.
type Decoder struct {
	t           *Tokenizer
	skipSpecial bool
	held        []byte // bytes that are not yet certain to be a character
	state       []int  // by step: tokens seen by Metaspace; characters stripped, or -1 when past the beginning
	out         []byte
}

// NewDecoder starts a text.
func (t *Tokenizer) NewDecoder(skipSpecial bool) *Decoder {
	return &Decoder{t: t, skipSpecial: skipSpecial, state: make([]int, len(t.dec.steps))}
}

// Push takes the next id and returns the text that is certain now, perhaps none. It never returns
// part of a character.
func (d *Decoder) Push(id int32) string {
	d.take(id)
	text := string(d.out)
	d.out = d.out[:0]
	return text
}

// Flush ends the text: it returns what is still held, unfinished characters as U+FFFD. The Decoder
// can then begin a new text.
func (d *Decoder) Flush() string {
	if d.t.dec.byteLevel {
		d.out = appendLossy(d.out, d.held)
		d.held = d.held[:0]
	} else {
		for k, s := range d.t.dec.steps {
			if s.kind == byteFallbackStep {
				d.endRun(k)
			}
		}
		clear(d.state)
	}
	text := string(d.out)
	d.out = d.out[:0]
	return text
}

// take appends to d.out what is certain with the next id.
func (d *Decoder) take(id int32) {
	if !d.t.shows(id, d.skipSpecial) {
		return
	}
	if !d.t.dec.byteLevel {
		d.step(0, d.t.out[id])
		return
	}
	// At most three bytes are held: the beginning of a character whose end has not come yet.
	d.held = append(d.held, d.t.out[id]...)
	n := len(d.held) - incompleteTail(d.held)
	d.out = appendLossy(d.out, d.held[:n])
	d.held = append(d.held[:0], d.held[n:]...)
}

// step passes one token to the k-th step and what comes of it to the next.
func (d *Decoder) step(k int, s string) {
	for ; k < len(d.t.dec.steps); k++ {
		switch step := &d.t.dec.steps[k]; step.kind {
		case replaceStep:
			s = strings.ReplaceAll(s, step.old, step.text)
		case metaspaceStep:
			space := " "
			if d.state[k] == 0 && step.drop {
				space = ""
			}
			d.state[k] = 1
			s = strings.ReplaceAll(s, step.old, space)
		case byteFallbackStep:
			// A run of byte tokens is judged as a whole, so it is held until it ends.
			if b, ok := byteToken(s); ok {
				d.held = append(d.held, b)
				return
			}
			d.endRun(k)
		case stripStep:
			s = d.strip(k, step, s)
		}
	}
	d.out = append(d.out, s...)
}

// endRun passes on a run of byte tokens: its text, or one U+FFFD for each byte.
func (d *Decoder) endRun(k int) {
	run := string(d.held)
	d.held = d.held[:0]
	switch {
	case run == "":
	case utf8.ValidString(run):
		d.step(k+1, run)
	default:
		for range len(run) {
			d.step(k+1, "\uFFFD")
		}
	}
}

// strip takes up to n characters off the beginning of each token, or of the text when fused.
func (d *Decoder) strip(k int, step *decodeStep, s string) string {
	if !step.fused {
		d.state[k] = 0
	}
	for d.state[k] >= 0 && d.state[k] < step.n && s != "" {
		if !strings.HasPrefix(s, step.text) {
			d.state[k] = -1
			break
		}
		s = s[len(step.text):]
		d.state[k]++
	}
	return s
}
