package plugins

import (
	"encoding/binary"
	"fmt"
)

// reader reads the WebAssembly binary format. The first error sticks; after it every read answers zero, and more()
// false, so that callers look once at the end.
type reader struct {
	b   []byte
	at  int
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("byte %d: "+format, append([]any{r.at}, args...)...)
	}
}

func (r *reader) more() bool { return r.err == nil && r.at < len(r.b) }

func (r *reader) byte() byte {
	if !r.more() {
		r.fail("the module ends too early")
		return 0
	}
	r.at++
	return r.b[r.at-1]
}

// bytes is the next n bytes, not copied.
func (r *reader) bytes(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b)-r.at {
		r.fail("%d bytes wanted, the module ends too early", n)
		return nil
	}
	r.at += n
	return r.b[r.at-n : r.at]
}

// u32 is an unsigned LEB128 number of at most 32 bits.
func (r *reader) u32() uint32 {
	var v uint64
	for shift := 0; shift < 35; shift += 7 {
		c := r.byte()
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			if v > 1<<32-1 {
				r.fail("a number does not fit in 32 bits")
				return 0
			}
			return uint32(v)
		}
	}
	r.fail("a number is longer than 5 bytes")
	return 0
}

// skipLEB passes a signed LEB128 number; its value is for the validator.
func (r *reader) skipLEB(most int) {
	for range most {
		if r.byte() < 0x80 {
			return
		}
	}
	r.fail("a number is longer than %d bytes", most)
}

// count is the length of a vector whose entries take at least one byte each.
func (r *reader) count(what string, most int) int {
	n := r.u32()
	if int64(n) > int64(most) {
		r.fail("%d %s, the limit is %d", n, what, most)
	} else if int(n) > len(r.b)-r.at {
		r.fail("%d %s, the section ends too early", n, what)
	}
	if r.err != nil {
		return 0
	}
	return int(n)
}

func (r *reader) name() string { return string(r.bytes(int(r.u32()))) }

// sub is a reader of the next n bytes.
func (r *reader) sub(n uint32) *reader {
	start := r.at
	b := r.bytes(int(n))
	return &reader{b: r.b[:start+len(b)], at: start, err: r.err}
}

// end wants everything to have been read.
func (r *reader) end(what string) error {
	if r.err == nil && r.at != len(r.b) {
		r.fail("%s ends %d bytes before its stated size", what, len(r.b)-r.at)
	}
	return r.err
}

func appendU32(b []byte, v uint32) []byte { return binary.AppendUvarint(b, uint64(v)) }

// appendS64 appends a signed LEB128 number.
func appendS64(b []byte, v int64) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

func appendName(b []byte, s string) []byte { return append(appendU32(b, uint32(len(s))), s...) }

// appendSized appends body with its length before it.
func appendSized(b, body []byte) []byte { return append(appendU32(b, uint32(len(body))), body...) }

func appendSection(b []byte, id byte, body []byte) []byte { return appendSized(append(b, id), body) }
