package engine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
)

// RunPlace is a number among the runs of a session. Its methods are those of [Session].
type RunPlace struct {
	session  *Session
	n        int64
	numbered bool
}

// At gives the session's methods that open a run at a number, for callers that number what they open, from 0 on and in any
// order. The run's id is SESSION:train:n. A number that is used already answers with the future that it got first, whatever
// became of it; what the repeat asks for is not compared. A request that is refused at once leaves its number free: no run waits
// for another, so nothing is held up, and a caller that was told api.Busy may come again. A run without a number
// gets the one after the highest that was used.
//
// Limits.Remembered runs that have ended still answer a repeat; a number that was forgotten is refused, and so are those below it.
func (s *Session) At(n int64) RunPlace { return RunPlace{session: s, n: n, numbered: true} }

// NewRun is [Session.NewRun] at this place.
func (p RunPlace) NewRun(r api.CreateModelRequest) (*Future[*Run], error) {
	return p.claim(func() (opening, error) { return p.session.opening(r, firstNumber) })
}

// RunSource is the checkpoint that a run begins with. Path is required.
type RunSource struct {
	Path         string
	Optimizer    bool              // its moments and step, too: the run goes on as the saved one did, bit for bit
	Reader       string            // who must be allowed to read it; "": the session's owner
	BaseModel    string            // another base model, with the same modules; "": the checkpoint's
	UserMetadata map[string]string // the run's
}

// NewRunFrom is [Session.NewRunFrom] at this place.
func (p RunPlace) NewRunFrom(from RunSource) (*Future[*Run], error) {
	s := p.session
	from.Reader = cmp.Or(from.Reader, s.owner)
	return p.claim(func() (opening, error) {
		c, err := s.source(from.Reader, from.Path)
		if err != nil {
			return nil, err
		}
		from.Path = c.Path.String()
		open, err := s.opening(api.CreateModelRequest{BaseModel: cmp.Or(from.BaseModel, c.BaseModel), Lora: c.Lora, UserMetadata: from.UserMetadata}, loadNumber)
		if err != nil {
			return nil, err
		}
		return func(id string) (*Future[*Run], error) {
			made, err := open(id)
			if err != nil {
				return nil, err
			}
			return after(s, made.Cancel, func(ctx context.Context) (*Run, error) { return loadedRun(ctx, made, from) })
		}, nil
	})
}

// The number of a run's first operation. The load of a run that begins with a checkpoint has one of its own, before those that
// the run's user gives.
const (
	firstNumber = 1
	loadNumber  = 0
)

// loadedRun waits for a run and loads a checkpoint into it.
func loadedRun(ctx context.Context, made *Future[*Run], from RunSource) (*Run, error) {
	r, err := made.Wait(ctx)
	if err != nil {
		return nil, err
	}
	load, err := Place{run: r, seq: loadNumber, numbered: true}.LoadStateAs(from.Reader, from.Path, from.Optimizer)
	if err == nil {
		_, err = load.Wait(ctx)
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// opening queues what opens a run under an id. e.mu is held when it is called.
type opening func(id string) (*Future[*Run], error)

// opening checks a request for a run whose first operation has the number first.
func (s *Session) opening(r api.CreateModelRequest, first int64) (opening, error) {
	if r.BaseModel == "" {
		return nil, api.Errorf(api.BadRequest, "create model: base_model is empty")
	}
	if err := lora.Check(r.Lora); err != nil {
		return nil, err
	}
	e := s.e
	seed := e.opt.Seed()
	if r.Lora.Seed != nil {
		seed = *r.Lora.Seed
	}
	if err := api.CheckMetadata(r.UserMetadata, api.MaxRunMetadataBytes); err != nil {
		return nil, err
	}
	r.UserMetadata = maps.Clone(r.UserMetadata)
	return func(id string) (*Future[*Run], error) {
		if e.runs >= e.lim.Runs {
			return nil, api.Errorf(api.Busy, "%d runs are open, the limit is %d", e.runs, e.lim.Runs)
		}
		f, err := queueJob(s, "create model", func() (*Run, error) { return e.newRun(s, id, r, seed, first) }, (*Run).whenRecorded, func() {
			e.mu.Lock()
			e.runs--
			e.mu.Unlock()
		})
		if err == nil {
			e.runs++ // also while it is being opened
		}
		return f, err
	}, nil
}

// claim opens a run at p, unless p has one.
func (p RunPlace) claim(check func() (opening, error)) (*Future[*Run], error) {
	s, e := p.session, p.session.e
	e.mu.Lock()
	first, err := s.numbers.first(p)
	e.mu.Unlock()
	if first != nil || err != nil {
		return first, err
	}
	open, err := check()
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if first, err := s.numbers.first(p); first != nil || err != nil { // again: somebody may have been faster
		return first, err
	}
	if !p.numbered {
		p.n = s.numbers.next
	}
	id := fmt.Sprintf("%s:train:%d", s.id, p.n)
	if err := api.CheckName("run id", id); err != nil {
		return nil, err
	}
	f, err := open(id)
	if err != nil {
		return nil, err
	}
	s.numbers.use(p, f, e.lim.Runs+e.lim.Remembered)
	return f, nil
}

// numbers are those that the runs of a session have used.
type numbers struct {
	used   map[int64]numberedRun
	passed int64 // those below were used or count as used
	next   int64 // one past the highest that was used
}

type numberedRun struct {
	future   *Future[*Run]
	numbered bool // by the caller
}

// maxRunNumber keeps number arithmetic far from overflow, and ids short.
const maxRunNumber = 1 << 53

// first is what the number of p got, or nil when it is free; or why it cannot be used.
func (u *numbers) first(p RunPlace) (*Future[*Run], error) {
	if !p.numbered {
		return nil, nil
	}
	r, ok := u.used[p.n]
	switch {
	case ok && r.numbered:
		return r.future, nil
	case ok:
		return nil, api.Errorf(api.BadRequest, "run number %d was used by a call without a number", p.n)
	case p.n < 0 || p.n > maxRunNumber:
		return nil, api.Errorf(api.BadRequest, "run number is %d, wanted 0..%d", p.n, maxRunNumber)
	case p.n < u.passed:
		return nil, api.Errorf(api.BadRequest, "run number %d has passed: runs that ended before number %d are forgotten", p.n, u.passed)
	}
	return nil, nil
}

// use gives the number of p to a run. More than most are not remembered: the lowest numbers of runs that have ended are
// forgotten. most is more than there can be open.
func (u *numbers) use(p RunPlace, f *Future[*Run], most int) {
	u.used[p.n] = numberedRun{f, p.numbered}
	u.next = max(u.next, p.n+1)
	if len(u.used) <= most {
		return
	}
	for _, n := range slices.Sorted(maps.Keys(u.used)) {
		if u.used[n].ended() {
			delete(u.used, n)
			u.passed = max(u.passed, n+1)
			return
		}
	}
}

// ended reports whether there is no run, and will be none. e.mu is held.
func (n numberedRun) ended() bool {
	select {
	case <-n.future.done:
		return n.future.err != nil || n.future.value.closed
	default:
		return false
	}
}
