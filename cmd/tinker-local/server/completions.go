package server

import (
	"slices"
	"time"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine/api"
)

// watch tells one client of a sampling session which of its samples have ended, in the order of their ends. Server.mu guards it.
type watch struct {
	known  map[*op]bool // that it tells of
	ended  []ending     // that the client does not know of yet
	last   int64        // number of the latest end
	more   chan struct{}
	polled time.Time
}

// ending is the end of a sample.
type ending struct {
	n  int64
	op *op
}

// maxWatches bounds the clients of one sampling session that are told of ends.
const maxWatches = 1024

// retrieveFutures waits until samples of one client have ended, and tells which: the client then fetches their results.
func (s *Server) retrieveFutures(c *call) (any, error) {
	var r wire.RetrieveFuturesRequest
	if err := s.readUpTo(c, s.lim.PromptBody, &r); err != nil {
		return nil, err
	}
	p, err := s.sampler(c, r.Target.SamplingSessionID)
	if err != nil {
		return nil, err
	}
	s.retrieved(p, r.Retrieved)
	w, err := s.watch(p, r.Target.Client, r.Cursor)
	if err != nil {
		return nil, err
	}
	timer := time.NewTimer(r.Wait(s.lim.PollWait))
	defer timer.Stop()
	for last := false; ; {
		out, more := s.endings(p, w, r.Cursor)
		if len(out.Completions) > 0 || last {
			return out, nil
		}
		select {
		case <-more:
		case <-timer.C:
			last = true
		case <-s.stopping:
			return nil, errStopping
		case <-c.Context().Done():
			return nil, api.Errorf(api.Cancelled, "the client has gone away")
		}
	}
}

// retrieved forgets results of a sampling session that its client has.
func (s *Server) retrieved(p *sampler, ids []string) {
	for some := range slices.Chunk(ids, 1000) { // others have their turns in between
		s.mu.Lock()
		for _, id := range some {
			if o := s.ops[opKey{p.session.owner, id}]; o != nil && o.sampler == p && o.done() {
				s.settle(o)
				s.forget(o)
			}
		}
		s.mu.Unlock()
	}
}

// watch finds a client's watch, or makes one: it goes on with the client's numbers, and tells of all that nobody has fetched.
func (s *Server) watch(p *sampler, client, cursor int64) (*watch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := p.watches[client]
	if w == nil {
		if len(p.watches) >= maxWatches {
			return nil, api.Errorf(api.Busy, "%d clients of sampling session %s are told of ends, the limit is that", maxWatches, p.id)
		}
		w = &watch{known: map[*op]bool{}, last: cursor, more: make(chan struct{}), polled: s.opt.Now()}
		p.watches[client] = w
		for o := range p.ops {
			if o.client == client && o.fetched.IsZero() {
				s.tell(w, o)
			}
		}
	}
	return w, nil
}

// watched has a new sample told of, if its client wants that.
func (s *Server) watched(p *sampler, client int64, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, o := p.watches[client], s.ops[opKey{p.session.owner, id}]
	if w != nil && o != nil && !w.known[o] {
		s.tell(w, o)
	}
}

// tell has w tell of a sample when it ends. s.mu is held.
func (s *Server) tell(w *watch, o *op) {
	w.known[o] = true
	go func() {
		<-o.work.Done()
		s.mu.Lock()
		defer s.mu.Unlock()
		w.last++
		w.ended = append(w.ended, ending{w.last, o})
		close(w.more)
		w.more = make(chan struct{})
	}()
}

// endings are those behind a number, and what is closed when there are more. Those before it are known to the client, and all
// its samples are waited for.
func (s *Server) endings(p *sampler, w *watch, cursor int64) (wire.RetrieveFuturesResponse, <-chan struct{}) {
	now := s.opt.Now()
	out := wire.RetrieveFuturesResponse{Completions: []wire.Completion{}, Cursor: cursor}
	s.mu.Lock()
	defer s.mu.Unlock()
	w.polled, p.session.seen = now, now
	w.ended = slices.DeleteFunc(w.ended, func(e ending) bool {
		gone := e.n <= cursor || !p.ops[e.op] // a result that is forgotten is not held here, either
		if gone {
			delete(w.known, e.op)
		}
		return gone
	})
	for _, e := range w.ended {
		out.Cursor = e.n
		out.Completions = append(out.Completions, wire.CompletionOf(e.op.id, e.op.failed()))
	}
	for o := range w.known {
		o.polled, o.asked = now, true
	}
	return out, w.more
}

// dropWatches forgets the watches of clients that do not ask. s.mu is held.
func (s *Server) dropWatches(now time.Time) {
	for _, p := range s.samplers {
		for client, w := range p.watches {
			if now.Sub(w.polled) > s.lim.SamplePatience {
				delete(p.watches, client)
			}
		}
	}
}

// joinSamplingSession gives a client of a sampling session a number that none of the others has: that of the first is 0.
func (s *Server) joinSamplingSession(c *call) (any, error) {
	var r wire.JoinSamplingSessionRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	p, err := s.sampler(c, r.SamplingSessionID)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.joined++
	return wire.JoinedSamplingSession(p.joined), nil
}
