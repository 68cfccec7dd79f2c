package server

import (
	"context"
	"sync"
	"time"

	"tinkerlocal/engine/api"
)

// pool is an amount of something that owners take from: places, or bytes.
//
// A pool that several owners share is fair: nobody may hold more than what is then left for the others, except that whoever holds nothing may
// take what there is. One hog gets half, two get a third each, and whoever comes later always finds something. A single owner may have it all.
type pool struct {
	limit int64
	fair  bool

	mu    sync.Mutex
	total int64
	held  map[string]int64
	given chan struct{} // closed when something is given back; nil: nobody waits
}

func newPool(limit int64, fair bool) *pool {
	return &pool{limit: limit, fair: fair, held: map[string]int64{}}
}

// take gives n to owner, or reports that it cannot.
func (p *pool) take(owner string, n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.takeLocked(owner, n)
}

func (p *pool) takeLocked(owner string, n int64) bool {
	if !p.fitsLocked(owner, n, 0) {
		return false
	}
	p.add(owner, n)
	return true
}

// fits says whether owner could take n after having given spare back.
func (p *pool) fits(owner string, n, spare int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fitsLocked(owner, n, spare)
}

func (p *pool) fitsLocked(owner string, n, spare int64) bool {
	left, mine := p.limit-p.total+spare-n, p.held[owner]-spare
	return left >= 0 && !(p.fair && mine > 0 && mine+n > left)
}

// force gives n to owner also when that is not fair or more than there is, but never more than twice that.
func (p *pool) force(owner string, n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.total+n > 2*p.limit {
		return false
	}
	p.add(owner, n)
	return true
}

func (p *pool) add(owner string, n int64) {
	p.total += n
	p.held[owner] += n
	if p.held[owner] == 0 {
		delete(p.held, owner)
	}
}

// give takes n back.
func (p *pool) give(owner string, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(owner, -n)
	if p.given != nil && n > 0 {
		close(p.given)
		p.given = nil
	}
}

// wait is take that waits until it can, at most until a time. n may not be more than the limit.
func (p *pool) wait(ctx context.Context, owner string, n int64, until time.Time) error {
	var timer *time.Timer
	for {
		p.mu.Lock()
		if p.takeLocked(owner, n) {
			p.mu.Unlock()
			return nil
		}
		if p.given == nil {
			p.given = make(chan struct{})
		}
		given := p.given
		p.mu.Unlock()
		if timer == nil {
			timer = time.NewTimer(time.Until(until))
			defer timer.Stop()
		}
		select {
		case <-given:
		case <-timer.C:
			return errNoRoom
		case <-ctx.Done():
			return api.Errorf(api.Cancelled, "the client has gone away")
		}
	}
}

var errNoRoom = api.Errorf(api.Busy, "too much is on its way between clients and the server")

// all is what is taken.
func (p *pool) all() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total
}

// of is what owner holds.
func (p *pool) of(owner string) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held[owner]
}
