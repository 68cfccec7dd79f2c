package gguf

import (
	"encoding/binary"
	"io"
	"math"
	"strings"

	"tinkerlocal/engine/api"
)

const (
	magic            = "GGUF"
	version          = 3
	defaultAlignment = 32
	maxAlignment     = 1 << 16 // files have 32; a larger one only costs padding
	maxKey           = 1<<16 - 1
	maxHeader        = 1 << 28 // bytes before the tensors; vocabularies of base models take some 10 MB
)

// Write writes a file to w: keys and tensors in the order given, so that the bytes depend on nothing but the contents. Nothing of it is held
// but the header. Everything that Size refuses is refused before the first byte. An error of w or of a tensor is returned as it is.
func Write(w io.Writer, meta []KV, tensors []Tensor) error {
	p, err := newPlan(meta, tensors)
	if err != nil {
		return err
	}
	if _, err := w.Write(p.header); err != nil {
		return err
	}
	padding := make([]byte, p.alignment)
	for i, t := range tensors {
		c := &counter{w: w}
		if err := t.Write(c); err != nil {
			return err
		}
		if c.n != p.sizes[i] {
			return bad("tensor %s: %d bytes were written, wanted %d for %v%v", quote(t.Name), c.n, p.sizes[i], t.Type, t.Shape)
		}
		if _, err := w.Write(padding[:align(c.n, p.alignment)-c.n]); err != nil {
			return err
		}
	}
	return nil
}

// Size returns the length of the file that Write makes. It refuses (BadRequest or Unsupported, by name) keys and names that
// appear twice or are too long, values and types that a file cannot hold, and shapes that overflow.
func Size(meta []KV, tensors []Tensor) (int64, error) {
	p, err := newPlan(meta, tensors)
	if err != nil {
		return 0, err
	}
	return p.total, nil
}

// plan is all of a file but its tensors' bytes.
type plan struct {
	alignment int64
	header    []byte // with the padding behind it
	sizes     []int64
	total     int64
}

func newPlan(meta []KV, tensors []Tensor) (*plan, error) {
	le := binary.LittleEndian
	p := &plan{alignment: defaultAlignment, sizes: make([]int64, len(tensors))}
	b := append([]byte(magic), 0, 0, 0, 0)
	le.PutUint32(b[len(magic):], version)
	b = le.AppendUint64(le.AppendUint64(b, uint64(len(tensors))), uint64(len(meta)))
	keys := map[string]bool{}
	for _, kv := range meta {
		err := checkKey(kv, keys)
		if err == nil {
			b, err = appendValue(appendString(b, kv.Key), kv)
		}
		if err == nil && kv.Key == KeyAlignment {
			p.alignment, err = alignment(kv.Value)
		}
		if err != nil {
			return nil, err
		}
	}
	names := map[string]bool{}
	at := int64(0)
	for i, t := range tensors {
		size, err := t.Size()
		if err != nil {
			return nil, err
		}
		if names[t.Name] {
			return nil, bad("tensor %s appears twice", quote(t.Name))
		}
		names[t.Name] = true
		p.sizes[i] = size
		b = le.AppendUint32(appendString(b, t.Name), uint32(len(t.Shape)))
		for d := len(t.Shape) - 1; d >= 0; d-- {
			b = le.AppendUint64(b, uint64(t.Shape[d]))
		}
		b = le.AppendUint64(le.AppendUint32(b, uint32(t.Type)), uint64(at))
		padded := align(size, p.alignment)
		if padded > math.MaxInt64/2-at {
			return nil, bad("tensor %s: the file is too large", quote(t.Name))
		}
		at += padded
	}
	if len(b) > maxHeader {
		return nil, bad("header of %d bytes, wanted at most %d", len(b), maxHeader)
	}
	if len(tensors) > 0 {
		b = append(b, make([]byte, align(int64(len(b)), p.alignment)-int64(len(b)))...)
	}
	p.header, p.total = b, int64(len(b))+at
	return p, nil
}

// checkKey refuses a key that cannot be in a file. It adds the key to seen.
func checkKey(kv KV, seen map[string]bool) error {
	switch {
	case kv.Key == "" || len(kv.Key) > maxKey:
		return bad("key %s has %d bytes, wanted 1 to %d", quote(kv.Key), len(kv.Key), maxKey)
	case strings.ContainsFunc(kv.Key, func(r rune) bool { return r < ' ' || r > '~' }):
		return bad("key %s is not printable ASCII", quote(kv.Key))
	case seen[kv.Key]:
		return bad("key %s appears twice", quote(kv.Key))
	}
	seen[kv.Key] = true
	return nil
}

// alignment reads the value of general.alignment.
func alignment(value any) (int64, error) {
	n, ok := value.(uint32)
	if !ok || n < 8 || n > maxAlignment || n&(n-1) != 0 {
		return 0, api.Errorf(api.BadRequest, "key %q is %T %v, wanted an uint32 that is a power of 2 from 8 to %d", KeyAlignment, value, value, maxAlignment)
	}
	return int64(n), nil
}

// align rounds n up.
func align(n, alignment int64) int64 { return (n + alignment - 1) / alignment * alignment }

// counter counts what passes through.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}
