//go:build cgo && unix

package main

/*
#include "tinker.h"
*/
import "C"

import (
	"unsafe"

	"tinkerlocal/engine/api"
)

var errNoModules = api.Errorf(api.Unsupported, "this build has no WASM losses")

//export tinkergo_module_open
func tinkergo_module_open(h C.uint64_t, wasm unsafe.Pointer, bytes C.int64_t, out *C.uint64_t) C.int32_t {
	return guard(func() error { return errNoModules })
}

//export tinkergo_module_open_file
func tinkergo_module_open_file(h C.uint64_t, path *C.char, out *C.uint64_t) C.int32_t {
	return guard(func() error { return errNoModules })
}

//export tinkergo_module_free
func tinkergo_module_free(h C.uint64_t) C.int32_t { return drop(h, kindModule) }

//export tinkergo_module_info
func tinkergo_module_info(h C.uint64_t, out **C.char) C.int32_t {
	return guard(func() error { return errNoModules })
}

//export tinkergo_forward_backward_custom
func tinkergo_forward_backward_custom(run, b, module C.uint64_t, p *C.tinker_pair, count C.int64_t, out *C.uint64_t) C.int32_t {
	return guard(func() error { return errNoModules })
}

//export tinkergo_forward_custom
func tinkergo_forward_custom(run, b, module C.uint64_t, p *C.tinker_pair, count C.int64_t, out *C.uint64_t) C.int32_t {
	return guard(func() error { return errNoModules })
}

//export tinkergo_checkpoint_export
func tinkergo_checkpoint_export(h C.uint64_t, path, format, dst, options *C.char, out *C.uint64_t) C.int32_t {
	return guard(func() error { return errNoModules })
}

//export tinkergo_checkpoint_import
func tinkergo_checkpoint_import(h C.uint64_t, source, options *C.char, out *C.uint64_t) C.int32_t {
	return guard(func() error { return errNoModules })
}
