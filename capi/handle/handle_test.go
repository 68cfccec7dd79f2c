package handle

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
)

const (
	dog Kind = 1
	cat Kind = 2
)

func add(t *testing.T, tab *Table, r *Ref) uint64 {
	t.Helper()
	h, err := tab.Add(r)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestRefused(t *testing.T) {
	tab, other := NewTable(7, "dog", "cat"), NewTable(8, "dog", "cat")
	h := add(t, tab, NewRef(dog, "rex", nil, nil))
	freed := add(t, tab, NewRef(dog, "old", nil, nil))
	if err := tab.Drop(freed, dog); err != nil {
		t.Fatal(err)
	}
	reused := add(t, tab, NewRef(dog, "new", nil, nil))
	for _, c := range []struct {
		name   string
		handle uint64
		kind   Kind
		want   string
	}{
		{"null", 0, dog, "NULL"},
		{"kind", h, cat, "is a dog, wanted a cat"},
		{"freed", freed, dog, "was freed"},
		{"address", 0x7fff_1234_5678, dog, "is no handle"},
		{"other table", add(t, other, NewRef(dog, "x", nil, nil)), dog, "was freed, or is of another library"},
		{"slot", h + 1000, dog, "was freed"},
		{"kind forged", h&^(0xff<<kindBit) | uint64(cat)<<kindBit, cat, "was freed"},
		{"kind unknown", h | 0x7f<<kindBit, dog, "is no handle"},
	} {
		_, err := tab.Get(c.handle, c.kind)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Get gives %v, wanted %q", c.name, err, c.want)
		}
		if err := tab.Drop(c.handle, c.kind); !errors.As(err, &e) {
			t.Errorf("%s: Drop gives %v", c.name, err)
		}
	}
	for _, good := range []uint64{h, reused} {
		if r, err := tab.Get(good, dog); err != nil {
			t.Error(err)
		} else {
			r.Release()
		}
	}
	if live := tab.Live(); live["dog"] != 2 || live["cat"] != 0 {
		t.Errorf("live: %v", live)
	}
}

// TestOrder: whatever the order of frees, children end before their parents, each once.
func TestOrder(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		tab := NewTable(1, "dog", "cat")
		type thing struct {
			ref    *Ref
			parent int
			ended  bool
		}
		var things []*thing
		var handles []uint64
		for i := range 20 {
			x := &thing{parent: -1}
			var parent *Ref
			if i > 0 && rnd.IntN(4) > 0 {
				x.parent = rnd.IntN(i)
				parent = things[x.parent].ref
			}
			x.ref = NewRef(dog, i, parent, func() {
				if x.ended {
					t.Errorf("seed %d: %d ended twice", seed, i)
				}
				x.ended = true
				for _, y := range things {
					if y.parent == i && !y.ended {
						t.Errorf("seed %d: %d ended before its child", seed, i)
					}
				}
			})
			things = append(things, x)
			handles = append(handles, add(t, tab, x.ref))
			if rnd.IntN(3) == 0 { // a second handle of the same thing
				x.ref.Retain()
				handles = append(handles, add(t, tab, x.ref))
			}
		}
		rnd.Shuffle(len(handles), func(i, j int) { handles[i], handles[j] = handles[j], handles[i] })
		for _, h := range handles {
			if err := tab.Drop(h, dog); err != nil {
				t.Fatal(err)
			}
		}
		for i, x := range things {
			if !x.ended {
				t.Errorf("seed %d: %d never ended", seed, i)
			}
		}
	}
}

// TestTogether: one handle is used and freed by many goroutines; it is freed once, and nothing is seen after its end.
func TestTogether(t *testing.T) {
	tab := NewTable(1, "dog")
	for range 200 {
		var ended bool
		h := add(t, tab, NewRef(dog, new(int), nil, func() { ended = true }))
		var wg sync.WaitGroup
		freed := make(chan bool, 8)
		for range 8 {
			wg.Go(func() {
				if r, err := tab.Get(h, dog); err == nil {
					if ended { // a race here is a defect, too
						t.Error("used after its end")
					}
					r.Release()
				}
				if tab.Drop(h, dog) == nil {
					freed <- true
				}
			})
		}
		wg.Wait()
		if len(freed) != 1 || !ended {
			t.Fatalf("freed %d times, ended: %t", len(freed), ended)
		}
	}
}
