package sft

import (
	"context"
	"math"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
)

// Number is a loss input that is one number for a whole datum.
type Number struct {
	Name string
	Int  bool // int64, not float32
}

// Custom is the Task of a loss that the caller brings. Each example is a datum, a preference pair is two, the chosen answer first; its
// inputs are target_tokens, weights (1 where the example is trained, 0 elsewhere), Numbers, and with Reference set ref_logprobs. The value
// of the loss is what the loss says: nothing is divided by anything here.
type Custom struct {
	Examples Source     // or
	Pairs    PairSource // preference data
	Loss     loss.Loss
	Config   map[string]float64
	Numbers  []Number // of Example.Numbers

	// Reference gives each token's log-probability under a frozen model, as the input ref_logprobs. May be nil.
	Reference *engine.Run

	known map[int][][]float32 // of the reference, by row
	held  int                 // bytes in it, and of what found no place
}

// Len is the number of examples or pairs.
func (c *Custom) Len() int {
	if c.Pairs != nil {
		return c.Pairs.Len()
	}
	return c.Examples.Len()
}

// examples reads a row: one example, or two.
func (c *Custom) examples(row int) ([]Example, error) {
	if c.Pairs != nil {
		p, err := c.Pairs.Pair(row)
		return []Example{p.Chosen, p.Rejected}, err
	}
	e, err := c.Examples.Example(row)
	return []Example{e}, err
}

// data reads rows.
func (c *Custom) data(rows []int) (data []api.Datum, tokens int, err error) {
	for _, row := range rows {
		examples, err := c.examples(row)
		if err != nil {
			return nil, 0, err
		}
		for _, e := range examples {
			if err := e.Check(); err != nil {
				return nil, 0, api.Errorf(api.BadRequest, "example %d: %w", row, err)
			}
			d := e.Datum(1)
			for i, n := range c.Numbers {
				if d.LossInputs[n.Name], err = n.tensor(e.Numbers[i]); err != nil {
					return nil, 0, api.Errorf(api.BadRequest, "example %d: %w", row, err)
				}
			}
			data = append(data, d)
			tokens += len(e.Tokens) - 1
		}
	}
	return data, tokens, nil
}

func (n Number) tensor(v float64) (api.TensorData, error) {
	switch {
	case !n.Int && math.Abs(v) <= math.MaxFloat32:
		return api.Floats([]float32{float32(v)}), nil
	case n.Int && v == math.Trunc(v) && math.Abs(v) <= 1<<53:
		return api.Ints([]int64{int64(v)}), nil
	case n.Int:
		return api.TensorData{}, api.Errorf(api.BadRequest, "%s is %v, wanted a whole number", n.Name, v)
	}
	return api.TensorData{}, api.Errorf(api.BadRequest, "%s is %v, wanted a number that a float32 holds", n.Name, v)
}

// mostKnown bounds, in bytes, what is kept of the reference's log-probabilities for later epochs.
const mostKnown = 64 << 20

// references puts the reference's log-probabilities beside the data of rows.
func (c *Custom) references(ctx context.Context, rows []int, data []api.Datum) error {
	if c.Reference == nil {
		return nil
	}
	if c.known == nil {
		c.known = map[int][][]float32{}
	}
	each := len(data) / len(rows)
	var missing []int // numbers in rows
	var ask []api.Datum
	for i, row := range rows {
		part := data[i*each : (i+1)*each]
		if known := c.known[row]; known != nil {
			refer(part, known)
			continue
		}
		missing = append(missing, i)
		ask = append(ask, part...)
	}
	if len(ask) == 0 {
		return nil
	}
	f, err := c.Reference.Forward(api.ForwardBackwardInput{Data: ask, LossFn: "cross_entropy"})
	if err != nil {
		return err
	}
	out, err := f.Wait(ctx)
	if err != nil {
		return err
	}
	for k, i := range missing {
		var found [][]float32
		for _, o := range out.LossFnOutputs[k*each : (k+1)*each] {
			found = append(found, o["logprobs"].Floats)
			c.held += 4 * len(found[len(found)-1])
		}
		refer(data[i*each:(i+1)*each], found)
		if c.held <= mostKnown {
			c.known[rows[i]] = found
		}
	}
	return nil
}

func refer(data []api.Datum, logProbs [][]float32) {
	for i, lp := range logProbs {
		data[i].LossInputs["ref_logprobs"] = api.Floats(lp)
	}
}

// Batch waits for the reference's log-probabilities of the rows, if there is a reference.
func (c *Custom) Batch(ctx context.Context, rows []int) (Batch, error) {
	data, tokens, err := c.data(rows)
	if err == nil {
		err = c.references(ctx, rows, data)
	}
	return Batch{Data: data, Loss: c.Loss, Config: c.Config, Tokens: tokens}, err
}

// Eval is what the loss says of the rows, without its weights. Parts of the validation rows are averaged by their number of rows.
func (c *Custom) Eval(ctx context.Context, run *engine.Run, rows []int) (Eval, error) {
	b, err := c.Batch(ctx, rows)
	if err != nil {
		return Eval{}, err
	}
	f, err := run.ForwardCustom(b.Data, c.Loss, c.Config)
	if err != nil {
		return Eval{}, err
	}
	out, err := f.Wait(ctx)
	return Eval{Loss: out.Metrics["loss:sum"], Targets: len(rows)}, err
}
