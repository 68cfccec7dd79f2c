package kernels

import (
	"fmt"
	"math"
)

// DType is the type of a tensor's elements.
type DType uint8

// The element types. F64 exists for the reference device, F16 for reading checkpoints.
const (
	F32 DType = iota + 1
	BF16
	F16
	F64
	I32
)

// Size is the size of one element in bytes.
func (d DType) Size() int {
	switch d {
	case F32, I32:
		return 4
	case BF16, F16:
		return 2
	case F64:
		return 8
	}
	return 0
}

func (d DType) String() string {
	switch d {
	case F32:
		return "float32"
	case BF16:
		return "bfloat16"
	case F16:
		return "float16"
	case F64:
		return "float64"
	case I32:
		return "int32"
	}
	return fmt.Sprintf("dtype(%d)", uint8(d))
}

// Tensor is a contiguous row-major view of device memory. It is a value: passing it allocates nothing.
// The zero Tensor stands for "none".
type Tensor struct {
	Shape [4]int
	Rank  int
	DType DType
	Buf   Buffer
	Off   int64 // bytes
}

// None reports whether t is the zero Tensor.
func (t Tensor) None() bool { return t.Buf == nil }

// Len is the number of elements.
func (t Tensor) Len() int {
	n := 1
	for _, s := range t.Shape[:t.Rank] {
		n *= s
	}
	if t.Rank == 0 {
		return 0
	}
	return n
}

// Bytes is the size of the tensor's memory.
func (t Tensor) Bytes() int64 { return int64(t.Len()) * int64(t.DType.Size()) }

// Dim is the size of dimension i, or 1 past the rank.
func (t Tensor) Dim(i int) int {
	if i < t.Rank {
		return t.Shape[i]
	}
	return 1
}

// Cols is the size of the last dimension.
func (t Tensor) Cols() int { return t.Shape[max(t.Rank-1, 0)] }

// View returns a tensor on buf at byte offset off.
func View(buf Buffer, off int64, d DType, shape ...int) Tensor {
	t := Tensor{Rank: len(shape), DType: d, Buf: buf, Off: off}
	copy(t.Shape[:], shape)
	return t
}

// Reshape returns the same memory under another shape with the same element count.
func (t Tensor) Reshape(shape ...int) Tensor {
	r := View(t.Buf, t.Off, t.DType, shape...)
	if r.Len() != t.Len() {
		panic(fmt.Sprintf("kernels: reshape %v to %v", t.Shape[:t.Rank], shape))
	}
	return r
}

// RowRange returns rows [lo, hi) of the first dimension.
func (t Tensor) RowRange(lo, hi int) Tensor {
	if t.None() {
		return t
	}
	if lo < 0 || hi < lo || hi > t.Shape[0] {
		panic(fmt.Sprintf("kernels: rows [%d,%d) of %v", lo, hi, t.Shape[:t.Rank]))
	}
	row := int64(t.DType.Size())
	for _, s := range t.Shape[1:max(t.Rank, 1)] {
		row *= int64(s)
	}
	t.Off += int64(lo) * row
	t.Shape[0] = hi - lo
	return t
}

func (t Tensor) String() string {
	if t.None() {
		return "none"
	}
	return fmt.Sprintf("%s%v", t.DType, t.Shape[:t.Rank])
}

// BF16ToF32 widens one bfloat16, exactly.
func BF16ToF32(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

// F32ToBF16 rounds to the nearest bfloat16, ties to even; NaN stays NaN.
func F32ToBF16(f float32) uint16 {
	u := math.Float32bits(f)
	if f != f {
		return uint16(u>>16) | 0x40
	}
	return uint16((u + 0x7fff + (u>>16)&1) >> 16)
}

// F16ToF32 widens one IEEE half, exactly.
func F16ToF32(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	exp, frac := uint32(h>>10)&0x1f, uint32(h&0x3ff)
	switch {
	case exp == 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | frac<<13)
	case exp != 0:
		return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
	}
	f := float32(frac) * (1.0 / (1 << 24)) // subnormal or zero: exact
	return math.Float32frombits(math.Float32bits(f) | sign)
}
