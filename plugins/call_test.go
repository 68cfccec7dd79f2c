package plugins

import (
	"context"
	"strings"
	"testing"
	"time"
)

// grantedAfter calls the meter as a module does that has nothing left, a while after the last look at the clock.
func (c *call) grantedAfter(while time.Duration) (slice int64, err error) {
	defer func() {
		if recover() != nil {
			err = c.stopped
		}
	}()
	c.seen = time.Now().Add(-while)
	stack := []uint64{0, 1}
	meter(context.WithValue(context.Background(), callKey{}, c), nil, stack)
	return int64(stack[0]), nil
}

// TestSlices: what is fast gets large slices, what is slow small ones, and nothing gets more than there is.
func TestSlices(t *testing.T) {
	c := &call{allowance: allowance{1 << 40, time.Hour}}
	last := must(c.grantedAfter(0))
	if last != sliceFirst {
		t.Errorf("the first slice has %d units", last)
	}
	for range 20 {
		last = must(c.grantedAfter(0))
	}
	if last != sliceMost {
		t.Errorf("a fast module has slices of %d units", last)
	}
	for range 20 {
		last = must(c.grantedAfter(2 * sliceTime))
	}
	if last != sliceLeast {
		t.Errorf("a slow module has slices of %d units", last)
	}
	c = &call{allowance: allowance{sliceFirst + 5, time.Hour}}
	for _, want := range []int64{sliceFirst, 5} {
		if got := must(c.grantedAfter(0)); got != want {
			t.Errorf("a slice of %d units, wanted %d", got, want)
		}
	}
	if _, err := c.grantedAfter(0); !ends(err, "it used more fuel than the 16389 units") {
		t.Errorf("at the end: %v", err)
	}
}

// TestPause: a process that stood still has not used up a module's time; one that runs slowly has.
func TestPause(t *testing.T) {
	c := &call{allowance: allowance{1 << 40, 3 * pause}}
	must(c.grantedAfter(time.Hour))
	must(c.grantedAfter(time.Hour))
	if c.took != 2*pause {
		t.Errorf("%v were counted", c.took)
	}
	must(c.grantedAfter(pause / 10))
	if _, err := c.grantedAfter(pause); err == nil || !strings.Contains(err.Error(), "it took longer than the 300ms that the call had") {
		t.Errorf("after more than the time that there is: %v", err)
	}
}
