package engine_test

import (
	"context"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/kernels"
	"tinkerlocal/kernels/cpu"
)

var (
	ctx    = context.Background()
	models = enginetest.Models{"small": enginetest.Small, "other": other()}
)

// other is a second base: an untied head, another vocabulary, and a token that ends sequences.
func other() enginetest.Shape {
	s := enginetest.Small
	s.Tied, s.Vocab, s.Seed, s.EosTokenIDs = false, 37, 2, []int{5}
	return s
}

func device(t testing.TB) kernels.Device {
	t.Helper()
	dev, err := cpu.Open(cpu.Options{Variant: "portable", Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

// open opens an engine with seeds 1, 2, ... that is closed at the end of the test. change may be nil.
func open(t testing.TB, change func(o *engine.Options)) *engine.Engine {
	t.Helper()
	var seed int64
	o := engine.Options{Device: device(t), Models: models, Seed: func() int64 { seed++; return seed }}
	if change != nil {
		change(&o)
	}
	e, err := engine.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// wait waits for a future, for a minute at most.
func wait[T any](t testing.TB, f *engine.Future[T], err error) T {
	t.Helper()
	v, err := result(f, err)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func result[T any](f *engine.Future[T], err error) (T, error) {
	if err != nil {
		var zero T
		return zero, err
	}
	c, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return f.Wait(c)
}

// fails checks code and message of an error.
func fails(t testing.TB, err error, code api.Code, msg string) {
	t.Helper()
	if err == nil || err.Error() != msg || api.CodeOf(err) != code {
		t.Errorf("got error %v (%s), wanted %s (%s)", err, api.CodeOf(err), msg, code)
	}
}

func newRun(t testing.TB, s *engine.Session, model string, seed int64) *engine.Run {
	t.Helper()
	c := api.DefaultLora()
	c.Rank, c.Seed = 4, &seed
	f, err := s.NewRun(api.CreateModelRequest{BaseModel: model, Lora: c})
	return wait(t, f, err)
}

// tokens makes n token ids below 37 out of a seed.
func tokens(seed, n int) []int32 {
	out := make([]int32, n)
	for i := range out {
		out[i] = int32((seed*31 + i*i*7 + i*seed) % 37)
	}
	return out
}

// datum predicts each next token of a sequence of n+1.
func datum(seed, n int) api.Datum {
	seq := tokens(seed, n+1)
	targets := make([]int64, n)
	for i := range targets {
		targets[i] = int64(seq[i+1])
	}
	return api.Datum{
		ModelInput: api.FromInts(seq[:n]),
		LossInputs: map[string]api.TensorData{"target_tokens": api.Ints(targets)},
	}
}

func batch(data ...api.Datum) api.ForwardBackwardInput {
	return api.ForwardBackwardInput{Data: data, LossFn: "cross_entropy"}
}

func adam(lr float64) api.AdamParams {
	p := api.DefaultAdam()
	p.LearningRate, p.Eps = lr, 1e-8
	return p
}

// logProbs are those of the output's datums, one after another.
func logProbs(out api.ForwardBackwardOutput) []float32 {
	var all []float32
	for _, o := range out.LossFnOutputs {
		all = append(all, o["logprobs"].Floats...)
	}
	return all
}

// weights are the run's factors, one after another.
func weights(t testing.TB, r *engine.Run) []float32 {
	t.Helper()
	f, err := r.Weights()
	var all []float32
	for _, x := range wait(t, f, err).Tensors {
		all = append(all, x.Values...)
	}
	return all
}

// train takes steps on data.
func train(t testing.TB, r *engine.Run, steps int, data ...api.Datum) {
	t.Helper()
	for range steps {
		if _, err := r.ForwardBackward(batch(data...)); err != nil {
			t.Fatal(err)
		}
		f, err := r.OptimStep(adam(0.01))
		wait(t, f, err)
	}
}

func sampler(t testing.TB, r *engine.Run) *engine.Sampler {
	t.Helper()
	f, err := r.SaveForSampler()
	return wait(t, f, err)
}
