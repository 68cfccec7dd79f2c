//go:build cuda && linux

package cudrv

/*
#include "launch.h"
#cgo noescape cudrv_issue
#cgo nocallback cudrv_issue
*/
import "C"

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"

	"gorgonia.org/cu"
)

// Launches is a list of kernel launches, issued together in one call into C. A caller keeps one, resets it and fills
// it again: after the first time nothing is allocated.
type Launches struct {
	list   []C.cudrv_launch
	params []byte
}

// Shape is how many threads a launch has.
type Shape struct {
	Grid, Block [3]uint32
	Shared      uint32 // bytes of dynamic shared memory
}

// Reset empties the list and keeps its memory.
func (l *Launches) Reset() { l.list, l.params = l.list[:0], l.params[:0] }

// Add begins a launch; the parameters that are added next are its.
func (l *Launches) Add(f cu.Function, s Shape) *Launches {
	for len(l.params)%16 != 0 {
		l.params = append(l.params, 0)
	}
	l.list = append(l.list, C.cudrv_launch{
		function: C.uint64_t(*(*uintptr)(unsafe.Pointer(&f))), // cu.Function is the handle and nothing else
		grid:     [3]C.uint32_t{C.uint32_t(s.Grid[0]), C.uint32_t(s.Grid[1]), C.uint32_t(s.Grid[2])},
		block:    [3]C.uint32_t{C.uint32_t(s.Block[0]), C.uint32_t(s.Block[1]), C.uint32_t(s.Block[2])},
		shared:   C.uint32_t(s.Shared),
		offset:   C.uint32_t(len(l.params)),
	})
	return l
}

// Pointer adds a device address. It is aligned to its size, as are the others: so does the kernel lay them out.
func (l *Launches) Pointer(p cu.DevicePtr) *Launches {
	l.align(8)
	l.params = binary.NativeEndian.AppendUint64(l.params, uint64(p))
	return l.sized()
}

// Int32 adds a 32-bit integer.
func (l *Launches) Int32(v int32) *Launches {
	l.align(4)
	l.params = binary.NativeEndian.AppendUint32(l.params, uint32(v))
	return l.sized()
}

// Float32 adds a 32-bit float.
func (l *Launches) Float32(v float32) *Launches {
	l.align(4)
	l.params = binary.NativeEndian.AppendUint32(l.params, math.Float32bits(v))
	return l.sized()
}

// Every launch's parameters begin at a multiple of 16, so alignment in the block is alignment in the launch.
func (l *Launches) align(to int) {
	for len(l.params)%to != 0 {
		l.params = append(l.params, 0)
	}
}

func (l *Launches) sized() *Launches {
	last := &l.list[len(l.list)-1]
	last.bytes = C.uint32_t(len(l.params)) - last.offset
	return l
}

// Issue launches the list on a stream, in order. It does not wait.
func (l *Launches) Issue(s cu.Stream) error {
	if len(l.list) == 0 {
		return nil
	}
	var issued C.int
	code := C.cudrv_issue(unsafe.SliceData(l.list), C.int(len(l.list)), unsafe.Pointer(unsafe.SliceData(l.params)), stream(s), &issued)
	if code != C.CUDA_SUCCESS {
		return fmt.Errorf("launch %d of %d: %w", issued+1, len(l.list), &Error{Call: "cuLaunchKernel", Code: int(code)})
	}
	return nil
}

// stream converts cu's stream to ours: each package has its own C types.
func stream(s cu.Stream) C.CUstream { return *(*C.CUstream)(unsafe.Pointer(&s)) }
