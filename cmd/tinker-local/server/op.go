package server

import (
	"context"
	"time"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// op is work that a client was given a request id for. It stays until its result has been fetched, and a while longer.
type op struct {
	id, owner string
	work      work
	sample    bool // it is cancelled when nobody waits for it
	reply     wire.Future

	// result is the answer to retrieve_future, once the work is done.
	result func(protobuf bool) (reply, error)

	// guarded by Server.mu
	polled    time.Time // last asked for; at first, when it was submitted
	asked     bool      // a client has asked for it
	fetched   time.Time // first answered; zero: not yet
	announced bool      // its size was told
}

// work is a future of the engine, whatever its result is.
type work interface {
	Done() <-chan struct{}
	State() engine.State
	Cancel()
}

// newOp is the op of a future whose result encode writes.
func newOp[T any](id, owner string, f *engine.Future[T], encode func(v T, protobuf bool) (reply, error)) *op {
	return &op{id: id, owner: owner, work: f, reply: wire.Future{RequestID: id}, result: func(protobuf bool) (reply, error) {
		v, err := f.Wait(context.Background()) // it is done
		if err != nil {
			return reply{}, err
		}
		return encode(v, protobuf)
	}}
}

// asJSON makes an encoder of a result that is JSON for every client.
func asJSON[T any](convert func(T) any) func(T, bool) (reply, error) {
	return func(v T, _ bool) (reply, error) { return jsonReply(200, convert(v)) }
}

// failedOp is the op of a request that was refused for what it asks.
func failedOp(id, owner string, err error) *op {
	return &op{id: id, owner: owner, work: ended{}, reply: wire.Future{RequestID: id}, result: func(bool) (reply, error) { return reply{}, err }}
}

// ended is work that is done from the beginning.
type ended struct{}

var closedChannel = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (ended) Done() <-chan struct{} { return closedChannel }
func (ended) State() engine.State   { return engine.Ended }
func (ended) Cancel()               {}

// find is the op with an id, if it is owner's.
func (s *Server) find(id, owner string) (*op, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.ops[id]
	return o, ok && o.owner == owner
}

// submit answers with the op that has the id, or with the one that make makes.
func (s *Server) submit(id, owner string, make func() (*op, error)) (any, error) {
	if o, ok := s.find(id, owner); ok {
		return o.reply, nil
	}
	s.mu.Lock()
	stopped, full := s.stopped, len(s.ops) >= s.lim.Ops
	s.mu.Unlock()
	switch {
	case stopped:
		return nil, errStopping
	case full:
		return nil, api.Errorf(api.Busy, "%d results wait to be fetched, the limit is %d", s.lim.Ops, s.lim.Ops)
	}
	o, err := make()
	switch code := api.CodeOf(err); {
	case err == nil:
	case code == api.Busy, code == api.Closed:
		return nil, err // nothing is used up: the client comes again
	default:
		o = failedOp(id, owner, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if first, ok := s.ops[id]; ok && first.owner == owner { // a repeat was quicker; the engine has taken both for one
		return first.reply, nil
	}
	o.polled = s.opt.Now()
	s.ops[id] = o
	return o.reply, nil
}

// done reports whether the work has ended.
func (o *op) done() bool {
	select {
	case <-o.work.Done():
		return true
	default:
		return false
	}
}

// forgotten says whether nobody will ask for the op again. Server.mu is held.
func (o *op) forgotten(now time.Time, l Limits) bool {
	if !o.done() {
		return false
	}
	if !o.fetched.IsZero() {
		return now.Sub(o.fetched) > l.Keep && now.Sub(o.polled) > l.Keep
	}
	return now.Sub(o.polled) > l.Unclaimed
}

// abandoned says whether the op is a sample whose client is gone. Server.mu is held.
func (o *op) abandoned(now time.Time, l Limits) bool {
	return o.sample && !o.done() && now.Sub(o.polled) > l.SamplePatience
}
