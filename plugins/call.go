package plugins

import (
	"context"
	"fmt"
	"time"

	wasm "github.com/tetratelabs/wazero/api"
)

// allowance is what a call may take.
type allowance struct {
	fuel int64
	time time.Duration
}

// call is what the host remembers while an instance runs. Its functions find it in the context.
type call struct {
	allowance
	used    int64         // of the fuel, up to the last slice
	granted int64         // the last slice
	slice   int64         // what the next one may have; 0: the first
	took    time.Duration // up to seen
	seen    time.Time     // when the host last looked at the clock
	log     logLines
	clock   uint64 // ns
	random  uint64
	stopped error // why the host ended the call
}

type callKey struct{}

func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// stop ends the instance's call. wazero turns the panic into the call's error.
func (c *call) stop(err error) {
	c.stopped = err
	panic(err)
}

// Fuel is given out in slices, because a module that has some is left alone: Go's garbage collector and scheduler wait for it. They
// begin small, and are halved and doubled so that one takes about sliceTime, whatever its instructions are.
const (
	sliceLeast = 1 << 10
	sliceFirst = 16 << 10
	sliceMost  = 256 << 10
	sliceTime  = time.Millisecond / 2
)

// pause is the most that passes for a call's doing between two looks at the clock: while the whole process stood still, it did nothing.
const pause = 100 * time.Millisecond

// meter is called when the fuel that was given out is used up. It is in Go: the garbage collector and other goroutines get their turn.
func meter(ctx context.Context, _ wasm.Module, stack []uint64) {
	c := callOf(ctx)
	left, depth := int64(stack[0]), int64(stack[1])
	c.used += c.granted - left
	c.granted = 0
	if depth < 0 {
		c.stop(fmt.Errorf("its calls are nested too deeply (about a thousand are allowed)"))
	}
	switch took := c.look(ctx); {
	case c.slice == 0:
		c.slice = sliceFirst
	case took > sliceTime:
		c.slice = max(c.slice/2, sliceLeast)
	default:
		c.slice = min(2*c.slice, sliceMost)
	}
	c.granted = min(c.slice, c.fuel-c.used)
	stack[0] = uint64(c.granted)
}

// spend takes fuel for work that the host does for the guest.
func (c *call) spend(ctx context.Context, n uint64) {
	c.used += int64(n)
	c.look(ctx)
}

// look ends a call that has used up its fuel or its time, or whose context is done. It returns the time since the last look.
func (c *call) look(ctx context.Context) time.Duration {
	now := time.Now()
	d := now.Sub(c.seen)
	c.took += min(d, pause)
	c.seen = now
	switch {
	case ctx.Err() != nil:
		c.stop(context.Cause(ctx))
	case c.used >= c.fuel:
		c.stop(fmt.Errorf("it used more fuel than the %d units that the call had", c.fuel))
	case c.took > c.time:
		c.stop(fmt.Errorf("it took longer than the %v that the call had", c.time))
	}
	return d
}

// fuelUsed is what was used, given what is left of the last slice.
func (c *call) fuelUsed(left uint64) int64 { return c.used + c.granted - int64(left) }
