package gguf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/bits"

	"tinkerlocal/engine/api"
	"tinkerlocal/kernels"
)

// Type is an element type by its number in the file. Quantised types are not read.
type Type uint32

// The element types.
const (
	F32  Type = 0
	F16  Type = 1
	I8   Type = 24
	I16  Type = 25
	I32  Type = 26
	I64  Type = 27
	F64  Type = 28
	BF16 Type = 30
)

// types lists what is known with its name and its size in bytes.
var types = map[Type]struct {
	name string
	size uint64
}{
	F32: {"F32", 4}, F16: {"F16", 2}, BF16: {"BF16", 2}, F64: {"F64", 8},
	I8: {"I8", 1}, I16: {"I16", 2}, I32: {"I32", 4}, I64: {"I64", 8},
}

func (t Type) String() string {
	if kind, ok := types[t]; ok {
		return kind.name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// Limits of llama.cpp: GGML_MAX_DIMS, and GGML_MAX_NAME less the final zero.
const (
	maxDims = 4
	maxName = 63
)

// Tensor is one tensor of a file, to be written or as it was read.
type Tensor struct {
	Name  string
	Type  Type
	Shape []int // outermost first; read-only

	// Write writes the tensor's bytes, row-major and little-endian. It is called when their turn comes, so that a file can be
	// larger than memory.
	Write func(w io.Writer) error
}

// Size is the number of the tensor's bytes, and an error where its name, type or shape cannot be in a file.
func (t Tensor) Size() (int64, error) {
	kind, known := types[t.Type]
	switch {
	case t.Name == "" || len(t.Name) > maxName:
		return 0, bad("tensor %s: a name of %d bytes, wanted 1 to %d", quote(t.Name), len(t.Name), maxName)
	case !known:
		return 0, api.Errorf(api.Unsupported, "tensor %s: %v is quantised or unknown, wanted F32, F16 or BF16", quote(t.Name), t.Type)
	case len(t.Shape) > maxDims:
		return 0, bad("tensor %s: %d dimensions, wanted at most %d", quote(t.Name), len(t.Shape), maxDims)
	}
	// Every partial product is checked, so that a zero cannot hide an overflow from a reader that multiplies in another order.
	n, zero := kind.size, false
	for _, d := range t.Shape {
		if d == 0 {
			zero = true
			continue
		}
		high, low := bits.Mul64(n, uint64(d))
		if d < 0 || high != 0 || low > math.MaxInt64/2 {
			return 0, bad("tensor %s: shape %v is negative or too large", quote(t.Name), t.Shape)
		}
		n = low
	}
	if zero {
		return 0, nil
	}
	return int64(n), nil
}

// Float32s reads the values of an F32, BF16 or F16 tensor, widened exactly.
func (t Tensor) Float32s() ([]float32, error) {
	size, err := t.Size()
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	var each int
	var at func(b []byte) float32
	switch t.Type {
	case F32:
		each, at = 4, func(b []byte) float32 { return math.Float32frombits(le.Uint32(b)) }
	case BF16:
		each, at = 2, func(b []byte) float32 { return kernels.BF16ToF32(le.Uint16(b)) }
	case F16:
		each, at = 2, func(b []byte) float32 { return kernels.F16ToF32(le.Uint16(b)) }
	default:
		return nil, api.Errorf(api.Unsupported, "tensor %s is %v, wanted F32, F16 or BF16", quote(t.Name), t.Type)
	}
	data := bytes.NewBuffer(make([]byte, 0, size))
	if err := t.Write(data); err != nil {
		return nil, err
	}
	if int64(data.Len()) != size {
		return nil, bad("tensor %s: %d bytes, wanted %d for %v%v", quote(t.Name), data.Len(), size, t.Type, t.Shape)
	}
	out := make([]float32, data.Len()/each)
	for i := range out {
		out[i] = at(data.Next(each))
	}
	return out, nil
}

func bad(format string, args ...any) error { return api.Errorf(api.BadRequest, format, args...) }

// quote makes a name from a file fit for a message.
func quote(s string) string {
	if len(s) > 80 {
		return fmt.Sprintf("%q…", s[:80])
	}
	return fmt.Sprintf("%q", s)
}
