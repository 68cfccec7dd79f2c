package gguf

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"

	"tinkerlocal/engine/api"
)

// File is a file that was read: its metadata, and its tensors in the file's order. Their Write copies from the file, so they are valid
// until Close, and Write(w, f.Meta, f.Tensors) makes the same file again.
type File struct {
	Meta    []KV
	Tensors []Tensor

	file *os.File // nil when it was parsed from memory
}

// Open reads the header of the file at path. NotFound, BadRequest (damaged, cut off, contradictory) and Unsupported (quantised
// types, big endian, other versions) say what is wrong and where.
func Open(path string) (*File, error) {
	file, err := os.Open(path)
	if err != nil {
		code := api.BadRequest
		if errors.Is(err, fs.ErrNotExist) {
			code = api.NotFound
		}
		return nil, api.Errorf(code, "%w", err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = bad("not a regular file")
	}
	var f *File
	if err == nil {
		f, err = parse(file, info.Size())
	}
	if err != nil {
		_ = file.Close()
		return nil, api.Errorf(api.CodeOf(err), "%s: %w", path, err)
	}
	f.file = file
	return f, nil
}

// Parse reads a file in memory. The tensors read from b.
func Parse(b []byte) (*File, error) { return parse(bytes.NewReader(b), int64(len(b))) }

// Close closes the file that Open opened.
func (f *File) Close() error {
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}

// Value returns the value of a key, or nil.
func (f *File) Value(key string) any {
	for _, kv := range f.Meta {
		if kv.Key == key {
			return kv.Value
		}
	}
	return nil
}

// parse reads a header and holds it against the file's size: every tensor begins where the padding of the one before ends, and the last one
// ends with the file.
func parse(r io.ReaderAt, size int64) (*File, error) {
	c := &cursor{r: bufio.NewReaderSize(io.NewSectionReader(r, 0, size), 1<<16), end: min(size, maxHeader)}
	if got := c.bytes(4); c.err != nil || string(got) != magic {
		return nil, bad("it does not begin with %q: not a GGUF file", magic)
	}
	if v := c.uint32(); c.err == nil && v != 2 && v != version {
		if v&0xffff == 0 {
			return nil, api.Errorf(api.Unsupported, "a big-endian GGUF file, wanted little endian")
		}
		return nil, api.Errorf(api.Unsupported, "GGUF version %d, wanted 2 or %d", v, version)
	}
	tensors, keys := c.uint64(), c.uint64()
	f := &File{}
	unit := int64(defaultAlignment)
	seen := map[string]bool{}
	for i := uint64(0); i < keys && c.err == nil; i++ {
		kv := KV{Key: c.string()}
		if c.err == nil {
			c.err = checkKey(kv, seen)
		}
		if kv.Value = c.value(); c.err == nil && kv.Key == KeyAlignment {
			unit, c.err = alignment(kv.Value)
		}
		f.Meta = append(f.Meta, kv)
	}
	seen = map[string]bool{}
	var offsets []int64 // of each tensor, and of the end
	at := int64(0)
	for i := uint64(0); i < tensors && c.err == nil; i++ {
		t, offset := c.tensor()
		if c.err != nil {
			break
		}
		n, err := t.Size()
		switch {
		case err != nil:
			return nil, err
		case seen[t.Name]:
			return nil, bad("tensor %s appears twice", quote(t.Name))
		case offset != uint64(at):
			return nil, bad("tensor %s begins at %d, wanted %d: after the tensor before it and its padding", quote(t.Name), offset, at)
		case n > size-at:
			return nil, bad("tensor %s: %v%v takes %d bytes at %d, but the file has %d: it is cut off", quote(t.Name), t.Type, t.Shape, n, at, size)
		}
		seen[t.Name] = true
		f.Tensors, offsets = append(f.Tensors, t), append(offsets, at, at+n)
		at = align(at+n, unit)
	}
	if c.err != nil {
		return nil, c.err
	}
	data, end := c.at, c.at
	if len(f.Tensors) > 0 {
		data = align(c.at, unit)
		end = data + offsets[len(offsets)-1]
	}
	if end > size {
		return nil, bad("the tensors end at byte %d, but the file has %d: it is cut off", end, size)
	}
	if size > align(end, unit) {
		return nil, bad("the tensors end at byte %d, but the file has %d", end, size)
	}
	for i := range f.Tensors {
		begin, n := data+offsets[2*i], offsets[2*i+1]-offsets[2*i]
		f.Tensors[i].Write = func(w io.Writer) error {
			got, err := io.Copy(w, io.NewSectionReader(r, begin, n))
			if err == nil && got != n {
				err = api.Errorf(api.DataLoss, "tensor %s: %d of %d bytes are there: the file was changed while it was read", quote(f.Tensors[i].Name), got, n)
			}
			return err
		}
	}
	return f, nil
}

// cursor reads a header up to byte end, and never allocates more than a small multiple of what is there. The first fault stays in err;
// what is read after it is empty.
type cursor struct {
	r       io.Reader
	at, end int64
	err     error
}

// has reports whether n more bytes are there.
func (c *cursor) has(n uint64) bool { return n <= uint64(c.end-c.at) }

// short makes the fault that n bytes are not there.
func (c *cursor) short(n uint64) {
	if c.err == nil {
		c.err = bad("the header wants %d bytes at byte %d, but ends at %d: the file is cut off or damaged", n, c.at, c.end)
	}
}

func (c *cursor) bytes(n uint64) []byte {
	if c.err == nil && !c.has(n) {
		c.short(n)
	}
	if c.err != nil {
		return nil
	}
	b := make([]byte, n)
	if _, c.err = io.ReadFull(c.r, b); c.err != nil {
		return nil
	}
	c.at += int64(n)
	return b
}

func (c *cursor) uint32() uint32 {
	if b := c.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) uint64() uint64 {
	if b := c.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) string() string { return string(c.bytes(c.uint64())) }

// tensor reads a tensor's entry: name, shape and type, and where it begins.
func (c *cursor) tensor() (t Tensor, offset uint64) {
	t.Name = c.string()
	dims := c.uint32()
	if c.err == nil && dims > maxDims {
		c.err = bad("tensor %s: %d dimensions, wanted at most %d", quote(t.Name), dims, maxDims)
	}
	if c.err != nil {
		return t, 0
	}
	t.Shape = make([]int, dims)
	for i := range t.Shape {
		d := c.uint64()
		if c.err == nil && d > math.MaxInt {
			c.err = bad("tensor %s: dimension %d is %d: too large", quote(t.Name), dims-1-uint32(i), d)
			return t, 0
		}
		t.Shape[len(t.Shape)-1-i] = int(d)
	}
	t.Type = Type(c.uint32())
	return t, c.uint64()
}
