package plugins

import (
	"encoding/binary"
	"math"
	"unsafe"
)

// little says that numbers lie in this machine's memory as they lie in a guest's. Then arrays are copied as bytes: going through them one
// by one would take longer than most losses.
var little = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// raw is a view of the bytes of v.
func raw[T float32 | int64](v []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), len(v)*int(unsafe.Sizeof(*new(T))))
}

// putFloats writes v little-endian and returns the bytes it took.
func putFloats(b []byte, v []float32) int {
	b = b[:4*len(v)]
	if little {
		return copy(b, raw(v))
	}
	for i, f := range v {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(f))
	}
	return len(b)
}

// putInts is putFloats for whole numbers.
func putInts(b []byte, v []int64) int {
	b = b[:8*len(v)]
	if little {
		return copy(b, raw(v))
	}
	for i, x := range v {
		binary.LittleEndian.PutUint64(b[8*i:], uint64(x))
	}
	return len(b)
}

// getFloats reads len(v) numbers, and returns whether the size of each is at most that of the float32 with the bits most: NaN and infinity
// are beyond any.
func getFloats(v []float32, b []byte, most uint32) bool {
	b = b[:4*len(v)]
	if little {
		copy(raw(v), b)
	} else {
		for i := range v {
			v[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
		}
	}
	return within(b, most)
}

// within compares sizes as the integers that their bits are, two at a time: with the bit of the sign set before the subtraction, neither half
// borrows from the other, and the bit stays where the size is not too large.
func within(b []byte, most uint32) bool {
	const signs = 1<<63 | 1<<31
	limit := uint64(most) | uint64(most)<<32 | signs
	ok := uint64(signs)
	for len(b) >= 32 {
		x := (*[32]byte)(b)
		ok &= limit - binary.LittleEndian.Uint64(x[0:8])&^signs
		ok &= limit - binary.LittleEndian.Uint64(x[8:16])&^signs
		ok &= limit - binary.LittleEndian.Uint64(x[16:24])&^signs
		ok &= limit - binary.LittleEndian.Uint64(x[24:32])&^signs
		b = b[32:]
	}
	for ; len(b) > 0; b = b[4:] {
		ok &= limit - uint64(binary.LittleEndian.Uint32(b))&^signs
	}
	return ok&signs == signs
}
