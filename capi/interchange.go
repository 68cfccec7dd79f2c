//go:build cgo && unix

package main

/*
#include "tinker.h"
*/
import "C"

import (
	"context"

	"tinkerlocal/capi/handle"
	"tinkerlocal/engine/api"
)

func (e *engineObject) loadModule(wasm []byte) (*module, error) {
	return nil, api.Errorf(api.Unsupported, "this build has no WASM losses")
}

//export tinkergo_checkpoint_export
func tinkergo_checkpoint_export(h C.uint64_t, path, format, dst, options *C.char, out *C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindEngine, func(ref *handle.Ref, e *engineObject) error {
			return api.Errorf(api.Unsupported, "this build has no exports")
		})
	})
}

//export tinkergo_checkpoint_import
func tinkergo_checkpoint_import(h C.uint64_t, source, options *C.char, out *C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindEngine, func(ref *handle.Ref, e *engineObject) error {
			_ = context.Background
			return api.Errorf(api.Unsupported, "this build has no imports")
		})
	})
}
