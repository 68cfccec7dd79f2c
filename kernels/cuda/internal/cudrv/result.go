//go:build cuda && linux

package cudrv

/*
#cgo CFLAGS: -O2 -Wall -Wextra -I${SRCDIR}/../cudashim/include
#include <cuda.h>
*/
import "C"

import (
	"fmt"

	"tinkerlocal/kernels/cuda/internal/cudashim"
)

// Open loads the driver; nothing else here works before it.
func Open() (cudashim.Driver, error) { return cudashim.Load() }

// Error is a driver call that did not succeed.
type Error struct {
	Call string // the driver function
	Code int    // CUresult
	Log  string // what the compiler said, for modules
}

func (e *Error) Error() string {
	var name, text *C.char
	message := fmt.Sprintf("%s returned %d", e.Call, e.Code)
	if C.cuGetErrorName(C.CUresult(e.Code), &name) == C.CUDA_SUCCESS && C.cuGetErrorString(C.CUresult(e.Code), &text) == C.CUDA_SUCCESS {
		message += fmt.Sprintf(" (%s: %s)", C.GoString(name), C.GoString(text))
	}
	if e.Log != "" {
		message += ": " + e.Log
	}
	return message
}

func check(call string, code C.CUresult) error {
	if code == C.CUDA_SUCCESS {
		return nil
	}
	return &Error{Call: call, Code: int(code)}
}
