package kernels

import (
	"encoding/binary"
	"fmt"
	"math"
)

// WriteFloats uploads src to t, converting to t's dtype (F32, F64 or BF16).
func WriteFloats(d Device, t Tensor, src []float32) error {
	if t.Len() != len(src) {
		return fmt.Errorf("write %v: got %d values", t, len(src))
	}
	if len(src) == 0 {
		return nil
	}
	buf := make([]byte, t.Bytes())
	switch t.DType {
	case F32:
		for i, v := range src {
			binary.LittleEndian.PutUint32(buf[4*i:], math.Float32bits(v))
		}
	case F64:
		for i, v := range src {
			binary.LittleEndian.PutUint64(buf[8*i:], math.Float64bits(float64(v)))
		}
	case BF16:
		for i, v := range src {
			binary.LittleEndian.PutUint16(buf[2*i:], F32ToBF16(v))
		}
	default:
		return fmt.Errorf("write %v: not a float tensor", t)
	}
	return d.Upload(t, buf)
}

// ReadFloats downloads t as float32.
func ReadFloats(d Device, t Tensor) ([]float32, error) {
	buf := make([]byte, t.Bytes())
	if len(buf) == 0 {
		return nil, nil
	}
	if err := d.Download(buf, t); err != nil {
		return nil, err
	}
	out := make([]float32, t.Len())
	switch t.DType {
	case F32:
		for i := range out {
			out[i] = math.Float32frombits(binary.LittleEndian.Uint32(buf[4*i:]))
		}
	case F64:
		for i := range out {
			out[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(buf[8*i:])))
		}
	case BF16:
		for i := range out {
			out[i] = BF16ToF32(binary.LittleEndian.Uint16(buf[2*i:]))
		}
	default:
		return nil, fmt.Errorf("read %v: not a float tensor", t)
	}
	return out, nil
}

// WriteInts uploads src to the I32 tensor t.
func WriteInts(d Device, t Tensor, src []int32) error {
	if t.DType != I32 || t.Len() != len(src) {
		return fmt.Errorf("write %v: got %d int32 values", t, len(src))
	}
	if len(src) == 0 {
		return nil
	}
	buf := make([]byte, 4*len(src))
	for i, v := range src {
		binary.LittleEndian.PutUint32(buf[4*i:], uint32(v))
	}
	return d.Upload(t, buf)
}

// NewTensor allocates a buffer of its own for a tensor.
func NewTensor(d Device, dt DType, shape ...int) (Tensor, error) {
	t := View(nil, 0, dt, shape...)
	b, err := d.Alloc(t.Bytes())
	if err != nil {
		return Tensor{}, err
	}
	t.Buf = b
	return t, nil
}

// ReadInts downloads the I32 tensor t.
func ReadInts(d Device, t Tensor) ([]int32, error) {
	if t.DType != I32 {
		return nil, fmt.Errorf("read %v: wanted an int32 tensor", t)
	}
	buf := make([]byte, t.Bytes())
	if err := d.Download(buf, t); err != nil {
		return nil, err
	}
	out := make([]int32, t.Len())
	for i := range out {
		out[i] = int32(binary.LittleEndian.Uint32(buf[4*i:]))
	}
	return out, nil
}
