package server

import (
	"context"
	"sync"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// inflight is weights that sampling sessions of one run share: a later save replaces them for all. A sample goes on with those that it
// began with.
type inflight struct {
	mu  sync.Mutex
	seq int64 // number of the save that they are of
	now *engine.Sampler
}

// publish replaces the weights by those of a save, unless they are of a later one. What is not used any more is given back.
func (w *inflight) publish(seq int64, m *engine.Sampler) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.replace(seq, m)
}

func (w *inflight) replace(seq int64, m *engine.Sampler) {
	switch {
	case seq > w.seq:
		if w.now != nil {
			w.now.Close()
		}
		w.seq, w.now = seq, m
	case m != w.now:
		m.Close()
	}
}

// sample draws from the weights as they are now: those of a save that is done, or later ones.
func (w *inflight) sample(ctx context.Context, seq int64, m *engine.Sampler, in api.SampleRequest) (*engine.Future[api.SampleOutput], error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.replace(seq, m)
	return w.now.Sample(ctx, in) // nobody closes them meanwhile
}

// share makes a sampling session one of a run's that share their weights, from a save on.
func (s *Server) share(r *run, p *sampler, seq int64) {
	s.mu.Lock()
	if r.inflight == nil {
		r.inflight = &inflight{}
	}
	p.shared, p.seq = r.inflight, seq
	s.mu.Unlock()
	go func() {
		if m, err := p.made.Wait(context.Background()); err == nil {
			p.shared.publish(seq, m)
		}
	}()
}
