package engine

import (
	"context"
	"sync"
)

// Future is the handle on which the result of one submitted operation appears. Any goroutine may use it.
type Future[T any] struct {
	done   chan struct{}
	settle sync.Once
	value  T
	err    error
	drop   func()       // asks the engine to drop the operation; never nil
	state  func() State // of one that has not ended; nil: nobody knows more than that it waits
}

// State says how far an operation is.
type State uint8

// The states of an operation.
const (
	Queued  State = iota // behind others
	Gap                  // a sequence number below its own has not arrived
	Running              // started; others may have their turns in between
	Starved              // started, and waits for device memory that other operations hold
	Ended                // Wait answers at once
)

func newFuture[T any]() *Future[T] {
	return &Future[T]{done: make(chan struct{}), drop: func() {}}
}

// set gives the future its result. Only the first call counts.
func (f *Future[T]) set(v T, err error) {
	f.settle.Do(func() {
		if err != nil {
			f.err = apiError(err)
		} else {
			f.value = v
		}
		close(f.done)
	})
}

func (f *Future[T]) fail(err error) {
	var zero T
	f.set(zero, err)
}

// Wait blocks until the operation has ended or ctx is done. An operation that failed gives its
// *api.Error; a ctx that ended gives ctx's error and leaves the operation alone: it may be waited for again.
func (f *Future[T]) Wait(ctx context.Context) (T, error) {
	select {
	case <-f.done:
		return f.value, f.err
	default:
	}
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		var zero T
		return zero, context.Cause(ctx)
	}
}

// Done is closed when the operation has ended; Wait then answers at once.
func (f *Future[T]) Done() <-chan struct{} { return f.done }

// State tells how far the operation is. It does not block.
func (f *Future[T]) State() State {
	select {
	case <-f.done:
		return Ended
	default:
	}
	if f.state == nil {
		return Queued
	}
	return f.state()
}

// Cancel drops the operation if it is still queued: the future then fails with api.Cancelled. A training
// operation that has started finishes; sampling stops at its next token. It does not block.
func (f *Future[T]) Cancel() {
	select {
	case <-f.done:
	default:
		f.drop()
	}
}
