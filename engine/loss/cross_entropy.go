package loss

import (
	"context"
	"math"

	"tinkerlocal/engine/api"
)

// crossEntropy is L = sum -w*logprob with arbitrary weights; missing weights are ones.
type crossEntropy struct{}

func (crossEntropy) PerDatum() {}

func (crossEntropy) Check(data []api.Datum, config map[string]float64) error {
	if err := onlyKeys("cross_entropy", config); err != nil {
		return err
	}
	for i, d := range data {
		w, ok := d.LossInputs["weights"]
		if !ok {
			continue
		}
		if w.Ints != nil {
			return api.Errorf(api.BadRequest, "datum %d: weights are int64, wanted float32", i)
		}
		if want := d.LossInputs["target_tokens"].Len(); w.Len() != want {
			return api.Errorf(api.BadRequest, "datum %d: weights has %d entries, target_tokens has %d", i, w.Len(), want)
		}
		for j, v := range w.Floats {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				return api.Errorf(api.BadRequest, "datum %d: weights[%d] is %v, wanted a finite number", i, j, v)
			}
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
