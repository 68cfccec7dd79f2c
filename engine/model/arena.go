package model

import "tinkerlocal/kernels"

// arena hands out pieces of one buffer. Without a buffer it only counts, so the memory plan and the
// work itself run the same code.
type arena struct {
	buf kernels.Buffer
	off int64
	act kernels.DType
}

const arenaAlign = 64 // a cache line, and more than any device's vector width needs

func (a *arena) tensor(d kernels.DType, shape ...int) kernels.Tensor {
	t := kernels.View(a.buf, a.off, d, shape...)
	a.off += (t.Bytes() + arenaAlign - 1) / arenaAlign * arenaAlign
	return t
}

// floats is a tensor of activations; ints one of indices.
func (a *arena) floats(shape ...int) kernels.Tensor { return a.tensor(a.act, shape...) }
func (a *arena) ints(shape ...int) kernels.Tensor   { return a.tensor(kernels.I32, shape...) }

// take gives back a buffer of at least n bytes, the spare one if it fits.
func (b *Base) take(n int64) (kernels.Buffer, error) {
	if b.spare != nil && b.spare.Len() >= n {
		buf := b.spare
		b.spare = nil
		return buf, nil
	}
	b.dev.Free(b.spare)
	b.spare = nil
	return b.dev.Alloc(n)
}

// SpareBytes is the memory of the buffer that is kept for the next batch.
func (b *Base) SpareBytes() int64 {
	if b.spare == nil {
		return 0
	}
	return b.spare.Len()
}

// Trim frees the buffer that is kept for the next batch.
func (b *Base) Trim() {
	b.dev.Free(b.spare)
	b.spare = nil
}

// give keeps the larger of buf and the spare buffer for the next batch.
func (b *Base) give(buf kernels.Buffer) {
	switch {
	case buf == nil:
	case b.spare == nil:
		b.spare = buf
	case b.spare.Len() < buf.Len():
		b.dev.Free(b.spare)
		b.spare = buf
	default:
		b.dev.Free(buf)
	}
}
