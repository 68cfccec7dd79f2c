package sft

import (
	"math"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
)

// TestDatum: position i predicts token i+1, and only tokens past the prompt carry weight.
func TestDatum(t *testing.T) {
	d := Example{Tokens: []int32{10, 11, 12, 13}, Prompt: 2}.datum(0.5)
	in, err := d.ModelInput.Tokens()
	if err != nil {
		t.Fatal(err)
	}
	targets, weights := d.LossInputs["target_tokens"].Ints, d.LossInputs["weights"].Floats
	for i, want := range []struct {
		in, target int32
		weight     float32
	}{{10, 11, 0}, {11, 12, 0.5}, {12, 13, 0.5}} {
		if in[i] != want.in || targets[i] != int64(want.target) || weights[i] != want.weight {
			t.Errorf("position %d: token %d, target %d, weight %v; wanted %+v", i, in[i], targets[i], weights[i], want)
		}
	}
}

// TestBatchWeights: the weights of a batch add up to one.
func TestBatchWeights(t *testing.T) {
	data, tokens := batch([]Example{{[]int32{1, 2, 3}, 1}, {[]int32{1, 2, 3, 4, 5}, 0}, {[]int32{1, 2}, 1}})
	sum := 0.0
	for _, d := range data {
		for _, w := range d.LossInputs["weights"].Floats {
			sum += float64(w)
		}
	}
	if math.Abs(sum-1) > 1e-6 || tokens != 7 {
		t.Errorf("weights add up to %v over %d tokens, wanted 1 over 7", sum, tokens)
	}
}

// TestEpochs: every example comes once per epoch, in an order that the seed fixes.
func TestEpochs(t *testing.T) {
	var examples []Example
	for i := range 10 {
		examples = append(examples, Example{Tokens: []int32{int32(i), 0}})
	}
	a, b := &sampler{examples: examples, seed: 3}, &sampler{examples: examples, seed: 3}
	for epoch := range 3 {
		seen := map[int32]bool{}
		for range 5 {
			x, y := a.next(2), b.next(2)
			for i := range x {
				if x[i].Tokens[0] != y[i].Tokens[0] {
					t.Fatal("one seed gave two orders")
				}
				seen[x[i].Tokens[0]] = true
			}
		}
		if len(seen) != 10 {
			t.Errorf("epoch %d dealt %d different examples of 10", epoch, len(seen))
		}
	}
}

func TestRate(t *testing.T) {
	o := Options{Steps: 111, Warmup: 10, FinalLR: 0.1, Adam: api.AdamParams{LearningRate: 1}}
	for step, want := range map[int]float64{0: 1.0 / 11, 9: 10.0 / 11, 10: 1, 60: 0.55, 110: 0.1} {
		if got := o.rate(step); math.Abs(got-want) > 1e-12 {
			t.Errorf("step %d: rate %v, wanted %v", step, got, want)
		}
	}
	if got := (Options{Steps: 1, FinalLR: 0.1, Adam: api.AdamParams{LearningRate: 2}}).rate(0); got != 2 {
		t.Errorf("a single step has rate %v, wanted 2", got)
	}
}

func TestCheck(t *testing.T) {
	ok := []Example{{[]int32{1, 2}, 1}}
	for _, c := range []struct {
		examples []Example
		o        Options
		want     string
	}{
		{nil, Options{Steps: 1, BatchSize: 1}, "no training examples"},
		{ok, Options{Steps: 0, BatchSize: 1}, "steps is 0"},
		{ok, Options{Steps: 1, BatchSize: 0}, "batch size is 0"},
		{ok, Options{Steps: 1, BatchSize: 1, Warmup: -1}, "warmup is -1"},
		{ok, Options{Steps: 1, BatchSize: 1, FinalLR: 2}, "final learning rate share is 2"},
		{[]Example{{[]int32{1, 2}, 2}}, Options{Steps: 1, BatchSize: 1}, "example 0: 2 tokens, of them 2 prompt: nothing to predict"},
		{[]Example{{[]int32{1}, 0}}, Options{Steps: 1, BatchSize: 1}, "nothing to predict"},
	} {
		if err := Check(c.examples, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, wanted %q", err, c.want)
		}
	}
}
