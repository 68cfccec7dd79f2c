package engine

import (
	"slices"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/queue"
)

// Held is a forward that waits for its backward, while a caller computes the weights: one forward and one backward, as with a
// built-in loss.
//
// Hold and Backward each have their own place in the run's order. What is placed between them runs between them: the gradients of
// passes are added in the order of the places, the Held's at that of its Backward. A Held belongs to the version of the weights
// that its forward saw: once an optim_step or a load has run, its Backward answers api.Stale, also when it was
// placed later than that step by mistake. So the order is Hold, Backward, OptimStep, and the step is submitted after the Backward.
//
// A Held may be used once, within Limits.HoldWait. Until then its activations stay on the device as long as no other work
// needs the memory; if they had to go, Backward runs the forward again, to the same bits. Any goroutine may use it.
type Held struct {
	run      *Run
	version  int64
	logProbs [][]float32
	shapes   [][]int

	pass     *pass // the device's goroutine only, as long as gone is nil
	deadline time.Time

	// guarded by run.e.mu
	queued int   // backwards that wait
	gone   error // why it cannot be used any more
}

var (
	errHeldUsed     = api.Errorf(api.BadRequest, "the hold was used already")
	errHeldReleased = api.Errorf(api.BadRequest, "the hold was released")
)

// LogProbs are those of each datum's targets, [datum][position*k]. Do not change them.
func (h *Held) LogProbs() [][]float32 { return h.logProbs }

// Shapes are those of each datum's targets, and so of its LogProbs: [N, K], or nil for [N]. Do not change them.
func (h *Held) Shapes() [][]int { return h.shapes }

// Version is the version of the run's weights that the forward saw.
func (h *Held) Version() int64 { return h.version }

// Backward differentiates L = -sum weights*logprob with the weights held constant, and adds the gradient to the run's: the whole, or
// on an error nothing. weights has the shape of LogProbs and is copied. The metric loss:sum of its result is that of
// L: the caller alone knows its own loss. It does not block.
func (h *Held) Backward(weights [][]float32) (*Future[api.ForwardBackwardOutput], error) {
	return h.run.place().Backward(h, weights)
}

// Release gives the activations up. A Backward that was submitted before still runs. Releasing twice does
// nothing, and it does not block.
func (h *Held) Release() {
	e := h.run.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if h.gone != nil || h.queued > 0 || e.closed {
		return
	}
	h.gone = errHeldReleased
	e.post(job{name: "release hold", do: func() { e.forget(h) }})
}

// Hold is [Run.Hold] at this place.
func (p Place) Hold(data []api.Datum) (*Future[*Held], error) {
	return submit(p, "hold", queue.Pass, func(f *Future[*Held], en *entry) (task, error) {
		t, err := newItems(p.run, data, en)
		if err != nil {
			return nil, err
		}
		t.hold = func(t *pass, err error) {
			if err != nil {
				t.dropTapes()
				f.fail(err)
				return
			}
			f.set(p.run.e.newHeld(t), nil)
		}
		return t, nil
	})
}

// Backward is [Held.Backward] at this place.
func (p Place) Backward(h *Held, weights [][]float32) (*Future[api.ForwardBackwardOutput], error) {
	e := p.run.e
	var mine *Future[api.ForwardBackwardOutput]
	f, err := submit(p, "backward", queue.Pass, func(f *Future[api.ForwardBackwardOutput], en *entry) (task, error) {
		if h.run != p.run {
			return nil, api.Errorf(api.BadRequest, "the hold belongs to run %s, not to %s", h.run.id, p.run.id)
		}
		if err := checkWeights("got", weights, h.logProbs, 0); err != nil {
			return nil, err
		}
		b := &heldBackward{held: h, entry: en, future: f, weights: make([][]float32, len(weights))}
		for i, w := range weights {
			b.weights[i] = slices.Clone(w)
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if h.gone == nil && h.expired(e.opt.Now()) {
			h.gone = e.expiry()
		}
		if h.gone != nil {
			return nil, h.gone
		}
		h.queued++
		mine = f
		return b, nil
	})
	if mine != nil && f != mine { // it was not queued
		e.mu.Lock()
		h.queued--
		e.mu.Unlock()
	}
	return f, err
}

// roomToHold refuses more holds than a run may have open.
func (r *Run) roomToHold() error {
	n := 0
	for _, h := range r.e.helds {
		if h.run == r && !h.isGuess() {
			n++
		}
	}
	if limit := r.e.lim.Holds; n >= limit {
		return api.Errorf(api.Busy, "%d holds of this run are open, the limit is %d", n, limit)
	}
	return nil
}

// newHeld takes over a pass whose forward has run.
func (e *Engine) newHeld(p *pass) *Held {
	h := &Held{
		run: p.run, version: p.run.adapter.Version, pass: p, deadline: e.opt.Now().Add(e.lim.HoldWait),
		logProbs: slices.Clone(p.logProbs), shapes: p.shapes,
	}
	p.hold = nil
	e.helds = append(e.helds, h)
	e.tapes -= len(p.tapes) // nobody waits for them: they can be given up
	return h
}

// forget takes a Held off the list and frees what it has.
func (e *Engine) forget(h *Held) {
	if i := slices.Index(e.helds, h); i >= 0 {
		e.helds = slices.Delete(e.helds, i, i+1)
		e.tapes += len(h.pass.tapes)
		h.pass.dropTapes()
		h.pass = nil
	}
}

// evict gives the activations up and reports whether there were any.
func (h *Held) evict() bool {
	n := len(h.pass.tapes)
	h.run.e.tapes += n
	h.pass.dropTapes()
	h.run.base.model.Trim()
	return n > 0
}

// endHelds makes a run's holds unusable.
func (e *Engine) endHelds(r *Run, why error) {
	for _, h := range slices.Clone(e.helds) {
		if h.run == r {
			e.endHeld(h, why)
		}
	}
}

func (e *Engine) endHeld(h *Held, why error) {
	e.mu.Lock()
	if h.gone == nil {
		h.gone = why
	}
	e.mu.Unlock()
	e.forget(h)
}

// holdDeadline is when the next hold expires; zero: never. Those whose backward is queued do not. e.mu is held.
func (e *Engine) holdDeadline() time.Time {
	var first time.Time
	for _, h := range e.helds {
		if h.queued == 0 && (first.IsZero() || h.deadline.Before(first)) {
			first = h.deadline
		}
	}
	return first
}

// expired reports whether nobody came in time. e.mu is held.
func (h *Held) expired(now time.Time) bool { return h.queued == 0 && !now.Before(h.deadline) }

func (e *Engine) expiry() error {
	return api.Errorf(api.Stale, "the hold is stale: it was not used within %v", e.lim.HoldWait)
}

func (e *Engine) expireHelds() {
	now := e.opt.Now()
	for _, h := range slices.Clone(e.helds) {
		e.mu.Lock()
		expired := h.expired(now)
		e.mu.Unlock()
		if expired {
			e.endHeld(h, e.expiry())
		}
	}
}

// heldBackward is the operation of a Held's Backward: the rest of the pass whose forward the Held is.
type heldBackward struct {
	held    *Held
	entry   *entry
	future  *Future[api.ForwardBackwardOutput]
	weights [][]float32
	pass    *pass // once it has started
}

func (b *heldBackward) step() (status, error) {
	if b.pass == nil {
		if err := b.start(); err != nil {
			return done, err
		}
	}
	return b.pass.step()
}

// start takes the pass out of the Held.
func (b *heldBackward) start() error {
	h, e := b.held, b.held.run.e
	e.mu.Lock()
	err := h.gone
	if err == nil {
		h.gone = errHeldUsed
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	p := h.pass
	e.helds = slices.DeleteFunc(e.helds, func(x *Held) bool { return x == h })
	e.tapes += len(p.tapes)
	h.pass = nil
	b.pass = p
	p.entry, p.future, p.backward, p.weights, p.known = b.entry, b.future, true, b.weights, true
	sum := 0.0
	for i, lp := range p.logProbs {
		for j, v := range lp {
			if w := p.weights[i][j]; w != 0 {
				sum -= float64(w) * float64(v)
			}
		}
	}
	p.out.Metrics = map[string]float64{"loss:sum": sum}
	return p.run.adapter.BeginOp()
}

func (b *heldBackward) end(err error) {
	h := b.held
	h.run.e.mu.Lock()
	h.queued--
	h.run.e.mu.Unlock()
	if b.pass != nil {
		b.pass.end(err)
	} else {
		b.future.fail(err)
	}
}
