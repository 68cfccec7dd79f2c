package cpu

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// task is one op's work, cut into pieces that may run in any order on any worker.
type task interface{ run(w *worker, i int) }

// pool runs the pieces of one task at a time on the caller and its helpers.
//
// The word state holds (generation, pieces, next piece). Whoever swaps next forward owns that piece, so a helper that was not
// running when a task came simply finds nothing left, and the caller never waits for it. A task's fields are stable while one of its
// pieces is unfinished, which is all a helper relies on: it reads job after it has won a piece.
type pool struct {
	state    atomic.Uint64
	done     atomic.Int32
	job      task
	panicked atomic.Pointer[any] // what a piece of this task panicked with
	workers  []*worker           // workers[0] is the caller
	ended    atomic.Bool
	group    sync.WaitGroup
}

const (
	pieceBits = 16
	pieceMask = 1<<pieceBits - 1
	maxPieces = pieceMask

	// A helper looks for work this many times before it sleeps, about 50 microseconds: longer than the gap between two ops of a
	// step, shorter than anything that people notice on an idle machine.
	spins = 1000
)

func newPool(threads int, vec *vectors) *pool {
	p := &pool{}
	for i := range threads {
		w := &worker{vec: vec, pool: p, wake: make(chan struct{}, 1)}
		w.init()
		p.workers = append(p.workers, w)
		if i > 0 {
			p.group.Add(1)
			go w.loop()
		}
	}
	return p
}

func (p *pool) threads() int { return len(p.workers) }

// run does the n pieces of t and returns when all are done.
func (p *pool) run(t task, n int) {
	if n == 1 || n > maxPieces || len(p.workers) == 1 {
		for i := range n {
			t.run(p.workers[0], i)
		}
		return
	}
	p.job = t
	p.done.Store(0)
	gen := p.state.Load()>>(2*pieceBits) + 1
	p.state.Store(gen<<(2*pieceBits) | uint64(n)<<pieceBits)
	for _, w := range p.workers[1:min(n, len(p.workers))] {
		if w.asleep.CompareAndSwap(true, false) {
			w.wake <- struct{}{}
		}
	}
	p.help(p.workers[0])
	for i := 0; p.done.Load() != int32(n); i++ {
		switch { // the last pieces are short, unless the system has taken a helper's core away: then do not take the other one too
		case i < spins:
			pause()
		case i < 2*spins:
			runtime.Gosched()
		default:
			time.Sleep(20 * time.Microsecond)
		}
	}
	if v := p.panicked.Swap(nil); v != nil {
		panic(*v)
	}
}

// piece runs one piece. A panic, which only a mistake in this package can cause, waits for the other pieces and is then the caller's: it must
// not end the process from a helper, nor leave helpers at work behind the caller's back.
func (p *pool) piece(w *worker, i int) {
	defer func() {
		if v := recover(); v != nil {
			p.keep(v)
		}
		p.done.Add(1)
	}()
	p.job.run(w, i)
}

// keep is a function of its own so that only a panic allocates.
//
//go:noinline
func (p *pool) keep(v any) { p.panicked.Store(&v) }

// help runs pieces until none is left.
func (p *pool) help(w *worker) (any bool) {
	for {
		s := p.state.Load()
		n, next := s>>pieceBits&pieceMask, s&pieceMask
		if next >= n {
			return any
		}
		if p.state.CompareAndSwap(s, s+1) {
			p.piece(w, int(next))
			any = true
		}
	}
}

func (w *worker) loop() {
	p := w.pool
	defer p.group.Done()
	for idle := 0; !p.ended.Load(); idle++ {
		if p.help(w) {
			idle = 0
		}
		if idle < spins {
			pause()
			continue
		}
		// Say that we sleep, then look once more: a task that came in between either is seen here or sees the flag.
		w.asleep.Store(true)
		s := p.state.Load()
		if (s&pieceMask < s>>pieceBits&pieceMask || p.ended.Load()) && w.asleep.CompareAndSwap(true, false) {
			continue
		}
		<-w.wake
		idle = 0
	}
}

func (p *pool) close() {
	p.ended.Store(true)
	for _, w := range p.workers[1:] {
		if w.asleep.CompareAndSwap(true, false) {
			w.wake <- struct{}{}
		}
	}
	p.group.Wait()
}

// worker is one thread's scratch memory. It grows to the largest size an op has asked for and stays there.
type worker struct {
	vec    *vectors
	pool   *pool
	wake   chan struct{}
	asleep atomic.Bool

	panel []float32 // a panel of segment steps, written by tilePanel's callers
	block []float32 // 16 x 16 values
	tmp   []float32 // one 6 x 16 tile
	strip []float32 // outputs that are not yet final
	room  [8][]float32
}

func (w *worker) init() {
	w.panel = alignedFloats((segment + panelRows) * panelRows)
	w.block = alignedFloats(panelRows * panelRows)
	w.tmp = alignedFloats(tileRows * panelRows)
}

// scratch returns n floats of slot i, whose contents are whatever an earlier use left.
func (w *worker) scratch(i, n int) []float32 {
	if len(w.room[i]) < n {
		w.room[i] = alignedFloats(n + n/4)
	}
	return w.room[i][:n]
}
