package plugins

import (
	"encoding/binary"
	"math"
	"slices"
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

// takeFloats returns the numbers that b is made of, in memory of their own, and whether the size of each is at most that of the float32 with the
// bits most: NaN and infinity are beyond any. Where numbers lie in b as in this machine's memory, its start must be a multiple of 4.
func takeFloats(b []byte, most uint32) ([]float32, bool) {
	n := len(b) / 4
	if little {
		there := unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), n)
		return slices.Clone(there), within(b, most) // a clone's memory is not cleared first, as that of make is
	}
	v := make([]float32, n)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return v, within(b, most)
}

// Sizes are compared as the integers that their bits are, two in a word. signs are the bits of a word that say nothing about them.
const signs = 1<<63 | 1<<31

// within reports whether the size of each number in b is at most that of the float32 with the bits most. Whatever the sizes are, all their bits together
// are no smaller: to collect those takes a third of the time that comparing takes, and suffices for what losses return.
func within(b []byte, most uint32) bool {
	limit := uint64(most) | uint64(most)<<32
	return compare(collect(b)&^signs, limit)&signs == signs || exactly(b, limit)
}

// compare leaves the bit of the sign where a size is not too large: set before the subtraction, it keeps both halves from borrowing.
func compare(sizes, limit uint64) uint64 { return (limit | signs) - sizes }

// collect is the bits that are set in any word.
func collect(b []byte) uint64 {
	var x0, x1, x2, x3 uint64
	for ; len(b) >= 64; b = b[64:] {
		x := (*[64]byte)(b)
		x0 |= binary.LittleEndian.Uint64(x[0:8]) | binary.LittleEndian.Uint64(x[32:40])
		x1 |= binary.LittleEndian.Uint64(x[8:16]) | binary.LittleEndian.Uint64(x[40:48])
		x2 |= binary.LittleEndian.Uint64(x[16:24]) | binary.LittleEndian.Uint64(x[48:56])
		x3 |= binary.LittleEndian.Uint64(x[24:32]) | binary.LittleEndian.Uint64(x[56:64])
	}
	for ; len(b) > 0; b = b[4:] {
		x0 |= uint64(binary.LittleEndian.Uint32(b))
	}
	return x0 | x1 | x2 | x3
}

// exactly compares each.
func exactly(b []byte, limit uint64) bool {
	ok := uint64(signs)
	for ; len(b) >= 32; b = b[32:] {
		x := (*[32]byte)(b)
		ok &= compare(binary.LittleEndian.Uint64(x[0:8])&^signs, limit)
		ok &= compare(binary.LittleEndian.Uint64(x[8:16])&^signs, limit)
		ok &= compare(binary.LittleEndian.Uint64(x[16:24])&^signs, limit)
		ok &= compare(binary.LittleEndian.Uint64(x[24:32])&^signs, limit)
	}
	for ; len(b) > 0; b = b[4:] {
		ok &= compare(uint64(binary.LittleEndian.Uint32(b))&^signs, limit)
	}
	return ok&signs == signs
}
