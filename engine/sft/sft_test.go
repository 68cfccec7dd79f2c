package sft

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestDatum: position i predicts token i+1, and only tokens past the prompt carry weight.
func TestDatum(t *testing.T) {
	d := Completion([]int32{10, 11, 12, 13}, 2).Datum(0.5)
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

// TestBatchWeights: the weights of a batch add up to one, however the trained tokens lie.
func TestBatchWeights(t *testing.T) {
	b, err := Supervised{Examples{
		Completion([]int32{1, 2, 3}, 1), Completion([]int32{1, 2, 3, 4, 5}, 0), Completion([]int32{1, 2}, 1),
		{Tokens: []int32{1, 2, 3, 4}, Trained: []bool{true, true, false, true}},
	}}.Batch(t.Context(), []int{0, 1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	sum, targets := 0.0, 0
	for _, d := range b.Data {
		for _, w := range d.LossInputs["weights"].Floats {
			sum += float64(w)
			if w != 0 {
				targets++
			}
		}
	}
	if math.Abs(sum-1) > 1e-6 || b.Tokens != 10 || targets != 9 {
		t.Errorf("weights of %d targets add up to %v over %d tokens, wanted 9, 1 and 10", targets, sum, b.Tokens)
	}
}

// TestEpochs: every row comes once per epoch, in an order that the seed fixes.
func TestEpochs(t *testing.T) {
	a, b := &deal{n: 10, seed: 3}, &deal{n: 10, seed: 3}
	var first []int
	for epoch := range 3 {
		seen := map[int]bool{}
		for range 5 {
			x, y := a.next(2), b.next(2)
			if !slices.Equal(x, y) {
				t.Fatal("one seed gave two orders")
			}
			for _, i := range x {
				seen[i] = true
			}
			if epoch == 0 {
				first = append(first, x...)
			}
		}
		if len(seen) != 10 {
			t.Errorf("epoch %d dealt %d different rows of 10", epoch, len(seen))
		}
	}
	if got := FirstEpoch(10, 3); !slices.Equal(got, first) {
		t.Errorf("first epoch %v, dealt %v", got, first)
	}
}

// TestRate has the values of each schedule at the ends, in the warm-up and half-way.
func TestRate(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want map[int]float64
	}{
		{Options{Steps: 111, Warmup: 10, FinalLR: 0.1}, map[int]float64{0: 1.0 / 11, 9: 10.0 / 11, 10: 1, 60: 0.55, 110: 0.1}},
		{Options{Steps: 111, Warmup: 10, Schedule: Linear}, map[int]float64{0: 1.0 / 11, 10: 1, 35: 0.75, 60: 0.5, 110: 0}},
		{Options{Steps: 111, Warmup: 10, FinalLR: 0.2, Schedule: Cosine},
			map[int]float64{0: 1.0 / 11, 10: 1, 35: 0.2 + 0.8*(1+math.Sqrt2/2)/2, 60: 0.6, 85: 0.2 + 0.8*(1-math.Sqrt2/2)/2, 110: 0.2}},
		{Options{Steps: 111, Warmup: 10, FinalLR: 0.2, Schedule: Constant}, map[int]float64{0: 1.0 / 11, 9: 10.0 / 11, 10: 1, 60: 1, 110: 1}},
		{Options{Steps: 3, Schedule: Cosine}, map[int]float64{0: 1, 1: 0.5, 2: 0}},
		{Options{Steps: 1, FinalLR: 0.1}, map[int]float64{0: 1}},
		{Options{Steps: 1, Schedule: Cosine}, map[int]float64{0: 1}},
	} {
		for step, want := range c.want {
			for _, peak := range []float64{1, 3e-4} {
				c.o.Adam.LearningRate = peak
				if got := c.o.rate(step); math.Abs(got-want*peak) > 1e-12 {
					t.Errorf("%s, %d steps, warm-up %d: step %d has rate %v, wanted %v", c.o.Schedule, c.o.Steps, c.o.Warmup, step, got, want*peak)
				}
			}
		}
	}
}

// TestDefaultRate has the values that the cookbook's function gives for these models.
func TestDefaultRate(t *testing.T) {
	for _, c := range []struct {
		names  []string
		hidden int
		want   float64
	}{
		{[]string{"Qwen/Qwen3-8B", "qwen3"}, 4096, 4.7298e-4},
		{[]string{"Qwen/Qwen3-4B-Instruct-2507", "qwen3"}, 2560, 4.9053e-4},
		{[]string{"meta-llama/Llama-3.1-8B", "llama"}, 4096, 2.8564e-4},
		{[]string{"meta-llama/Llama-3.2-1B", "llama"}, 2048, 4.9082e-4},
		{[]string{"/models/mine", "llama"}, 4096, 2.8564e-4},
		{[]string{"tinker-local/tiny", "qwen3"}, 2000, 5e-4},
		{[]string{"mistralai/Mistral-7B", "mistral"}, 4096, 4.7298e-4},
	} {
		if got := DefaultRate(c.hidden, c.names...); math.Abs(got-c.want) > 5e-9 {
			t.Errorf("%v with hidden size %d: %v, wanted %v", c.names, c.hidden, got, c.want)
		}
	}
}

func TestCheck(t *testing.T) {
	ok := Supervised{Examples{Completion([]int32{1, 2}, 1)}}
	for _, c := range []struct {
		task Task
		o    Options
		want string
	}{
		{Supervised{Examples{}}, Options{Steps: 1, BatchSize: 1}, "no training examples"},
		{ok, Options{Steps: 0, BatchSize: 1}, "steps is 0"},
		{ok, Options{Steps: 1, BatchSize: 0}, "batch size is 0"},
		{ok, Options{Steps: 1, BatchSize: 1, Warmup: -1}, "warmup is -1"},
		{ok, Options{Steps: 1, BatchSize: 1, FinalLR: 2}, "final learning rate share is 2"},
		{ok, Options{Steps: 1, BatchSize: 1, Schedule: "steps"}, `schedule is "steps", wanted one of linear, cosine, constant`},
		{ok, Options{Steps: 1, BatchSize: 1, EvalEvery: -1}, "steps between evaluations is -1"},
		{ok, Options{Steps: 1, BatchSize: 1, Val: Supervised{Examples{}}}, "no validation examples"},
	} {
		if err := Check(c.task, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, wanted %q", err, c.want)
		}
	}
	for _, e := range []Example{Completion([]int32{1, 2}, 2), Completion([]int32{1}, 0), {Tokens: []int32{1, 2}, Trained: []bool{true, false}}} {
		_, err := Supervised{Examples{e}}.Batch(t.Context(), []int{0})
		if err == nil || !strings.Contains(err.Error(), "example 0: "+strconv.Itoa(len(e.Tokens))+" tokens and none to learn") {
			t.Errorf("%v: got %v", e, err)
		}
	}
}
