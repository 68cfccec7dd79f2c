package ref

import (
	"encoding/binary"
	"math"
	"unsafe"

	"tinkerlocal/kernels"
)

// buffer is host memory. It is made of words so that every element type is aligned.
type buffer struct {
	owner any // the device that made it
	words []uint64
	n     int64
}

func (b *buffer) Len() int64 { return b.n }

// view is the memory of a checked tensor as values of type E. For bytes it is the whole tensor.
func view[E any](t kernels.Tensor) []E {
	var e E
	n := t.Bytes() / int64(unsafe.Sizeof(e))
	p := unsafe.Pointer(&t.Buf.(*buffer).words[0])
	return unsafe.Slice((*E)(unsafe.Add(p, t.Off)), n)
}

// optional is view, or nil for the zero Tensor.
func optional[E any](t kernels.Tensor) []E {
	if t.None() {
		return nil
	}
	return view[E](t)
}

// own checks that the tensors that are there live on this device.
func (d *device[F]) own(op string, ts ...kernels.Tensor) error {
	for _, t := range ts {
		if t.None() {
			continue
		}
		if b, ok := t.Buf.(*buffer); !ok || b.owner != any(d) {
			return kernels.ForeignError(op, "a tensor")
		}
	}
	return nil
}

// ownSpans is own for the adapters of a batch; their gradients matter in backward ops only.
func (d *device[F]) ownSpans(op string, spans []kernels.Span, grads bool) error {
	for _, s := range spans {
		if s.LoRA == nil {
			continue
		}
		if err := d.own(op, s.LoRA.A, s.LoRA.B); err != nil {
			return err
		}
		if grads {
			if err := d.own(op, s.LoRA.DA, s.LoRA.DB); err != nil {
				return err
			}
		}
	}
	return nil
}

// matrix is a packed weight: row-major values, widened from the store dtype.
type matrix[F float] struct {
	owner *device[F]
	data  []F // [rows, cols]
	rows  int
	cols  int
	parts []int
	part  []int // the part of each row
	store kernels.DType
}

func (w *matrix[F]) Rows() int            { return w.rows }
func (w *matrix[F]) Cols() int            { return w.cols }
func (w *matrix[F]) Parts() []int         { return w.parts }
func (w *matrix[F]) Store() kernels.DType { return w.store }

func (w *matrix[F]) Bytes() int64 {
	return int64(len(w.data)) * int64(unsafe.Sizeof(F(0)))
}

func (w *matrix[F]) Free() {
	w.owner.free += w.Bytes()
	w.data, w.rows = nil, 0
}

// row is row o of the weight.
func (w *matrix[F]) row(o int) []F { return w.data[o*w.cols : (o+1)*w.cols] }

// weight returns w as this device's own.
func (d *device[F]) weight(op string, w kernels.Weight) (*matrix[F], error) {
	m, ok := w.(*matrix[F])
	if !ok || m.owner != d {
		return nil, kernels.ForeignError(op, "the weight")
	}
	return m, nil
}

// Pack keeps the parts as one matrix of the device's float type, after rounding to store.
func (d *device[F]) Pack(parts []kernels.Matrix, store kernels.DType) (kernels.Weight, error) {
	if err := kernels.CheckPack(parts, store); err != nil {
		return nil, err
	}
	w := &matrix[F]{owner: d, cols: parts[0].Cols, store: d.act}
	for p, m := range parts {
		w.rows += m.Rows
		w.parts = append(w.parts, m.Rows)
		for range m.Rows {
			w.part = append(w.part, p)
		}
	}
	// The bytes are booked against the device's limit like any other memory.
	b, err := d.Alloc(int64(w.rows) * int64(w.cols) * int64(d.act.Size()))
	if err != nil {
		return nil, err
	}
	w.data = view[F](kernels.View(b, 0, d.act, w.rows, w.cols))
	i := 0
	for _, m := range parts {
		for j := range m.Rows * m.Cols {
			v := element(m, j)
			if store == kernels.BF16 {
				v = kernels.BF16ToF32(kernels.F32ToBF16(v))
			}
			w.data[i] = F(v)
			i++
		}
	}
	return w, nil
}

// element is value i of a host matrix.
func element(m kernels.Matrix, i int) float32 {
	switch m.DType {
	case kernels.F32:
		return math.Float32frombits(binary.LittleEndian.Uint32(m.Data[4*i:]))
	case kernels.F16:
		return kernels.F16ToF32(binary.LittleEndian.Uint16(m.Data[2*i:]))
	}
	return kernels.BF16ToF32(binary.LittleEndian.Uint16(m.Data[2*i:]))
}
