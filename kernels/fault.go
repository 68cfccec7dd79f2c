package kernels

import (
	"errors"
	"fmt"
	"math"
	"strings"
)

// anySize stands for a dimension that may have any size from 1.
const anySize = -1

// maxElems bounds sizes so that products of two of them with an element size cannot overflow.
const maxElems = 1 << 40

// maxHeads bounds head counts, for the same reason.
const maxHeads = 1 << 16

// present checks that t is there and inside its buffer.
func present(op, name string, t Tensor) error {
	if t.Buf == nil {
		return missingError(op, name)
	}
	if t.Rank < 1 || t.Rank > len(t.Shape) {
		return placeError(op, name, t, 0)
	}
	size := int64(t.DType.Size())
	if size == 0 {
		return placeError(op, name, t, 0)
	}
	n := int64(1)
	for i := 0; i < t.Rank; i++ {
		s := int64(t.Shape[i])
		if s < 1 || s > maxElems/n {
			return placeError(op, name, t, 0)
		}
		n *= s
	}
	if t.Off < 0 || t.Off%size != 0 || t.Off > t.Buf.Len()-n*size {
		return placeError(op, name, t, n*size)
	}
	return nil
}

func typed(op, name string, t Tensor, d DType) error {
	if err := present(op, name, t); err != nil {
		return err
	}
	if t.DType != d {
		return typeError(op, name, t, d)
	}
	return nil
}

func shape1(op, name string, t Tensor, d DType, a int) error {
	return shaped(op, name, t, d, 1, a, anySize)
}

func shape2(op, name string, t Tensor, d DType, a, b int) error {
	return shaped(op, name, t, d, 2, a, b)
}

func shaped(op, name string, t Tensor, d DType, rank, a, b int) error {
	if t.Buf == nil {
		return missingError(op, name)
	}
	if t.DType != d || t.Rank != rank ||
		a != anySize && t.Shape[0] != a ||
		rank == 2 && b != anySize && t.Shape[1] != b {
		return shapeError(op, name, t, d, rank, a, b)
	}
	return present(op, name, t)
}

// like checks that t has the shape and dtype of other, which was checked before.
func like(op, name string, t Tensor, otherName string, other Tensor) error {
	if err := present(op, name, t); err != nil {
		return err
	}
	if t.DType != other.DType || t.Rank != other.Rank || t.Shape != other.Shape {
		return sameError(op, name, t, otherName, other)
	}
	return nil
}

// sameLen checks that t has the element count and dtype of other, which was checked before.
func sameLen(op, name string, t Tensor, otherName string, other Tensor) error {
	if err := present(op, name, t); err != nil {
		return err
	}
	if t.DType != other.DType || t.Len() != other.Len() {
		return sameError(op, name, t, otherName, other)
	}
	return nil
}

func weight(op string, w Weight) error {
	if w == nil || w.Rows() < 1 {
		return missingError(op, "weight")
	}
	return nil
}

func notNegative(op, name string, v float64) error {
	if !(v >= 0) || math.IsInf(v, 1) {
		return numberError(op, name, v, "a finite number from 0")
	}
	return nil
}

// ErrUnimplemented marks an op that a device lacks; test for it with errors.Is.
var ErrUnimplemented = errors.New("not implemented by this device")

// RangeError says that element index of the integer tensor name holds got, which is outside lo..hi:
// "embed: ids[3] is 999, wanted 0..319". Devices use it for values they find in their memory.
//
//go:noinline
func RangeError(op, name string, index int, got int32, lo, hi int) error {
	return fmt.Errorf("%s: %s[%d] is %d, wanted %d..%d", op, name, index, got, lo, hi)
}

// ForeignError says that a buffer or weight was made by another device.
//
//go:noinline
func ForeignError(op, name string) error {
	return fmt.Errorf("%s: %s belongs to another device", op, name)
}

// The functions below build errors. They are kept out of line so that formatting makes nothing
// escape to the heap on the path where the check passes.

//go:noinline
func missingError(op, name string) error {
	return fmt.Errorf("%s: %s is missing or freed", op, name)
}

//go:noinline
func shapeError(op, name string, t Tensor, d DType, rank, a, b int) error {
	var want strings.Builder
	if t.DType != d {
		want.WriteString(d.String())
	}
	want.WriteByte('[')
	for i, n := range [2]int{a, b} {
		if i == rank {
			break
		}
		if i > 0 {
			want.WriteByte(' ')
		}
		if n == anySize {
			want.WriteByte('*')
		} else {
			fmt.Fprint(&want, n)
		}
	}
	want.WriteByte(']')
	return fmt.Errorf("%s: %s is %s, wanted %s", op, name, describe(t), want.String())
}

// describe is Tensor.String for tensors that may have an impossible rank.
func describe(t Tensor) string {
	if t.Rank < 0 || t.Rank > len(t.Shape) {
		return fmt.Sprintf("%s of rank %d", t.DType, t.Rank)
	}
	return t.String()
}

//go:noinline
func placeError(op, name string, t Tensor, bytes int64) error {
	if bytes == 0 {
		return fmt.Errorf("%s: %s is %s, wanted 1 to %d dimensions of size 1 or more", op, name, describe(t), len(t.Shape))
	}
	if t.Buf.Len() == 0 {
		return fmt.Errorf("%s: %s is %s in a buffer that is empty or freed", op, name, describe(t))
	}
	return fmt.Errorf("%s: %s is %s (%d bytes) at byte %d, wanted an aligned place inside its buffer of %d bytes",
		op, name, describe(t), bytes, t.Off, t.Buf.Len())
}

//go:noinline
func typeError(op, name string, t Tensor, d DType) error {
	return fmt.Errorf("%s: %s is %s, wanted %s", op, name, describe(t), d)
}

//go:noinline
func sameError(op, name string, t Tensor, otherName string, other Tensor) error {
	return fmt.Errorf("%s: %s is %s, wanted the size of %s, %s", op, name, describe(t), otherName, describe(other))
}

//go:noinline
func numberError(op, name string, got float64, want string) error {
	return fmt.Errorf("%s: %s is %v, wanted %s", op, name, got, want)
}

//go:noinline
func spanError(op string, i int, what string, got, lo, hi int) error {
	return fmt.Errorf("%s: span %d: %s is %d, wanted %d..%d", op, i, what, got, lo, hi)
}

//go:noinline
func inSpan(i int, err error) error { return fmt.Errorf("%w (span %d)", err, i) }

//go:noinline
func seqError(op string, i int, what string, got, lo, hi int) error {
	if hi == lo {
		return fmt.Errorf("%s: sequence %d: %s is %d, wanted %d", op, i, what, got, lo)
	}
	if hi < lo {
		return fmt.Errorf("%s: sequence %d: %s is %d, but its keys do not fit at all", op, i, what, got)
	}
	if hi == maxElems {
		return fmt.Errorf("%s: sequence %d: %s is %d, wanted at least %d", op, i, what, got, lo)
	}
	return fmt.Errorf("%s: sequence %d: %s is %d, wanted %d..%d", op, i, what, got, lo, hi)
}

//go:noinline
func pageError(op string, i, j, got, hi int) error {
	return fmt.Errorf("%s: sequence %d: page %d is %d, wanted 0..%d", op, i, j, got, hi)
}

//go:noinline
func coverError(op string, got, want int) error {
	return fmt.Errorf("%s: sequences cover rows 0..%d, wanted all %d rows of the batch", op, got, want)
}

//go:noinline
func bytesError(op string, t Tensor, host int) error {
	return fmt.Errorf("%s: %s holds %d bytes, got %d", op, describe(t), t.Bytes(), host)
}

//go:noinline
func packError(i int, verb string, rows, cols int, want string) error {
	return fmt.Errorf("pack: part %d %s [%d %d], wanted %s", i, verb, rows, cols, want)
}

//go:noinline
func packDataError(i int, m *Matrix) error {
	return fmt.Errorf("pack: part %d is %s[%d %d] and holds %d bytes, wanted %d",
		i, m.DType, m.Rows, m.Cols, len(m.Data), m.Rows*m.Cols*m.DType.Size())
}

//go:noinline
func storeError(store DType) error {
	return fmt.Errorf("pack: store is %s, wanted float32 or bfloat16", store)
}

//go:noinline
func expertError(op string, i int, up, down Weight, d, f int) error {
	return fmt.Errorf("%s: the weights of expert %d are [%d %d] of parts %v and [%d %d], wanted [%d %d] of two equal parts and [%d %d]",
		op, i, up.Rows(), up.Cols(), up.Parts(), down.Rows(), down.Cols(), 2*f, d, d, f)
}
