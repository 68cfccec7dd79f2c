//go:build cuda && linux

package cudrv

// #include <cuda.h>
import "C"

import "unsafe"

// HostAlloc returns pinned host memory, from and to which copies run at the speed of the bus and beside the host's
// own work. HostFree takes it back; the garbage collector knows nothing of it.
func HostAlloc(bytes int) ([]byte, error) {
	var p unsafe.Pointer
	if err := check("cuMemHostAlloc", C.cuMemHostAlloc(&p, C.size_t(bytes), 0)); err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(p), bytes), nil
}

// HostFree frees memory that HostAlloc returned.
func HostFree(memory []byte) error {
	return check("cuMemFreeHost", C.cuMemFreeHost(unsafe.Pointer(unsafe.SliceData(memory))))
}
