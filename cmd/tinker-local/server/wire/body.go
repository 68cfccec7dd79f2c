package wire

import (
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"

	"tinkerlocal/engine/api"
)

// The content types of bodies.
const (
	Protobuf = "application/x-protobuf"
	JSON     = "application/json"
)

// maxWindow bounds what a zstd frame may make its decoder keep, whatever its header says. The SDK compresses at level 3,
// whose windows have at most 2 MiB.
const maxWindow = 8 << 20

// ReadBody reads a request's body to its end, in the encoding of its Content-Encoding header: none ("" or "identity"), or "zstd". One
// that has more than limit bytes, packed or unpacked, is refused with ErrTooLarge as soon as that is known; memory grows with
// what was read, not with what a header promises. room is asked before n bytes more are allocated; its errors, and those of r itself,
// are returned as they are. nil: there always is.
func ReadBody(r io.Reader, encoding string, limit int64, room func(n int64) error) ([]byte, error) {
	packed := &bounded{r: r, left: limit}
	switch encoding {
	case "", "identity":
		return readAll(packed, limit, packed, room)
	case "zstd":
	default:
		return nil, api.Errorf(api.Unsupported, "the body has the content encoding %q, wanted none or \"zstd\"", clip(encoding))
	}
	if room != nil {
		if err := room(maxWindow); err != nil {
			return nil, err
		}
	}
	d, err := zstd.NewReader(packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, api.Errorf(api.BadRequest, "the body is no zstd: %w", err)
	}
	defer d.Close()
	return readAll(&bounded{r: d, left: limit}, limit, packed, room)
}

// ErrTooLarge is in the error of a body that has more bytes than its limit.
var ErrTooLarge = errors.New("body too large")

// firstRead is what is allocated for a body before any of it has come: most are polls of a hundred bytes.
const firstRead = 512

// readAll reads r, which is packed or a decoder above it, to its end.
func readAll(r io.Reader, limit int64, packed *bounded, room func(int64) error) ([]byte, error) {
	var b []byte
	for {
		if len(b) == cap(b) {
			// One byte more than the limit, which tells one that is reached from one that is passed.
			n := min(max(2*int64(cap(b)), firstRead), limit+1)
			if room != nil {
				if err := room(n - int64(cap(b))); err != nil {
					return nil, err
				}
			}
			grown := make([]byte, len(b), n)
			copy(grown, b)
			b = grown
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case err == nil:
			continue
		case packed.err != nil: // below a decoder that may have changed it
			err = packed.err
		case err == io.EOF:
			return b, nil
		case r != packed && !errors.Is(err, ErrTooLarge):
			return nil, api.Errorf(api.BadRequest, "the body is no zstd: %w", err)
		}
		if errors.Is(err, ErrTooLarge) {
			return nil, api.Errorf(api.BadRequest, "the body has more than %d bytes unpacked, the limit: %w", limit, err)
		}
		return nil, err
	}
}

// bounded gives left bytes and fails on one more. It keeps the error that ended it.
type bounded struct {
	r    io.Reader
	left int64
	err  error
}

func (b *bounded) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1] // one more, to see whether it is there
	}
	n, err := b.r.Read(p)
	if int64(n) > b.left {
		n, err = int(b.left), ErrTooLarge
	}
	b.left -= int64(n)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}
