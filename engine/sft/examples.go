// Package sft is supervised fine-tuning over an [engine.Run]: token examples to batches, a learning-rate
// schedule, and the loop of forward_backward and optim_step that keeps one step in flight.
package sft

import (
	"math/rand/v2"

	"tinkerlocal/engine/api"
)

// Example is one training sequence. The first Prompt tokens are context; the loss is on the rest.
type Example struct {
	Tokens []int32
	Prompt int
}

// targets is the number of tokens the loss is on.
func (e Example) targets() int { return len(e.Tokens) - max(e.Prompt, 1) }

// datum shifts the example by one: position i predicts token i+1, with the given weight where that token
// is past the prompt and 0 elsewhere.
func (e Example) datum(weight float32) api.Datum {
	n := len(e.Tokens) - 1
	targets, weights := make([]int64, n), make([]float32, n)
	for i := range n {
		targets[i] = int64(e.Tokens[i+1])
		if i+1 >= e.Prompt {
			weights[i] = weight
		}
	}
	return api.Datum{
		ModelInput: api.FromInts(e.Tokens[:n]),
		LossInputs: map[string]api.TensorData{"target_tokens": api.Ints(targets), "weights": api.Floats(weights)},
	}
}

// batch weighs every target token by 1/targets, so that the summed loss is the mean per target token.
func batch(examples []Example) (data []api.Datum, tokens int) {
	targets := 0
	for _, e := range examples {
		targets += e.targets()
		tokens += len(e.Tokens) - 1
	}
	for _, e := range examples {
		data = append(data, e.datum(1/float32(targets)))
	}
	return data, tokens
}

// sampler deals examples in shuffled epochs; an epoch's order depends on seed and epoch only.
type sampler struct {
	examples []Example
	seed     uint64
	epoch    uint64
	order    []int
}

func (s *sampler) next(n int) []Example {
	out := make([]Example, 0, n)
	for len(out) < n {
		if len(s.order) == 0 {
			s.order = rand.New(rand.NewPCG(s.seed, s.epoch)).Perm(len(s.examples))
			s.epoch++
		}
		out = append(out, s.examples[s.order[0]])
		s.order = s.order[1:]
	}
	return out
}
