package engine

import (
	"errors"
	"io"
	"runtime"
	"slices"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/queue"
	"tinkerlocal/kernels"
)

// The device loop is the only goroutine that touches the device, the model and the adapters. It takes
// one piece of work at a time: a job (open, load, free), a training micro-batch, or a decode step. Everybody else
// leaves work in queues under e.mu and signals.

// job is one thing to do on the device's goroutine. Jobs run before anything else, in order.
type job struct {
	name    string
	session *Session    // whose end drops it; may be nil
	do      func()      // settles its own future
	drop    func(error) // settles it without doing anything
}

// work is the loop's next move. At most one field is set; none: wait until wake.
type work struct {
	close  bool
	job    *job
	run    *Run
	decode bool
	expire bool      // holds have passed their deadline
	wake   time.Time // zero: no time is known
}

// String is what people read about the work in the engine's status.
func (w work) String() string {
	switch {
	case w.job != nil:
		return w.job.name
	case w.run != nil:
		return w.run.current.name + " of " + w.run.id
	case w.decode:
		return "sample"
	}
	return ""
}

func (e *Engine) signal() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *Engine) loop() {
	runtime.LockOSThread() // a GPU context belongs to a thread; the thread ends with the loop
	defer close(e.exited)
	for {
		w := e.choose()
		switch {
		case w.close:
			e.shutdown()
			return
		case w.job != nil:
			e.perform(w.job)
		case w.run != nil:
			e.turn(w.run)
		case w.decode:
			e.decode()
		case w.expire:
			e.expireHelds()
		default:
			e.idle(w.wake)
		}
	}
}

// choose decides what is next. A lost device only runs jobs: they free what is closed.
func (e *Engine) choose() work {
	now := e.opt.Now()
	free, fresh := e.free(now)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.see(now, free, fresh)
	w := e.next(now)
	e.does(w.String(), now)
	return w
}

// next is the next piece of work. e.mu is held.
func (e *Engine) next(now time.Time) work {
	if e.closed {
		return work{close: true}
	}
	if len(e.jobs) > 0 {
		j := e.jobs[0]
		e.jobs = e.jobs[1:]
		return work{job: &j}
	}
	if e.lost != nil {
		return work{}
	}
	deadline := e.holdDeadline()
	if !deadline.IsZero() && !now.Before(deadline) {
		return work{expire: true}
	}
	decode := false
	for _, b := range e.bases {
		decode = decode || len(b.incoming) > 0 || b.batch != nil && b.batch.Busy()
	}
	decode = decode || e.waitsInVain()
	train := slices.ContainsFunc(e.turns.Members(), func(r *Run) bool { return r.ready(now) })
	switch e.share.Pick(train, decode) {
	case queue.Train:
		r, _ := e.turns.Next(func(r *Run) bool { return r.ready(now) })
		r.begin(now)
		return work{run: r}
	case queue.Decode:
		return work{decode: true}
	}
	w := work{wake: deadline}
	for _, r := range e.turns.Members() {
		if t, ok := r.line.Wake(); ok && r.current == nil && (w.wake.IsZero() || t.Before(w.wake)) {
			w.wake = t
		}
	}
	return w
}

// idle waits for a signal, or until a gap in some run's numbers has been waited for.
func (e *Engine) idle(until time.Time) {
	if until.IsZero() {
		<-e.wake
		return
	}
	t := time.NewTimer(max(until.Sub(e.opt.Now()), time.Millisecond))
	defer t.Stop()
	select {
	case <-e.wake:
	case <-t.C:
	}
}

// post queues a job. e.mu is held.
func (e *Engine) post(j job) {
	e.jobs = append(e.jobs, j)
	e.signal()
}

// submitJob queues do and returns the future of its result.
func submitJob[T any](s *Session, name string, do func() (T, error)) (*Future[T], error) {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	return queueJob(s, name, do, atOnce[T], func() {})
}

// atOnce ends a future when its job has.
func atOnce[T any](_ T, end func()) { end() }

// queueJob is submitJob while e.mu is held. then gets what do has made, and ends the future, now or later. undo is called before a
// future that was returned fails.
func queueJob[T any](s *Session, name string, do func() (T, error), then func(v T, end func()), undo func()) (*Future[T], error) {
	e := s.e
	f := newFuture[T]()
	cancelled := false // guarded by e.mu
	f.drop = func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		cancelled = true
	}
	fail := func(err error) { undo(); f.fail(err) }
	if err := e.usable(); err != nil {
		return nil, err
	}
	if s.closed {
		return nil, errSessionClosed
	}
	e.post(job{name: name, session: s, drop: fail, do: func() {
		e.mu.Lock()
		err := e.usable()
		switch {
		case err != nil:
		case cancelled:
			err = api.Errorf(api.Cancelled, "%s: cancelled", name)
		case s.closed:
			err = errSessionClosed
		}
		e.mu.Unlock()
		if err != nil {
			fail(err)
			return
		}
		v, err := guard(name, do)
		e.note(name, err)
		if err != nil {
			fail(err)
			return
		}
		then(v, func() { f.set(v, nil) })
	}})
	return f, nil
}

// guard runs do and turns a panic into an error.
func guard[T any](name string, do func() (T, error)) (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicked(name, p)
		}
	}()
	return do()
}

func (e *Engine) perform(j *job) {
	_, err := guard(j.name, func() (struct{}, error) { j.do(); return struct{}{}, nil })
	if err != nil {
		e.note(j.name, err)
		if j.drop != nil {
			j.drop(err)
		}
	}
}

// turn runs one step of a run's operation.
func (e *Engine) turn(r *Run) {
	en := r.current
	r.base.touch()
	e.mu.Lock()
	closed := r.closed
	e.mu.Unlock()
	if closed && en.kind == queue.Pass { // whatever it would give, nobody can use it
		e.finish(r, en, errRunClosed)
		return
	}
	st, err := guard(en.name, en.task.step)
	if err != nil && en.kind == queue.Barrier {
		e.forgetGuesses(r, 0) // nobody knows how far it came with the weights
	}
	if err != nil || st == done {
		e.finish(r, en, err)
	}
}

// finish ends a run's operation. It does nothing when it has ended already.
func (e *Engine) finish(r *Run, en *entry, err error) {
	e.note(en.name, err)
	e.mu.Lock()
	if r.current != en {
		e.mu.Unlock()
		return
	}
	r.line.Done(en.seq)
	r.current = nil
	closed := r.closed
	e.mu.Unlock()
	en.end(err)
	if closed {
		e.freeRun(r)
	}
}

// decode runs one decode step of every base that samples.
func (e *Engine) decode() {
	e.dropWaiting()
	for _, name := range sortedNames(e.bases) {
		b, ok := e.bases[name]
		if !ok {
			continue // one before it needed the memory
		}
		e.mu.Lock()
		incoming := b.incoming
		b.incoming = nil
		e.mu.Unlock()
		if incoming = e.present(alive(incoming)); len(incoming) == 0 && (b.batch == nil || !b.batch.Busy()) {
			continue
		}
		b.touch()
		returned := false
		_, err := guard("sample", func() (struct{}, error) {
			err := b.decode(incoming)
			returned = true
			return struct{}{}, err
		})
		if err == nil {
			continue
		}
		e.note("sample", err)
		for _, r := range incoming { // those that were not added
			r.fail(err)
		}
		if b.batch != nil && !returned { // nobody knows what state a panic left behind
			b.batch.FailAll(err)
			b.closeBatch()
		}
	}
}

// note logs a failure, and takes the device out of service when the device is what failed.
func (e *Engine) note(name string, err error) {
	if err == nil {
		return
	}
	code := apiError(err).Code
	if code == api.Internal || code == api.DeviceLost {
		e.log.Error("operation failed", "op", name, "code", string(code), "err", err)
	} else {
		e.log.Debug("operation failed", "op", name, "code", string(code), "err", err)
	}
	if errors.Is(err, kernels.ErrLost) {
		e.mu.Lock()
		if e.lost == nil {
			e.lost = err
		}
		e.mu.Unlock()
		e.failAll(deviceLost(err))
	}
}

// failAll ends all that waits or is under way.
func (e *Engine) failAll(err error) {
	e.mu.Lock()
	var drop []*entry
	for _, r := range e.turns.Members() {
		drop = append(drop, r.drain()...)
	}
	var requests []*request
	for _, b := range e.bases {
		requests = append(requests, b.incoming...)
		b.incoming = nil
	}
	e.mu.Unlock()
	for _, en := range drop {
		en.end(err)
	}
	for _, r := range requests {
		r.fail(err)
	}
	e.failWaiting(err)
	for _, b := range e.bases {
		if b.batch != nil {
			b.batch.FailAll(err)
		}
	}
}

// shutdown is the loop's last act.
func (e *Engine) shutdown() {
	e.mu.Lock()
	jobs := e.jobs
	e.jobs = nil
	e.mu.Unlock()
	for _, j := range jobs {
		if j.drop != nil {
			j.drop(errClosed)
		}
	}
	e.failAll(errClosed)
	e.evals.Wait()
	for s := range e.states {
		e.freeState(s)
	}
	e.mu.Lock()
	runs := e.turns.Members()
	e.mu.Unlock()
	for _, r := range runs {
		r.recordNow()
		e.freeRun(r)
	}
	for _, name := range sortedNames(e.bases) {
		e.freeBase(e.bases[name])
	}
	if e.closeErr = e.dev.Close(); e.closeErr != nil {
		e.log.Error("close device", "err", e.closeErr)
	}
	if c, ok := e.opt.Losses.(io.Closer); ok {
		e.closeErr = errors.Join(e.closeErr, c.Close())
	}
	if s := e.opt.Shelf; s != nil {
		e.closeErr = errors.Join(e.closeErr, s.Close())
	}
	if s := e.opt.Checkpoints; s != nil {
		if err := s.Close(); err != nil {
			e.log.Error("close checkpoint store", "err", err)
			e.closeErr = errors.Join(e.closeErr, err)
		}
	}
	e.log.Info("engine closed")
}
