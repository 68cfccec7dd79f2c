package sft

import (
	"context"
	"math"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
)

// DPO is direct preference optimisation (Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is
// Secretly a Reward Model", equation 7), as the mean over the pairs of a batch:
//
//	L = -1/N Σ log σ(margin),   margin = β·[(log π(chosen) - log π_ref(chosen)) - (log π(rejected) - log π_ref(rejected))]
//
// where log π of an answer is the sum over its tokens. Datums 2i and 2i+1 are the chosen and the rejected answer of
// pair i; their "weights" are 1 on the answer's tokens and 0 elsewhere. The weight that the engine gets for an answer's token is
//
//	-∂L/∂logprob = ±β/N · σ(-margin)    + for chosen, - for rejected
//
// While the policy is the reference, every margin is exactly 0 and L is exactly ln 2.
//
// Its metrics are loss:sum, accuracy:mean (share of positive margins), margin:mean, and chosen_reward:mean and
// rejected_reward:mean (β times the gain over the reference).
type DPO struct {
	Beta      float64
	Reference []float64 // per datum: log-probability of the answer under the reference, as [AnswerLogProb] sums it
}

// AnswerLogProb is the log-probability of an answer: the sum, in order and in float64, of those log-probabilities
// whose weight is not 0.
func AnswerLogProb(d api.Datum, logProbs []float32) float64 {
	var sum float64
	for j, w := range d.LossInputs["weights"].Floats {
		if w != 0 {
			sum += float64(logProbs[j])
		}
	}
	return sum
}

// Check refuses data that are not pairs with a reference each.
func (l DPO) Check(data []api.Datum, config map[string]float64) error {
	switch {
	case !(l.Beta > 0) || math.IsInf(l.Beta, 1):
		return api.Errorf(api.BadRequest, "dpo: beta is %v, wanted more than 0", l.Beta)
	case len(data)%2 != 0:
		return api.Errorf(api.BadRequest, "dpo: %d datums, wanted a chosen and a rejected one for each pair", len(data))
	case len(l.Reference) != len(data):
		return api.Errorf(api.BadRequest, "dpo: %d reference log-probabilities for %d datums", len(l.Reference), len(data))
	case len(config) != 0:
		return api.Errorf(api.BadRequest, "dpo: the loss takes no configuration beside beta")
	}
	for i, d := range data {
		n, w := d.LossInputs["target_tokens"].Len(), d.LossInputs["weights"].Floats
		if len(w) != n {
			return api.Errorf(api.BadRequest, "dpo: datum %d: weights has %d entries, target_tokens has %d", i, len(w), n)
		}
		for j, v := range w {
			if v != 0 && v != 1 {
				return api.Errorf(api.BadRequest, "dpo: datum %d: weights[%d] is %v, wanted 0 or 1", i, j, v)
			}
		}
	}
	return nil
}

// Eval computes the loss and its weights.
func (l DPO) Eval(_ context.Context, in loss.Input) (loss.Output, error) {
	if err := l.Check(in.Data, in.Config); err != nil {
		return loss.Output{}, err
	}
	n := float64(len(in.Data) / 2)
	out := loss.Output{Weights: make([][]float32, len(in.Data))}
	var sum pairSums
	for i := 0; i < len(in.Data); i += 2 {
		chosen := l.Beta * (AnswerLogProb(in.Data[i], in.LogProbs[i]) - l.Reference[i])
		rejected := l.Beta * (AnswerLogProb(in.Data[i+1], in.LogProbs[i+1]) - l.Reference[i+1])
		sum.add(chosen, rejected)
		slope := float32(l.Beta / n / (1 + math.Exp(chosen-rejected)))
		out.Weights[i] = scaled(in.Data[i], slope)
		out.Weights[i+1] = scaled(in.Data[i+1], -slope)
	}
	out.Metrics = sum.metrics()
	return out, nil
}

// scaled is a datum's mask times v.
func scaled(d api.Datum, v float32) []float32 {
	w := make([]float32, len(d.LossInputs["weights"].Floats))
	for j, m := range d.LossInputs["weights"].Floats {
		if m != 0 {
			w[j] = v
		}
	}
	return w
}

// pairSums adds up what pairs say.
type pairSums struct {
	pairs                            int
	loss, right, chosen, rejected, m float64
}

// add takes the rewards of a pair's two answers.
func (s *pairSums) add(chosen, rejected float64) {
	margin := chosen - rejected
	// -log σ(m) = log(1+e^-m), written so that neither sign overflows. At m = 0 both are ln 2.
	if margin >= 0 {
		s.loss += math.Log1p(math.Exp(-margin))
	} else {
		s.loss += math.Log1p(math.Exp(margin)) - margin
	}
	if margin > 0 {
		s.right++
	}
	s.chosen += chosen
	s.rejected += rejected
	s.m += margin
	s.pairs++
}

func (s *pairSums) metrics() map[string]float64 {
	n := float64(max(s.pairs, 1))
	return map[string]float64{
		"loss:sum": s.loss / n, "accuracy:mean": s.right / n, "margin:mean": s.m / n,
		"chosen_reward:mean": s.chosen / n, "rejected_reward:mean": s.rejected / n,
	}
}
