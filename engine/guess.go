package engine

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/model"
)

// A client's custom loss comes as two operations: a forward of cross_entropy for the log-probabilities, then, when the client has
// its loss, a forward_backward of cross_entropy on the same batch with the gradients as weights. The second is the backward of the
// first, which nobody says. So a forward keeps its activations where that is free, as a [Held] that nobody has: a guess. A later
// forward_backward of the run on the same sequences and targets, with the weights of the adapter as they were, takes it and runs only
// the backward. A wrong guess costs memory that nobody else wanted.

// digest tells batches apart: it is the SHA-256 of their sequences and targets. Two that have the same one have the same forward.
type digest [sha256.Size]byte

func digestOf(items []model.Item, shapes [][]int) (d digest) {
	h := sha256.New()
	var buf []byte
	ints := func(n ...int) {
		for _, v := range n {
			buf = binary.LittleEndian.AppendUint64(buf, uint64(v))
		}
	}
	for i, it := range items {
		buf = buf[:0]
		ints(len(it.Tokens), len(it.Targets), len(shapes[i]))
		ints(shapes[i]...)
		for _, list := range [][]int32{it.Tokens, it.Targets} {
			for _, id := range list {
				buf = binary.LittleEndian.AppendUint32(buf, uint32(id))
			}
		}
		h.Write(buf)
	}
	h.Sum(d[:0])
	return d
}

const (
	firstGuesses = 4  // how many forwards of a run keep their activations before it is known how many are worth it
	doubtAfter   = 16 // so many forwards in vain raise no doubt
)

// guesses are what a run's forwards and their backwards have told. The device's goroutine owns it.
type guesses struct {
	seen []digest // of the latest forwards with the weights as they are, the newest first
	want int      // how many of them would have had to be kept for all matches so far
	vain int      // forwards since the last match
	most int      // vain before a match, so far
	sure bool     // there was a match, and the run is not doubted since
}

// doubted reports whether the run's forwards seem to be ends in themselves, evaluations: there were more of them since the last match
// than twice as many as there ever were before one.
func (g *guesses) doubted() bool { return g.vain > max(doubtAfter, 2*g.most) }

// note remembers a forward that has ended.
func (g *guesses) note(d digest, most int) {
	g.seen = slices.DeleteFunc(g.seen, func(x digest) bool { return x == d })
	g.seen = append([]digest{d}, g.seen[:min(len(g.seen), most-1)]...)
	g.vain++
	g.sure = g.sure && !g.doubted()
}

// match uses a forward up to which a backward belongs, if one was noted.
func (g *guesses) match(d digest) {
	if i := slices.Index(g.seen, d); i >= 0 {
		g.want, g.most, g.vain, g.sure = max(g.want, i+1), max(g.most, g.vain), 0, true
		g.seen = slices.Delete(g.seen, i, i+1)
	}
}

// guessing reports whether the run's forwards may keep anything.
func (e *Engine) guessing() bool { return e.lim.KeptForwards > 0 }

// isGuess reports whether h is nobody's.
func (h *Held) isGuess() bool { return h.pass != nil && h.pass.digest != nil }

// guessOf finds the activations of p's forward, or nil.
func (e *Engine) guessOf(p *pass) *Held {
	if p.digest == nil {
		return nil
	}
	for _, h := range e.helds {
		if h.run == p.run && h.isGuess() && *h.pass.digest == *p.digest {
			return h
		}
	}
	return nil
}

// guess decides whether a forward keeps its activations. It does when these fit, with the fewest recomputed layers, into half of
// the memory that is free now; and beyond the latest few of the run, the oldest ones go. A forward that could share a batch with other
// runs shares it, unless the run's forwards are known to be followed by backwards. The forwards of a run that is doubted keep nothing;
// only their digests are remembered, and the first match ends the doubt.
func (p *pass) guess() {
	e, g := p.run.e, &p.run.guesses
	if p.digest == nil || !g.sure && e.company(p) {
		return
	}
	if g.doubted() {
		e.forgetGuesses(p.run, 0)
		return
	}
	if h := e.guessOf(p); h != nil { // the same forward again
		e.forget(h)
	}
	e.forgetGuesses(p.run, min(g.want, e.lim.KeptForwards)-1)
	room := e.room(p.run.base)
	if room < math.MaxInt64 {
		room /= 2
	}
	p.recompute, p.keep = p.fewest(p.batches(), room)
}

// keptOn says how p goes on with keeping: whether the micro-batch that begins at p.next fits beside what was kept, whole and
// without taking anything from anybody.
func (p *pass) keptOn() (plan, bool) {
	room := p.run.e.room(p.run.base)
	pl := p.cut(p.next, room, true)
	return pl, pl.bytes <= room && !pl.short
}

// guessBytes is the memory of all guesses.
func (e *Engine) guessBytes() (n int64) {
	for _, h := range e.helds {
		if h.isGuess() {
			n += h.pass.bytes()
		}
	}
	return n
}

// forgetGuesses leaves the newest n of a run.
func (e *Engine) forgetGuesses(r *Run, n int) {
	for _, h := range slices.Backward(slices.Clone(e.helds)) {
		if h.run != r || !h.isGuess() {
			continue
		}
		if n--; n < 0 {
			e.forget(h)
		}
	}
}

// newGuess takes over a forward that has kept its activations.
func (e *Engine) newGuess(p *pass) {
	h := e.newHeld(&pass{run: p.run, tapes: p.tapes, digest: p.digest})
	p.tapes = nil
	e.log.Debug("a forward keeps its activations", "run", p.run.id, "bytes", h.pass.bytes())
}

// take gives a backward what its forward has kept, if there was one and it has.
func (p *pass) take() error {
	e := p.run.e
	h := e.guessOf(p)
	p.run.guesses.match(*p.digest)
	if h == nil {
		return nil
	}
	e.helds = slices.DeleteFunc(e.helds, func(x *Held) bool { return x == h })
	p.tapes = h.pass.tapes
	e.tapes += len(p.tapes)
	for i := range p.tapes {
		c := &p.tapes[i].parts[0] // a pass that keeps is alone
		c.p = p
		lp, err := p.tapes[i].tape.LogProbs()
		if err == nil {
			err = p.countLoads(p.tapes[i].tape, 0, len(lp))
		}
		if err != nil {
			return err
		}
		copy(p.logProbs[c.lo:c.hi], lp)
	}
	p.next = len(p.items)
	return nil
}

// changed ends what belongs to the weights that the run's adapter had before. It is called by operations that may change
// them.
func (r *Run) changed(before int64) {
	e := r.e
	if now := r.adapter.Version; now != before {
		e.endHelds(r, api.Errorf(api.Stale, "the hold is stale: it has version %d of the weights, the run has %d", before, now))
		r.guesses.seen = nil
	}
	e.mu.Lock()
	r.version, r.step = r.adapter.Version, r.adapter.Step
	e.mu.Unlock()
}
