package token

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// decodePlan is what the decoder field asks for: ByteLevel alone, or steps in order.
type decodePlan struct {
	byteLevel bool
	steps     []decodeStep
}

type stepKind int

const (
	replaceStep      stepKind = iota // in each token, old → text
	metaspaceStep                    // in each token, old → a space; in the first, if drop, → nothing
	byteFallbackStep                 // runs of <0xNN> tokens → characters
	fuseStep                         // the steps after it see one text
	stripStep                        // take up to n of text off the beginning
)

type decodeStep struct {
	kind      stepKind
	old, text string
	n         int
	drop      bool
	fused     bool // after Fuse
}

const maxSteps = 16 // in any of the pipelines

// Decode returns the text of ids. With skipSpecial, special tokens are left out. Ids that no token
// has, negative ones included, are left out too, as in the reference library. Bytes that do not form
// characters become U+FFFD.
func (t *Tokenizer) Decode(ids []int32, skipSpecial bool) string {
	if !t.dec.byteLevel {
		d := t.NewDecoder(skipSpecial)
		for _, id := range ids {
			d.take(id)
		}
		return d.Flush()
	}
	var raw []byte
	for _, id := range ids {
		if t.shows(id, skipSpecial) {
			raw = append(raw, t.out[id]...)
		}
	}
	return string(appendLossy(make([]byte, 0, len(raw)), raw))
}

// Piece returns the bytes that id alone stands for, which may be part of a character; "" for an unknown id.
func (t *Tokenizer) Piece(id int32) string {
	if !t.shows(id, false) {
		return ""
	}
	if t.dec.byteLevel {
		return string(t.out[id])
	}
	if b, ok := byteToken(string(t.out[id])); ok {
		return string([]byte{b})
	}
	return t.Decode([]int32{id}, false)
}

// shows tells whether id takes part in decoding.
func (t *Tokenizer) shows(id int32, skipSpecial bool) bool {
	return id >= 0 && int(id) < len(t.known) && t.known[id] && !(skipSpecial && t.special[id])
}

// readDecoder reads the decoder field, a Sequence flattened.
func readDecoder(b []byte) (decodePlan, error) {
	if isNull(b) {
		return decodePlan{}, unsupported("no decoder is not supported")
	}
	kind, err := typeOf(b)
	if err != nil {
		return decodePlan{}, err
	}
	if kind == "ByteLevel" {
		_, err := fields(b, "type", "add_prefix_space", "trim_offsets", "use_regex")
		return decodePlan{byteLevel: true}, err
	}
	var plan decodePlan
	if err := plan.read(kind, b); err != nil {
		return decodePlan{}, err
	}
	fused, fallback, grows := false, false, false
	for i := range plan.steps {
		s := &plan.steps[i]
		s.fused = fused
		if fused && s.kind != stripStep && s.kind != fuseStep {
			return decodePlan{}, unsupported("a step after Fuse other than Strip is not supported")
		}
		fused = fused || s.kind == fuseStep
		if s.kind == byteFallbackStep {
			if fallback {
				return decodePlan{}, unsupported("ByteFallback twice is not supported")
			}
			fallback = true
		}
		if s.kind == replaceStep && len(s.text) > len(s.old) {
			if grows {
				return decodePlan{}, unsupported("more than one Replace by something longer is not supported")
			}
			grows = true
		}
	}
	return plan, nil
}

func (p *decodePlan) read(kind string, b []byte) error {
	s := decodeStep{}
	var err error
	switch kind {
	case "Sequence":
		return sequence(b, "decoders", func(v []byte) error {
			kind, err := typeOf(v)
			if err != nil {
				return err
			}
			return p.read(kind, v)
		})
	case "Replace":
		s.kind = replaceStep
		s.old, s.text, err = readReplace(b)
	case "ByteFallback":
		s.kind = byteFallbackStep
		_, err = fields(b, "type")
	case "Fuse":
		s.kind = fuseStep
		_, err = fields(b, "type")
	case "Strip":
		s.kind = stripStep
		s.text, s.n, err = readStrip(b)
	case "Metaspace":
		var m metaspace
		m, err = readMetaspace(b)
		s.kind, s.old, s.drop = metaspaceStep, m.mark, m.prepend != prependNever
	default:
		return unsupported("type %q is not supported", clip(kind))
	}
	if err == nil && len(p.steps) == maxSteps {
		err = fmt.Errorf("more than %d steps", maxSteps)
	}
	p.steps = append(p.steps, s)
	return err
}

// readReplace reads the normaliser and the decoder of that name.
func readReplace(b []byte) (old, text string, err error) {
	f, err := fields(b, "type", "pattern", "content")
	if err != nil {
		return "", "", err
	}
	regex, old, err := readPattern(f.value("pattern"))
	if err != nil {
		return "", "", fmt.Errorf("pattern: %w", err)
	}
	if regex != "" {
		return "", "", unsupported("Replace with a regular expression is not supported")
	}
	if text, err = f.text("content"); err == nil {
		err = checkGrowth("content", text, old)
	}
	return old, text, err
}

// checkGrowth keeps a hostile file from blowing up text: what is put in is short, and what replaces
// text, as steps can follow one another, is one character at most.
func checkGrowth(name, text, old string) error {
	if len(text) > utf8.UTFMax && len(text) > len(old) {
		return unsupported("%s of %d bytes is not supported, want at most %d", name, len(text), utf8.UTFMax)
	}
	return nil
}

func readStrip(b []byte) (char string, start int, err error) {
	f, err := fields(b, "type", "content", "start", "stop")
	if err != nil {
		return "", 0, err
	}
	if char, err = f.text("content"); err == nil && utf8.RuneCountInString(char) != 1 {
		err = fmt.Errorf("content: want one character, got %q", clip(char))
	}
	if err == nil {
		start, err = number(f.value("start"), 1<<20)
	}
	if err == nil && string(f.value("stop")) != "0" {
		err = unsupported("Strip with stop %s is not supported, want 0", clip(string(f.value("stop"))))
	}
	return char, start, err
}

// byteToken returns the byte that a <0xNN> token stands for.
func byteToken(s string) (byte, bool) {
	if len(s) != 6 || !strings.HasPrefix(s, "<0x") || s[5] != '>' {
		return 0, false
	}
	digits := []byte{'0', '0', s[3], s[4]}
	if s[3] == '+' { // the reference's number parser takes a sign
		digits[2] = '0'
	}
	r := hex4(digits, 0)
	return byte(r), r >= 0
}
