package sft

import (
	"math/rand/v2"

	"tinkerlocal/engine/api"
)

// Example is one training sequence.
type Example struct {
	Tokens  []int32
	Trained []bool // per token: whether the loss is on it. The first token cannot be predicted and does not count.

	Numbers []float64 // that a custom loss reads of the whole example, such as a reward; in the order of Custom.Numbers
}

// Completion is an Example whose first prompt tokens are context; the loss is on the rest.
func Completion(tokens []int32, prompt int) Example {
	e := Example{Tokens: tokens, Trained: make([]bool, len(tokens))}
	for i := prompt; i < len(tokens); i++ {
		e.Trained[i] = true
	}
	return e
}

// Targets is the number of tokens the loss is on.
func (e Example) Targets() int {
	n := 0
	for i, t := range e.Trained {
		if t && i > 0 {
			n++
		}
	}
	return n
}

// Check says why nothing can be learned from the example.
func (e Example) Check() error {
	switch {
	case len(e.Tokens) != len(e.Trained):
		return api.Errorf(api.BadRequest, "%d tokens and %d marks of what is trained", len(e.Tokens), len(e.Trained))
	case e.Targets() == 0:
		return api.Errorf(api.BadRequest, "%d tokens and none to learn: nothing to predict", len(e.Tokens))
	}
	return nil
}

// Datum shifts the example by one: position i predicts token i+1, with the given weight where that token
// is trained and 0 elsewhere.
func (e Example) Datum(weight float32) api.Datum {
	n := len(e.Tokens) - 1
	targets, weights := make([]int64, n), make([]float32, n)
	for i := range n {
		targets[i] = int64(e.Tokens[i+1])
		if e.Trained[i+1] {
			weights[i] = weight
		}
	}
	return api.Datum{
		ModelInput: api.FromInts(e.Tokens[:n]),
		LossInputs: map[string]api.TensorData{"target_tokens": api.Ints(targets), "weights": api.Floats(weights)},
	}
}

// Source is training data by number. One goroutine at a time calls it.
type Source interface {
	Len() int
	Example(i int) (Example, error)
}

// Examples is a Source in memory.
type Examples []Example

// Len is the number of examples.
func (e Examples) Len() int { return len(e) }

// Example returns the i-th one. It never fails.
func (e Examples) Example(i int) (Example, error) { return e[i], nil }

// deal deals the numbers 0..n-1 in shuffled epochs; an epoch's order depends on seed and epoch only.
type deal struct {
	n     int
	seed  uint64
	epoch uint64
	order []int
}

func (d *deal) next(k int) []int {
	out := make([]int, 0, k)
	for len(out) < k {
		if len(d.order) == 0 {
			d.order = rand.New(rand.NewPCG(d.seed, d.epoch)).Perm(d.n)
			d.epoch++
		}
		out = append(out, d.order[0])
		d.order = d.order[1:]
	}
	return out
}

// FirstEpoch is the order in which Train deals n rows for the first time.
func FirstEpoch(n int, seed int64) []int {
	return (&deal{n: n, seed: uint64(seed)}).next(n)
}
