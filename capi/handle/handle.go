// Package handle gives things numbers that can be told from any other: what a C program holds instead of an address.
//
// A number has a kind, a slot and the slot's generation. One that was freed, that belongs to another kind or another table, or
// that never was a number of ours is refused, never followed. Things are counted by reference: a handle counts one, a child one of its
// parent, a call under way one. When the last has gone, the thing ends, and then its parent may.
package handle

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// Kind is a type of handle, 1..127. 0 is none.
type Kind uint8

// Error says why a number is not a handle of the kind wanted.
type Error struct{ Msg string }

func (e *Error) Error() string { return e.Msg }

// Ref is a thing and the references to it.
type Ref struct {
	Value  any
	kind   Kind
	parent *Ref
	end    func()
	n      atomic.Int64
}

// NewRef makes a thing with one reference, which is the caller's. It holds a reference to parent, which may be nil. end is called once,
// without a lock, when the last reference has gone; it may be nil.
func NewRef(kind Kind, value any, parent *Ref, end func()) *Ref {
	r := &Ref{Value: value, kind: kind, parent: parent, end: end}
	r.n.Store(1)
	if parent != nil {
		parent.Retain()
	}
	return r
}

// Retain adds a reference. The caller has one.
func (r *Ref) Retain() { r.n.Add(1) }

// Release gives a reference up. The last one ends the thing, which may block.
func (r *Ref) Release() {
	for r != nil && r.n.Add(-1) == 0 {
		if r.end != nil {
			r.end()
		}
		r = r.parent
	}
}

// A handle is kind<<56 | generation<<24 | slot. The kind is never 0, so neither is a handle, and none looks like an address of a
// 64-bit system's user space.
const (
	slotBits = 24
	maxSlots = 1 << slotBits
	kindBit  = 56
)

type slot struct {
	generation uint32
	ref        *Ref // nil: free
}

// Table holds handles. Any goroutine may use it.
type Table struct {
	names []string // by kind

	mu    sync.RWMutex
	slots []slot
	free  []uint32
	first uint32 // generation of a new slot
	live  []int  // by kind
}

// NewTable makes an empty table. names are what the kinds are called, from kind 1 on; first is the generation that slots begin with: a table
// with another one refuses this one's handles.
func NewTable(first uint32, names ...string) *Table {
	return &Table{names: append([]string{"none"}, names...), first: first, live: make([]int, len(names)+1)}
}

// Add makes a handle of r and takes over one reference of the caller's. On an error the reference is still the caller's.
func (t *Table) Add(r *Ref) (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var i uint32
	switch n := len(t.free); {
	case n > 0:
		i = t.free[n-1]
		t.free = t.free[:n-1]
	case len(t.slots) >= maxSlots:
		return 0, fmt.Errorf("%d handles are open, the limit", maxSlots)
	default:
		i = uint32(len(t.slots))
		t.slots = append(t.slots, slot{generation: t.first})
	}
	s := &t.slots[i]
	s.ref = r
	t.live[r.kind]++
	return uint64(r.kind)<<kindBit | uint64(s.generation)<<slotBits | uint64(i), nil
}

// Get finds what a handle stands for and adds a reference, which the caller releases.
func (t *Table) Get(h uint64, kind Kind) (*Ref, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	s, err := t.find(h, kind)
	if err != nil {
		return nil, err
	}
	s.ref.Retain()
	return s.ref, nil
}

// Drop frees a handle. Its reference is released, which may block.
func (t *Table) Drop(h uint64, kind Kind) error {
	r, err := t.take(h, kind)
	if err == nil {
		r.Release()
	}
	return err
}

func (t *Table) take(h uint64, kind Kind) (*Ref, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, err := t.find(h, kind)
	if err != nil {
		return nil, err
	}
	r := s.ref
	s.ref = nil
	s.generation++
	t.free = append(t.free, uint32(h&(maxSlots-1)))
	t.live[kind]--
	return r, nil
}

// find looks a handle up. t.mu is held.
func (t *Table) find(h uint64, kind Kind) (*slot, error) {
	want := t.names[kind]
	if h == 0 {
		return nil, &Error{fmt.Sprintf("the handle is NULL, wanted a %s", want)}
	}
	got, i := h>>kindBit, h&(maxSlots-1)
	switch {
	case got == 0 || got >= uint64(len(t.names)):
		return nil, &Error{fmt.Sprintf("%#x is no handle, wanted a %s", h, want)}
	case Kind(got) != kind:
		return nil, &Error{fmt.Sprintf("the handle is a %s, wanted a %s", t.names[got], want)}
	case i >= uint64(len(t.slots)), t.slots[i].ref == nil, t.slots[i].generation != uint32(h>>slotBits), t.slots[i].ref.kind != kind:
		return nil, &Error{fmt.Sprintf("the %s was freed, or is of another library", want)}
	}
	return &t.slots[i], nil
}

// Live counts the handles by the names of their kinds.
func (t *Table) Live() map[string]int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := map[string]int{}
	for k, name := range t.names[1:] {
		out[name] = t.live[k+1]
	}
	return out
}
