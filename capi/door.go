//go:build cgo && unix

package main

/*
#cgo CFLAGS: -I${SRCDIR}/../include
#include <stdlib.h>
#include <string.h>
#include "tinker.h"

void tinkershim_set_error(const char *text, size_t bytes);
*/
import "C"

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"unsafe"

	"tinkerlocal/capi/handle"
	"tinkerlocal/engine/api"
)

// The kinds of handles, in the order of kindNames.
const (
	kindEngine handle.Kind = iota + 1
	kindTokenizer
	kindDecoder
	kindSession
	kindRun
	kindSampler
	kindBatch
	kindModule
	kindHeld
	kindStream
	kindFuture
)

var kindNames = []string{"engine", "tokenizer", "decoder", "session", "run", "sampler", "batch", "module", "held", "stream", "future"}

// handles are all that C programs hold. It lives as long as the process, as the library does; generations begin at random, so that a second
// copy of the library in the process has other handles.
var handles = handle.NewTable(rand.Uint32(), kindNames...)

// The statuses that are not an error code of the engine's.
const (
	statusOK      = C.TINKER_OK
	statusPending = C.TINKER_PENDING
	statusEnd     = C.TINKER_END
)

// statuses maps the engine's codes, once.
var statuses = map[api.Code]C.int32_t{
	api.BadRequest:  C.TINKER_ERR_BAD_REQUEST,
	api.NotFound:    C.TINKER_ERR_NOT_FOUND,
	api.Unsupported: C.TINKER_ERR_UNSUPPORTED,
	api.OutOfMemory: C.TINKER_ERR_OUT_OF_MEMORY,
	api.Stale:       C.TINKER_ERR_STALE,
	api.Cancelled:   C.TINKER_ERR_CANCELLED,
	api.Closed:      C.TINKER_ERR_CLOSED,
	api.Busy:        C.TINKER_ERR_BUSY,
	api.DeviceLost:  C.TINKER_ERR_DEVICE_LOST,
	api.NoSpace:     C.TINKER_ERR_NO_SPACE,
	api.DataLoss:    C.TINKER_ERR_DATA_LOSS,
	api.Internal:    C.TINKER_ERR_INTERNAL,
}

// outcome is a status that is no failure.
type outcome C.int32_t

func (o outcome) Error() string {
	if o == statusEnd {
		return "nothing more comes"
	}
	return "it has not ended yet"
}

var (
	errPending = outcome(statusPending)
	errEnd     = outcome(statusEnd)
)

// guard runs an exported function: it turns an error or a panic into a status and keeps the message for the thread.
func guard(f func() error) (status C.int32_t) {
	defer func() {
		if v := recover(); v != nil {
			status = C.TINKER_ERR_INTERNAL
			setError(fmt.Sprintf("defect in libtinker: %v\n%s", v, debug.Stack()))
		}
	}()
	if err := f(); err != nil {
		setError(err.Error())
		return statusOf(err)
	}
	return statusOK
}

func statusOf(err error) C.int32_t {
	var o outcome
	var h *handle.Error
	switch {
	case errors.As(err, &o):
		return C.int32_t(o)
	case errors.As(err, &h):
		return C.TINKER_ERR_HANDLE
	}
	if s, ok := statuses[api.CodeOf(err)]; ok {
		return s
	}
	return C.TINKER_ERR_INTERNAL
}

func setError(text string) {
	if text != "" {
		C.tinkershim_set_error((*C.char)(unsafe.Pointer(unsafe.StringData(text))), C.size_t(len(text)))
	}
}

func bad(format string, args ...any) error { return api.Errorf(api.BadRequest, format, args...) }

// with calls f with what a handle stands for, which stays alive meanwhile.
func with[T any](h C.uint64_t, kind handle.Kind, f func(ref *handle.Ref, v T) error) error {
	ref, err := handles.Get(uint64(h), kind)
	if err != nil {
		return err
	}
	defer ref.Release()
	return f(ref, ref.Value.(T))
}

// give makes a handle of something new and writes it to out.
func give(out *C.uint64_t, kind handle.Kind, value any, parent *handle.Ref, end func()) error {
	ref := handle.NewRef(kind, value, parent, end)
	h, err := handles.Add(ref)
	if err != nil {
		ref.Release()
		return api.Errorf(api.Busy, "%w", err)
	}
	*out = C.uint64_t(h)
	return nil
}

// drop frees a handle; NULL does nothing.
func drop(h C.uint64_t, kind handle.Kind) C.int32_t {
	return guard(func() error {
		if h == 0 {
			return nil
		}
		return handles.Drop(uint64(h), kind)
	})
}

// giveJSON writes v as a string that the caller owns.
func giveJSON(out **C.char, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	*out = (*C.char)(cBytes(append(text, 0)))
	return nil
}
