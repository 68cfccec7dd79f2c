package server

import (
	"errors"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// retrieveFuture waits for a result. A connection that breaks ends the wait, never the work.
func (s *Server) retrieveFuture(c *call) (any, error) {
	var r wire.RetrieveFutureRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	o, ok := s.find(r.RequestID, c.owner)
	if !ok {
		return unknownRequest(r.RequestID)
	}
	until := time.Now().Add(s.lim.PollWait)
	s.touch(o)
	if !o.done() {
		timer := time.NewTimer(s.lim.PollWait)
		defer timer.Stop()
		select {
		case <-o.work.Done():
		case <-timer.C:
			s.touch(o)
			return jsonReply(http.StatusRequestTimeout, pending(o.work.State()))
		case <-s.stopping:
			if !o.done() {
				return cutOff(o)
			}
		case <-c.Context().Done():
			return nil, api.Errorf(api.Cancelled, "the client has gone away")
		}
	}
	s.mu.Lock()
	s.settle(o)
	bytes := o.held
	s.mu.Unlock()
	if !c.acceptsProtobuf() {
		bytes *= 4 // numbers as text
	}
	if ok, err := s.roomToSend(c, bytes, until); err != nil {
		return nil, err
	} else if !ok {
		return jsonReply(http.StatusRequestTimeout, wire.Pending{QueueState: wire.QueueActive, Reason: "many results are being sent"})
	}
	out, err := s.encode(o, c.acceptsProtobuf())
	if err != nil && api.CodeOf(err) == api.Closed && s.isStopping() {
		return cutOff(o)
	}
	if err != nil {
		s.log.Debug("work failed", "request_id", requestID(c.w), "work", o.id, logged(err))
		if out, err = jsonReply(http.StatusOK, wire.FailedOf(err)); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.AllowMetadataOnly && len(out.body) >= s.lim.Announce && !o.announced {
		o.announced = true
		return wire.MetadataOnly(len(out.body)), nil
	}
	if o.fetched.IsZero() {
		o.fetched = s.opt.Now()
		s.keep(o)
	}
	return out, nil
}

// roomToSend waits until so many bytes may be on their way to a client, and has them given back afterwards. It reports false when
// there was no room in time.
func (s *Server) roomToSend(c *call, bytes int64, until time.Time) (bool, error) {
	if bytes <= freeBody {
		return true, nil
	}
	bytes = min(bytes, s.lim.Answers)
	err := s.answers.wait(c.Context(), c.owner, bytes, until)
	if errors.Is(err, errNoRoom) {
		return false, nil
	}
	if err == nil {
		c.later(func() { s.answers.give(c.owner, bytes) })
	}
	return true, err
}

// encode is the op's result. A defect that shows there is the op's: a client would ask for ever again for an answer with status 500.
func (s *Server) encode(o *op, protobuf bool) (out reply, err error) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("defect in the server", "work", o.id, "panic", v, "stack", string(debug.Stack()))
			err = api.Errorf(api.Internal, "defect in the server: the result of %s cannot be written", o.id)
		}
	}()
	return o.result(protobuf)
}

// touch notes that a client waits for the op.
func (s *Server) touch(o *op) {
	s.mu.Lock()
	o.polled, o.asked = s.opt.Now(), true
	o.session.seen = o.polled
	s.mu.Unlock()
}

// unknownRequest answers for a request that is not there: of a server that was started anew, forgotten, or never made. Clients
// send samples again; a training operation they must not, and show their user the error of one that failed.
func unknownRequest(id string) (any, error) {
	switch {
	case strings.Contains(id, ":sample:"):
		return jsonReply(http.StatusGone, wire.Gone(id))
	case strings.Contains(id, ":train:"):
		return jsonReply(http.StatusOK, wire.FailedOf(api.Errorf(api.Closed,
			"request %q is not known (any more): the server was started anew, or its result was fetched long ago; what was saved is still there", clipped(id))))
	}
	return nil, api.Errorf(api.NotFound, "there is no request %q", clipped(id))
}

// cutOff answers for work that the server does not wait for because it is being stopped.
func cutOff(o *op) (any, error) {
	if o.sample {
		return jsonReply(http.StatusGone, wire.Gone(o.id))
	}
	return jsonReply(http.StatusOK, wire.FailedOf(api.Errorf(api.Closed, "the server was stopped before request %s had ended", o.id)))
}

func clipped(id string) string { return id[:min(len(id), 200)] }

// pending tells a client why it has to wait.
func pending(state engine.State) wire.Pending {
	switch state {
	case engine.Gap:
		return wire.Pending{QueueState: wire.QueueActive, Reason: "an earlier request of the run has not arrived"}
	case engine.Starved:
		return wire.Pending{QueueState: wire.QueuePausedCapacity, Reason: "it waits for device memory that other work holds"}
	}
	return wire.Pending{QueueState: wire.QueueActive}
}

// cancelFuture gives a sample up. Training goes on: its place in the order is taken.
func (s *Server) cancelFuture(c *call) (any, error) {
	var r wire.CancelFutureRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	if o, ok := s.find(r.RequestID, c.owner); ok && o.sample {
		o.work.Cancel()
	}
	return struct{}{}, nil
}
