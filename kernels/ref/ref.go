// Package ref is the reference device: float64, obvious, slow. It is the oracle that every other
// device is measured against, so it has no tiles, no threads and no cleverness.
//
// # Order of sums
//
// Every sum runs over its index in ascending order from zero: a dot product over its columns, a
// softmax denominator over its keys or vocabulary entries after the maximum is subtracted, an
// adapter gradient over the tokens of one span (a span is one segment, whatever its length), whose
// sum is then added to DA or DB, span after span. Nothing depends on the batch around a token.
//
// # Two variants
//
// [Open] is the oracle. [OpenFloat32] is the same loops with every value and every operation rounded
// to float32: the "plain same-dtype computation" that kerneltest takes as its yardstick for rounding
// errors. Weights are rounded to the store dtype that Pack is asked for, and then kept widened.
package ref

import (
	"context"
	"fmt"
	"unsafe"

	"tinkerlocal/kernels"
)

// maxBytes bounds what one reference device hands out: it is made for tiny models, and a request for
// more than this is a mistake that should be an error instead of a dead process.
const maxBytes = 4 << 30

// float is the type a variant computes in.
type float interface{ float32 | float64 }

// Open returns the float64 reference device.
func Open() kernels.Device { return open[float64]() }

// OpenFloat32 returns the same computation in float32 throughout.
func OpenFloat32() kernels.Device { return open[float32]() }

func open[F float]() kernels.Device {
	d := &device[F]{act: kernels.F32, free: maxBytes}
	if unsafe.Sizeof(F(0)) == 8 {
		d.act = kernels.F64
	}
	d.ops = ops[F]{d}
	return d
}

// device implements kernels.Device.
type device[F float] struct {
	act    kernels.DType
	ops    ops[F]
	free   int64
	closed bool
	row    []F // scratch for one row of scores or logits; grows, never shrinks
}

func (d *device[F]) Info() kernels.Info {
	return kernels.Info{
		Name:    "ref (" + d.act.String() + ")",
		Kind:    "ref",
		Variant: d.act.String(),
		Act:     d.act,
		Threads: 1,
		Memory:  maxBytes,
		Free:    d.free,
	}
}

func (d *device[F]) Ops() kernels.Ops { return d.ops }

func (d *device[F]) Alloc(bytes int64) (kernels.Buffer, error) {
	if d.closed {
		return nil, fmt.Errorf("alloc: device is closed")
	}
	if bytes < 0 || bytes > d.free {
		return nil, fmt.Errorf("alloc: wanted %d bytes, free %d: %w", bytes, d.free, kernels.ErrMemory)
	}
	d.free -= bytes
	return &buffer{owner: d, words: make([]uint64, (bytes+7)/8), n: bytes}, nil
}

func (d *device[F]) Free(b kernels.Buffer) {
	if own, ok := b.(*buffer); ok && own != nil && own.owner == any(d) {
		d.free += own.n
		own.words, own.n = nil, 0
	}
}

func (d *device[F]) Upload(dst kernels.Tensor, src []byte) error {
	if err := kernels.CheckUpload("upload", dst, len(src)); err != nil {
		return err
	}
	if err := d.own("upload", dst); err != nil {
		return err
	}
	copy(view[byte](dst), src)
	return nil
}

func (d *device[F]) Download(dst []byte, src kernels.Tensor) error {
	if err := kernels.CheckUpload("download", src, len(dst)); err != nil {
		return err
	}
	if err := d.own("download", src); err != nil {
		return err
	}
	copy(dst, view[byte](src))
	return nil
}

func (d *device[F]) Wait(ctx context.Context) error { return ctx.Err() }

func (d *device[F]) Close() error {
	d.closed = true
	return nil
}

// scores returns scratch for n values.
func (d *device[F]) scores(n int) []F {
	if len(d.row) < n {
		d.row = make([]F, n)
	}
	return d.row[:n]
}
