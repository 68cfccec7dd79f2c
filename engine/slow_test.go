package engine_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
)

// drowsy is cross_entropy as a plugin's loss per datum. Its call of that number, counted from 1, does not end before its context.
type drowsy struct {
	at    int32
	calls *atomic.Int32
}

func (drowsy) PerDatum() {}

func (drowsy) Plugin() api.PluginRecord { return api.PluginRecord{Name: "drowsy"} }

func (d drowsy) Eval(ctx context.Context, in loss.Input) (loss.Output, error) {
	if d.calls.Add(1) == d.at {
		<-ctx.Done()
		return loss.Output{}, ctx.Err()
	}
	ce, err := loss.Builtin("cross_entropy")
	if err != nil {
		return loss.Output{}, err
	}
	return ce.Eval(ctx, in)
}

// TestSlowLoss: a loss per datum that is slow on the device's goroutine is evaluated off it, to the same bits, and from the next pass on at once; who shared
// the batch notices nothing.
func TestSlowLoss(t *testing.T) {
	var data []api.Datum
	for i := range 6 {
		data = append(data, datum(i, 9))
	}
	open := func() *engine.Engine {
		return open(t, func(o *engine.Options) { o.Limits.MicroBatchTokens = 24 })
	}
	e := open()
	s := e.NewSession()
	plain, alone := newRun(t, s, "small", 1), newRun(t, s, "small", 2)
	var want [2][]float32
	for i := range want {
		f, err := plain.ForwardBackward(batch(data...))
		wait(t, f, err)
		want[i] = step(t, plain)
	}
	train(t, alone, 3, data...)
	neighbour := weights(t, alone)
	for at, calls := range map[int32][2]int32{
		0: {4, 8}, // never slow: three micro-batches and the whole, each time
		1: {2, 3}, // the first micro-batch, then the whole, each time
		2: {3, 4}, // the second one, when the first has been differentiated
	} {
		e := open()
		s := e.NewSession()
		d := drowsy{at, new(atomic.Int32)}
		r, other := newRun(t, s, "small", 1), newRun(t, s, "small", 2)
		f, err := r.ForwardBackwardCustom(data, d, nil)
		if err != nil {
			t.Fatal(err)
		}
		train(t, other, 3, data...)
		wait(t, f, err)
		for i := range want {
			if i > 0 {
				f, err := r.ForwardBackwardCustom(data, d, nil)
				wait(t, f, err)
			}
			if n := d.calls.Load(); n != calls[i] {
				t.Errorf("slow at %d: %d calls after %d passes, wanted %d", at, n, i+1, calls[i])
			}
			if got := step(t, r); !slices.Equal(got, want[i]) {
				t.Errorf("slow at %d: other bits after %d passes", at, i+1)
			}
		}
		if !slices.Equal(weights(t, other), neighbour) {
			t.Errorf("slow at %d: the other run has other bits", at)
		}
	}
}
