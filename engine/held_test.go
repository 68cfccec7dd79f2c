package engine_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/engine/loss"
	"tinkerlocal/engine/model"
)

// squaresOf are the weights of the loss squares.
func squaresOf(t testing.TB, lp [][]float32) [][]float32 {
	t.Helper()
	out, err := squares{}.Eval(ctx, loss.Input{LogProbs: lp})
	if err != nil {
		t.Fatal(err)
	}
	return out.Weights
}

func hold(t testing.TB, r *engine.Run, data ...api.Datum) *engine.Held {
	t.Helper()
	f, err := r.Hold(data)
	return wait(t, f, err)
}

// held passes data through a hold with the loss squares.
func held(t testing.TB, r *engine.Run, data ...api.Datum) api.ForwardBackwardOutput {
	t.Helper()
	h := hold(t, r, data...)
	f, err := h.Backward(squaresOf(t, h.LogProbs()))
	return wait(t, f, err)
}

// step takes an optimiser step and returns the weights.
func step(t testing.TB, r *engine.Run) []float32 {
	t.Helper()
	f, err := r.OptimStep(adam(0.01))
	wait(t, f, err)
	return weights(t, r)
}

func count(e *engine.Engine) model.Work { return e.Counters()["deep"].Total() }

// deep is a model with layers to recompute.
func deep() enginetest.Shape {
	s := enginetest.Small
	s.Layers = 6
	return s
}

// TestOneForwardOneBackward: a custom loss and a hold take exactly the products of a built-in loss, and
// the same cross_entropy in Go has the built-in's bits.
func TestOneForwardOneBackward(t *testing.T) {
	var data []api.Datum
	for i := range 9 {
		d := datum(i, 3+(i*7)%17)
		w := make([]float32, d.LossInputs["target_tokens"].Len())
		for j := range w {
			w[j] = float32(j%3) - 0.7
		}
		d.LossInputs["weights"] = api.Floats(w)
		data = append(data, d)
	}
	given := func(lp [][]float32) [][]float32 {
		out := make([][]float32, len(lp))
		for i := range lp {
			out[i] = data[i].LossInputs["weights"].Floats
		}
		return out
	}
	crossEntropy := loss.Func(func(_ context.Context, in loss.Input) (loss.Output, error) {
		out := loss.Output{Weights: given(in.LogProbs)}
		sum := 0.0
		for i, lp := range in.LogProbs {
			for j, v := range lp {
				sum -= float64(out.Weights[i][j]) * float64(v)
			}
		}
		out.Metrics = map[string]float64{"loss:sum": sum}
		return out, nil
	})
	for _, tokens := range []int{4096, 30} {
		e := open(t, func(o *engine.Options) {
			o.Models, o.Limits.MicroBatchTokens = enginetest.Models{"deep": deep()}, tokens
		})
		s := e.NewSession()
		var work []model.Work
		var outs []api.ForwardBackwardOutput
		var got [][]float32
		for _, pass := range []func(r *engine.Run) api.ForwardBackwardOutput{
			func(r *engine.Run) api.ForwardBackwardOutput {
				f, err := r.ForwardBackward(batch(data...))
				return wait(t, f, err)
			},
			func(r *engine.Run) api.ForwardBackwardOutput {
				f, err := r.ForwardBackwardCustom(data, crossEntropy, nil)
				return wait(t, f, err)
			},
			func(r *engine.Run) api.ForwardBackwardOutput {
				h := hold(t, r, data...)
				f, err := h.Backward(given(h.LogProbs()))
				return wait(t, f, err)
			},
		} {
			r := newRun(t, s, "deep", 3)
			before := count(e)
			outs = append(outs, pass(r))
			work = append(work, count(e).Sub(before))
			got = append(got, step(t, r))
		}
		for i := range work {
			if work[i] != work[0] || work[i].Forward == 0 || work[i].Backward == 0 {
				t.Errorf("%d tokens: pass %d computed %+v, the built-in loss %+v", tokens, i, work[i], work[0])
			}
			if !slices.Equal(got[i], got[0]) {
				t.Errorf("%d tokens: pass %d has other gradients", tokens, i)
			}
			if fmt.Sprint(outs[i]) != fmt.Sprint(outs[0]) {
				t.Errorf("%d tokens: pass %d answered %v, the built-in loss %v", tokens, i, outs[i], outs[0])
			}
		}
	}
}

// TestRecomputePlan: with less and less memory a pass takes more products, never other bits, until it is refused; a whole-batch loss
// recomputes layers before it runs its forward twice.
func TestRecomputePlan(t *testing.T) {
	data := []api.Datum{datum(1, 40), datum(2, 40)}
	for name, pass := range map[string]func(r *engine.Run) (*engine.Future[api.ForwardBackwardOutput], error){
		"per datum": func(r *engine.Run) (*engine.Future[api.ForwardBackwardOutput], error) {
			return r.ForwardBackward(batch(data...))
		},
		"whole batch": func(r *engine.Run) (*engine.Future[api.ForwardBackwardOutput], error) {
			return r.ForwardBackwardCustom(data, squares{}, nil)
		},
		"hold": func(r *engine.Run) (*engine.Future[api.ForwardBackwardOutput], error) {
			f, err := r.Hold(data)
			h, err := result(f, err)
			if err != nil {
				return nil, err
			}
			return h.Backward(squaresOf(t, h.LogProbs()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			var want []float32
			var plenty model.Work
			seen := map[model.Work]bool{}
			refused, twice := 0, 0
			for memory := int64(1_500_000); memory > 200_000; memory -= 40_000 {
				e := open(t, func(o *engine.Options) {
					o.Models, o.Limits.MicroBatchTokens, o.Limits.Memory = enginetest.Models{"deep": deep()}, 50, memory
				})
				f, err := e.NewSession().NewRun(api.CreateModelRequest{BaseModel: "deep", Lora: api.LoraConfig{Rank: 2, Seed: new(int64), TrainMLP: true, TrainAttn: true}})
				r, err := result(f, err)
				if err != nil {
					break
				}
				before := count(e)
				if _, err := result(pass(r)); api.CodeOf(err) == api.OutOfMemory {
					refused++
					continue
				} else if err != nil {
					t.Fatal(err)
				}
				work := count(e).Sub(before)
				got := step(t, r)
				e.Close()
				if want == nil {
					want, plenty = got, work
				}
				if refused > 0 || !slices.Equal(got, want) {
					t.Errorf("%d bytes: other bits, or more than was refused", memory)
				}
				if work.Backward != plenty.Backward || work.Forward%plenty.Forward != 0 {
					t.Errorf("%d bytes: computed %+v, with plenty of memory %+v", memory, work, plenty)
				}
				if work.Forward > plenty.Forward {
					twice++
				}
				seen[work] = true
			}
			if len(seen) < 4 || refused == 0 || (twice > 0) != (name != "per datum") {
				t.Errorf("%d amounts of work, %d times the forward twice, %d refused", len(seen), twice, refused)
			}
		})
	}
}

// TestHeldGivenUp: a hold's activations give way to other work, and its backward has the bits it would have had.
func TestHeldGivenUp(t *testing.T) {
	data := []api.Datum{datum(1, 90), datum(2, 90)}
	var want []float32
	for _, memory := range []int64{0, 1_400_000} {
		e := open(t, func(o *engine.Options) {
			o.Models, o.Limits.Memory, o.Limits.MicroBatchTokens = enginetest.Models{"deep": deep()}, memory, 90
		})
		s := e.NewSession()
		a, b := newRun(t, s, "deep", 1), newRun(t, s, "deep", 2)
		before := count(e)
		h := hold(t, a, data...)
		once := count(e).Sub(before).Forward
		train(t, b, 2, datum(5, 190))
		before = count(e)
		f, err := h.Backward(squaresOf(t, h.LogProbs()))
		wait(t, f, err)
		again := count(e).Sub(before).Forward
		if memory == 0 && again != 0 || memory > 0 && again != once {
			t.Errorf("%d bytes: %d products forward again, %d before", memory, again, once)
		}
		if got := step(t, a); want == nil {
			want = got
		} else if !slices.Equal(got, want) {
			t.Error("a hold that was given up has other bits")
		}
	}
}

// TestHeldOrder: passes between a hold and its backward add to the gradient; steps and loads make the hold stale.
func TestHeldOrder(t *testing.T) {
	e := open(t, nil)
	s := e.NewSession()
	r, clean := newRun(t, s, "small", 1), newRun(t, s, "small", 1)
	a, b := datum(1, 9), datum(2, 7)
	h := hold(t, r, a)
	if h.Version() != 0 || len(h.LogProbs()) != 1 || len(h.LogProbs()[0]) != 9 {
		t.Errorf("version %d, log-probabilities %v", h.Version(), h.LogProbs())
	}
	p, err := r.ForwardBackward(batch(b))
	wait(t, p, err)
	w := squaresOf(t, h.LogProbs())
	f, err := h.Backward(w)
	w[0][0] = float32(math.NaN()) // was copied
	h.Release()                   // does not touch what was submitted
	out := wait(t, f, err)
	if lp := out.LossFnOutputs[0]["logprobs"].Floats; !slices.Equal(lp, h.LogProbs()[0]) {
		t.Errorf("backward answered %v", lp)
	}
	_, err = h.Backward(squaresOf(t, h.LogProbs()))
	fails(t, err, api.BadRequest, "the hold was used already")
	p, err = clean.ForwardBackward(batch(b))
	wait(t, p, err)
	held(t, clean, a)
	stale := hold(t, r, a)
	if !slices.Equal(step(t, r), step(t, clean)) {
		t.Error("order changed the weights")
	}
	const msg = "the hold is stale: it has version 0 of the weights, the run has 1"
	_, err = stale.Backward(squaresOf(t, stale.LogProbs()))
	fails(t, err, api.Stale, msg)

	// Placed behind a step that has not run: the future says so. Saving changes no weights.
	stale = hold(t, clean, a)
	sampler(t, clean)
	g := newGate()
	if _, err := clean.ForwardBackwardCustom([]api.Datum{b}, g, nil); err != nil {
		t.Fatal(err)
	}
	<-g.entered
	fw, err := clean.Weights()
	if err != nil {
		t.Fatal(err)
	}
	o, err := clean.OptimStep(adam(0))
	if err != nil {
		t.Fatal(err)
	}
	late, err := stale.Backward(squaresOf(t, stale.LogProbs()))
	if err != nil {
		t.Fatal(err)
	}
	close(g.open)
	wait(t, o, nil)
	_, err = result(late, nil)
	fails(t, err, api.Stale, "the hold is stale: it has version 1 of the weights, the run has 2")
	stale = hold(t, clean, a)
	l, err := clean.Load(wait(t, fw, nil))
	wait(t, l, err)
	_, err = stale.Backward(squaresOf(t, stale.LogProbs()))
	fails(t, err, api.Stale, "the hold is stale: it has version 2 of the weights, the run has 3")
	o, err = clean.OptimStep(adam(0))
	if norm := wait(t, o, err).Metrics["grad_norm"]; norm != 0 {
		t.Errorf("stale holds left a gradient of norm %v", norm)
	}
}

// TestHeldRefused: what a hold cannot do is said, and changes nothing.
func TestHeldRefused(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.Holds = 2 })
	s := e.NewSession()
	r, other := newRun(t, s, "small", 1), newRun(t, s, "small", 2)
	h := hold(t, r, datum(1, 3), datum(2, 2))
	w := squaresOf(t, h.LogProbs())
	for _, c := range []struct {
		w   [][]float32
		msg string
	}{
		{nil, "got weights for 0 datums, the batch has 2"},
		{[][]float32{w[0], {1}}, "datum 1: got 1 weights for 2 log-probabilities"},
		{[][]float32{w[0], {1, float32(math.Inf(-1))}}, "datum 1: got weight 1 = -Inf, wanted a finite number"},
	} {
		_, err := h.Backward(c.w)
		fails(t, err, api.BadRequest, c.msg)
	}
	_, err := other.At(1).Backward(h, w)
	fails(t, err, api.BadRequest, fmt.Sprintf("the hold belongs to run %s, not to %s", r.ID(), other.ID()))
	_, err = r.Hold([]api.Datum{{}})
	fails(t, err, api.BadRequest, "datum 0: model input is empty")
	second := hold(t, r, datum(1, 3))
	_, err = result(r.Hold([]api.Datum{datum(1, 3)}))
	fails(t, err, api.Busy, "2 holds of this run are open, the limit is 2")
	hold(t, other, datum(1, 3))
	second.Release()
	second.Release()
	_, err = second.Backward(squaresOf(t, second.LogProbs()))
	fails(t, err, api.BadRequest, "the hold was released")
	third := hold(t, r, datum(1, 3))
	f, err := h.Backward(w)
	wait(t, f, err)
	r.Close()
	for err = nil; err == nil; {
		_, err = third.Backward(squaresOf(t, third.LogProbs()))
		time.Sleep(time.Millisecond)
	}
	fails(t, err, api.Closed, "the run is closed")
	third.Release()
	e.Close()
	third.Release()
}

// TestHeldDeadline: a hold that nobody uses expires; one whose backward waits does not; a cancelled backward leaves the hold usable.
func TestHeldDeadline(t *testing.T) {
	var late atomic.Int64 // nanoseconds that the clock is ahead
	e := open(t, func(o *engine.Options) {
		o.Limits.HoldWait, o.Limits.LossTime = 10*time.Second, time.Minute
		o.Now = func() time.Time { return time.Now().Add(time.Duration(late.Load())) }
	})
	r := newRun(t, e.NewSession(), "small", 1)
	h, idle := hold(t, r, datum(1, 3)), hold(t, r, datum(1, 3))
	g := newGate()
	first, err := r.ForwardBackwardCustom([]api.Datum{datum(1, 4)}, g, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-g.entered
	w := squaresOf(t, h.LogProbs())
	dropped, err := h.Backward(w)
	if err != nil {
		t.Fatal(err)
	}
	dropped.Cancel()
	_, err = result(dropped, nil)
	fails(t, err, api.Cancelled, "backward: cancelled")
	f, err := h.Backward(w)
	if err != nil {
		t.Fatal(err)
	}
	late.Store(int64(11 * time.Second))
	newRun(t, e.NewSession(), "small", 2) // wakes the loop
	_, err = result(idle.Backward(w))
	fails(t, err, api.Stale, "the hold is stale: it was not used within 10s")
	close(g.open)
	wait(t, first, nil)
	wait(t, f, nil)
}

// TestHeldWakes: an idle engine lets holds expire.
func TestHeldWakes(t *testing.T) {
	dev := &watched{Device: device(t)}
	e := open(t, func(o *engine.Options) { o.Device, o.Limits.HoldWait = dev, 30*time.Millisecond })
	r := newRun(t, e.NewSession(), "small", 1)
	long := hold(t, r, datum(1, 190))
	w := squaresOf(t, long.LogProbs())
	before := dev.used()
	h := hold(t, r, datum(1, 190))
	for end := time.Now().Add(time.Minute); dev.used() > before && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	_, err := h.Backward(w)
	fails(t, err, api.Stale, "the hold is stale: it was not used within 30ms")
	if n := dev.used(); n > before {
		t.Errorf("%d bytes are allocated, %d before the holds had expired", n, before)
	}
	hold(t, r, datum(1, 30))
	e.Close()
	if n := dev.used(); n != 0 {
		t.Errorf("%d bytes are still allocated", n)
	}
}

// TestHeldNumbered: hold and backward have places in the order of numbers, and repeats answer with the first future.
func TestHeldNumbered(t *testing.T) {
	e := open(t, nil)
	s := e.NewSession()
	r, plain := newRun(t, s, "small", 4), newRun(t, s, "small", 4)
	o, err := r.At(4).OptimStep(adam(0.01))
	if err != nil {
		t.Fatal(err)
	}
	f, err := r.At(1).Hold([]api.Datum{datum(1, 8)})
	h := wait(t, f, err)
	w := squaresOf(t, h.LogProbs())
	b, err := r.At(3).Backward(h, w)
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.At(3).Backward(h, w)
	if err != nil || again != b {
		t.Errorf("a repeat gave %v, another future: %v", err, again != b)
	}
	if f2, err := r.At(1).Hold(nil); err != nil || f2 != f {
		t.Errorf("a repeated hold gave %v, another future: %v", err, f2 != f)
	}
	p, err := r.At(2).ForwardBackward(batch(datum(2, 5)))
	wait(t, p, err)
	wait(t, b, nil)
	wait(t, o, nil)
	if _, err := plain.ForwardBackward(batch(datum(2, 5))); err != nil {
		t.Fatal(err)
	}
	held(t, plain, datum(1, 8))
	if !slices.Equal(weights(t, r), step(t, plain)) {
		t.Error("numbers changed the weights")
	}
}

// TestAccounts: after passes, holds and failures of all kinds, the engine counts the memory that it counted before.
func TestAccounts(t *testing.T) {
	dev := &watched{Device: device(t)}
	e := open(t, func(o *engine.Options) {
		o.Device, o.Limits.MicroBatchTokens, o.Limits.Memory, o.Limits.HoldWait = dev, 20, 900_000, time.Minute
	})
	s := e.NewSession()
	keep := newRun(t, s, "small", 1)
	p := sampler(t, keep)
	draw(t, p, ask(tokens(1, 4), 1, 4, 1))
	accounts := func() engine.Accounts { f, err := s.Accounts(); return wait(t, f, err) }
	before := accounts()
	if before.Tapes != 0 || before.Holds != 0 || before.Frames == 0 {
		t.Errorf("at first %+v", before)
	}
	data := []api.Datum{datum(1, 20), datum(2, 18), datum(3, 19)}
	bad := datum(4, 4)
	bad.LossInputs["bad"] = api.Ints([]int64{1})
	for i := range 6 {
		r := newRun(t, s, "small", 2)
		hold(t, r, data...) // is left alone
		h := hold(t, r, data...)
		switch i {
		case 1:
			h.Release()
		case 2:
			f, err := h.Backward(squaresOf(t, h.LogProbs()))
			wait(t, f, err)
		case 3:
			dev.skip.Store(2) // a defect in the backward
			dev.failNext("oh no")
			f, err := h.Backward(squaresOf(t, h.LogProbs()))
			_, err = result(f, err)
			fails(t, err, api.Internal, "backward: defect in the engine: oh no")
		case 4:
			train(t, r, 1, datum(1, 190)) // makes holds give up
		case 5:
			result(r.ForwardBackwardCustom([]api.Datum{data[0], bad}, touchy{}, nil))
		}
		f, err := r.ForwardBackwardCustom(data, squares{}, nil)
		wait(t, f, err)
		r.Close()
		draw(t, p, ask(tokens(1, 4), 1, 4, 1)) // its weights may have been set aside
		for end := time.Now().Add(time.Minute); accounts() != before; {
			if time.Now().After(end) {
				t.Fatalf("round %d: %+v, before %+v", i, accounts(), before)
			}
			time.Sleep(time.Millisecond)
		}
	}
	if got, want := before.Used-before.Frames, dev.used(); got > want {
		t.Errorf("counts %d bytes, the device has %d", got, want)
	}
}
