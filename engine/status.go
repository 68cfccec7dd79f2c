package engine

import (
	"cmp"
	"slices"
	"time"

	"tinkerlocal/engine/api"
)

const (
	// freeEvery is how often the device is asked for its free memory: that is a read of the system's tables.
	freeEvery = time.Second
	// freeWait is how long Status waits for an idle device to tell.
	freeWait = 20 * time.Millisecond
)

// seen is what the device's goroutine last told of its own, between two pieces of work, so that nobody who asks for the engine's
// status waits for the device. Guarded by e.mu.
type seen struct {
	memory  api.MemoryStatus
	freeAt  time.Time // when the device told its free memory; changed by the device's goroutine only
	doing   string
	since   time.Time
	loading *api.LoadingStatus
	waiting []chan struct{} // closed when there is news
}

// free asks the device for its free memory now and then. It is called on the device's goroutine.
func (e *Engine) free(now time.Time) (bytes int64, fresh bool) {
	if now.Sub(e.seen.freeAt).Abs() < freeEvery {
		return 0, false
	}
	return e.dev.Info().Free, true
}

// see tells what the device's goroutine alone knows. It is called there; e.mu is held.
func (e *Engine) see(now time.Time, free int64, fresh bool) {
	s := &e.seen
	if !fresh {
		free = s.memory.Free
	} else {
		s.freeAt = now
	}
	s.memory = api.MemoryStatus{Used: e.used, Limit: e.lim.Memory, Total: e.info.Memory, Free: free, Holds: len(e.helds)}
	for _, h := range e.helds {
		s.memory.HoldBytes += h.pass.bytes()
	}
	for _, b := range e.bases {
		b.seen = b.status()
		if b.seen.Idle {
			s.memory.IdleBytes += b.info.Bytes + b.seen.Sampling.Bytes
		}
	}
	for _, c := range s.waiting {
		close(c)
	}
	s.waiting = nil
}

// does tells what the device is about to do. It is called on the device's goroutine; e.mu is held.
func (e *Engine) does(what string, now time.Time) {
	if what != e.seen.doing {
		e.seen.doing, e.seen.since = what, now
	}
}

// status is what the device's goroutine knows of a base.
func (b *base) status() api.BaseStatus {
	out := api.BaseStatus{Name: b.info.Name, Params: b.info.Params, Bytes: b.info.Bytes, Idle: b.refs == 0, LastUsed: b.used}
	if b.batch != nil {
		l := b.batch.Load()
		out.Sampling = api.SamplingStatus{Waiting: l.Waiting, Running: l.Running, Positions: l.Positions, Used: l.Used, Bytes: b.kvBytes}
	}
	return out
}

// Status tells what the engine has and does. It never waits for work on the device: what the device's goroutine alone knows is as
// it was before the work that it is at.
func (e *Engine) Status() api.Status {
	e.freshen()
	e.mu.Lock()
	defer e.mu.Unlock()
	out := api.Status{
		State: api.StatusReady, Device: e.info.Name, Memory: e.seen.memory,
		Doing: e.seen.doing, QueuedJobs: len(e.jobs), Bases: []api.BaseStatus{},
		SampleRequests: e.sampling, SampleRequestLimit: e.lim.SampleRequests, RunLimit: e.lim.Runs,
	}
	if out.Doing != "" {
		out.Since = e.seen.since
	}
	switch {
	case e.closed:
		out.State = api.StatusClosed
	case e.lost != nil:
		out.State, out.Error = api.StatusDeviceLost, deviceLost(e.lost).Error()
	}
	if l := e.seen.loading; l != nil {
		out.Loading = new(*l)
	}
	runs, samplers := map[*base]int{}, map[*base]int{}
	out.Sessions, out.Runs = e.sessionStatus(runs, samplers)
	for _, name := range sortedNames(e.bases) {
		b := e.bases[name]
		s := b.seen
		s.Runs, s.Samplers = runs[b], samplers[b]
		s.Sampling.Waiting += len(b.incoming)
		out.Bases = append(out.Bases, s)
	}
	return out
}

// sessionStatus lists sessions and runs, and counts runs and samplers of each base. e.mu is held.
func (e *Engine) sessionStatus(runs, samplers map[*base]int) ([]api.SessionStatus, []api.RunStatus) {
	var order []*Run
	sessions := make([]api.SessionStatus, 0, len(e.sessions))
	for s := range e.sessions {
		sessions = append(sessions, api.SessionStatus{ID: s.id, Owner: s.owner, Opened: s.opened, Runs: len(s.runs), Samplers: len(s.samplers)})
		for r := range s.runs {
			runs[r.base]++
			order = append(order, r)
		}
		for p := range s.samplers {
			samplers[p.base]++
		}
	}
	slices.SortFunc(sessions, func(a, b api.SessionStatus) int { return cmp.Or(a.Opened.Compare(b.Opened), cmp.Compare(a.ID, b.ID)) })
	slices.SortFunc(order, func(a, b *Run) int { return a.order - b.order })
	out := make([]api.RunStatus, len(order))
	for i, r := range order {
		out[i] = r.status()
	}
	return sessions, out
}

// status describes the run. e.mu is held.
func (r *Run) status() api.RunStatus {
	out := api.RunStatus{
		ID: r.id, Session: r.session.id, Owner: r.session.owner, BaseModel: r.base.info.Name, Rank: r.lora.Rank, Bytes: r.bytes,
		Version: r.version, Step: r.step, State: api.RunIdle, Queued: r.line.Len(), Background: r.back.count, LastRequest: r.asked,
	}
	_, gap := r.line.Wake()
	switch en := r.current; {
	case en != nil:
		out.Operation, out.State = en.name, api.RunRunning
		if en.paused {
			out.State = api.RunPaused
		} else if en.starved {
			out.State = api.RunStarved
		}
	case out.Queued > 0 && gap:
		out.State = api.RunGap
	case out.Queued > 0:
		out.State = api.RunQueued
	}
	return out
}

// freshen lets an idle device tell its free memory, when that is due. A device that is at work does it on its own.
func (e *Engine) freshen() {
	now := e.opt.Now()
	e.mu.Lock()
	if e.closed || e.lost != nil || e.seen.doing != "" || now.Sub(e.seen.freeAt).Abs() < freeEvery {
		e.mu.Unlock()
		return
	}
	news := make(chan struct{})
	e.seen.waiting = append(e.seen.waiting, news)
	e.mu.Unlock()
	e.signal()
	t := time.NewTimer(freeWait)
	defer t.Stop()
	select {
	case <-news:
	case <-t.C:
	}
}
