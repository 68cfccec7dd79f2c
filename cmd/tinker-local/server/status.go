package server

import (
	"net/http"

	"tinkerlocal/engine/api"
)

// statusOf is the HTTP status of a request that is refused at once. Clients try 408, 409, 429 and 5xx again for
// minutes: what will not go away is none of these.
func statusOf(c api.Code) int {
	switch c {
	case api.BadRequest, api.Unsupported, api.Stale, api.Cancelled, api.OutOfMemory, api.NoSpace:
		return http.StatusBadRequest
	case api.NotFound:
		return http.StatusNotFound
	case api.Busy:
		return http.StatusTooManyRequests
	case api.Closed:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// refusal is an error with a status of its own.
type refusal struct {
	status int
	err    *api.Error
}

func (r refusal) Error() string { return r.err.Error() }
func (r refusal) Unwrap() error { return r.err }

func refuse(status int, code api.Code, format string, args ...any) error {
	return refusal{status, api.Errorf(code, format, args...)}
}
