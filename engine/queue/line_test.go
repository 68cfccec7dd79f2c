package queue_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/queue"
)

var limits = queue.Limits{First: 1, Queued: 100, Remembered: 100, GapWait: 10 * time.Second}

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// run takes everything that can start, one at a time, and returns it in order.
func run(l *queue.Line[string], now time.Time) []string {
	var out []string
	for {
		ahead, some := l.Peek(now)
		seq, v, ok := l.Next(now)
		if v != ahead || ok != some {
			panic(fmt.Sprintf("next is %q, %t; Peek said %q, %t", v, ok, ahead, some))
		}
		if !ok {
			return out
		}
		out = append(out, v)
		l.Done(seq)
	}
}

func place(t *testing.T, l *queue.Line[string], seq int64, v string) {
	t.Helper()
	if _, fresh, err := l.At(seq, queue.Pass, v); err != nil || !fresh {
		t.Fatalf("place %d: fresh %v, err %v", seq, fresh, err)
	}
}

func equal(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("ran %q, wanted %q", got, want)
	}
}

// TestArrivalOrder: any order of arrival, with duplicates, refused numbers and operations starting in
// between, gives the order of the numbers.
func TestArrivalOrder(t *testing.T) {
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 1))
		n := 1 + rng.IntN(20)
		refused := map[int64]bool{}
		var want []string
		arrivals := make([]int64, 0, 2*n)
		for i := range n {
			seq := int64(i + 1)
			arrivals = append(arrivals, seq)
			if rng.IntN(5) == 0 {
				arrivals = append(arrivals, seq)
			}
			if refused[seq] = rng.IntN(6) == 0; !refused[seq] {
				want = append(want, fmt.Sprint(seq))
			}
		}
		rng.Shuffle(len(arrivals), func(i, j int) { arrivals[i], arrivals[j] = arrivals[j], arrivals[i] })

		l := queue.NewLine[string](limits)
		var got []string
		seen := map[int64]bool{}
		for _, seq := range arrivals {
			name := fmt.Sprint(seq)
			if _, ok := l.Find(seq); ok != seen[seq] {
				t.Fatalf("seed %d: find %d is %v", seed, seq, ok)
			}
			if refused[seq] {
				l.Refuse(seq, name)
			} else {
				first, fresh, err := l.At(seq, queue.Kind(rng.IntN(2)), name)
				if err != nil || fresh == seen[seq] || first != name {
					t.Fatalf("seed %d: place %d: %q, fresh %v, err %v", seed, seq, first, fresh, err)
				}
			}
			seen[seq] = true
			if rng.IntN(2) == 0 {
				got = append(got, run(l, start)...)
			}
		}
		got = append(got, run(l, start)...)
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: arrivals %v ran as %v, wanted %v", seed, arrivals, got, want)
		}
	}
}

func TestGap(t *testing.T) {
	l := queue.NewLine[string](limits)
	place(t, l, 3, "c")
	place(t, l, 1, "a")
	equal(t, run(l, start), "a")
	equal(t, run(l, start.Add(9*time.Second)))
	if at, ok := l.Wake(); !ok || at != start.Add(10*time.Second) {
		t.Fatalf("wakes at %v, %v", at, ok)
	}
	equal(t, run(l, start.Add(10*time.Second)), "c")
	if _, ok := l.Wake(); ok {
		t.Fatal("still waits for a gap")
	}
	_, _, err := l.At(2, queue.Pass, "b")
	if api.CodeOf(err) != api.BadRequest || !strings.Contains(fmt.Sprint(err), "sequence number 2 has passed: the run waits for 4") {
		t.Fatalf("late number: %v", err)
	}
	// Each gap has a wait of its own, and one that closes in time holds nothing up.
	place(t, l, 6, "f")
	equal(t, run(l, start.Add(20*time.Second)))
	place(t, l, 4, "d")
	equal(t, run(l, start.Add(29*time.Second)), "d")
	equal(t, run(l, start.Add(38*time.Second)))
	place(t, l, 5, "e")
	equal(t, run(l, start.Add(38*time.Second)), "e", "f")
}

// TestGapWaitsForWork: a missing number is no gap while nothing waits behind it.
func TestGapWaitsForWork(t *testing.T) {
	l := queue.NewLine[string](limits)
	l.Refuse(2, "refused")
	equal(t, run(l, start))
	if _, ok := l.Wake(); ok {
		t.Fatal("waits for a gap with nothing behind it")
	}
	equal(t, run(l, start.Add(time.Hour)))
	place(t, l, 1, "a")
	equal(t, run(l, start.Add(time.Hour)), "a")
	place(t, l, 3, "c")
	equal(t, run(l, start.Add(time.Hour)), "c")
}

func TestUnnumbered(t *testing.T) {
	l := queue.NewLine[string](limits)
	for _, v := range []string{"a", "b", "c"} {
		if _, err := l.Add(queue.Barrier, v); err != nil {
			t.Fatal(err)
		}
	}
	equal(t, run(l, start), "a", "b", "c")
	place(t, l, 5, "e")
	if seq, _ := l.Add(queue.Pass, "f"); seq != 6 {
		t.Fatalf("comes at %d, wanted 6", seq)
	}
	place(t, l, 4, "d")
	equal(t, run(l, start), "d", "e", "f")
	if _, ok := l.Find(6); ok {
		t.Fatal("a call without a number answers a repeat")
	}
}

// TestBarrier: passes may run together, a barrier runs alone.
func TestBarrier(t *testing.T) {
	l := queue.NewLine[string](limits)
	for i, k := range []queue.Kind{queue.Pass, queue.Pass, queue.Barrier, queue.Pass} {
		if _, _, err := l.At(int64(i+1), k, fmt.Sprint(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	next := func(want string) {
		t.Helper()
		_, v, ok := l.Next(start)
		if !ok {
			v = ""
		}
		if v != want {
			t.Fatalf("next is %q, wanted %q", v, want)
		}
	}
	next("1")
	next("2")
	next("")
	l.Done(2)
	next("")
	l.Done(1)
	next("3")
	next("")
	l.Done(3)
	next("4")
}

func TestCancel(t *testing.T) {
	l := queue.NewLine[string](limits)
	for i := range int64(4) {
		place(t, l, i+1, fmt.Sprint(i+1))
	}
	seq, _, _ := l.Next(start)
	if l.Cancel(seq) {
		t.Fatal("cancelled what had started")
	}
	if !l.Cancel(3) || l.Cancel(3) || l.Cancel(9) {
		t.Fatal("cancel of a waiting operation, of a cancelled one, of none")
	}
	l.Done(seq)
	if v, ok := l.Find(3); !ok || v != "3" {
		t.Fatal("a cancelled number does not answer its repeat")
	}
	equal(t, run(l, start), "2", "4")
}

func TestBounds(t *testing.T) {
	l := queue.NewLine[string](queue.Limits{First: 1, Queued: 3, Remembered: 2, GapWait: time.Second})
	for i := range int64(3) {
		place(t, l, i+1, fmt.Sprint(i+1))
	}
	for name, err := range map[string]error{
		"full":     func() error { _, _, err := l.At(4, queue.Pass, ""); return err }(),
		"full add": func() error { _, err := l.Add(queue.Pass, ""); return err }(),
	} {
		if api.CodeOf(err) != api.Busy || err.Error() != "3 requests of this run are waiting, the limit is 3" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := l.At(0, queue.Pass, ""); err == nil || err.Error() != "sequence number is 0, wanted 1 or more" {
		t.Errorf("zero: %v", err)
	}
	equal(t, run(l, start), "1", "2", "3")
	if _, ok := l.Find(1); ok {
		t.Error("remembers more than it may")
	}
	if _, ok := l.Find(3); !ok {
		t.Error("does not remember the last")
	}
	for seq := int64(1000); seq > 500; seq-- { // refusals far ahead are bounded, too
		l.Refuse(seq, "")
	}
	if _, ok := l.Find(501); ok {
		t.Error("remembers refusals without a bound")
	}
}

func TestDrain(t *testing.T) {
	l := queue.NewLine[string](limits)
	for _, seq := range []int64{5, 1, 3} {
		place(t, l, seq, fmt.Sprint(seq))
	}
	seq, _, _ := l.Next(start)
	equal(t, l.Drain(), "3", "5")
	l.Done(seq)
	equal(t, run(l, start.Add(time.Hour)))
	if l.Len() != 0 {
		t.Fatal("not empty")
	}
}

// TestAwaited: a full line takes the number that all others wait for, and no other: without it nothing would leave the line.
func TestAwaited(t *testing.T) {
	lim := limits
	lim.Queued = 3
	l := queue.NewLine[string](lim)
	if l.Awaits(1) {
		t.Error("an empty line awaits 1")
	}
	l.Refuse(1, "refused")
	for _, seq := range []int64{3, 4, 6} {
		place(t, l, seq, fmt.Sprint(seq))
	}
	for seq := range int64(9) {
		if l.Awaits(seq) != (seq == 2) {
			t.Errorf("the line awaits %d: %t", seq, l.Awaits(seq))
		}
	}
	for _, seq := range []int64{5, 7} {
		if _, _, err := l.At(seq, queue.Pass, ""); api.CodeOf(err) != api.Busy {
			t.Errorf("%d in a full line: %v", seq, err)
		}
	}
	place(t, l, 2, "2")
	equal(t, run(l, start), "2", "3", "4")
	place(t, l, 5, "5")
	equal(t, run(l, start), "5", "6")
}
