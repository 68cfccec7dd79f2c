package engine_test

import (
	"maps"
	"math"
	"strings"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
)

// TestExperts: a mixture of experts trains, reports the router's statistics whatever the micro-batches, and samples with the
// bits of training.
func TestExperts(t *testing.T) {
	data := []api.Datum{datum(1, 9), datum(2, 14), datum(3, 30), datum(4, 5)}
	shape := enginetest.Small // whose last layer becomes a mixture
	shape.Seed, shape.Experts, shape.TopK, shape.ExpertFFN = 3, 5, 2, 11
	var metrics []map[string]float64
	for _, tokens := range []int{4096, 20} {
		e := open(t, func(o *engine.Options) {
			o.Models, o.Limits.MicroBatchTokens = enginetest.Models{"experts": shape}, tokens
		})
		r := newRun(t, e.NewSession(), "experts", 1)
		f, err := r.ForwardBackward(batch(data...))
		first := wait(t, f, err)
		metrics = append(metrics, first.Metrics)
		for _, name := range []string{"e_frac_with_tokens:mean", "e_frac_oversubscribed:mean", "e_max_violation:mean", "e_max_violation:max", "e_min_violation:mean", "loss:sum"} {
			if v, ok := first.Metrics[name]; !ok || math.IsNaN(v) {
				t.Errorf("metric %s is %v, %v", name, v, ok)
			}
		}
		if len(first.Metrics) != 6 {
			t.Errorf("metrics %v", first.Metrics)
		}
		o, err := r.OptimStep(adam(0.01))
		wait(t, o, err)
		train(t, r, 5, data...)
		f, err = r.Forward(batch(data...))
		last := wait(t, f, err)
		if !(last.Metrics["loss:sum"] < first.Metrics["loss:sum"]) {
			t.Errorf("loss %v after training, %v before", last.Metrics["loss:sum"], first.Metrics["loss:sum"])
		}
		for name := range last.Metrics {
			if strings.HasPrefix(name, "e_") {
				t.Errorf("a forward without training has metric %s", name)
			}
		}
		sameAsForward(t, r)
	}
	if !maps.Equal(metrics[0], metrics[1]) {
		t.Errorf("metrics depend on the micro-batches: %v and %v", metrics[0], metrics[1])
	}
}

// sameAsForward samples from the run's weights and compares the log-probabilities with a forward's, bit by bit.
func sameAsForward(t *testing.T, r *engine.Run) {
	t.Helper()
	prompt := tokens(5, 7)
	s := sampler(t, r)
	params := api.DefaultSampling()
	params.MaxTokens, params.Temperature = 12, 0
	f, err := s.Sample(ctx, api.SampleRequest{Prompt: api.FromInts(prompt), Params: params, NumSamples: 1})
	out := wait(t, f, err).Sequences[0]
	text := append(append([]int32{}, prompt...), out.Tokens...)
	targets := make([]int64, len(text)-1)
	for i := range targets {
		targets[i] = int64(text[i+1])
	}
	g, err := r.Forward(batch(api.Datum{ModelInput: api.FromInts(text[:len(text)-1]), LossInputs: map[string]api.TensorData{"target_tokens": api.Ints(targets)}}))
	lp := logProbs(wait(t, g, err))
	for i, v := range out.RawLogProbs {
		if w := lp[len(prompt)-1+i]; math.Float32bits(w) != math.Float32bits(v) {
			t.Errorf("token %d: sampled with logprob %v, forward gives %v", i, v, w)
		}
	}
}
