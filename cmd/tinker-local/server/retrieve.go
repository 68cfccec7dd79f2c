package server

import (
	"net/http"
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
		return s.unknownRequest(r.RequestID)
	}
	s.touch(o)
	timer := time.NewTimer(s.lim.PollWait)
	defer timer.Stop()
	select {
	case <-o.work.Done():
	case <-timer.C:
		s.touch(o)
		return jsonReply(http.StatusRequestTimeout, pending(o.work.State()))
	case <-s.stopping:
		return jsonReply(http.StatusRequestTimeout, wire.Pending{QueueState: wire.QueuePausedCapacity, Reason: "the server is being stopped"})
	case <-c.Context().Done():
		return nil, api.Errorf(api.Cancelled, "the client has gone away")
	}
	out, err := o.result(c.acceptsProtobuf())
	if err != nil {
		s.log.Debug("work failed", "request", o.id, "err", err)
		out, err = jsonReply(http.StatusOK, wire.FailedOf(err))
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.AllowMetadataOnly && len(out.body) >= s.lim.Announce && !o.announced {
		o.announced = true
		return wire.MetadataOnly(len(out.body)), nil
	}
	if o.fetched.IsZero() {
		o.fetched = s.opt.Now()
	}
	return out, nil
}

// touch notes that a client waits for the op.
func (s *Server) touch(o *op) {
	s.mu.Lock()
	o.polled, o.asked = s.opt.Now(), true
	s.mu.Unlock()
}

// unknownRequest answers for a request that is not there: of a server that was started anew, or forgotten. Clients send samples
// again; a training operation they must not.
func (s *Server) unknownRequest(id string) (any, error) {
	if strings.Contains(id, ":sample:") {
		return jsonReply(http.StatusGone, wire.Gone(id))
	}
	return nil, api.Errorf(api.NotFound, "request %q is not known (any more): the server was started anew, or its result was fetched long ago", clipped(id))
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
