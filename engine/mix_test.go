package engine_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/engine/loss"
)

// touchy is a loss per datum, the sum of squared log-probabilities, that fails or panics at datums which say so.
type touchy struct{}

func (touchy) PerDatum() {}

func (touchy) Eval(_ context.Context, in loss.Input) (loss.Output, error) {
	sum := 0.0
	out := loss.Output{Weights: make([][]float32, len(in.Data))}
	for i, lp := range in.LogProbs {
		if in.Data[i].LossInputs["bad"].Len() == 1 {
			return loss.Output{}, errors.New("a bad datum")
		}
		if in.Data[i].LossInputs["bad"].Len() == 2 {
			panic("a very bad datum")
		}
		out.Weights[i] = make([]float32, len(lp))
		for j, v := range lp {
			sum += float64(v) * float64(v)
			out.Weights[i][j] = -2 * v
		}
	}
	out.Metrics = map[string]float64{"loss:sum": sum}
	return out, nil
}

// mixedRuns are runs of one base with adapters of their own kinds.
func mixedRuns(t *testing.T, s *engine.Session, base string) []*engine.Run {
	t.Helper()
	var runs []*engine.Run
	for i, c := range []api.LoraConfig{
		{Rank: 4, TrainAttn: true, TrainMLP: true, TrainUnembed: true}, {Rank: 1, TrainMLP: true}, {Rank: 9, TrainAttn: true, TrainUnembed: true},
	} {
		seed := int64(i + 1)
		c.Seed = &seed
		f, err := s.NewRun(api.CreateModelRequest{BaseModel: base, Lora: c})
		runs = append(runs, wait(t, f, err))
	}
	return runs
}

// request is one operation of a random program; its result comes as a line of text.
type request func(r *engine.Run) func() string

// program makes n random operations: passes with losses of several kinds, forwards, failures, wide targets, steps.
func program(rng *rand.Rand, n int) []request {
	text := func(out api.ForwardBackwardOutput, err error) string {
		return fmt.Sprint(logProbs(out), out.Metrics, err)
	}
	out := make([]request, n)
	for i := range out {
		var data []api.Datum
		for range 1 + rng.IntN(4) {
			data = append(data, datum(rng.IntN(50), 1+rng.IntN(12)))
		}
		kind := rng.IntN(8)
		if kind == 1 {
			data[0].LossInputs["bad"] = api.Ints(make([]int64, 1+rng.IntN(2)))
		}
		if kind == 2 {
			n := len(data[0].ModelInput.Chunks[0].Tokens)
			data[0].LossInputs = map[string]api.TensorData{"target_tokens": {Ints: make([]int64, 3*n), Shape: []int{n, 3}}}
		}
		out[i] = func(r *engine.Run) func() string {
			var f *engine.Future[api.ForwardBackwardOutput]
			var err error
			switch kind {
			case 0, 1:
				f, err = r.ForwardBackwardCustom(data, touchy{}, nil)
			case 3:
				f, err = r.Forward(batch(data...))
			case 4:
				f, err = r.ForwardBackwardCustom(data, squares{}, nil)
			case 5:
				g, err := r.OptimStep(adam(0.01))
				return func() string { v, err := result(g, err); return fmt.Sprint(v, err) }
			default:
				f, err = r.ForwardBackward(batch(data...))
			}
			return func() string { return text(result(f, err)) }
		}
	}
	return out
}

// TestMixedBatches: runs of several ranks and modules, each with its own losses, share batches, and every result and every
// weight has the bits of the run alone. Losses that fail, fail alone.
func TestMixedBatches(t *testing.T) {
	sparse := enginetest.Small
	sparse.Experts, sparse.TopK, sparse.ExpertFFN = 5, 2, 12
	for base, shape := range map[string]enginetest.Shape{"dense": enginetest.Small, "sparse": sparse} {
		t.Run(base, func(t *testing.T) {
			shared := 0
			for seed := range uint64(6) {
				rng := rand.New(rand.NewPCG(seed, 5))
				var programs [][]request
				for range 3 {
					programs = append(programs, program(rng, 12))
				}
				limits := engine.Limits{MicroBatchTokens: []int{4096, 30, 12}[seed%3]}
				dev := &turns{watched: &watched{Device: device(t)}}
				start := func() []*engine.Run {
					e := open(t, func(o *engine.Options) {
						o.Device, o.Limits, o.Models = dev, limits, enginetest.Models{base: shape}
					})
					return mixedRuns(t, e.NewSession(), base)
				}
				var want, got [3][]string
				var wantWeights, gotWeights [3][]float32
				for i, r := range start() { // one after the other
					for _, op := range programs[i] {
						want[i] = append(want[i], op(r)())
					}
					wantWeights[i] = weights(t, r)
				}
				alone := strings.Count(dev.log.String(), "t")
				dev = &turns{watched: &watched{Device: device(t)}}
				runs := start()
				dev.mu.Lock() // the first forward waits for all to be queued
				var ends [3][]func() string
				for i, r := range runs {
					for _, op := range programs[i] {
						ends[i] = append(ends[i], op(r))
					}
				}
				dev.mu.Unlock()
				for i, r := range runs {
					for _, end := range ends[i] {
						got[i] = append(got[i], end())
					}
					gotWeights[i] = weights(t, r)
				}
				for i := range runs {
					for j := range want[i] {
						if want[i][j] != got[i][j] {
							t.Fatalf("seed %d: operation %d of run %d gave\n%s\nalone\n%s", seed, j, i, got[i][j], want[i][j])
						}
					}
					if !slices.Equal(wantWeights[i], gotWeights[i]) {
						t.Fatalf("seed %d: weights of run %d differ", seed, i)
					}
				}
				shared += alone - strings.Count(dev.log.String(), "t")
			}
			if shared < 20 {
				t.Errorf("%d forwards were saved by sharing", shared)
			}
		})
	}
}

// TestMixedFault: when a batch that runs share fails on the device, its operations go on alone: only one whose own work fails, fails.
func TestMixedFault(t *testing.T) {
	dev := &turns{watched: &watched{Device: device(t)}}
	e := open(t, func(o *engine.Options) { o.Device = dev })
	runs := mixedRuns(t, e.NewSession(), "small")
	for i, what := range []any{"index out of range", errors.New("bad shape"), "backward"} {
		dev.mu.Lock()
		reached := dev.reached.Load()
		var passes []*engine.Future[api.ForwardBackwardOutput]
		first, err := runs[0].Forward(batch(datum(9, 3))) // waits in its forward
		if err != nil {
			t.Fatal(err)
		}
		for dev.reached.Load() == reached {
			time.Sleep(time.Millisecond)
		}
		for j, r := range runs {
			f, err := r.ForwardBackward(batch(datum(j, 6)))
			if err != nil {
				t.Fatal(err)
			}
			passes = append(passes, f)
		}
		dev.log.Reset()
		dev.skip.Store(int64(i)) // 2: past the forward of both layers
		dev.failNext(what)
		dev.mu.Unlock()
		wait(t, first, nil)
		for _, f := range passes {
			wait(t, f, nil)
		}
		// The first forward's, that of the batch unless it failed before, and three alone.
		if n, want := strings.Count(dev.log.String(), "t"), 4+i/2; n != want {
			t.Errorf("%v: %d forwards, wanted %d", what, n, want)
		}
	}
	alone := open(t, nil)
	for i, r := range mixedRuns(t, alone.NewSession(), "small") {
		for range 3 {
			if _, err := r.ForwardBackward(batch(datum(i, 6))); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range []*engine.Run{r, runs[i]} {
			f, err := r.OptimStep(adam(0.01))
			wait(t, f, err)
		}
		if !slices.Equal(weights(t, r), weights(t, runs[i])) {
			t.Errorf("run %d has other weights", i)
		}
	}
}
