package server

import (
	"io"
	"net/http"
	"strconv"
	"time"
)

// pace is how much of an answer has Limits.AnswerTime to leave.
const pace = 1 << 20

// send writes an answer.
func (s *Server) send(w http.ResponseWriter, v reply) {
	h := w.Header()
	if v.status != http.StatusNoContent {
		h.Set("Content-Type", v.kind)
		h.Set("Content-Length", strconv.Itoa(len(v.body)))
	}
	out := s.paced(w)
	w.WriteHeader(v.status)
	_, _ = out.Write(v.body) // a client that has gone away will ask again
}

// sendStream writes a stream. One that fails in the middle ends the connection, so that no client takes a part for the whole.
func (s *Server) sendStream(c *call, v stream) {
	defer v.close()
	h := c.w.Header()
	h.Set("Content-Type", v.kind)
	h.Set("Content-Length", strconv.FormatInt(v.bytes, 10))
	h.Set("Content-Disposition", `attachment; filename="`+v.name+`"`)
	out := s.paced(c.w)
	c.w.WriteHeader(http.StatusOK)
	if c.Method == http.MethodHead {
		return
	}
	if err := v.write(c.Context(), out); err != nil {
		s.log.Warn("download ended early", "request_id", requestID(c.w), "path", c.URL.Path, "err", err)
		panic(http.ErrAbortHandler)
	}
}

// paced writes to a client that must keep taking: it has AnswerTime for each pace of bytes, and then the connection ends.
type paced struct {
	w          io.Writer
	connection *http.ResponseController
	time       time.Duration
	left       int // of this pace
}

func (s *Server) paced(w http.ResponseWriter) *paced {
	p := &paced{w: w, connection: http.NewResponseController(w), time: s.lim.AnswerTime}
	p.renew()
	return p
}

func (p *paced) renew() {
	p.left = pace
	_ = p.connection.SetWriteDeadline(time.Now().Add(p.time)) // an error: there is no connection
}

// Write writes b a piece at a time.
func (p *paced) Write(b []byte) (n int, err error) {
	for len(b) > 0 && err == nil {
		if p.left == 0 {
			p.renew()
		}
		var k int
		k, err = p.w.Write(b[:min(len(b), p.left)])
		n, b, p.left = n+k, b[k:], p.left-k
	}
	return n, err
}
