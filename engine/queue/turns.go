package queue

import "slices"

// Turns gives members their turns in a circle.
type Turns[K comparable] struct {
	members []K
	at      int // whose turn is next
}

// Add makes k a member; its first turn comes after those of the others.
func (t *Turns[K]) Add(k K) {
	if slices.Contains(t.members, k) {
		return
	}
	t.members = slices.Insert(t.members, t.at, k)
	t.at++
	if t.at >= len(t.members) {
		t.at = 0
	}
}

// Remove ends a membership.
func (t *Turns[K]) Remove(k K) {
	i := slices.Index(t.members, k)
	if i < 0 {
		return
	}
	t.members = slices.Delete(t.members, i, i+1)
	if i < t.at {
		t.at--
	}
	if t.at >= len(t.members) {
		t.at = 0
	}
}

// Next picks the first member in the circle that is ready; those after it come before it next time.
func (t *Turns[K]) Next(ready func(K) bool) (k K, ok bool) {
	for i := range t.members {
		j := (t.at + i) % len(t.members)
		if ready(t.members[j]) {
			t.at = (j + 1) % len(t.members)
			return t.members[j], true
		}
	}
	return k, false
}

// Members lists the members in the order of their next turns.
func (t *Turns[K]) Members() []K {
	return append(slices.Clone(t.members[t.at:]), t.members[:t.at]...)
}

// Work is what a device does next.
type Work uint8

// The kinds of work.
const (
	Nothing Work = iota
	Train        // one training micro-batch
	Decode       // one decode step
)

// Share alternates training and sampling: at most one micro-batch runs between two decode steps, and
// the other way round. Whoever is alone gets every turn.
type Share struct{ last Work }

// Pick decides between what is ready.
func (s *Share) Pick(train, decode bool) Work {
	switch {
	case train && decode && s.last == Decode, train && !decode:
		s.last = Train
	case decode:
		s.last = Decode
	default:
		return Nothing
	}
	return s.last
}
