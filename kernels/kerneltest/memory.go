package kerneltest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"tinkerlocal/kernels"
)

// memoryChecks are about buffers and weights: contents, limits, and uses that must be refused.
func memoryChecks() []check {
	return []check{
		{"memory", "alloc is zero-filled", allocZero},
		{"memory", "upload and download", upDown},
		{"memory", "refused transfers", transfers},
		{"memory", "refused allocations", allocations},
		{"memory", "use after free", afterFree},
		{"memory", "pack widens and rounds", packValues},
		{"memory", "refused packs", packs},
		{"memory", "wait", func(dev kernels.Device) error { return dev.Wait(context.Background()) }},
	}
}

func allocZero(dev kernels.Device) error {
	for range 3 { // again, in case freed memory is used again
		for _, n := range []int64{4, 36, 4096, 1 << 20} {
			t, err := kernels.NewTensor(dev, kernels.I32, int(n/4))
			if err != nil {
				return err
			}
			if t.Buf.Len() != n {
				return fmt.Errorf("buffer of %d bytes says %d", n, t.Buf.Len())
			}
			b := make([]byte, n)
			if err := dev.Download(b, t); err != nil {
				return err
			}
			if !bytes.Equal(b, make([]byte, n)) {
				return fmt.Errorf("alloc of %d bytes is not zero-filled", n)
			}
			if err := dev.Upload(t, bytes.Repeat([]byte{0xff}, int(n))); err != nil {
				return err
			}
			dev.Free(t.Buf)
		}
	}
	dev.Free(nil)
	return nil
}

func upDown(dev kernels.Device) error {
	t, err := kernels.NewTensor(dev, kernels.BF16, 5, 7)
	if err != nil {
		return err
	}
	defer dev.Free(t.Buf)
	src := make([]byte, 70)
	for i := range src {
		src[i] = byte(i * 7)
	}
	want := bytes.Clone(src)
	if err := dev.Upload(t, src); err != nil {
		return err
	}
	clear(src) // the device must not look at it any more
	got := make([]byte, 28)
	if err := dev.Download(got, t.RowRange(2, 4)); err != nil {
		return err
	}
	if d := sameBits(got, want[28:56]); d != "" {
		return fmt.Errorf("rows 2 and 3 of 5: %s", d)
	}
	return nil
}

// refusals collects calls that should have failed.
type refusals []error

// wants says that err should be an error.
func (f *refusals) wants(what string, err error) {
	if err == nil {
		*f = append(*f, fmt.Errorf("%s: no error", what))
	}
}

func (f refusals) err() error { return errors.Join(f...) }

func transfers(dev kernels.Device) error {
	t, err := kernels.NewTensor(dev, kernels.F32, 3, 5)
	if err != nil {
		return err
	}
	defer dev.Free(t.Buf)
	outside, before, odd, long, flat, deep := t, t, t, t, t, t
	outside.Off = 4
	before.Off = -4
	odd.Off, odd.Shape = 2, [4]int{1, 1}
	long.Shape = [4]int{1 << 40, 1 << 40}
	flat.Shape[0] = -3
	deep.Rank = 5
	var f refusals
	for name, bad := range map[string]kernels.Tensor{
		"none": {}, "outside": outside, "before": before, "not aligned": odd, "too long": long, "negative": flat, "rank 5": deep,
		"foreign": {Shape: t.Shape, Rank: 2, DType: kernels.F32, Buf: foreign{}},
	} {
		f.wants("upload to "+name, dev.Upload(bad, make([]byte, 60)))
		f.wants("download from "+name, dev.Download(make([]byte, 60), bad))
		f.wants("zero of "+name, dev.Ops().Zero(bad))
	}
	for _, n := range []int{0, 59, 61, 64} {
		f.wants(fmt.Sprint("upload of bytes ", n), dev.Upload(t, make([]byte, n)))
		f.wants(fmt.Sprint("download of bytes ", n), dev.Download(make([]byte, n), t))
	}
	return f.err()
}

// foreign is a buffer of no device.
type foreign struct{}

func (foreign) Len() int64 { return 1 << 30 }

func allocations(dev kernels.Device) error {
	var f refusals
	for _, n := range []int64{-1, math.MinInt64, 1 << 60, math.MaxInt64} {
		b, err := dev.Alloc(n)
		f.wants(fmt.Sprint("alloc of ", n), err)
		if err == nil {
			dev.Free(b)
		}
	}
	return f.err()
}

func afterFree(dev kernels.Device) error {
	t, err := kernels.NewTensor(dev, dev.Info().Act, 2, 3)
	if err != nil {
		return err
	}
	u, err := kernels.NewTensor(dev, dev.Info().Act, 2, 3)
	if err != nil {
		return err
	}
	defer dev.Free(u.Buf)
	n := t.Bytes()
	dev.Free(t.Buf)
	var f refusals
	f.wants("upload", dev.Upload(t, make([]byte, n)))
	f.wants("download", dev.Download(make([]byte, n), t))
	f.wants("zero", dev.Ops().Zero(t))
	f.wants("add", dev.Ops().Add(u, u, t))
	f.wants("copy", dev.Ops().Copy(u, t))
	dev.Free(t.Buf) // a second time does nothing
	w, err := dev.Pack([]kernels.Matrix{{Rows: 2, Cols: 3, DType: kernels.F32, Data: make([]byte, 24)}}, kernels.F32)
	if err != nil {
		return err
	}
	w.Free()
	y, err := kernels.NewTensor(dev, dev.Info().Act, 2, 2)
	if err != nil {
		return err
	}
	defer dev.Free(y.Buf)
	f.wants("linear with a freed weight", dev.Ops().Linear(kernels.LinearArgs{Y: y, X: u, W: w}))
	w.Free()
	return f.err()
}

// packValues reads a weight back through Embed.
func packValues(dev kernels.Device) error {
	vals := []float32{0, 1, -2.5, 1.0 / 3, -65504, 5.9604645e-8, 6.1035156e-5, 1e-3, 3.1415927, -0.1, 1 + 0x1p-8, 1 + 3*0x1p-8}
	f16 := []uint16{0, 0x3c00, 0xc100, 0x3555, 0xfbff, 1, 0x400, 0x1419, 0x4248, 0xae66, 0x3c04, 0x3c0c}
	for _, src := range []kernels.DType{kernels.F32, kernels.F16, kernels.BF16} {
		for _, store := range []kernels.DType{kernels.F32, kernels.BF16} {
			h := host{shape: []int{3, 4}, data: append([]float32(nil), vals...)}
			data := h.encode(src)
			switch src {
			case kernels.F16:
				data = make([]byte, 2*len(f16))
				for i, v := range f16 {
					binary.LittleEndian.PutUint16(data[2*i:], v)
					h.data[i] = kernels.F16ToF32(v)
				}
			case kernels.BF16:
				for i, v := range h.data {
					h.data[i] = kernels.BF16ToF32(kernels.F32ToBF16(v))
				}
			}
			err := onRig(dev, 0, func(r *rig) {
				// Two parts with rows in the middle of which the data is cut.
				half := len(data) / 3
				w, err := dev.Pack([]kernels.Matrix{{Rows: 1, Cols: 4, DType: src, Data: data[:half]}, {Rows: 2, Cols: 4, DType: src, Data: data[half:]}}, store)
				r.must(err)
				r.weights = append(r.weights, w)
				clear(data) // the device must not look at it any more
				if p := w.Parts(); w.Rows() != 3 || w.Cols() != 4 || len(p) != 2 || p[0] != 1 || p[1] != 2 || w.Bytes() < 12 {
					r.must(fmt.Errorf("weight [%d %d] of parts %v holding %d bytes, wanted [3 4] of parts [1 2]", w.Rows(), w.Cols(), p, w.Bytes()))
				}
				y := r.out("y", 3, 4)
				r.must(r.ops.Embed(y, w, r.in("ids", integers([]int{3}, []int32{0, 1, 2}))))
				for i, got := range r.floats(y).data {
					want := h.data[i]
					if store == kernels.BF16 {
						want = kernels.BF16ToF32(kernels.F32ToBF16(want))
					}
					if got != want {
						r.must(fmt.Errorf("%v stored as %v: value %d is %v, wanted %v", src, store, i, got, want))
					}
				}
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func packs(dev kernels.Device) error {
	m := func(rows, cols int, dt kernels.DType, bytes int) kernels.Matrix {
		return kernels.Matrix{Rows: rows, Cols: cols, DType: dt, Data: make([]byte, bytes)}
	}
	var f refusals
	for _, c := range []struct {
		name  string
		parts []kernels.Matrix
		store kernels.DType
	}{
		{"no parts", nil, kernels.F32},
		{"no rows", []kernels.Matrix{m(0, 3, kernels.F32, 0)}, kernels.F32},
		{"negative rows", []kernels.Matrix{m(-1, 3, kernels.F32, 0)}, kernels.F32},
		{"too much", []kernels.Matrix{m(1<<62, 4, kernels.F32, 0)}, kernels.F32},
		{"short data", []kernels.Matrix{m(2, 3, kernels.F32, 23)}, kernels.F32},
		{"long data", []kernels.Matrix{m(2, 3, kernels.BF16, 13)}, kernels.BF16},
		{"other columns", []kernels.Matrix{m(2, 3, kernels.F32, 24), m(2, 4, kernels.F32, 32)}, kernels.F32},
		{"int32", []kernels.Matrix{m(2, 3, kernels.I32, 24)}, kernels.F32},
		{"float16 store", []kernels.Matrix{m(2, 3, kernels.F32, 24)}, kernels.F16},
	} {
		w, err := dev.Pack(c.parts, c.store)
		f.wants(c.name, err)
		if err == nil {
			w.Free()
		}
	}
	return f.err()
}
