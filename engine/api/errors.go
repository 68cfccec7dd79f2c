package api

import (
	"errors"
	"fmt"
)

// Code says what kind of failure an error is. Doors map it once to HTTP status and C status.
type Code string

// The error codes.
const (
	BadRequest  Code = "bad_request"   // the caller's input is wrong
	NotFound    Code = "not_found"     // no such model, run, checkpoint or file
	Unsupported Code = "unsupported"   // understood, but this build or device does not do it
	OutOfMemory Code = "out_of_memory" // needed and free bytes are in the message
	Stale       Code = "stale"         // the object's adapter version has passed
	Cancelled   Code = "cancelled"     // dropped before it started
	Closed      Code = "closed"        // the engine, session or run is closed
	Busy        Code = "busy"          // a limit is reached; try again later
	DeviceLost  Code = "device_lost"   // the device failed; nothing more will run on it
	NoSpace     Code = "no_space"      // needed and free bytes of the disk are in the message
	DataLoss    Code = "data_loss"     // what was stored is damaged; the message says what and where
	Internal    Code = "internal"      // a defect in the engine
)

// Category is who can do something about the failure: "user", "server" or "unknown" (the words of the wire).
func (c Code) Category() string {
	switch c {
	case BadRequest, NotFound, Unsupported, Stale, Cancelled, OutOfMemory, NoSpace:
		return "user"
	case Closed, Busy, DeviceLost, DataLoss, Internal:
		return "server"
	}
	return "unknown"
}

// Error is a failure at the API: a code for programs, a message for people. The message names the
// thing, the place, what was wanted and what was got.
type Error struct {
	Code Code   `json:"code"`
	Msg  string `json:"error"`
	Err  error  `json:"-"` // cause, may be nil
}

func (e *Error) Error() string { return e.Msg }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error. A %w verb in the format sets the cause.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Msg: err.Error(), Err: errors.Unwrap(err)}
}

// CodeOf returns the code of the first *Error in err's chain, or Internal.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}
