package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine/api"
)

// call is one request that has passed the guards.
type call struct {
	*http.Request
	w     http.ResponseWriter
	owner string
	admin bool // it comes from this program's own command line
}

// reply is an answer that is not plain JSON with status 200.
type reply struct {
	status int
	kind   string // content type
	body   []byte
}

// stream is an answer of known length that is written as it is made.
type stream struct {
	kind, name string
	bytes      int64
	write      func(ctx context.Context, w io.Writer) error
	close      func() error
}

// jsonReply is v with a status of its own.
func jsonReply(status int, v any) (reply, error) {
	b, err := json.Marshal(v)
	return reply{status, wire.JSON, b}, err
}

// serve answers one request of a route.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, to route) {
	c := &call{Request: r, w: w}
	if !to.public {
		if err := s.identify(c); err != nil {
			s.refuse(w, r, err)
			return
		}
	}
	v, err := to.answer(s, c)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	switch v := v.(type) {
	case nil:
		w.WriteHeader(http.StatusNoContent)
	case reply:
		send(w, v)
	case stream:
		s.send(c, v)
	default:
		out, err := jsonReply(http.StatusOK, v)
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		send(w, out)
	}
}

func send(w http.ResponseWriter, v reply) {
	h := w.Header()
	h.Set("Content-Type", v.kind)
	h.Set("Content-Length", strconv.Itoa(len(v.body)))
	w.WriteHeader(v.status)
	w.Write(v.body) // a client that has gone away will ask again
}

// send writes a stream. One that fails in the middle ends the connection, so that no client takes a part for the whole.
func (s *Server) send(c *call, v stream) {
	defer v.close()
	h := c.w.Header()
	h.Set("Content-Type", v.kind)
	h.Set("Content-Length", strconv.FormatInt(v.bytes, 10))
	h.Set("Content-Disposition", `attachment; filename="`+v.name+`"`)
	c.w.WriteHeader(http.StatusOK)
	if c.Method == http.MethodHead {
		return
	}
	if err := v.write(c.Context(), c.w); err != nil {
		s.log.Warn("download ended early", "path", c.URL.Path, "err", err)
		panic(http.ErrAbortHandler)
	}
}

// refuse answers with an error. Its body says what is wrong; what the server cannot help is logged.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	status := statusOf(api.CodeOf(err))
	var own refusal
	var tooBig *http.MaxBytesError
	switch {
	case errors.As(err, &own):
		status = own.status
	case errors.As(err, &tooBig):
		status = http.StatusRequestEntityTooLarge
	}
	level := s.log.Debug
	if status >= http.StatusInternalServerError && status != http.StatusServiceUnavailable {
		level = s.log.Error
	}
	level("request refused", "method", r.Method, "path", r.URL.Path, "status", status, "err", err)
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	v, bad := jsonReply(status, wire.ErrorOf(err))
	if bad != nil {
		panic(bad) // two strings
	}
	send(w, v)
}

// read reads a JSON body into r.
func (s *Server) read(c *call, r wire.Request) error {
	return s.withBody(c, s.lim.Body, func(body []byte) error { return wire.DecodeRequest(body, r) })
}

// withBody reads a body of at most limit bytes and hands it to decode. What is being decoded at one time is bounded.
func (s *Server) withBody(c *call, limit int64, decode func(body []byte) error) error {
	need := limit
	if n := c.ContentLength; n >= 0 && c.Header.Get("Content-Encoding") == "" {
		if n > limit {
			return refuse(http.StatusRequestEntityTooLarge, api.BadRequest, "the body has %d bytes, the limit is %d", n, limit)
		}
		need = n
	}
	need = min(need, s.lim.Bodies)
	// A deadline that cannot be set is that of a handler without a connection.
	_ = http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(s.lim.BodyTime))
	if err := s.bodies.Acquire(c.Context(), need); err != nil {
		return api.Errorf(api.Busy, "too many requests are being read: %w", err)
	}
	defer s.bodies.Release(need)
	body, err := wire.ReadBody(c.Body, c.Header.Get("Content-Encoding"), limit)
	var known *api.Error
	switch {
	case err == nil:
	case errors.As(err, &known):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return refuse(http.StatusBadRequest, api.BadRequest, "the body did not arrive within %v", s.lim.BodyTime)
	default:
		return api.Errorf(api.BadRequest, "the body broke off: %w", err)
	}
	return decode(body)
}

// sends says whether the body is of a content type.
func (c *call) sends(kind string) bool {
	got, _, _ := strings.Cut(c.Header.Get("Content-Type"), ";")
	return strings.EqualFold(strings.TrimSpace(got), kind)
}

// accepts says whether the client reads protobuf.
func (c *call) acceptsProtobuf() bool { return strings.Contains(c.Header.Get("Accept"), wire.Protobuf) }
