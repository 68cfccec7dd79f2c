package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
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

	fingerprint string // of the key that it came with

	admin bool     // it comes from this program's own command line
	after []func() // called when the answer has been sent
}

// later has f called when the answer has been sent.
func (c *call) later(f func()) { c.after = append(c.after, f) }

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
	defer func() {
		for _, f := range c.after {
			f()
		}
	}()
	v, err := s.answer(c, to)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	switch v := v.(type) {
	case nil:
		s.send(w, reply{status: http.StatusNoContent})
	case reply:
		s.send(w, v)
	case http.Handler:
		v.ServeHTTP(w, r)
	case stream:
		s.sendStream(c, v)
	default:
		out, err := jsonReply(http.StatusOK, v)
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		s.send(w, out)
	}
}

// answer asks a route, once it is known whose the call is and that its owner has no more than their share of calls under way.
func (s *Server) answer(c *call, to route) (any, error) {
	if !to.public {
		if err := s.identify(c); err != nil {
			return nil, err
		}
		if !s.calls.take(c.owner, 1) {
			return nil, api.Errorf(api.Busy, "too many requests of %s are being answered", c.owner)
		}
		c.later(func() { s.calls.give(c.owner, 1) })
	}
	return to.answer(s, c)
}

// refuse answers with an error. Its body says what is wrong; what the server cannot help is logged.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	status := statusOf(api.CodeOf(err))
	var own refusal
	if errors.As(err, &own) {
		status = own.status
	}
	level := s.log.Debug
	if status >= http.StatusInternalServerError && status != http.StatusServiceUnavailable {
		level = s.log.Error
	}
	level("request refused", "request_id", requestID(w), "method", clipped(r.Method), "path", clipped(r.URL.Path), "status", status, logged(err))
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	v, bad := jsonReply(status, wire.ErrorOf(err))
	if bad != nil {
		panic(bad) // two strings
	}
	s.send(w, v)
}

// logged is an error as the log has it: one that is the client's, by its code alone, since its text may quote what the client said.
func logged(err error) slog.Attr {
	if code := api.CodeOf(err); code.Category() == "user" {
		return slog.String("code", string(code))
	}
	return slog.Any("err", err)
}

// read reads a JSON body into r: one that holds no prompt.
func (s *Server) read(c *call, r wire.Request) error { return s.readUpTo(c, s.lim.SmallBody, r) }

func (s *Server) readUpTo(c *call, limit int64, r wire.Request) error {
	return s.withBody(c, limit, func(body []byte) error { return wire.DecodeRequest(body, r) })
}

// freeBody is how much of a body is read without asking for room: as many of them as there are connections are no harm, and what
// keeps clients alive need not wait behind large requests.
const freeBody = 64 << 10

// withBody reads a body of at most limit bytes and hands it to decode. What is being read and decoded at one time is bounded: a
// body takes room as it comes in, not as it says that it will.
func (s *Server) withBody(c *call, limit int64, decode func(body []byte) error) error {
	if n := c.ContentLength; n > limit {
		return refuse(http.StatusRequestEntityTooLarge, api.BadRequest, "the body has %d bytes, the limit is %d", n, limit)
	}
	until := time.Now().Add(s.lim.BodyTime)
	connection := http.NewResponseController(c.w)
	// Deadlines that cannot be set are those of a handler without a connection.
	_ = connection.SetReadDeadline(until)
	taken := int64(0)
	defer func() { s.bodies.give(c.owner, taken) }()
	room := func(n int64) error {
		if taken == 0 && n <= freeBody/2 { // the buffer doubles
			return nil
		}
		if taken == 0 {
			n += freeBody
		}
		if err := s.bodies.wait(c.Context(), c.owner, n, until); err != nil {
			return err
		}
		taken += n
		return nil
	}
	body, err := wire.ReadBody(c.Body, c.Header.Get("Content-Encoding"), limit, room)
	var known *api.Error
	switch {
	case err == nil:
	case errors.Is(err, wire.ErrTooLarge):
		return refuse(http.StatusRequestEntityTooLarge, api.BadRequest, "%w", err)
	case errors.As(err, &known):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return refuse(http.StatusBadRequest, api.BadRequest, "the body did not arrive within %v", s.lim.BodyTime)
	default:
		return api.Errorf(api.BadRequest, "the body broke off: %w", err)
	}
	// Whoever waits for a result after this is not to be cut off.
	_ = connection.SetReadDeadline(time.Time{})
	return decode(body)
}

// sends says whether the body is of a content type.
func (c *call) sends(kind string) bool {
	got, _, _ := strings.Cut(c.Header.Get("Content-Type"), ";")
	return strings.EqualFold(strings.TrimSpace(got), kind)
}

// acceptsProtobuf says whether the client reads protobuf.
func (c *call) acceptsProtobuf() bool { return strings.Contains(c.Header.Get("Accept"), wire.Protobuf) }
