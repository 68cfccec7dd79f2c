package engine

import (
	"errors"
	"fmt"

	"tinkerlocal/engine/api"
	"tinkerlocal/kernels"
)

var (
	errClosed        = api.Errorf(api.Closed, "the engine is closed")
	errRunClosed     = api.Errorf(api.Closed, "the run is closed")
	errSessionClosed = api.Errorf(api.Closed, "the session is closed")
	errSamplerClosed = api.Errorf(api.Closed, "the sampler is closed")

	errSampleCancelled = api.Errorf(api.Cancelled, "sample: cancelled")
)

// apiError gives err a code and keeps its whole message: the code of an *api.Error inside it, what the
// device says, or Internal.
func apiError(err error) *api.Error {
	var e *api.Error
	switch {
	case errors.As(err, &e):
		if e.Msg == err.Error() {
			return e
		}
		return &api.Error{Code: e.Code, Msg: err.Error(), Err: err}
	case errors.Is(err, kernels.ErrLost):
		return deviceLost(err)
	case errors.Is(err, kernels.ErrMemory):
		return &api.Error{Code: api.OutOfMemory, Msg: err.Error(), Err: err}
	case errors.Is(err, kernels.ErrUnimplemented):
		return &api.Error{Code: api.Unsupported, Msg: err.Error(), Err: err}
	}
	return &api.Error{Code: api.Internal, Msg: err.Error(), Err: err}
}

func deviceLost(err error) *api.Error {
	return &api.Error{Code: api.DeviceLost, Msg: fmt.Sprintf("the device is lost: %v", err), Err: err}
}

// panicked turns a recovered panic into the error of the operation it came from.
func panicked(op string, v any) error {
	return api.Errorf(api.Internal, "%s: defect in the engine: %v", op, v)
}
