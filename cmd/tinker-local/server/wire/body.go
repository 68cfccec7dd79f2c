package wire

import (
	"bytes"
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
// that has more than limit bytes, packed or unpacked, is refused as soon as that is known; memory grows with
// what was read, not with what a header promises. An error of r itself is returned as it is.
func ReadBody(r io.Reader, encoding string, limit int64) ([]byte, error) {
	packed := &bounded{r: r, left: limit}
	switch encoding {
	case "", "identity":
		return readAll(packed, limit, packed)
	case "zstd":
	default:
		return nil, api.Errorf(api.Unsupported, "the body has the content encoding %q, wanted none or \"zstd\"", clip(encoding))
	}
	d, err := zstd.NewReader(packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, api.Errorf(api.BadRequest, "the body is no zstd: %w", err)
	}
	defer d.Close()
	body, err := readAll(&bounded{r: d, left: limit}, limit, packed)
	if err != nil && packed.err == nil && !errors.Is(err, errTooLarge) {
		return nil, api.Errorf(api.BadRequest, "the body is no zstd: %w", err)
	}
	return body, err
}

var errTooLarge = errors.New("body too large")

// readAll prefers the error of packed, below a decoder that may have changed it.
func readAll(r io.Reader, limit int64, packed *bounded) ([]byte, error) {
	var b bytes.Buffer
	_, err := b.ReadFrom(r)
	if packed.err != nil {
		err = packed.err
	}
	if errors.Is(err, errTooLarge) {
		return nil, api.Errorf(api.BadRequest, "the body has more than %d bytes unpacked, the limit: %w", limit, err)
	}
	if err != nil {
		return nil, err
	}
	return b.Bytes(), nil
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
		n, err = int(b.left), errTooLarge
	}
	b.left -= int64(n)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}
