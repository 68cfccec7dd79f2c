package loss

import (
	"context"
	"slices"

	"tinkerlocal/engine/api"
)

// CrossEntropy is the name of the loss whose weights the caller gives.
const CrossEntropy = "cross_entropy"

// crossEntropy is L = sum -w*logprob with arbitrary weights; missing weights are ones.
type crossEntropy struct{}

func (crossEntropy) PerDatum() {}

func (crossEntropy) Check(data []api.Datum, config map[string]float64) error {
	if err := onlyKeys("cross_entropy", config); err != nil {
		return err
	}
	for i, d := range data {
		targets := d.LossInputs["target_tokens"]
		if err := perPosition(d, i, "weights", targets.Len(), false); err != nil {
			return err
		}
		if w, ok := d.LossInputs["weights"]; ok && !slices.Equal(w.Dims(), targets.Dims()) {
			return api.Errorf(api.BadRequest, "datum %d: weights has shape %v, target_tokens has %v", i, w.Dims(), targets.Dims())
		}
	}
	return nil
}

func (crossEntropy) Eval(_ context.Context, in Input) (Output, error) {
	out := Output{Weights: make([][]float32, len(in.Data))}
	var sum float64
	for i, lp := range in.LogProbs {
		w := make([]float32, len(lp))
		if given, ok := in.Data[i].LossInputs["weights"]; ok {
			copy(w, given.Floats)
		} else {
			for j := range w {
				w[j] = 1
			}
		}
		for j, v := range w {
			if v != 0 { // a masked position's log-probability may be -Inf
				sum -= float64(v) * float64(lp[j])
			}
		}
		out.Weights[i] = w
	}
	out.Metrics = map[string]float64{"loss:sum": sum}
	return out, nil
}
