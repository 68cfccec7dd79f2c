package queue

import (
	"slices"
	"time"

	"tinkerlocal/engine/api"
)

// Kind says how an operation may share its run with others.
type Kind uint8

const (
	// Pass reads the weights: forward, forward_backward. Passes between two barriers may run together.
	Pass Kind = iota
	// Barrier changes or publishes the weights: optim_step, load, save. It runs alone.
	Barrier
)

// Limits bound a Line.
type Limits struct {
	First      int64         // the number of a run's first operation
	Queued     int           // operations that may wait
	Remembered int           // finished numbered operations that still answer a repeat
	GapWait    time.Duration // how long a missing number holds up those behind it
}

// maxSeq keeps number arithmetic far from overflow.
const maxSeq = 1 << 62

// Line is the operations of one run in the order of their sequence numbers. T is the caller's handle
// for an operation.
//
// Operations may be placed in any order. They start in the order of their numbers. A number that is
// missing holds up those behind it for GapWait; then it counts as used, the line goes on, and an
// operation that comes for it later is refused. An operation without a number comes after every number used so far.
type Line[T any] struct {
	lim      Limits
	next     int64 // the lowest number that has not been started or passed
	end      int64 // one past the highest number used
	slots    map[int64]*slot[T]
	queued   int
	passes   int       // passes running
	barrier  bool      // a barrier is running
	gap      time.Time // since when next is missing while others wait; zero: it is not
	finished []int64   // numbered slots that are over, oldest first
}

type state uint8

const (
	waiting state = iota
	running
	over
)

type slot[T any] struct {
	v        T
	kind     Kind
	state    state
	numbered bool
}

// NewLine makes an empty line.
func NewLine[T any](lim Limits) *Line[T] {
	return &Line[T]{lim: lim, next: lim.First, end: lim.First, slots: map[int64]*slot[T]{}}
}

// Find returns the operation that was placed at seq, as long as it is remembered.
func (l *Line[T]) Find(seq int64) (T, bool) {
	if s, ok := l.slots[seq]; ok && s.numbered {
		return s.v, true
	}
	var zero T
	return zero, false
}

// At places v at seq. When seq is taken, the operation that has it is returned instead with fresh
// false: what a repeat asks for is not looked at. It is an error when the line is full or seq has passed; a full line still takes
// what it awaits.
func (l *Line[T]) At(seq int64, kind Kind, v T) (_ T, fresh bool, err error) {
	if first, ok := l.Find(seq); ok {
		return first, false, nil
	}
	if err := l.free(seq); err != nil {
		return v, false, err
	}
	if l.queued >= l.lim.Queued && !l.Awaits(seq) {
		return v, false, api.Errorf(api.Busy, "%d requests of this run are waiting, the limit is %d", l.queued, l.lim.Queued)
	}
	l.put(seq, &slot[T]{v: v, kind: kind, numbered: true})
	return v, true, nil
}

// Awaits reports whether everything that waits, waits for seq: it is the lowest missing number. A full line
// takes it all the same, since nothing would ever leave the line without it.
func (l *Line[T]) Awaits(seq int64) bool {
	if l.queued == 0 {
		return false
	}
	for n := l.next; n <= seq && n < l.end; n++ {
		s := l.slots[n]
		switch {
		case s == nil:
			return n == seq
		case s.state == waiting:
			return false
		}
	}
	return false
}

// Refuse uses up seq for a request that was rejected: v answers its repeats and nothing runs. It does
// nothing when seq is taken or has passed, or when too many numbers are used up already: seq is then a gap.
func (l *Line[T]) Refuse(seq int64, v T) {
	if l.free(seq) != nil || len(l.finished) > l.lim.Remembered+l.lim.Queued {
		return
	}
	l.put(seq, &slot[T]{v: v, numbered: true})
	l.drop(seq)
}

// free says why seq cannot be used, or nil.
func (l *Line[T]) free(seq int64) error {
	switch {
	case seq < l.lim.First || seq > maxSeq:
		return api.Errorf(api.BadRequest, "sequence number is %d, wanted %d or more", seq, l.lim.First)
	case seq < l.next:
		return api.Errorf(api.BadRequest, "sequence number %d has passed: the run waits for %d", seq, l.next)
	}
	if _, taken := l.slots[seq]; taken { // by a call without a number
		return api.Errorf(api.BadRequest, "sequence number %d was used by a call without a number", seq)
	}
	return nil
}

// Add places v after everything placed so far and returns its number.
func (l *Line[T]) Add(kind Kind, v T) (int64, error) {
	if l.queued >= l.lim.Queued {
		return 0, api.Errorf(api.Busy, "%d requests of this run are waiting, the limit is %d", l.queued, l.lim.Queued)
	}
	seq := max(l.end, l.next)
	l.put(seq, &slot[T]{v: v, kind: kind})
	return seq, nil
}

func (l *Line[T]) put(seq int64, s *slot[T]) {
	l.slots[seq] = s
	l.queued++
	l.end = max(l.end, seq+1)
	if seq == l.next {
		l.gap = time.Time{}
	}
}

// Ready reports whether Next would start an operation. It starts the clock of a gap that it finds.
func (l *Line[T]) Ready(now time.Time) bool {
	s := l.head(now)
	return s != nil && !l.barrier && (s.kind == Pass || l.passes == 0)
}

// Peek returns the operation that Next would start.
func (l *Line[T]) Peek(now time.Time) (v T, ok bool) {
	if l.Ready(now) {
		return l.slots[l.next].v, true
	}
	return v, false
}

// Next starts the next operation, if it may start now: its number is next in order, no barrier is
// running, and, if it is a barrier, nothing is running. The caller reports its end with Done.
func (l *Line[T]) Next(now time.Time) (seq int64, v T, ok bool) {
	if !l.Ready(now) {
		return 0, v, false
	}
	seq = l.next
	s := l.slots[seq]
	s.state = running
	l.queued--
	l.next++
	if s.kind == Barrier {
		l.barrier = true
	} else {
		l.passes++
	}
	return seq, s.v, true
}

// head is the waiting operation whose number is next, or nil. It passes numbers that are used up, and
// those whose wait is over.
func (l *Line[T]) head(now time.Time) *slot[T] {
	if l.queued == 0 {
		l.gap = time.Time{}
	}
	for l.next < l.end {
		s := l.slots[l.next]
		switch {
		case s != nil && s.state == waiting:
			return s
		case s == nil && l.queued > 0 && !l.passed(now):
			return nil
		case s == nil && l.queued == 0:
			return nil
		}
		l.gap = time.Time{}
		if s != nil {
			l.next++
		} else {
			l.next = l.firstTaken()
		}
	}
	return nil
}

// passed reports whether the missing number next has been waited for long enough.
func (l *Line[T]) passed(now time.Time) bool {
	if l.gap.IsZero() {
		l.gap = now
	}
	return now.Sub(l.gap) >= l.lim.GapWait
}

// firstTaken is the lowest number from next on that is not missing.
func (l *Line[T]) firstTaken() int64 {
	first := l.end
	for seq := range l.slots {
		if seq >= l.next {
			first = min(first, seq)
		}
	}
	return first
}

// Wake is when the line stops waiting for a missing number; ok is false when it does not wait for one.
func (l *Line[T]) Wake() (t time.Time, ok bool) {
	return l.gap.Add(l.lim.GapWait), !l.gap.IsZero()
}

// Done ends a running operation.
func (l *Line[T]) Done(seq int64) {
	s := l.slots[seq]
	if s == nil || s.state != running {
		return
	}
	if s.kind == Barrier {
		l.barrier = false
	} else {
		l.passes--
	}
	l.finish(seq, s)
}

// Cancel drops an operation that waits; its number counts as used. It reports false when the
// operation has started or does not exist.
func (l *Line[T]) Cancel(seq int64) bool {
	s := l.slots[seq]
	if s == nil || s.state != waiting {
		return false
	}
	l.drop(seq)
	return true
}

func (l *Line[T]) drop(seq int64) {
	l.queued--
	l.finish(seq, l.slots[seq])
}

// finish marks a slot as over and forgets the oldest ones. A slot ahead of next is kept until next
// passes it, because it is what tells a used number from a missing one.
func (l *Line[T]) finish(seq int64, s *slot[T]) {
	s.state = over
	if !s.numbered && seq < l.next {
		delete(l.slots, seq)
		return
	}
	l.finished = append(l.finished, seq)
	for len(l.finished) > l.lim.Remembered && l.finished[0] < l.next {
		delete(l.slots, l.finished[0])
		l.finished = l.finished[1:]
	}
}

// Drain drops every operation that waits and returns them in order.
func (l *Line[T]) Drain() []T {
	var seqs []int64
	for seq, s := range l.slots {
		if s.state == waiting {
			seqs = append(seqs, seq)
		}
	}
	slices.Sort(seqs)
	out := make([]T, len(seqs))
	for i, seq := range seqs {
		out[i] = l.slots[seq].v
		l.drop(seq)
	}
	return out
}

// Len is how many operations wait.
func (l *Line[T]) Len() int { return l.queued }
