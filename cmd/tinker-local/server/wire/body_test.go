package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"tinkerlocal/engine/api"
)

func compressed(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// bomb is a frame of n zeros.
func bomb(t testing.TB, n int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(w, zeros{}, int64(n)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestReadBody: what fits the limit is read, and nothing else.
func TestReadBody(t *testing.T) {
	text := []byte(strings.Repeat("0123456789", 100))
	for _, c := range []struct {
		name     string
		body     []byte
		encoding string
		want     string // part of the error, or "" for text
	}{
		{"plain", text, "", ""},
		{"identity", text, "identity", ""},
		{"one more", append([]byte{0}, text...), "", "the body has more than 1000 bytes"},
		{"zstd", compressed(t, text), "zstd", ""},
		{"two frames", append(compressed(t, text[:500]), compressed(t, text[500:])...), "zstd", ""},
		{"zstd, one more", compressed(t, append([]byte{0}, text...)), "zstd", "the body has more than 1000 bytes"},
		{"half", compressed(t, text)[:20], "zstd", "the body is no zstd"},
		{"not packed", text, "zstd", "the body is no zstd"},
		{"gzip", text, "gzip", `content encoding "gzip", wanted none or "zstd"`},
		{"bomb", bomb(t, 1<<30), "zstd", "the body has more than 1000 bytes"},
		// magic number, a window of 2^41 bytes, and a block of zeros
		{"large window", []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x03, 0x00, 0x10, 0x00}, "zstd", "the body is no zstd"},
		// the same with 2^24 bytes, which other decoders would allow
		{"window above the limit", []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x70, 0x43, 0x1f, 0x00, 0x00}, "zstd", "window size"},
		// magic number, one segment, a size of 2^62 bytes
		{"large size", []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x03, 0x00, 0x10, 0x00}, "zstd", "the body is no zstd"},
	} {
		var got []byte
		var err error
		size := allocated(func() { got, err = ReadBody(bytes.NewReader(c.body), c.encoding, 1000, nil) })
		switch {
		case c.want == "" && (err != nil || !bytes.Equal(got, text)):
			t.Errorf("%s: %d bytes (%v), wanted %d", c.name, len(got), err, len(text))
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, wanted %s", c.name, err, c.want)
		case c.want != "" && api.CodeOf(err) != api.BadRequest && api.CodeOf(err) != api.Unsupported:
			t.Errorf("%s: %v has the code %s", c.name, err, api.CodeOf(err))
		}
		if size > 2*maxWindow {
			t.Errorf("%s: %d bytes of body took %d", c.name, len(c.body), size)
		}
	}
	// An error below is not taken for a wrong body.
	broken := errors.New("connection reset")
	for _, encoding := range []string{"", "zstd"} {
		r := io.MultiReader(bytes.NewReader(compressed(t, text)[:20]), iotest.ErrReader(broken))
		if _, err := ReadBody(r, encoding, 1000, nil); !errors.Is(err, broken) || api.CodeOf(err) != api.Internal {
			t.Errorf("%q: %v, wanted the error itself", encoding, err)
		}
	}
	// A body is not read beyond its limit, whatever follows.
	for _, encoding := range []string{"", "zstd"} {
		source := &io.LimitedReader{R: io.MultiReader(bytes.NewReader(bomb(t, 1<<20)), zeros{}), N: 1 << 20}
		if _, err := ReadBody(source, encoding, 50, nil); err == nil || source.N < 1<<19 {
			t.Errorf("%q: %v with %d bytes left", encoding, err, source.N)
		}
	}
}
