package engine

import (
	"math"
	"sort"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/model"
)

// The memory plan: what a micro-batch takes is known before it runs.

// plan is one micro-batch of a pass: the datums up to hi.
type plan struct {
	size
	hi        int
	keep      bool
	recompute int // layers of which only the input is kept
	bytes     int64
	wait      bool // it fits when other operations have released their tapes
	short     bool // memory ended it, or will, not the limit of tokens
}

// size is what decides how much memory a packed batch takes.
type size struct{ tokens, targets, rank int }

func (s *size) add(it model.Item, rank int) {
	s.tokens += len(it.Tokens)
	s.targets = max(s.targets, len(it.Targets)/len(it.Tokens))
	s.rank = max(s.rank, rank)
}

func (pl *plan) measure(b *base) {
	pl.bytes = b.model.TrainBytes(pl.tokens, pl.targets, pl.rank, pl.keep, pl.recompute)
}

// plan cuts the micro-batch that begins at datum lo. What comes first when memory is short: bases that nobody uses are given up, and what
// else nobody misses; then micro-batches shrink, down to one datum; then tapes of holds are given up; then, with keep, as few layers as
// needed are run forward again in the backward. Only then it waits for tapes that other operations hold, or is refused.
func (p *pass) plan(lo int, keep bool) (plan, error) {
	e, b := p.run.e, p.run.base
	room := e.room(b)
	pl := p.cut(lo, room, keep)
	if pl.short && e.idleBytes(b) > 0 {
		room = e.unload(b, p.cut(lo, math.MaxInt64, keep).bytes)
		pl = p.cut(lo, room, keep)
	}
	if pl.bytes > room {
		room = e.makeRoom(b, pl.bytes)
		pl = p.cut(lo, room, keep)
	}
	for keep && pl.bytes > room && pl.recompute < b.info.Spec.Layers-1 {
		pl.recompute++
		pl.measure(b)
	}
	switch {
	case pl.bytes <= room:
		return pl, nil
	case e.tapes > len(p.tapes):
		e.mu.Lock()
		p.entry.starved = true
		e.mu.Unlock()
		pl.wait = true
		return pl, nil
	}
	return pl, api.Errorf(api.OutOfMemory, "%s: datum %d with %d tokens needs %d bytes of device memory, %d are free",
		p.entry.name, lo, len(p.items[lo].Tokens), pl.bytes, room)
}

// cut ends the micro-batch that begins at datum lo: as many datums as the token limit and room bytes
// allow, at least one.
func (p *pass) cut(lo int, room int64, keep bool) plan {
	last := plan{keep: keep}
	if keep {
		last.recompute = p.recompute
	}
	for hi := lo; hi < len(p.items); hi++ {
		pl := last
		pl.add(p.items[hi], p.run.lora.Rank)
		pl.measure(p.run.base)
		if hi > lo && pl.tokens > p.run.e.lim.MicroBatchTokens {
			break
		}
		if pl.short = pl.bytes > room; pl.short && hi > lo {
			last.short = true
			break
		}
		last, last.hi = pl, hi+1
	}
	return last
}

// planKept plans for weights that are known when the whole batch has passed: all tapes are kept, with the fewest
// recomputed layers with which they fit side by side. That is always cheaper than a second forward, which would run every layer,
// their down projections and the head again; so only when not even the layers' inputs fit is nothing kept, ok
// false, and the forward run twice.
func (p *pass) planKept() (recompute int, ok bool) {
	e, b, batches := p.run.e, p.run.base, p.batches()
	room := e.room(b)
	if idle := e.idleBytes(b); idle > 0 && room < math.MaxInt64 {
		if n, ok := p.fewest(batches, room+idle); ok {
			room = e.unload(b, p.total(batches, n))
		}
	}
	return p.fewest(batches, room)
}

// batches cuts the whole pass into micro-batches of the limit's size.
func (p *pass) batches() []plan {
	var out []plan
	pl := plan{keep: true}
	for i, it := range p.items {
		if i > 0 && pl.tokens+len(it.Tokens) > p.run.e.lim.MicroBatchTokens {
			out = append(out, pl)
			pl = plan{keep: true}
		}
		pl.add(it, p.run.lora.Rank)
	}
	return append(out, pl)
}

// total is what the tapes of micro-batches take side by side.
func (p *pass) total(batches []plan, recompute int) (bytes int64) {
	for _, pl := range batches {
		pl.recompute = recompute
		pl.measure(p.run.base)
		bytes += pl.bytes
	}
	return bytes
}

// fewest is how few layers must be recomputed for the tapes to fit into room; ok is false when they never do.
func (p *pass) fewest(batches []plan, room int64) (recompute int, ok bool) {
	layers := p.run.base.info.Spec.Layers
	recompute = sort.Search(layers, func(n int) bool { return p.total(batches, n) <= room })
	if recompute == layers {
		return 0, false
	}
	return recompute, true
}
