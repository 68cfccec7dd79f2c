package engine

import (
	"slices"
	"time"

	"tinkerlocal/engine/api"
)

// Samplers that nobody draws from. Clients of reinforcement learning make one at every step and never say that they are done with it. Their
// weights stay on the device as long as there is room. When memory is short, those that were used longest ago are set aside on the host: on a
// Shelf, if there is one. Whoever draws from such a sampler again has its weights brought back first, with the same bits, and notices nothing
// but the time that it takes. What is set aside is bounded, too: beyond that, samplers are given up.

// Shelf keeps bytes that are not on the device for now. Its methods may be called from several goroutines at once, and may block.
type Shelf interface {
	// Put keeps b and says where.
	Put(b []byte) (at int64, err error)
	// Get fills b with what was put there: its length is that of what was put. Damage is an error.
	Get(at int64, b []byte) error
	// Drop forgets what was put there.
	Drop(at int64)
	// Close forgets everything.
	Close() error
}

// page is a copy of a snapshot's weights that is not on the device.
type page struct {
	bytes int64

	// guarded by Engine.mu
	host    []byte // nil: it is on the shelf
	stays   bool   // in the host's memory: there is no shelf, or it did not take it
	shelved bool
	at      int64
	dropped bool // nobody will ask for it
}

// aside is what the device's goroutine knows of samplers that are set aside, or wait to be brought back.
type aside struct {
	pages   map[*Sampler]*page // one that is on the shelf stays there when its sampler is back
	waiting map[*Sampler][]*request
	short   []*shortage

	bytes, staying int64 // of pages; of those that stay in the host's memory. Guarded by Engine.mu
}

// shortage is a sampler whose weights are at hand, and for which there is no room on the device.
type shortage struct {
	sampler *Sampler
	data    []byte
	until   time.Time
}

// shortWait is how long requests wait for room that others' requests take, before they are refused.
const shortWait = time.Minute

// setAside makes room by taking weights of idle samplers off the device, those first that were used longest ago, and no more than needed. It
// returns the room there is then.
func (e *Engine) setAside(b *base, bytes int64) int64 {
	room := e.room(b)
	if bytes <= room {
		return room
	}
	for _, p := range e.idleSamplers() {
		if err := e.putAway(p); err != nil {
			e.log.Warn("weights of an idle sampler stay on the device", "err", err)
			break
		}
		if room = e.room(b); bytes <= room {
			break
		}
	}
	return room
}

// idleSamplers are those with weights on the device from which nobody draws, the one that was used longest ago first.
func (e *Engine) idleSamplers() (out []*Sampler) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for s := range e.sessions {
		for p := range s.samplers {
			if p.snap != nil && !p.away && p.users == 1 {
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, func(a, b *Sampler) int { return a.used.Compare(b.used) })
	return out
}

// putAway takes a sampler's weights off the device.
func (e *Engine) putAway(p *Sampler) error {
	if e.aside.pages[p] == nil {
		data, err := p.snap.Save()
		if err != nil {
			return err
		}
		e.keepPage(p, data)
	}
	p.away = true
	e.freeSnapshot(p.base, p.snap)
	e.log.Debug("weights of an idle sampler are set aside", "model", p.base.info.Name, "version", p.snap.Version, "bytes", p.snap.Bytes())
	e.giveUp()
	return nil
}

// keepPage keeps data for p in memory, and then on the shelf.
func (e *Engine) keepPage(p *Sampler, data []byte) {
	pg := &page{bytes: int64(len(data)), host: data}
	e.aside.pages[p] = pg
	e.mu.Lock()
	defer e.mu.Unlock()
	e.aside.bytes += pg.bytes
	if e.opt.Shelf == nil || e.closed {
		e.stays(pg)
		return
	}
	e.evals.Go(func() {
		at, err := e.opt.Shelf.Put(data)
		e.mu.Lock()
		defer e.mu.Unlock()
		switch {
		case err != nil:
			e.log.Warn("weights of an idle sampler stay in memory", "bytes", len(data), "err", err)
			if !pg.dropped {
				e.stays(pg)
			}
		case pg.dropped: // it was needed, or given up, meanwhile
			e.opt.Shelf.Drop(at)
		default:
			pg.at, pg.shelved, pg.host = at, true, nil
		}
	})
}

// stays notes that a page is in the host's memory for good. e.mu is held.
func (e *Engine) stays(pg *page) {
	pg.stays = true
	e.aside.staying += pg.bytes
}

// dropPage forgets what is kept of p.
func (e *Engine) dropPage(p *Sampler) {
	pg := e.aside.pages[p]
	if pg == nil {
		return
	}
	delete(e.aside.pages, p)
	e.mu.Lock()
	defer e.mu.Unlock()
	pg.dropped, pg.host = true, nil
	e.aside.bytes -= pg.bytes
	if pg.stays {
		e.aside.staying -= pg.bytes
	}
	if pg.shelved {
		e.opt.Shelf.Drop(pg.at)
	}
}

// giveUp makes room beside the device: first copies go whose samplers are back on it, then the samplers that were used longest ago are closed, with
// an error that says so. Those that somebody waits for do not count: they are about to leave.
func (e *Engine) giveUp() {
	if !e.crowded() {
		return
	}
	var away []*Sampler
	for p := range e.aside.pages {
		if p.away {
			away = append(away, p)
		} else {
			e.dropPage(p)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	slices.SortFunc(away, func(a, b *Sampler) int { return a.used.Compare(b.used) })
	bytes, staying := e.aside.bytes, e.aside.staying
	leave := func(p *Sampler) {
		pg := e.aside.pages[p]
		bytes -= pg.bytes
		if pg.stays {
			staying -= pg.bytes
		}
	}
	for p := range e.aside.waiting {
		leave(p)
	}
	for _, p := range away {
		if bytes <= e.lim.IdleBytes && staying <= e.lim.IdleHostBytes {
			return
		}
		if p.users > 1 || p.closed {
			continue
		}
		leave(p)
		p.lost = api.Errorf(api.Stale, "the sampler was given up: nobody has drawn from it since %s, and %d bytes of idle samplers' weights are set aside; make it again",
			p.used.UTC().Format(time.RFC3339), e.aside.bytes)
		p.closed = true
		delete(p.session.samplers, p)
		p.unuse()
		e.log.Info("an idle sampler is given up", "model", p.base.info.Name, "version", p.snap.Version, "last_used", p.used)
	}
}

// crowded says whether more is set aside than may be.
func (e *Engine) crowded() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.aside.bytes > e.lim.IdleBytes || e.aside.staying > e.lim.IdleHostBytes
}

// present keeps back requests whose weights are set aside, and has those brought back. The others can be drawn from.
func (e *Engine) present(incoming []*request) []*request {
	ready := incoming[:0]
	for _, r := range incoming {
		p := r.sampler
		if !p.away {
			ready = append(ready, r)
			continue
		}
		waiting := e.aside.waiting[p]
		e.aside.waiting[p] = append(waiting, r)
		if waiting == nil {
			e.fetch(p)
		}
	}
	return ready
}

// waitsInVain reports whether requests that wait for weights were dropped.
func (e *Engine) waitsInVain() bool {
	for _, requests := range e.aside.waiting {
		if slices.ContainsFunc(requests, func(r *request) bool { return r.Dropped() != nil }) {
			return true
		}
	}
	return false
}

// dropWaiting ends those.
func (e *Engine) dropWaiting() {
	for p, requests := range e.aside.waiting {
		if requests = alive(requests); len(requests) > 0 {
			e.aside.waiting[p] = requests
		} else {
			delete(e.aside.waiting, p)
		}
	}
}

// fetch finds what is kept of p, and brings it back.
func (e *Engine) fetch(p *Sampler) {
	pg := e.aside.pages[p]
	e.mu.Lock()
	data, at := pg.host, pg.at
	if data == nil && !e.closed {
		e.evals.Go(func() {
			data := make([]byte, pg.bytes)
			_, err := guard("bring weights back", func() (struct{}, error) { return struct{}{}, e.opt.Shelf.Get(at, data) })
			e.mu.Lock()
			defer e.mu.Unlock()
			e.post(job{name: "bring weights back", do: func() { e.bringBack(p, data, err, time.Time{}) }})
		})
	}
	e.mu.Unlock()
	if data != nil {
		e.bringBack(p, data, nil, time.Time{})
	}
}

// bringBack puts weights on the device again and lets the requests that wait for them go on. Without room it waits for other requests to end, until a time;
// zero: it has not waited yet.
func (e *Engine) bringBack(p *Sampler, data []byte, err error, until time.Time) {
	requests := e.aside.waiting[p]
	if len(requests) == 0 { // they have failed for another reason
		return
	}
	if err == nil {
		err = e.need("an idle sampler's weights", p.snap.Bytes(), p.base)
	}
	if err == nil {
		err = p.snap.Restore(data)
	}
	if err != nil && apiError(err).Code == api.OutOfMemory && e.mayWait(&until) {
		e.aside.short = append(e.aside.short, &shortage{p, data, until})
		return
	}
	delete(e.aside.waiting, p)
	if err != nil {
		e.note("bring weights back", err)
		for _, r := range requests {
			r.fail(err)
		}
		return
	}
	p.away = false
	p.base.snaps[p.snap] = true
	e.used += p.snap.Bytes()
	e.mu.Lock()
	inMemory := e.aside.pages[p].host != nil
	e.mu.Unlock()
	if inMemory { // only what is on the shelf stays, for the next time
		e.dropPage(p)
	}
	e.mu.Lock()
	p.base.incoming = append(p.base.incoming, requests...)
	e.mu.Unlock()
	e.signal()
}

// mayWait says whether room may come when other requests end.
func (e *Engine) mayWait(until *time.Time) bool {
	now := e.opt.Now()
	if until.IsZero() {
		*until = now.Add(shortWait)
	}
	blocked := 0
	for _, requests := range e.aside.waiting {
		blocked += len(requests)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sampling > blocked && now.Before(*until)
}

// retry tries again for whoever waits for room. It is called when a request has ended; e.mu is held.
func (e *Engine) retry() {
	if len(e.aside.short) == 0 {
		return
	}
	again := e.aside.short
	e.aside.short = nil
	e.post(job{name: "bring weights back", do: func() {
		for _, s := range again {
			e.bringBack(s.sampler, s.data, nil, s.until)
		}
	}})
}

// failWaiting ends the requests that wait for weights.
func (e *Engine) failWaiting(err error) {
	for p, requests := range e.aside.waiting {
		delete(e.aside.waiting, p)
		for _, r := range requests {
			r.fail(err)
		}
	}
	e.aside.short = nil
}
