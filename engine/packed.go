package engine

import (
	"errors"
	"math"
	"slices"
	"time"

	"tinkerlocal/engine/loss"
	"tinkerlocal/engine/model"
	"tinkerlocal/kernels"
)

// Micro-batches on the device. Passes of different runs on one base share one when their losses are per datum: each has its
// adapter, its loss and its op gradient. Passes of one run do not, because an adapter sums one op's gradient at a
// time; nor do passes that keep tapes, because a tape is differentiated once, when all its weights are known.

// part is the datums [lo, hi) of a pass.
type part struct {
	p      *pass
	lo, hi int
}

// packed is the forward of parts, side by side in one batch.
type packed struct {
	tape  *model.Tape
	parts []part
	bytes int64
}

// pack runs the forward of parts. The memory was planned; release it.
func (e *Engine) pack(parts []part, pl plan) (h packed, err error) {
	h = packed{parts: parts, bytes: pl.bytes}
	items := parts[0].p.items[parts[0].lo:parts[0].hi]
	if len(parts) > 1 {
		items = nil
		for _, c := range parts {
			items = append(items, c.p.items[c.lo:c.hi]...)
		}
	}
	m := parts[0].p.run.base.model
	if pl.keep {
		h.tape, err = m.ForwardRecompute(items, pl.recompute)
	} else {
		h.tape, err = m.Forward(items, false)
	}
	if err != nil {
		return h, err
	}
	e.used += h.bytes
	e.tapes++
	return h, nil
}

func (h packed) release() {
	e := h.parts[0].p.run.e
	h.tape.Release()
	e.used -= h.bytes
	e.tapes--
}

// differentiate adds the gradients to the op gradients. Weights that are all zero add nothing.
func (h packed) differentiate(weights [][]float32) error {
	for _, w := range weights {
		if slices.ContainsFunc(w, func(v float32) bool { return v != 0 }) {
			return h.tape.Backward(weights)
		}
	}
	return nil
}

// mixes reports whether the pass may share a batch.
func (p *pass) mixes() bool {
	switch {
	case p.hold != nil || p.alone:
		return false
	case p.backward:
		return p.perDatum && p.run.e.guessOf(p) == nil
	}
	return !p.keep && (p.digest == nil || !p.run.guesses.sure)
}

// join adds the datums that come next in passes of other runs, as many as the limits allow, in the order of their turns.
func (e *Engine) join(parts []part, pl *plan) []part {
	p, now := parts[0].p, e.opt.Now()
	room := e.room(p.run.base)
	if guesses := e.guessBytes(); guesses > 0 && room < math.MaxInt64 {
		room += guesses - guesses/8 // see Engine.room
		defer func() { e.trim(p.run.base, pl.bytes) }()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.turns.Members() {
		q := r.joinable(p, now)
		if q == nil {
			continue
		}
		c := part{q, q.next, q.next}
		for c.hi < len(q.items) {
			more := *pl
			more.add(q.items[c.hi], r.lora.Rank)
			if more.tokens > e.lim.MicroBatchTokens {
				break
			}
			if more.measure(r.base); more.bytes > room {
				break
			}
			*pl = more
			c.hi++
		}
		if c.hi > c.lo {
			r.begin(now)
			parts = append(parts, c)
		}
	}
	return parts
}

// joinable is the run's pass that could share a batch with p now, or nil. e.mu is held.
func (r *Run) joinable(p *pass, now time.Time) *pass {
	if r == p.run || r.base != p.run.base {
		return nil
	}
	q := r.passAhead(now)
	if q == nil || q.backward != p.backward || !q.mixes() || q.next == len(q.items) {
		return nil
	}
	return q
}

// company reports whether another run has a pass that could share a batch with p.
func (e *Engine) company(p *pass) bool {
	now := e.opt.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(e.turns.Members(), func(r *Run) bool { return r.joinable(p, now) != nil })
}

// passAhead is the pass that the run is at or would start next, when it can go on now. e.mu is held.
func (r *Run) passAhead(now time.Time) *pass {
	en := r.current
	if r.closed {
		return nil
	}
	if en == nil {
		en, _ = r.line.Peek(now)
	} else if en.paused || en.starved {
		return nil
	}
	if en == nil {
		return nil
	}
	p, _ := en.task.(*pass)
	return p
}

// runParts runs one micro-batch forward, and backward where the losses are per datum. The first part's pass is the one whose
// turn it is: its failure is returned, that of another pass ends that one. When what they share fails, nobody knows whose
// fault it is: all start again, each alone.
func (e *Engine) runParts(parts []part, pl plan) error {
	if len(parts) == 1 {
		failures, err := e.tryParts(parts, pl)
		if err != nil {
			return err
		}
		return failures[0]
	}
	for i := 1; i < len(parts); i++ {
		p := parts[i].p
		if p.next > 0 {
			continue
		}
		if _, err := guard(p.entry.name, func() (struct{}, error) { return struct{}{}, p.begin(true) }); err != nil {
			e.finish(p.run, p.entry, err)
			parts = slices.Delete(parts, i, i+1)
			i--
		}
	}
	failures, err := guard("shared batch", func() ([]error, error) { return e.tryParts(parts, pl) })
	switch {
	case errors.Is(err, kernels.ErrLost):
		return err
	case err != nil:
		e.log.Warn("a batch that several runs shared failed; each goes on alone", "runs", len(parts), "err", err)
		for _, c := range parts {
			c.p.alone = true
			c.p.restart()
		}
		return nil
	}
	for i, c := range parts[1:] {
		if failures[i+1] != nil {
			e.finish(c.p.run, c.p.entry, failures[i+1])
		}
	}
	return failures[0]
}

// tryParts returns the failure of each part's loss, and what failed for all.
func (e *Engine) tryParts(parts []part, pl plan) ([]error, error) {
	h, err := e.pack(parts, pl)
	if err != nil {
		return nil, err
	}
	kept := false
	defer func() {
		if !kept {
			h.release()
		}
	}()
	lp, err := h.tape.LogProbs()
	if err != nil {
		return nil, err
	}
	at := 0
	for _, c := range parts {
		n := copy(c.p.logProbs[c.lo:c.hi], lp[at:])
		if c.p.backward {
			if err := c.p.countLoads(h.tape, at, at+n); err != nil {
				return nil, err
			}
		}
		at += n
	}
	failures := make([]error, len(parts))
	switch p := parts[0].p; {
	case p.keep && (!p.perDatum || !p.backward): // alone
		p.tapes = append(p.tapes, h)
		kept = true
	case p.keep:
		weights := make([][]float32, 0, at)
		for i, c := range parts {
			failures[i] = c.weigh()
			weights = append(weights, c.p.weights[c.lo:c.hi]...)
		}
		if err := h.differentiate(weights); err != nil {
			return nil, err
		}
	}
	for i, c := range parts {
		if failures[i] == nil {
			c.p.next = c.hi
			if c.p.perDatum {
				c.p.back = c.hi
			}
		}
	}
	return failures, nil
}

// weigh evaluates a loss per datum. One that fails leaves weights of zero.
func (c part) weigh() error {
	p := c.p
	out, err := guard(p.entry.name, func() (loss.Output, error) { return p.eval(p.run.e.ctx, c.lo, c.hi) })
	if err != nil {
		for i := c.lo; i < c.hi; i++ {
			p.weights[i] = make([]float32, len(p.logProbs[i]))
		}
		return err
	}
	copy(p.weights[c.lo:c.hi], out.Weights)
	if c.lo == 0 && c.hi == len(p.items) {
		p.out, p.known = out, true
	}
	return nil
}
