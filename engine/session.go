package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
)

// Session groups the runs and samplers that one client opens, so that they can be closed together.
type Session struct {
	e      *Engine
	id     string
	owner  string
	opened time.Time
	ctx    context.Context // ends with the session or the engine
	stop   context.CancelCauseFunc

	// guarded by e.mu
	closed   bool
	numbers  numbers
	runs     map[*Run]bool
	samplers map[*Sampler]bool
	closing  map[*Sampler]bool // closed, with requests under way
}

func newID(seed int64) string { return fmt.Sprintf("%016x", uint64(seed)) }

// ID is the session's name: 16 hexadecimal digits, or what NewSessionAs was given.
func (s *Session) ID() string { return s.id }

// NewRun opens a training run: a fresh adapter on r.BaseModel, which is loaded if no one has yet. It
// does not block; a configuration that cannot be trained is refused at once.
func (s *Session) NewRun(r api.CreateModelRequest) (*Future[*Run], error) {
	return RunPlace{session: s}.NewRun(r)
}

// NewRunFrom opens a run with the configuration and weights of a checkpoint, and with its base model unless from has
// another. The run's own operations are numbered from 1 on, as those of a fresh run. It does not block.
func (s *Session) NewRunFrom(from RunSource) (*Future[*Run], error) {
	return RunPlace{session: s}.NewRunFrom(from)
}

// NewSampler opens a sampler on the bare base model, which is loaded if no one has yet. It does not block.
func (s *Session) NewSampler(baseModel string) (*Future[*Sampler], error) {
	return submitJob(s, "create sampler", func() (*Sampler, error) { return s.e.newSampler(s, baseModel, nil) })
}

// NewAdapterSampler opens a sampler on a base model with adapter weights from the host, for example
// from a file; modules that it lacks are not adapted. w is copied to the device when the future completes; do not change it
// before. It does not block.
func (s *Session) NewAdapterSampler(baseModel string, w Weights) (*Future[*Sampler], error) {
	if err := lora.Check(w.Lora); err != nil {
		return nil, err
	}
	return submitJob(s, "create sampler", func() (*Sampler, error) { return s.e.newSampler(s, baseModel, &w) })
}

// Runs lists the open runs, the oldest first.
func (s *Session) Runs() []*Run {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	return slices.SortedFunc(maps.Keys(s.runs), func(a, b *Run) int { return a.order - b.order })
}

// Close closes the session's runs, aborts its samplers, and fails what waits to be opened. It does not block; closing twice does nothing.
func (s *Session) Close() {
	e := s.e
	e.mu.Lock()
	s.closed = true
	delete(e.sessions, s)
	runs, samplers := slices.Collect(maps.Keys(s.runs)), slices.Collect(maps.Keys(s.samplers))
	samplers = slices.AppendSeq(samplers, maps.Keys(s.closing))
	var dropped []job
	e.jobs = slices.DeleteFunc(e.jobs, func(j job) bool {
		if j.session == s {
			dropped = append(dropped, j)
		}
		return j.session == s
	})
	e.mu.Unlock()
	s.stop(errSessionClosed)
	for _, j := range dropped {
		j.drop(errSessionClosed)
	}
	for _, r := range runs {
		r.Close()
	}
	for _, p := range samplers {
		p.abort(errSessionClosed)
	}
}
