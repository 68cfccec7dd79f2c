//go:build cgo && unix

package main

/*
#include "tinker.h"
*/
import "C"

import (
	"fmt"
	"unsafe"

	"tinkerlocal/capi/handle"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// maxModule bounds the bytes of a module; the host has a limit of its own, below.
const maxModule = 64 << 20

// module is what a tinker_module stands for: passes with its loss.
type module struct {
	record                   api.PluginRecord
	forwardBackward, forward passCustom
	close                    func()
}

type passCustom func(r *engine.Run, data []api.Datum, config map[string]float64) (*engine.Future[api.ForwardBackwardOutput], error)

// openModule loads a module for an engine.
func openModule(h C.uint64_t, out *C.uint64_t, load func(e *engineObject) (*module, error)) C.int32_t {
	return guard(func() error {
		return with(h, kindEngine, func(ref *handle.Ref, e *engineObject) error {
			m, err := load(e)
			if err != nil {
				return err
			}
			return give(out, kindModule, m, ref, m.close)
		})
	})
}

//export tinkergo_module_open
func tinkergo_module_open(h C.uint64_t, wasm unsafe.Pointer, bytes C.int64_t, out *C.uint64_t) C.int32_t {
	return openModule(h, out, func(e *engineObject) (*module, error) {
		src, err := array("wasm", (*byte)(wasm), bytes, maxModule)
		if err != nil {
			return nil, err
		}
		return e.loadModule(append([]byte(nil), src...))
	})
}

//export tinkergo_module_open_file
func tinkergo_module_open_file(h C.uint64_t, path *C.char, out *C.uint64_t) C.int32_t {
	return openModule(h, out, func(e *engineObject) (*module, error) {
		name, err := text("path", path)
		if err != nil {
			return nil, err
		}
		wasm, err := local.ReadModule(name)
		if err != nil {
			return nil, err
		}
		m, err := e.loadModule(wasm)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return m, nil
	})
}

//export tinkergo_module_free
func tinkergo_module_free(h C.uint64_t) C.int32_t { return drop(h, kindModule) }

//export tinkergo_module_info
func tinkergo_module_info(h C.uint64_t, out **C.char) C.int32_t {
	return guard(func() error {
		return with(h, kindModule, func(_ *handle.Ref, m *module) error { return giveJSON(out, m.record) })
	})
}

// custom submits a pass with a module's loss. The future keeps the module open.
func custom(run, b, mod C.uint64_t, p *C.tinker_pair, count C.int64_t, out *C.uint64_t, which func(m *module) passCustom) C.int32_t {
	return guard(func() error {
		return with(mod, kindModule, func(mref *handle.Ref, m *module) error {
			return with(run, kindRun, func(ref *handle.Ref, r *engine.Run) error {
				return with(b, kindBatch, func(_ *handle.Ref, b *batch) error {
					config, err := readConfig(p, count)
					if err != nil {
						return err
					}
					submitted, err := which(m)(r, b.take(), config)
					if err != nil {
						return err
					}
					f := wrap(submitted)
					mref.Retain()
					f.keep = mref
					return giveAny(out, ref, f)
				})
			})
		})
	})
}

//export tinkergo_forward_backward_custom
func tinkergo_forward_backward_custom(run, b, mod C.uint64_t, p *C.tinker_pair, count C.int64_t, out *C.uint64_t) C.int32_t {
	return custom(run, b, mod, p, count, out, func(m *module) passCustom { return m.forwardBackward })
}

//export tinkergo_forward_custom
func tinkergo_forward_custom(run, b, mod C.uint64_t, p *C.tinker_pair, count C.int64_t, out *C.uint64_t) C.int32_t {
	return custom(run, b, mod, p, count, out, func(m *module) passCustom { return m.forward })
}
