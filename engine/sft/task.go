package sft

import (
	"context"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
)

// Batch is the work of one step.
type Batch struct {
	Data   []api.Datum
	Loss   loss.Loss          // nil: cross_entropy
	Config map[string]float64 // of Loss
	Tokens int                // input tokens
}

// Task is what a run learns: rows, and how a batch of them becomes a loss. One goroutine at a time calls it.
type Task interface {
	Len() int // rows
	// Batch reads rows and turns them into data whose summed loss is the mean that is to be made small. ctx bounds it.
	Batch(ctx context.Context, rows []int) (Batch, error)
	// Eval measures the run as it is on rows. It never touches gradients.
	Eval(ctx context.Context, run *engine.Run, rows []int) (Eval, error)
}

// Eval is a measurement on rows that are not trained on. Evals of disjoint rows add up.
type Eval struct {
	Loss     float64 // mean per target token, or per preference pair
	Accuracy float64 // preference pairs: the share in which the chosen answer gained more than the rejected one
	Pairs    int     // preference pairs; 0: of other data
	Targets  int     // tokens or pairs that Loss is the mean of
}

// add joins the measurement of other rows to e.
func (e *Eval) add(o Eval) {
	n, m := float64(e.Targets), float64(o.Targets)
	if n+m == 0 {
		return
	}
	e.Loss = (e.Loss*n + o.Loss*m) / (n + m)
	if e.Pairs+o.Pairs > 0 {
		e.Accuracy = (e.Accuracy*float64(e.Pairs) + o.Accuracy*float64(o.Pairs)) / float64(e.Pairs+o.Pairs)
	}
	e.Pairs += o.Pairs
	e.Targets += o.Targets
}

// Supervised is the Task of examples: mean negative log-likelihood per target token.
type Supervised struct{ Source }

// Batch weighs every target token by 1/targets, so that the summed loss is the mean per target token.
func (s Supervised) Batch(_ context.Context, rows []int) (Batch, error) {
	b, _, err := s.batch(rows)
	return b, err
}

func (s Supervised) batch(rows []int) (b Batch, targets int, err error) {
	examples := make([]Example, len(rows))
	for i, row := range rows {
		e, err := s.Example(row)
		if err != nil {
			return b, 0, err
		}
		if err := e.Check(); err != nil {
			return b, 0, api.Errorf(api.BadRequest, "example %d: %w", row, err)
		}
		examples[i] = e
		targets += e.Targets()
		b.Tokens += len(e.Tokens) - 1
	}
	for _, e := range examples {
		b.Data = append(b.Data, e.Datum(1/float32(targets)))
	}
	return b, targets, nil
}

// Eval is the mean negative log-likelihood per target token.
func (s Supervised) Eval(ctx context.Context, run *engine.Run, rows []int) (Eval, error) {
	b, targets, err := s.batch(rows)
	if err != nil {
		return Eval{}, err
	}
	f, err := run.Forward(api.ForwardBackwardInput{Data: b.Data, LossFn: "cross_entropy"})
	if err != nil {
		return Eval{}, err
	}
	out, err := f.Wait(ctx)
	return Eval{Loss: out.Metrics["loss:sum"], Targets: targets}, err
}

// evaluate measures every row of t, in parts of part rows.
func evaluate(ctx context.Context, run *engine.Run, t Task, part int) (Eval, error) {
	var sum Eval
	for lo := 0; lo < t.Len(); lo += part {
		rows := make([]int, min(part, t.Len()-lo))
		for i := range rows {
			rows[i] = lo + i
		}
		e, err := t.Eval(ctx, run, rows)
		if err != nil {
			return sum, err
		}
		sum.add(e)
	}
	return sum, nil
}
