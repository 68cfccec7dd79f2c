package sft

import (
	"context"
	"math"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// Pair is two answers to one prompt; Trained marks the answers' tokens.
type Pair struct{ Chosen, Rejected Example }

// PairSource is preference data by number. One goroutine at a time calls it.
type PairSource interface {
	Len() int
	Pair(i int) (Pair, error)
}

// Pairs is a PairSource in memory.
type Pairs []Pair

// Len is the number of pairs.
func (p Pairs) Len() int { return len(p) }

// Pair returns the i-th one. It never fails.
func (p Pairs) Pair(i int) (Pair, error) { return p[i], nil }

// Preference is the Task of preference pairs: [DPO] against a frozen reference.
type Preference struct {
	pairs     PairSource
	beta      float64
	reference *engine.Run
	known     [][2]float64 // per pair: the answers' log-probabilities under the reference; NaN: not computed yet
}

// NewPreference makes a task. reference is a run that nobody trains: a fresh one is the bare base model. Its log-probabilities
// are computed when a pair is dealt for the first time, and kept: 16 bytes per pair.
func NewPreference(pairs PairSource, beta float64, reference *engine.Run) *Preference {
	p := &Preference{pairs: pairs, beta: beta, reference: reference, known: make([][2]float64, pairs.Len())}
	for i := range p.known {
		p.known[i][0] = math.NaN()
	}
	return p
}

// Len is the number of pairs.
func (p *Preference) Len() int { return p.pairs.Len() }

// data reads pairs: the chosen answer of each, then the rejected one.
func (p *Preference) data(rows []int) (data []api.Datum, tokens int, err error) {
	for _, row := range rows {
		pair, err := p.pairs.Pair(row)
		if err != nil {
			return nil, 0, err
		}
		for k, e := range []Example{pair.Chosen, pair.Rejected} {
			if err := e.Check(); err != nil {
				return nil, 0, api.Errorf(api.BadRequest, "pair %d: %s answer: %w", row, [2]string{"chosen", "rejected"}[k], err)
			}
			data = append(data, e.Datum(1))
			tokens += len(e.Tokens) - 1
		}
	}
	return data, tokens, nil
}

// references returns the reference's log-probability of each datum of rows.
func (p *Preference) references(ctx context.Context, rows []int, data []api.Datum) ([]float64, error) {
	var missing []int // numbers in rows
	var ask []api.Datum
	for i, row := range rows {
		if math.IsNaN(p.known[row][0]) {
			missing = append(missing, i)
			ask = append(ask, data[2*i], data[2*i+1])
		}
	}
	if len(ask) > 0 {
		sums, err := answers(ctx, p.reference, ask)
		if err != nil {
			return nil, err
		}
		for k, i := range missing {
			p.known[rows[i]] = [2]float64{sums[2*k], sums[2*k+1]}
		}
	}
	out := make([]float64, 0, 2*len(rows))
	for _, row := range rows {
		out = append(out, p.known[row][0], p.known[row][1])
	}
	return out, nil
}

// answers runs data forward and returns the log-probability of each answer.
func answers(ctx context.Context, run *engine.Run, data []api.Datum) ([]float64, error) {
	f, err := run.Forward(api.ForwardBackwardInput{Data: data, LossFn: "cross_entropy"})
	if err != nil {
		return nil, err
	}
	out, err := f.Wait(ctx)
	if err != nil {
		return nil, err
	}
	sums := make([]float64, len(data))
	for i, d := range data {
		sums[i] = AnswerLogProb(d, out.LossFnOutputs[i]["logprobs"].Floats)
	}
	return sums, nil
}

// Batch waits for the reference's log-probabilities of the rows. The step before may be on the device meanwhile.
func (p *Preference) Batch(ctx context.Context, rows []int) (Batch, error) {
	data, tokens, err := p.data(rows)
	if err != nil {
		return Batch{}, err
	}
	ref, err := p.references(ctx, rows, data)
	if err != nil {
		return Batch{}, err
	}
	return Batch{Data: data, Loss: DPO{Beta: p.beta, Reference: ref}, Tokens: tokens}, nil
}

// Eval is the mean loss and the accuracy over the pairs.
func (p *Preference) Eval(ctx context.Context, run *engine.Run, rows []int) (Eval, error) {
	data, _, err := p.data(rows)
	if err != nil {
		return Eval{}, err
	}
	ref, err := p.references(ctx, rows, data)
	if err != nil {
		return Eval{}, err
	}
	now, err := answers(ctx, run, data)
	if err != nil {
		return Eval{}, err
	}
	var sum pairSums
	for i := 0; i < len(data); i += 2 {
		sum.add(p.beta*(now[i]-ref[i]), p.beta*(now[i+1]-ref[i+1]))
	}
	m := sum.metrics()
	return Eval{Loss: m["loss:sum"], Accuracy: m["accuracy:mean"], Pairs: len(rows), Targets: len(rows)}, nil
}
