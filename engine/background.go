package engine

import (
	"tinkerlocal/engine/lora"
)

// background is what goroutines do with the store for one run: one thing at a time, in the order in which it was
// asked for. So of two saves of one name the later one stays, and a load sees the saves before it. Guarded by e.mu.
type background struct {
	tail    chan struct{} // closed when all that was asked for is done; nil: nothing ever was
	count   int           // things that are not done
	waiting *entry        // the run's operation that waits until count is lower
}

// later does something in the background of a run. e.mu is held and the engine is not closed.
func (r *Run) later(name string, do func()) {
	r.back.count++
	r.chain(name, do, func() {
		r.back.count--
		if en := r.back.waiting; en != nil {
			r.back.waiting, en.paused = nil, false
		}
	})
}

// chain does something when all that was asked for before is done. ended is called while e.mu is held, as chain is; the
// engine is not closed.
func (r *Run) chain(name string, do, ended func()) {
	e, before, done := r.e, r.back.tail, make(chan struct{})
	r.back.tail = done
	e.evals.Go(func() {
		if before != nil {
			<-before
		}
		_, err := guard(name, func() (struct{}, error) { do(); return struct{}{}, nil })
		if err != nil {
			e.log.Error("background work failed", "op", name, "run", r.id, "err", err)
		}
		e.mu.Lock()
		ended()
		e.mu.Unlock()
		close(done)
		e.signal()
	})
}

// behind says whether more than n things are not done, and if so lets en wait until one is. It is called on the device's
// goroutine by en's task.
func (r *Run) behind(n int, en *entry) bool {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	if r.back.count <= n {
		return false
	}
	r.back.waiting, en.paused = en, true
	return true
}

// onDevice does something on the device's goroutine and waits for it.
func (e *Engine) onDevice(name string, do func() error) error {
	result := make(chan error, 1)
	e.mu.Lock()
	err := e.usable()
	if err == nil {
		e.post(job{name: name, drop: func(err error) { result <- err }, do: func() {
			err := do()
			e.note(name, err)
			result <- err
		}})
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return <-result
}

// freeState frees a copy of an adapter, on the device's goroutine.
func (e *Engine) freeState(s *lora.State) {
	if e.states[s] {
		delete(e.states, s)
		e.used -= s.DeviceBytes()
		s.Free()
	}
}
