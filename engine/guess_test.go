package engine_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/engine/model"
	"tinkerlocal/store"
)

// weighted is the second half of a client's custom loss, the sum of squared log-probabilities: the same sequences and targets with
// the loss's gradient as weights.
func weighted(data []api.Datum, out api.ForwardBackwardOutput) []api.Datum {
	again := make([]api.Datum, len(data))
	for i, d := range data {
		lp := out.LossFnOutputs[i]["logprobs"]
		w := make([]float32, len(lp.Floats))
		for j, v := range lp.Floats {
			w[j] = -2 * v
		}
		targets := d.LossInputs["target_tokens"]
		again[i] = api.Datum{
			ModelInput: api.FromInts(slices.Concat(d.ModelInput.Chunks[0].Tokens)), // what counts is what is in it
			LossInputs: map[string]api.TensorData{
				"target_tokens": {Ints: slices.Clone(targets.Ints), Shape: targets.Dims()}, "weights": {Floats: w, Shape: targets.Dims()},
			},
		}
	}
	return again
}

// clientLoss does what the official client does for a custom loss, in chunks: all forwards, then all backwards.
func clientLoss(t testing.TB, r *engine.Run, chunks ...[]api.Datum) (out [2][]api.ForwardBackwardOutput) {
	t.Helper()
	var futures []*engine.Future[api.ForwardBackwardOutput]
	for _, data := range chunks {
		f, err := r.Forward(batch(data...))
		if err != nil {
			t.Fatal(err)
		}
		futures = append(futures, f)
	}
	for _, f := range futures {
		out[0] = append(out[0], wait(t, f, nil))
	}
	for i, data := range chunks {
		f, err := r.ForwardBackward(batch(weighted(data, out[0][i])...))
		if err != nil {
			t.Fatal(err)
		}
		futures[i] = f
	}
	for _, f := range futures {
		out[1] = append(out[1], wait(t, f, nil))
	}
	return out
}

func allWork(e *engine.Engine) (w model.Work) {
	for _, c := range e.Counters() {
		w = w.Add(c.Total())
	}
	return w
}

// wide predicts k targets at each position.
func wide(seed, n, k int) api.Datum {
	d := datum(seed, n)
	d.LossInputs["target_tokens"] = api.TensorData{Ints: make([]int64, n*k), Shape: []int{n, k}}
	for i := range n * k {
		d.LossInputs["target_tokens"].Ints[i] = int64((seed + i*i) % 37)
	}
	return d
}

// TestClientLoss: a client's custom loss, a forward and then a forward_backward with weights, costs one forward and one backward, in whatever
// micro-batches and with whatever targets, and every bit of its answers and of the gradient is as when nothing is kept.
func TestClientLoss(t *testing.T) {
	sparse := enginetest.Small
	sparse.Experts, sparse.TopK, sparse.ExpertFFN = 5, 2, 12
	var data []api.Datum
	for i := range 9 {
		data = append(data, datum(i, 3+(i*7)%17))
	}
	for base, shape := range map[string]enginetest.Shape{"deep": deep(), "sparse": sparse} {
		for name, c := range map[string]struct {
			limits engine.Limits
			chunks [][]api.Datum
		}{
			"one batch":       {engine.Limits{}, [][]api.Datum{data}},
			"micro-batches":   {engine.Limits{MicroBatchTokens: 30}, [][]api.Datum{data}},
			"chunks":          {engine.Limits{MicroBatchTokens: 30}, [][]api.Datum{data[:3], data[3:4], data[4:8], data[8:]}},
			"several targets": {engine.Limits{}, [][]api.Datum{{wide(1, 9, 3), datum(2, 8), wide(3, 12, 1)}}},
		} {
			t.Run(base+" "+name, func(t *testing.T) {
				var outs []string
				var grads [][]float32
				var forward int64 // what one costs
				for _, kept := range []int{-1, 0} {
					e := open(t, func(o *engine.Options) {
						o.Models, o.Limits = enginetest.Models{base: shape}, c.limits
						o.Limits.KeptForwards = kept
					})
					r := newRun(t, e.NewSession(), base, 3)
					before := allWork(e)
					out := clientLoss(t, r, c.chunks...)
					work := allWork(e).Sub(before)
					outs = append(outs, fmt.Sprint(out))
					grads = append(grads, step(t, r))
					if kept < 0 {
						forward = work.Forward / 2
					} else if work.Forward != forward || work.Backward == 0 {
						t.Errorf("computed %+v, one forward is %d", work, forward)
					}
				}
				if outs[0] != outs[1] {
					t.Errorf("answers\n%s\nwithout anything kept\n%s", outs[1], outs[0])
				}
				if !slices.Equal(grads[0], grads[1]) {
					t.Error("the gradients differ")
				}
			})
		}
	}
}

// TestClientLossSteps: more chunks than are kept at first are kept from the second step on, also when there are evaluations between.
func TestClientLossSteps(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Models = enginetest.Models{"deep": deep()} })
	r := newRun(t, e.NewSession(), "deep", 1)
	var chunks [][]api.Datum
	for i := range 7 {
		chunks = append(chunks, []api.Datum{datum(i, 10)})
	}
	f, err := r.Forward(batch(chunks[0]...))
	wait(t, f, err)
	forward := allWork(e).Forward // of one chunk
	for i, want := range []int64{10, 7, 7, 7, 7} {
		for range 2 * i { // evaluations
			f, err := r.Forward(batch(datum(100+i, 10)))
			wait(t, f, err)
		}
		before := allWork(e)
		clientLoss(t, r, chunks...)
		if n := allWork(e).Sub(before).Forward / forward; n != want {
			t.Errorf("step %d: %d forwards, wanted %d", i, n, want)
		}
		step(t, r)
	}
	// Nothing is kept any more in a long evaluation, and of the first custom loss after it. The next evaluation of that kind changes nothing.
	for _, want := range []int64{14, 7, 7} {
		for i := range 50 {
			f, err := r.Forward(batch(datum(200+i, 10)))
			wait(t, f, err)
		}
		before := allWork(e)
		clientLoss(t, r, chunks...)
		if n := allWork(e).Sub(before).Forward / forward; n != want {
			t.Errorf("after a long evaluation: %d forwards, wanted %d", n, want)
		}
	}
}

// TestGuessWrong: what only looks like the backward of a forward runs its own, and every operation answers as if nothing were kept.
func TestGuessWrong(t *testing.T) {
	keep := store.OpenMemory(store.Options{Interval: -1})
	defer keep.Close()
	program := func(kept int) (text []string, work model.Work) {
		e := open(t, func(o *engine.Options) {
			o.Models, o.Limits.KeptForwards, o.Checkpoints = enginetest.Models{"deep": deep()}, kept, borrowed{keep}
		})
		defer e.Close()
		s := e.NewSession()
		r, other := newRun(t, s, "deep", 1), newRun(t, s, "deep", 2)
		f, err := other.SaveState("x", api.SaveOptions{Overwrite: true})
		path := wait(t, f, err).Path.String()
		w, err := other.Weights()
		initial := wait(t, w, err)
		data := []api.Datum{datum(1, 12), datum(2, 9)}
		pass := func(r *engine.Run, data ...api.Datum) {
			f, err := r.ForwardBackward(batch(data...))
			text = append(text, fmt.Sprint(wait(t, f, err)))
		}
		look := func() {
			f, err := r.Forward(batch(data...))
			text = append(text, fmt.Sprint(wait(t, f, err)))
		}
		f3, err := other.Forward(batch(datum(7, 3)))
		wait(t, f3, err)
		look()
		pass(other, data...) // another run
		token, target, cut := datum(1, 12), datum(1, 12), datum(1, 12)
		token.ModelInput.Chunks[0].Tokens[11]++
		target.LossInputs["target_tokens"].Ints[3]++
		cut.ModelInput.Chunks[0].Tokens = cut.ModelInput.Chunks[0].Tokens[:11]
		cut.LossInputs["target_tokens"] = api.Ints(cut.LossInputs["target_tokens"].Ints[:11])
		pass(r, token, data[1])
		pass(r, target, data[1])
		pass(r, cut, data[1])
		pass(r, data[1], data[0])
		pass(r, data[0])
		pass(r, data[0], data[1], data[1])
		for i, change := range []func(){ // the weights are others
			func() { f, err := r.OptimStep(adam(0.01)); wait(t, f, err) },
			func() { f, err := r.Load(initial); wait(t, f, err) },
			func() { f, err := r.LoadState(path); wait(t, f, err) },
			func() { f, err := r.LoadStateWithOptimizer(path); wait(t, f, err) },
		} {
			look()
			change()
			pass(r, data...)
			if i == 0 {
				step(t, r) // so that the loads find other weights
			}
		}
		look()
		pass(r, data...) // the only one that is right
		pass(r, data...) // a second time
		f2, err := r.OptimStep(adam(0.01))
		text = append(text, fmt.Sprint(wait(t, f2, err)))
		return text, allWork(e)
	}
	want, plain := program(-1)
	got, work := program(0)
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("operation %d gave\n%s\nwithout anything kept\n%s", i, got[i], want[i])
		}
	}
	if saved := plain.Forward - work.Forward; saved <= 0 || saved*13 > plain.Forward*2 {
		t.Errorf("computed %+v, without anything kept %+v", work, plain)
	}
}

// TestHoldsAfterLoadState: a load by path makes holds stale, as every other load does.
func TestHoldsAfterLoadState(t *testing.T) {
	e, _ := stored(t, nil)
	r := newRun(t, e.NewSession(), "small", 1)
	path := saveState(t, r, "x").Path.String()
	h := hold(t, r, datum(1, 5))
	f, err := r.LoadState(path)
	wait(t, f, err)
	_, err = h.Backward(squaresOf(t, h.LogProbs()))
	fails(t, err, api.Stale, "the hold is stale: it has version 0 of the weights, the run has 1")
}

// TestGuessRandom: runs that evaluate, train and take custom losses at once, some of them in pieces and out of order, give the
// same answers and weights as without anything kept, with any amount of memory that suffices.
func TestGuessRandom(t *testing.T) {
	for seed := range uint64(4) {
		run := func(kept int, memory int64) (text [3][]string, grads [3][]float32, work model.Work) {
			e := open(t, func(o *engine.Options) {
				o.Limits = engine.Limits{MicroBatchTokens: []int{4096, 40}[seed%2], Memory: memory, KeptForwards: kept}
			})
			defer e.Close()
			runs := mixedRuns(t, e.NewSession(), "small")
			var clients sync.WaitGroup
			for i, r := range runs {
				clients.Go(func() {
					rng := rand.New(rand.NewPCG(seed, uint64(i)))
					say := func(v any) { text[i] = append(text[i], fmt.Sprint(v)) }
					for range 25 {
						var data []api.Datum
						for range 1 + rng.IntN(4) {
							data = append(data, datum(rng.IntN(5), 1+rng.IntN(12)))
						}
						switch rng.IntN(5) {
						case 0:
							f, err := r.Forward(batch(data...))
							say(logProbs(wait(t, f, err)))
						case 1:
							f, err := r.ForwardBackward(batch(data...))
							say(logProbs(wait(t, f, err)))
						case 2:
							f, err := r.OptimStep(adam(0.01))
							say(wait(t, f, err))
						case 3:
							f, err := r.ForwardBackwardCustom(data, squares{}, nil)
							say(logProbs(wait(t, f, err)))
						case 4:
							n := rng.IntN(len(data))
							chunks := [][]api.Datum{data[n:]}
							if n > 0 {
								chunks = append(chunks, data[:n])
							}
							say(clientLoss(t, r, chunks...))
						}
					}
					grads[i] = step(t, r)
				})
			}
			clients.Wait()
			return text, grads, allWork(e)
		}
		want, weights, plain := run(-1, 0)
		for _, memory := range []int64{0, 900_000, 600_000} {
			got, grads, work := run(0, memory)
			for i := range got {
				for j := range want[i] {
					if got[i][j] != want[i][j] {
						t.Fatalf("seed %d, memory %d: operation %d of run %d gave\n%s\nwithout anything kept\n%s", seed, memory, j, i, got[i][j], want[i][j])
					}
				}
				if !slices.Equal(grads[i], weights[i]) {
					t.Errorf("seed %d, memory %d: run %d has other weights", seed, memory, i)
				}
			}
			if memory == 0 && work.Forward >= plain.Forward {
				t.Errorf("seed %d: computed %+v, without anything kept %+v", seed, work, plain)
			}
		}
	}
}

// TestGuessGivesWay: whoever needs memory gets what a forward has kept: no batch is smaller, no layer run again, nothing refused for it.
func TestGuessGivesWay(t *testing.T) {
	work := map[int]model.Work{}
	for _, kept := range []int{-1, 0} {
		e := open(t, func(o *engine.Options) {
			o.Models = enginetest.Models{"deep": deep(), "other": deep()}
			o.Limits = engine.Limits{Memory: 3_000_000, KeptForwards: kept, KVPositions: 256}
		})
		s := e.NewSession()
		a, b := newRun(t, s, "deep", 1), newRun(t, s, "deep", 2)
		evaluate := func(r *engine.Run) {
			f, err := r.Forward(batch(datum(1, 150)))
			wait(t, f, err)
			accounts, err := s.Accounts()
			if n := wait(t, accounts, err).Holds; (n > 0) != (kept == 0) {
				t.Fatalf("%d forwards keep something", n)
			}
		}
		before := allWork(e)
		evaluate(a)
		f, err := b.ForwardBackward(batch(datum(1, 190), datum(2, 190))) // one batch, or nothing recomputed, with all the memory
		wait(t, f, err)
		evaluate(a)
		f, err = b.ForwardBackwardCustom([]api.Datum{datum(1, 190)}, squares{}, nil)
		wait(t, f, err)
		evaluate(b)
		draw(t, sampler(t, a), ask(tokens(1, 9), 3, 50, 1))
		evaluate(b)
		for rank := 8; ; rank *= 2 { // adapters until there is no room
			g, err := s.NewRun(create("other", int64(rank)))
			if _, err := result(g, err); err != nil {
				fails(t, err, api.OutOfMemory, err.Error())
				break
			}
		}
		work[kept] = allWork(e).Sub(before)
	}
	if work[0] != work[-1] {
		t.Errorf("computed %+v, without anything kept %+v", work[0], work[-1])
	}
}

// TestGuessEnds: what a forward keeps is bounded for a run that only evaluates, and goes with time, with a step, and with its run.
func TestGuessEnds(t *testing.T) {
	var mu sync.Mutex
	now := time.Unix(1e9, 0)
	e := open(t, func(o *engine.Options) {
		o.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	})
	s := e.NewSession()
	r := newRun(t, s, "small", 1)
	accounts := func() engine.Accounts {
		t.Helper()
		f, err := s.Accounts()
		return wait(t, f, err)
	}
	empty := accounts()
	evaluate := func(n int) {
		for i := range n {
			f, err := r.Forward(batch(datum(i, 20)))
			wait(t, f, err)
		}
	}
	evaluate(1)
	one := accounts()
	evaluate(1)
	if a := accounts(); a != one {
		t.Errorf("after the same forward again: %+v, %+v before", a, one)
	}
	evaluate(10)
	if a := accounts(); a.Holds != 4 || a.Used-empty.Used != 4*(one.Used-empty.Used) {
		t.Errorf("a run that evaluates has %+v, after one forward %+v", a, one)
	}
	evaluate(10)
	if a := accounts(); a != empty {
		t.Errorf("a run that only evaluates has %+v, at first %+v", a, empty)
	}
	f, err := r.ForwardBackward(batch(weighted([]api.Datum{datum(9, 20)}, look(t, r, datum(9, 20)))...)) // the doubt is over
	wait(t, f, err)
	evaluate(1)
	if a := accounts(); a != one {
		t.Errorf("after a match: %+v, wanted %+v", a, one)
	}
	mu.Lock()
	now = now.Add(e.Limits().HoldWait)
	mu.Unlock()
	if a := accounts(); a.Holds != 0 && accounts().Holds != 0 {
		t.Errorf("after the wait: %+v", a)
	}
	evaluate(1)
	o, err := r.OptimStep(adam(0))
	wait(t, o, err)
	if a := accounts(); a != empty {
		t.Errorf("after a step: %+v, at first %+v", a, empty)
	}
	evaluate(1)
	r.Close()
	if a := accounts(); a.Holds != 0 || a.Tapes != 0 {
		t.Errorf("after the end: %+v", a)
	}
}

// look is a forward.
func look(t testing.TB, r *engine.Run, data ...api.Datum) api.ForwardBackwardOutput {
	t.Helper()
	f, err := r.Forward(batch(data...))
	return wait(t, f, err)
}

// TestGuessShares: forwards of several runs share a batch, as if nothing were ever kept, unless their runs take custom losses.
func TestGuessShares(t *testing.T) {
	dev := &turns{watched: &watched{Device: device(t)}}
	e := open(t, func(o *engine.Options) { o.Device = dev })
	other := newRun(t, e.NewSession(), "small", 77) // its turn is before the others'
	runs := mixedRuns(t, e.NewSession(), "small")
	forwards := func() int {
		dev.mu.Lock()
		before := len(dev.log.String())
		var futures []*engine.Future[api.ForwardBackwardOutput]
		for i, r := range runs {
			for range 2 {
				f, err := r.Forward(batch(datum(i, 6)))
				if err != nil {
					t.Fatal(err)
				}
				futures = append(futures, f)
			}
		}
		dev.mu.Unlock()
		for _, f := range futures {
			wait(t, f, nil)
		}
		return len(dev.log.String()) - before
	}
	if n := forwards(); n > 3 { // the first may begin before the others are there
		t.Errorf("%d forwards for two of each of three runs", n)
	}
	clientLoss(t, runs[0], []api.Datum{datum(50, 5)})
	clientLoss(t, runs[1], []api.Datum{datum(51, 5)})
	if n := forwards(); n < 5 {
		t.Errorf("%d forwards, two of the runs take custom losses", n)
	}

	// Backwards whose forwards were kept share nothing: another run's batch does not take them along.
	var data [3][]api.Datum
	for i, r := range runs {
		data[i] = []api.Datum{datum(60+i, 6)}
		f, err := r.Forward(batch(data[i]...))
		data[i] = weighted(data[i], wait(t, f, err))
	}
	last := newRun(t, e.NewSession(), "small", 78)
	before := allWork(e)
	f, err := other.Forward(batch(datum(9, 3)))
	wait(t, f, err)
	forward := allWork(e).Sub(before).Forward
	dev.mu.Lock()
	var futures []*engine.Future[api.ForwardBackwardOutput]
	queue := func(f *engine.Future[api.ForwardBackwardOutput], err error) {
		if err != nil {
			t.Fatal(err)
		}
		futures = append(futures, f)
	}
	queue(last.Forward(batch(datum(8, 3))))
	for len(futures) == 0 || futures[0].State() != engine.Running {
		time.Sleep(time.Millisecond)
	}
	queue(other.ForwardBackward(batch(datum(7, 3))))
	for i, r := range runs {
		queue(r.ForwardBackward(batch(data[i]...)))
	}
	before = allWork(e)
	dev.mu.Unlock()
	for _, f := range futures {
		wait(t, f, nil)
	}
	if n := allWork(e).Sub(before).Forward; n > 2*forward {
		t.Errorf("computed %d products forward, those of another run are %d", n, 2*forward)
	}
}

// TestGuessHalf: what a forward keeps takes at most half of the memory that is free, and not much less when that is what it needs.
func TestGuessHalf(t *testing.T) {
	const limit = 2_000_000
	e := open(t, func(o *engine.Options) { o.Limits = engine.Limits{Memory: limit, MicroBatchTokens: 500} })
	s := e.NewSession()
	r := newRun(t, s, "small", 1)
	used := func() int64 {
		f, err := s.Accounts()
		return wait(t, f, err).Used
	}
	before, most := used(), int64(0)
	for n := 10; n < 200; n += 9 {
		f, err := r.Forward(batch(datum(n, n), datum(n+1, n)))
		wait(t, f, err)
		took := used() - before
		if most = max(most, took); took > (limit-before)/2 {
			t.Errorf("2 x %d tokens: %d bytes are kept, %d were free", n, took, limit-before)
		}
		step(t, r)
	}
	if most < (limit-before)/3 {
		t.Errorf("at most %d bytes were kept, %d were free", most, limit-before)
	}
}

// ropes are the rotation's tables of a small model, which no plan counts.
const ropes = 2 * 1024 * 5 * 4

// TestGuessGivenUpMidway: others take the memory while a forward that keeps its activations is between two micro-batches. It gives them
// up, and stays within the limit.
func TestGuessGivenUpMidway(t *testing.T) {
	const limit = 2_000_000
	var data []api.Datum
	for i := range 3 {
		data = append(data, datum(i, 40))
	}
	dev := &turns{watched: &watched{Device: device(t)}}
	e := open(t, func(o *engine.Options) {
		o.Device, o.Limits = dev, engine.Limits{Memory: limit, MicroBatchTokens: 40}
	})
	s := e.NewSession()
	r := newRun(t, s, "small", 1)
	dev.mu.Lock() // the first micro-batch waits for the others to be queued
	reached := dev.reached.Load()
	f, err := r.Forward(batch(data...))
	if err != nil {
		t.Fatal(err)
	}
	for dev.reached.Load() == reached {
		time.Sleep(time.Millisecond)
	}
	var opening []*engine.Future[*engine.Run]
	for i := range 20 {
		req := create("small", int64(i))
		req.Lora.Rank = 8
		g, err := s.NewRun(req)
		if err != nil {
			t.Fatal(err)
		}
		opening = append(opening, g)
	}
	dev.mu.Unlock()
	out := wait(t, f, nil)
	opened := 0
	for _, g := range opening {
		if _, err := result(g, nil); err == nil {
			opened++
		}
	}
	a, err := s.Accounts()
	if x := wait(t, a, err); x.Holds != 0 || x.Used > limit || opened == 0 || opened == 20 {
		t.Errorf("%d runs were opened; the engine has %+v", opened, x)
	}
	if dev.peak > limit+ropes {
		t.Errorf("up to %d bytes were allocated", dev.peak)
	}
	again := open(t, nil)
	f, err = newRun(t, again.NewSession(), "small", 1).Forward(batch(data...))
	if fmt.Sprint(wait(t, f, err)) != fmt.Sprint(out) {
		t.Error("the answer has other bits")
	}
}

// TestGuessSharedBatch: a batch that runs share is as large as if nothing were kept.
func TestGuessSharedBatch(t *testing.T) {
	batches := map[int]int{}
	for _, kept := range []int{-1, 0} {
		dev := &turns{watched: &watched{Device: device(t)}}
		e := open(t, func(o *engine.Options) {
			o.Device, o.Limits = dev, engine.Limits{Memory: 1_500_000, KeptForwards: kept}
		})
		s := e.NewSession()
		runs := mixedRuns(t, s, "small")
		other := newRun(t, s, "small", 4)
		f, err := other.Forward(batch(datum(1, 60)))
		wait(t, f, err)
		dev.mu.Lock()
		reached := dev.reached.Load()
		f, err = runs[0].Forward(batch(datum(2, 3)))
		if err != nil {
			t.Fatal(err)
		}
		for dev.reached.Load() == reached {
			time.Sleep(time.Millisecond)
		}
		futures := []*engine.Future[api.ForwardBackwardOutput]{f}
		for _, r := range runs {
			f, err := r.ForwardBackward(batch(datum(3, 50), datum(4, 50)))
			if err != nil {
				t.Fatal(err)
			}
			futures = append(futures, f)
		}
		dev.log.Reset()
		dev.mu.Unlock()
		for _, f := range futures {
			wait(t, f, nil)
		}
		batches[kept] = len(dev.log.String())
		if dev.peak > 1_500_000+ropes {
			t.Errorf("up to %d bytes were allocated", dev.peak)
		}
	}
	if batches[0] != batches[-1] {
		t.Errorf("%d batches, without anything kept %d", batches[0], batches[-1])
	}
}

// TestGuessMemoryIsReturned: what a forward has kept goes back to the device when an adapter needs it, not into a buffer for later.
func TestGuessMemoryIsReturned(t *testing.T) {
	var allocated, opened []int64
	for _, kept := range []int{-1, 0} {
		dev := &watched{Device: device(t)}
		e := open(t, func(o *engine.Options) {
			o.Device, o.Limits = dev, engine.Limits{Memory: 900_000, KeptForwards: kept}
		})
		s := e.NewSession()
		f, err := newRun(t, s, "small", 1).Forward(batch(datum(1, 60)))
		wait(t, f, err)
		n := int64(0)
		for ; err == nil; n++ { // adapters until there is no room
			g, submitted := s.NewRun(create("small", n))
			_, err = result(g, submitted)
		}
		fails(t, err, api.OutOfMemory, err.Error())
		allocated, opened = append(allocated, dev.used()), append(opened, n)
	}
	if allocated[1] > allocated[0] || opened[1] != opened[0] {
		t.Errorf("%d bytes are allocated with %d runs; without anything kept %d with %d", allocated[1], opened[1], allocated[0], opened[0])
	}
}

// TestGuessAfterFailedStep: a step that fails half-way leaves weights that nobody knows: what was kept before is not theirs.
func TestGuessAfterFailedStep(t *testing.T) {
	data := []api.Datum{datum(1, 20)}
	var want string
	for _, kept := range []int{-1, 0} {
		dev := &watched{Device: device(t)}
		e := open(t, func(o *engine.Options) { o.Device, o.Limits.KeptForwards = dev, kept })
		r := newRun(t, e.NewSession(), "small", 1)
		f, err := r.ForwardBackward(batch(datum(2, 9)))
		wait(t, f, err)
		f, err = r.Forward(batch(data...))
		wait(t, f, err)
		dev.halt.Store(true)
		if _, err := result(r.OptimStep(adam(0.1))); api.CodeOf(err) != api.Internal {
			t.Errorf("the step gave %v", err)
		}
		f, err = r.ForwardBackward(batch(data...))
		if got := fmt.Sprint(wait(t, f, err)); want == "" {
			want = got
		} else if got != want {
			t.Errorf("answered %s\nwithout anything kept %s", got, want)
		}
	}
}
