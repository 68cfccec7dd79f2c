//go:build cgo && unix

package main

/*
#include "tinker.h"
*/
import "C"

import (
	"context"
	"sync"
	"time"
	"unsafe"

	"tinkerlocal/capi/handle"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// future is what a tinker_future stands for: an engine's future of some type.
type future struct {
	done   <-chan struct{}
	state  func() engine.State
	cancel func()
	value  func() (any, error) // once it is done
	parent *handle.Ref         // of what the result is a handle of
	keep   *handle.Ref         // in use until the operation has ended; nil: nothing

	mu      sync.Mutex
	mem     arena
	message *C.char
	view    unsafe.Pointer // the result in C memory
	ref     *handle.Ref    // the result as a handle
}

// giveFuture makes a handle of f. parent is kept alive by it, and by a run, sampler or hold that it yields.
func giveFuture[T any](out *C.uint64_t, parent *handle.Ref, f *engine.Future[T], err error) error {
	if err != nil {
		return err
	}
	return giveAny(out, parent, wrap(f))
}

func wrap[T any](f *engine.Future[T]) *future {
	return &future{
		done: f.Done(), state: f.State, cancel: f.Cancel,
		value: func() (any, error) { return f.Wait(context.Background()) },
	}
}

// giveAny is giveFuture of any future.
func giveAny(out *C.uint64_t, parent *handle.Ref, f *future) error {
	f.parent = parent
	return give(out, kindFuture, f, parent, f.end)
}

// background runs what the engine has no future for on a goroutine. It is cancelled by cancelling the context.
func background(do func(ctx context.Context) (any, error)) *future {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var v any
	var err error
	go func() {
		defer close(done)
		defer cancel()
		defer func() {
			if p := recover(); p != nil {
				err = api.Errorf(api.Internal, "defect in libtinker: %v", p)
			}
		}()
		v, err = do(ctx)
		if err != nil && ctx.Err() != nil {
			err = api.Errorf(api.Cancelled, "cancelled: %w", err)
		}
	}()
	return &future{
		done: done, cancel: cancel,
		state: func() engine.State {
			select {
			case <-done:
				return engine.Ended
			default:
				return engine.Running
			}
		},
		value: func() (any, error) { return v, err },
	}
}

// end frees the result. One that is still to come is closed when it has come.
func (f *future) end() {
	f.mem.free()
	discard := func() {
		if v, err := f.value(); f.ref != nil {
			f.ref.Release()
		} else if err == nil {
			closeResult(v)
		}
		f.keep.Release()
	}
	select {
	case <-f.done:
		discard()
	default:
		go func() { <-f.done; discard() }()
	}
}

// closeResult closes a result that is a thing of its own.
func closeResult(v any) {
	switch v := v.(type) {
	case *engine.Run:
		v.Close()
	case *engine.Sampler:
		v.Close()
	case *engine.Held:
		v.Release()
	}
}

// result is the value, or why there is none.
func (f *future) result() (any, error) {
	select {
	case <-f.done:
		return f.value()
	default:
		return nil, errPending
	}
}

// as is the result as a T. what says what that is.
func as[T any](f *future, what string) (T, error) {
	var zero T
	v, err := f.result()
	if err != nil {
		return zero, err
	}
	t, ok := v.(T)
	if !ok {
		return zero, bad("the future's result is %s, wanted %s", resultName(v), what)
	}
	return t, nil
}

func resultName(v any) string {
	switch v.(type) {
	case *engine.Run:
		return "a run"
	case *engine.Sampler:
		return "a sampler"
	case *engine.Held:
		return "an output with a hold"
	case api.ForwardBackwardOutput, api.OptimStepOutput:
		return "an output"
	case api.SampleOutput, api.PromptLogProbs:
		return "samples"
	case engine.Weights:
		return "weights"
	case struct{}, nil:
		return "nothing"
	}
	return "JSON"
}

// giveResult makes a handle of a result that is a thing of its own.
func giveResult[T any](h C.uint64_t, kind handle.Kind, what string, out *C.uint64_t) error {
	return with(h, kindFuture, func(_ *handle.Ref, f *future) error {
		v, err := as[T](f, what)
		if err != nil {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.ref == nil {
			f.ref = handle.NewRef(kind, v, f.parent, func() { closeResult(v) })
		}
		f.ref.Retain()
		n, err := handles.Add(f.ref)
		if err != nil {
			f.ref.Release()
			return api.Errorf(api.Busy, "%w", err)
		}
		*out = C.uint64_t(n)
		return nil
	})
}

// giveView writes a result into C memory, the first time, and gives its address.
func giveView(h C.uint64_t, out *unsafe.Pointer, write func(a *arena, f *future) (unsafe.Pointer, error)) error {
	return with(h, kindFuture, func(_ *handle.Ref, f *future) (err error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.view == nil {
			if f.view, err = write(&f.mem, f); err != nil {
				return err
			}
		}
		*out = f.view
		return nil
	})
}

//export tinkergo_future_poll
func tinkergo_future_poll(h C.uint64_t, state *C.int32_t) C.int32_t {
	return guard(func() error {
		return with(h, kindFuture, func(_ *handle.Ref, f *future) error {
			*state = C.TINKER_QUEUED
			switch f.state() {
			case engine.Running:
				*state = C.TINKER_RUNNING
			case engine.Starved:
				*state = C.TINKER_STARVED
			case engine.Ended:
				*state = C.TINKER_ENDED
			}
			return nil
		})
	})
}

//export tinkergo_future_wait
func tinkergo_future_wait(h C.uint64_t, ms C.int64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindFuture, func(_ *handle.Ref, f *future) error {
			if !waitFor(f.done, ms) {
				return errPending
			}
			_, err := f.value()
			return err
		})
	})
}

// waitFor waits for done for so many milliseconds; negative: for ever.
func waitFor(done <-chan struct{}, ms C.int64_t) bool {
	select {
	case <-done:
		return true
	default:
	}
	switch {
	case ms == 0:
		return false
	case ms < 0:
		<-done
		return true
	}
	t := time.NewTimer(milliseconds(ms))
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// milliseconds is a duration that does not overflow.
func milliseconds(ms C.int64_t) time.Duration {
	const most = 1 << 62 / int64(time.Millisecond)
	return time.Duration(min(int64(ms), most)) * time.Millisecond
}

//export tinkergo_future_cancel
func tinkergo_future_cancel(h C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindFuture, func(_ *handle.Ref, f *future) error { f.cancel(); return nil })
	})
}

//export tinkergo_future_error
func tinkergo_future_error(h C.uint64_t, message **C.char) C.int32_t {
	return guard(func() error {
		return with(h, kindFuture, func(_ *handle.Ref, f *future) error {
			_, err := f.result()
			if err == errPending {
				return err
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.message == nil {
				s := ""
				if err != nil {
					s = err.Error()
				}
				f.message = cText(&f.mem, s)
			}
			*message = f.message
			return nil
		})
	})
}

//export tinkergo_future_free
func tinkergo_future_free(h C.uint64_t) C.int32_t { return drop(h, kindFuture) }

//export tinkergo_future_run
func tinkergo_future_run(h C.uint64_t, out *C.uint64_t) C.int32_t {
	return guard(func() error { return giveResult[*engine.Run](h, kindRun, "a run", out) })
}

//export tinkergo_future_sampler
func tinkergo_future_sampler(h C.uint64_t, out *C.uint64_t) C.int32_t {
	return guard(func() error { return giveResult[*engine.Sampler](h, kindSampler, "a sampler", out) })
}

//export tinkergo_future_held
func tinkergo_future_held(h C.uint64_t, out *C.uint64_t) C.int32_t {
	return guard(func() error { return giveResult[*engine.Held](h, kindHeld, "an output with a hold", out) })
}

//export tinkergo_future_json
func tinkergo_future_json(h C.uint64_t, out **C.char) C.int32_t {
	return guard(func() error {
		return with(h, kindFuture, func(_ *handle.Ref, f *future) error {
			v, err := f.result()
			if err != nil {
				return err
			}
			if name := resultName(v); name != "JSON" {
				return bad("the future's result is %s, wanted JSON", name)
			}
			return giveJSON(out, v)
		})
	})
}
