package interchange

import (
	"encoding/binary"
	"math"
	"sync"

	"tinkerlocal/kernels"
)

// productsInFloat32 says whether the device multiplies the factors of a tensor: where float32's error vanishes in the rounding.
func (m *merged) productsInFloat32(t *mergedTensor) bool {
	return m.o.Device != nil && m.o.Device.Info().Act == kernels.F32 && t.dtype.Size() == 2
}

// product computes rows of B·A on a device, as a linear layer whose weight is A transposed and whose inputs are B's rows. Any goroutine may
// use it; they take turns.
type product struct {
	mu   sync.Mutex
	dev  kernels.Device
	a    kernels.Weight // [cols, rank]
	x, y kernels.Tensor // [rows, rank], [rows, cols]
}

// newProduct takes A [rank, cols].
func newProduct(dev kernels.Device, cols, rank int, a []float32) (*product, error) {
	t := make([]byte, 4*len(a))
	for k := range rank {
		for j, v := range a[k*cols:][:cols] {
			binary.LittleEndian.PutUint32(t[4*(j*rank+k):], math.Float32bits(v))
		}
	}
	w, err := dev.Pack([]kernels.Matrix{{Rows: cols, Cols: rank, DType: kernels.F32, Data: t}}, kernels.F32)
	if err != nil {
		return nil, err
	}
	return &product{dev: dev, a: w}, nil
}

// rows overwrites dst with n rows of the product as little-endian float32, where b [n, rank] are rows of B. dst has room for b's bytes, too.
func (p *product) rows(dst []byte, b []float32, n int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.x.None() || p.x.Dim(0) < n {
		p.freeTensors()
		var err error
		if p.x, err = kernels.NewTensor(p.dev, kernels.F32, n, p.a.Cols()); err != nil {
			return err
		}
		if p.y, err = kernels.NewTensor(p.dev, kernels.F32, n, p.a.Rows()); err != nil {
			return err
		}
	}
	for i, v := range b {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
	}
	x, y := p.x.RowRange(0, n), p.y.RowRange(0, n)
	if err := p.dev.Upload(x, dst[:4*len(b)]); err != nil {
		return err
	}
	if err := p.dev.Ops().Linear(kernels.LinearArgs{Y: y, X: x, W: p.a}); err != nil {
		return err
	}
	return p.dev.Download(dst[:y.Bytes()], y)
}

func (p *product) freeTensors() {
	p.dev.Free(p.x.Buf)
	p.dev.Free(p.y.Buf)
	p.x, p.y = kernels.Tensor{}, kernels.Tensor{}
}

func (p *product) free() {
	p.freeTensors()
	p.a.Free()
}
