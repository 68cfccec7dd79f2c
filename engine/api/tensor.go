package api

import (
	"math"
	"strings"
	"unicode/utf8"
)

// Bounds of a tensor in a checkpoint.
const (
	maxTensorName = 512
	maxTensorDims = 8
)

// TensorInfo names a tensor in a checkpoint. DType is a word of safetensors: F64, F32, BF16, F16, I64, I32,
// I16, I8, U8, BOOL. Values are row-major and little-endian.
type TensorInfo struct {
	Name  string `json:"name"`
	DType string `json:"dtype"`
	Shape []int  `json:"shape"`
}

// Bytes checks t and returns the size of its content.
func (t TensorInfo) Bytes() (int64, error) {
	elem := DTypeBytes(t.DType)
	switch {
	case t.Name == "" || len(t.Name) > maxTensorName || !utf8.ValidString(t.Name) || strings.ContainsRune(t.Name, 0):
		return 0, Errorf(BadRequest, "the tensor's name is %.80q (%d bytes), wanted 1 to %d bytes of UTF-8 without NUL", t.Name, len(t.Name), maxTensorName)
	case elem == 0:
		return 0, Errorf(BadRequest, "tensor %q has the dtype %.20q, wanted F64, F32, BF16, F16, I64, I32, I16, I8, U8 or BOOL", t.Name, t.DType)
	case len(t.Shape) > maxTensorDims:
		return 0, Errorf(BadRequest, "tensor %q has %d dimensions, wanted at most %d", t.Name, len(t.Shape), maxTensorDims)
	}
	n := int64(elem)
	for _, d := range t.Shape {
		if d < 0 || d > 0 && n > math.MaxInt64/4/int64(d) {
			return 0, Errorf(BadRequest, "tensor %q has the shape %v, wanted sizes from 0 whose product is a number of bytes", t.Name, t.Shape)
		}
		n *= int64(d)
	}
	return n, nil
}

// DTypeBytes is the size of a dtype's elements, 0 for one that is unknown.
func DTypeBytes(dtype string) int {
	switch dtype {
	case "F64", "I64":
		return 8
	case "F32", "I32":
		return 4
	case "BF16", "F16", "I16":
		return 2
	case "I8", "U8", "BOOL":
		return 1
	}
	return 0
}
