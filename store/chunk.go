package store

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"

	"github.com/klauspost/compress/zstd"
)

// chunkBytes is how much of a tensor one chunk holds: under Badger's 1 MiB, and a multiple of every element size.
const chunkBytes = 960 << 10

// sum is the SHA-256 of a chunk's content.
type sum [sha256.Size]byte

func (s sum) key() string    { return "c" + string(s[:]) }
func (s sum) String() string { return hex.EncodeToString(s[:]) }

// MarshalText and UnmarshalText are hexadecimal.
func (s sum) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
func (s *sum) UnmarshalText(b []byte) error {
	if len(b) != 2*len(s) {
		return fmt.Errorf("hash of %d characters, wanted %d", len(b), 2*len(s))
	}
	_, err := hex.Decode(s[:], b)
	return err
}

// How a stored chunk is encoded: one byte of encoding, one of element size, four of the content's length, four of
// the CRC-32C of all the rest, then the payload. The SHA-256 of the content is the key. The CRC is for Verify: a flipped bit
// is found even where it makes no difference to the content.
const (
	plain    = 0
	packed   = 1 // zstd
	shuffled = 2 // byte-shuffled, then zstd

	chunkHeader = 10
)

// codec compresses and decompresses chunks. It may be used by several goroutines.
type codec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newCodec(workers int) (*codec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(workers), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(workers), zstd.WithDecoderMaxMemory(2*chunkBytes))
	if err != nil {
		return nil, err
	}
	return &codec{enc, dec}, nil
}

func (c *codec) close() {
	c.enc.Close()
	c.dec.Close()
}

// encode returns content, of elements of elem bytes, as it is stored.
func (c *codec) encode(content []byte, elem int) []byte {
	out := make([]byte, chunkHeader, chunkHeader+len(content))
	out[1] = byte(elem)
	binary.LittleEndian.PutUint32(out[2:], uint32(len(content)))
	src, how := content, byte(packed)
	if elem > 1 && len(content)%elem == 0 {
		src, how = shuffle(content, elem), shuffled
	}
	if z := c.enc.EncodeAll(src, out); len(z) < chunkHeader+len(content) {
		z[0] = how
		binary.LittleEndian.PutUint32(z[6:], checksum(z))
		return z
	}
	out = append(out[:chunkHeader], content...)
	out[0] = plain
	binary.LittleEndian.PutUint32(out[6:], checksum(out))
	return out
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is that of a stored chunk, without the place where it is kept.
func checksum(stored []byte) uint32 {
	return crc32.Update(crc32.Checksum(stored[:6], castagnoli), castagnoli, stored[chunkHeader:])
}

// decode puts the content of a stored chunk into dst, which must have its size, and verifies its hash.
func (c *codec) decode(dst, stored []byte, want sum) error {
	if len(stored) < chunkHeader {
		return fmt.Errorf("has %d bytes, wanted at least %d", len(stored), chunkHeader)
	}
	if got, want := checksum(stored), binary.LittleEndian.Uint32(stored[6:]); got != want {
		return fmt.Errorf("has the CRC-32C %08x, wanted %08x", got, want)
	}
	how, elem, n := stored[0], int(stored[1]), int64(binary.LittleEndian.Uint32(stored[2:]))
	if n != int64(len(dst)) {
		return fmt.Errorf("holds %d bytes, wanted %d", n, len(dst))
	}
	payload := stored[chunkHeader:]
	switch {
	case how == plain:
		if len(payload) != len(dst) {
			return fmt.Errorf("has %d bytes of content, wanted %d", len(payload), len(dst))
		}
		copy(dst, payload)
	case how == packed || how == shuffled && elem > 0 && len(dst)%elem == 0:
		buf := dst[:0:len(dst)]
		if how == shuffled {
			buf = make([]byte, 0, len(dst))
		}
		content, err := c.dec.DecodeAll(payload, buf)
		if err != nil {
			return fmt.Errorf("cannot be decompressed: %w", err)
		}
		if len(content) != len(dst) {
			return fmt.Errorf("decompresses to %d bytes, wanted %d", len(content), len(dst))
		}
		if how == shuffled {
			unshuffle(dst, content, elem)
		} else {
			copy(dst, content)
		}
	default:
		return fmt.Errorf("has the unknown encoding %d with elements of %d bytes", how, elem)
	}
	if got := hash(dst); got != want {
		return fmt.Errorf("has the SHA-256 %v", got)
	}
	return nil
}

// shuffle gathers the first bytes of all elements, then the second ones, and so on: exponents lie
// together, and compress.
func shuffle(src []byte, elem int) []byte {
	dst := make([]byte, len(src))
	n := len(src) / elem
	if elem == 4 {
		a, b, c, d := dst[:n], dst[n:2*n], dst[2*n:3*n], dst[3*n:4*n]
		for i := range n {
			v := binary.LittleEndian.Uint32(src[4*i:])
			a[i], b[i], c[i], d[i] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
		}
		return dst
	}
	for j := range elem {
		for i := range n {
			dst[j*n+i] = src[i*elem+j]
		}
	}
	return dst
}

func unshuffle(dst, src []byte, elem int) {
	n := len(src) / elem
	if elem == 4 {
		a, b, c, d := src[:n], src[n:2*n], src[2*n:3*n], src[3*n:4*n]
		for i := range n {
			binary.LittleEndian.PutUint32(dst[4*i:], uint32(a[i])|uint32(b[i])<<8|uint32(c[i])<<16|uint32(d[i])<<24)
		}
		return
	}
	for j := range elem {
		for i := range n {
			dst[i*elem+j] = src[j*n+i]
		}
	}
}

func hash(content []byte) sum { return sha256.Sum256(content) }
