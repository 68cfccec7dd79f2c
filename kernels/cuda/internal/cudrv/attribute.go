//go:build cuda && linux

package cudrv

// #include <cuda.h>
import "C"

import (
	"unsafe"

	"gorgonia.org/cu"
)

// SharedOptIn returns how many bytes of shared memory one block may have at most, when its function asks for them.
func SharedOptIn(d cu.Device) (int, error) {
	var v C.int
	err := check("cuDeviceGetAttribute", C.cuDeviceGetAttribute(&v, C.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, C.CUdevice(d)))
	return int(v), err
}

// AllowShared lets launches of f have that many bytes of dynamic shared memory; without it the limit is 48 KiB.
func AllowShared(f cu.Function, bytes int) error {
	function := *(*C.CUfunction)(unsafe.Pointer(&f))
	return check("cuFuncSetAttribute", C.cuFuncSetAttribute(function, C.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, C.int(bytes)))
}
