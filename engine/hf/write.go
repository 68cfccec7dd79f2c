package hf

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// Source is a tensor to be written. Write writes its bytes, row-major and little-endian, and is called
// once, when their turn comes; so a file can be larger than memory.
type Source struct {
	Name   string
	Stored string // the element type in the file's words, e.g. "F32"
	Shape  []int
	Write  func(w io.Writer) error
}

// Source returns a tensor that was read as one to be written.
func (t Tensor) Source() Source {
	return Source{t.Name, t.Stored, t.Shape, func(w io.Writer) error {
		_, err := w.Write(t.Data)
		return err
	}}
}

// Floats returns float32 values as a tensor to be written. values is read when it is written.
func Floats(name string, shape []int, values []float32) Source {
	return Source{name, "F32", shape, func(w io.Writer) error {
		var chunk [1 << 14]byte
		for part := range slices.Chunk(values, len(chunk)/4) {
			for i, v := range part {
				binary.LittleEndian.PutUint32(chunk[4*i:], math.Float32bits(v))
			}
			if _, err := w.Write(chunk[:4*len(part)]); err != nil {
				return err
			}
		}
		return nil
	}}
}

// WriteSafetensors writes a safetensors file to w: tensors of wide types first, then by name, so that
// the bytes depend on nothing but the contents. metadata may be nil. Names must differ. An error of w is
// returned as it is; the others are BadRequest and name the tensor.
func WriteSafetensors(w io.Writer, tensors []Source, metadata map[string]string) error {
	l, err := lay(tensors, metadata)
	if err != nil {
		return err
	}
	if _, err := w.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(l.header)))); err != nil {
		return err
	}
	if _, err := w.Write(l.header); err != nil {
		return err
	}
	for i, t := range l.tensors {
		c := &counter{w: w}
		if err := t.Write(c); err != nil {
			return err
		}
		if c.n != l.sizes[i] {
			return bad("tensor %s: %d bytes were written, wanted %d for %s%v", quote(t.Name), c.n, l.sizes[i], t.Stored, t.Shape)
		}
	}
	return nil
}

// SafetensorsSize is the number of bytes that WriteSafetensors will write. It looks at names, types and shapes only.
func SafetensorsSize(tensors []Source, metadata map[string]string) (int64, error) {
	l, err := lay(tensors, metadata)
	if err != nil {
		return 0, err
	}
	n := uint64(8 + len(l.header))
	for _, size := range l.sizes {
		n += size
	}
	return int64(n), nil
}

// fileLayout is what a file will hold: the header's text, and the tensors with their sizes in the order of their bytes.
type fileLayout struct {
	header  []byte
	tensors []Source
	sizes   []uint64
}

func lay(tensors []Source, metadata map[string]string) (*fileLayout, error) {
	sorted := slices.SortedFunc(slices.Values(tensors), func(a, b Source) int {
		return cmp.Or(cmp.Compare(dtypes[b.Stored].bits, dtypes[a.Stored].bits), strings.Compare(a.Name, b.Name))
	})
	sizes := make([]uint64, len(sorted))
	seen := make(map[string]bool, len(sorted))
	var text bytes.Buffer
	text.WriteByte('{')
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false) // names are not for browsers
	member := func(name string, value any) error {
		if text.Len() > 1 {
			text.WriteByte(',')
		}
		if err := enc.Encode(name); err != nil {
			return err
		}
		text.Truncate(text.Len() - 1) // the encoder's newline
		text.WriteByte(':')
		err := enc.Encode(value)
		text.Truncate(text.Len() - 1)
		return err
	}
	if len(metadata) > 0 {
		if err := member("__metadata__", metadata); err != nil {
			return nil, err
		}
	}
	at := uint64(0)
	for i, t := range sorted {
		size, err := t.check(seen)
		if err != nil {
			return nil, in("tensor "+quote(t.Name), err)
		}
		sizes[i] = size
		entry := struct {
			DType   string    `json:"dtype"`
			Shape   []int     `json:"shape"`
			Offsets [2]uint64 `json:"data_offsets"`
		}{t.Stored, append([]int{}, t.Shape...), [2]uint64{at, at + size}}
		if err := member(t.Name, entry); err != nil {
			return nil, err
		}
		if at += size; at > math.MaxInt64-(maxHeader+8) {
			return nil, bad("tensor %s: the file is too large", quote(t.Name))
		}
	}
	text.WriteByte('}')
	for text.Len()%8 != 0 {
		text.WriteByte(' ')
	}
	if text.Len() > maxHeader {
		return nil, bad("header of %d bytes, wanted at most %d", text.Len(), maxHeader)
	}
	return &fileLayout{text.Bytes(), sorted, sizes}, nil
}

// check returns the size of a tensor's bytes. It adds its name to seen.
func (t Source) check(seen map[string]bool) (uint64, error) {
	kind, ok := dtypes[t.Stored]
	switch {
	case t.Name == "__metadata__" || !utf8.ValidString(t.Name):
		return 0, bad("cannot be the name of a tensor")
	case seen[t.Name]:
		return 0, bad("appears twice")
	case !ok:
		return 0, unsupported("dtype %s is unknown", quote(t.Stored))
	case len(t.Shape) > maxRank:
		return 0, bad("shape has %d dimensions, wanted at most %d", len(t.Shape), maxRank)
	}
	seen[t.Name] = true
	shape := make([]uint64, len(t.Shape))
	for i, d := range t.Shape {
		if d < 0 {
			return 0, bad("shape is %v, wanted sizes from 0", t.Shape)
		}
		shape[i] = uint64(d)
	}
	return byteSize(kind.bits, shape)
}

// counter counts what passes through.
type counter struct {
	w io.Writer
	n uint64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += uint64(n)
	return n, err
}
