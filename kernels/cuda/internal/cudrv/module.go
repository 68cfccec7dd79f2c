//go:build cuda && linux

package cudrv

/*
#include <cuda.h>

static CUresult load_image(CUmodule *module, const void *image, char *log, size_t bytes) {
  CUjit_option options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
  void *values[] = {log, (void *)bytes};
  return cuModuleLoadDataEx(module, image, 2, options, values);
}
*/
import "C"

import (
	"strings"
	"unsafe"

	"gorgonia.org/cu"
)

// LoadImage loads a kernel image: a cubin, a fat binary, or PTX text, which the driver then compiles. Where that
// fails, the error's Log holds what the compiler said.
func LoadImage(image []byte) (cu.Module, error) {
	const logBytes = 8 << 10
	source := C.CBytes(append(image[:len(image):len(image)], 0)) // PTX ends with a zero byte
	defer C.free(source)
	log := (*C.char)(C.calloc(1, logBytes)) // C memory: the driver keeps the address during the call
	defer C.free(unsafe.Pointer(log))
	var module C.CUmodule
	code := C.load_image(&module, source, log, logBytes-1)
	if code != C.CUDA_SUCCESS {
		return cu.Module{}, &Error{Call: "cuModuleLoadDataEx", Code: int(code), Log: strings.TrimSpace(C.GoString(log))}
	}
	return *(*cu.Module)(unsafe.Pointer(&module)), nil // cu.Module is the handle and nothing else
}
