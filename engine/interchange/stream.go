package interchange

import (
	"context"
	"encoding/binary"
	"io"
	"math"

	"tinkerlocal/engine/api"
)

// progress counts bytes, of writing and comparing together. One goroutine uses it.
type progress struct {
	done, total int64
	tell        func(done, total int64)
}

func newProgress(o WriteOptions, total int64) *progress {
	return &progress{total: total, tell: o.Progress}
}

func (p *progress) add(n int64) {
	p.done += n
	p.tell(min(p.done, p.total), p.total)
}

// put writes data a piece at a time, so that a cancelled write ends soon.
func put(ctx context.Context, w io.Writer, data []byte, p *progress) error {
	const piece = 1 << 20
	for len(data) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := w.Write(data[:min(piece, len(data))])
		if err != nil {
			return err
		}
		p.add(int64(n))
		data = data[n:]
	}
	return nil
}

// finite refuses NaN and infinities among float32 values.
func finite(name string, data []byte) error {
	for i := 0; i < len(data); i += 4 {
		if v := math.Float32frombits(binary.LittleEndian.Uint32(data[i:])); v-v != 0 {
			return api.Errorf(api.BadRequest, "tensor %s: value %d is %v: the training diverged", name, i/4, v)
		}
	}
	return nil
}

// countingWriter counts what is written, and ends when ctx does.
type countingWriter struct {
	ctx context.Context
	w   io.Writer
	p   *progress
}

func (c countingWriter) Write(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.w.Write(b)
	c.p.add(int64(n))
	return n, err
}
