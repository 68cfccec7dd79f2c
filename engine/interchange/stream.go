package interchange

import (
	"context"
	"encoding/binary"
	"io"
	"math"

	"tinkerlocal/engine/api"
)

// reporting returns what counts bytes for o.Progress.
func reporting(o WriteOptions, total int64) func(n int) {
	var done int64
	return func(n int) {
		done += int64(n)
		o.Progress(min(done, total), total)
	}
}

// put writes data a piece at a time, so that a cancelled write ends soon.
func put(ctx context.Context, w io.Writer, data []byte, done func(n int)) error {
	const piece = 1 << 20
	for len(data) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := w.Write(data[:min(piece, len(data))])
		if err != nil {
			return err
		}
		done(n)
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
