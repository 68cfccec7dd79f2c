//go:build cgo && unix

package main

/*
#include <stdlib.h>
#include <string.h>
*/
import "C"

import (
	"encoding/json"
	"strings"
	"sync/atomic"
	"unsafe"

	"tinkerlocal/engine/api"
)

// Bounds of what a caller may hand in: more is a mistake, and is refused before it is read.
const (
	maxString = 64 << 10
	maxJSON   = 64 << 20
	maxText   = 64 << 20
	maxValues = 1 << 28 // of one array
	maxDatums = 1 << 20 // of one call
)

// blocks and blockBytes count the C memory that was handed out and not freed.
var blocks, blockBytes atomic.Int64

// Each block has its size before it, in 16 bytes so that what follows is aligned for every type.
const blockHeader = 16

// cAlloc returns n bytes of C memory, which cFree gives back. Go ends the process when there is none, as it does for its own.
func cAlloc(n int) unsafe.Pointer {
	p := C.malloc(C.size_t(n + blockHeader))
	*(*int64)(p) = int64(n)
	blocks.Add(1)
	blockBytes.Add(int64(n))
	return unsafe.Add(p, blockHeader)
}

func cFree(p unsafe.Pointer) {
	if p == nil {
		return
	}
	p = unsafe.Add(p, -blockHeader)
	blocks.Add(-1)
	blockBytes.Add(-*(*int64)(p))
	C.free(p)
}

func cBytes(b []byte) unsafe.Pointer {
	p := cAlloc(len(b))
	copy(unsafe.Slice((*byte)(p), len(b)), b)
	return p
}

// arena holds the C memory of one result.
type arena struct{ all []unsafe.Pointer }

func (a *arena) free() {
	for _, p := range a.all {
		cFree(p)
	}
	a.all = nil
}

// cArray copies v into C memory that belongs to a; it is never nil.
func cArray[T any](a *arena, v []T) *T {
	dst := cMake[T](a, len(v))
	copy(unsafe.Slice(dst, len(v)), v)
	return dst
}

// cMake is room for n values.
func cMake[T any](a *arena, n int) *T {
	var x T
	p := cAlloc(max(1, n*int(unsafe.Sizeof(x))))
	a.all = append(a.all, p)
	return (*T)(p)
}

func cText(a *arena, s string) *C.char {
	return (*C.char)(unsafe.Pointer(cArray(a, append([]byte(s), 0))))
}

// array is a caller's array, to be read during the call alone. what names it.
func array[T any](what string, p *T, count C.int64_t, limit int) ([]T, error) {
	switch {
	case count < 0 || int64(count) > int64(limit):
		return nil, bad("%s: the count is %d, wanted 0..%d", what, int64(count), limit)
	case count == 0:
		return nil, nil
	case p == nil:
		return nil, bad("%s: the pointer is NULL and the count %d", what, int64(count))
	case uintptr(unsafe.Pointer(p))%unsafe.Alignof(*p) != 0:
		return nil, bad("%s: the pointer is not a multiple of %d", what, unsafe.Alignof(*p))
	}
	return unsafe.Slice(p, int(count)), nil
}

// text copies a caller's string; NULL is an error.
func text(what string, p *C.char) (string, error) { return boundedText(what, p, maxString) }

func boundedText(what string, p *C.char, limit int) (string, error) {
	if p == nil {
		return "", bad("%s is NULL", what)
	}
	n := C.strnlen(p, C.size_t(limit)+1)
	if int(n) > limit {
		return "", bad("%s has more than %d bytes", what, limit)
	}
	return C.GoStringN(p, C.int(n)), nil
}

// optional copies a caller's string; NULL is "".
func optional(what string, p *C.char) (string, error) {
	if p == nil {
		return "", nil
	}
	return text(what, p)
}

// readJSON reads a caller's JSON object into v, and knows every key; NULL leaves v alone.
func readJSON(what string, p *C.char, v any) error {
	if p == nil {
		return nil
	}
	s, err := boundedText(what, p, maxJSON)
	if err != nil {
		return err
	}
	return decode(what, s, v)
}

// The sizes that structs had in the version that had them first: a caller's is never shorter. Fields that were appended since do not count.
const (
	firstEngineOptions = 64
	firstLimits        = 144
	firstLora          = 32
	firstAdam          = 56
	firstSaveOptions   = 24
	firstSampling      = 88
	firstDatums        = 48
	firstTensor        = 48
	firstWeights       = 40
)

// lent is a struct of the caller's, as large as it says. A shorter one, of an older header, keeps the defaults of the fields that it lacks; a
// longer one is of a newer header, and is fine as long as what we do not know is zero.
func lent[T any](what string, p *T, into *T, first uintptr) error {
	if p == nil {
		return nil
	}
	size := uintptr(*(*uint32)(unsafe.Pointer(p)))
	const most = 1 << 16
	if size < first || size > most {
		return bad("%s: struct_size is %d, wanted at least %d: begin with the struct's _INIT macro", what, size, first)
	}
	src := unsafe.Slice((*byte)(unsafe.Pointer(p)), size)
	known := min(size, unsafe.Sizeof(*into))
	for i, b := range src[known:] {
		if b != 0 {
			return api.Errorf(api.Unsupported, "%s: byte %d is set, which this version of the library does not know", what, int(known)+i)
		}
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(into)), unsafe.Sizeof(*into)), src[:known])
	return nil
}

func toggle(what string, v C.int32_t) (bool, error) {
	if v != 0 && v != 1 {
		return false, bad("%s is %d, wanted 0 or 1", what, int32(v))
	}
	return v == 1, nil
}

// decode reads JSON and refuses keys that v does not have.
func decode(what, s string, v any) error {
	d := json.NewDecoder(strings.NewReader(s))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return bad("%s: %w", what, err)
	}
	if d.More() {
		return bad("%s: there is more after the JSON value", what)
	}
	return nil
}
