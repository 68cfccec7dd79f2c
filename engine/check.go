package engine

import (
	"fmt"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/model"
)

// items turns the data of a forward or forward_backward into sequences for the model, and refuses what
// cannot be run: before it is queued, with the datum and the numbers in the message.
func (r *Run) items(data []api.Datum) ([]model.Item, error) {
	lim := r.e.lim
	switch {
	case len(data) == 0:
		return nil, api.Errorf(api.BadRequest, "the batch is empty")
	case len(data) > lim.DatumsPerOp:
		return nil, api.Errorf(api.BadRequest, "the batch has %d datums, the limit is %d", len(data), lim.DatumsPerOp)
	}
	out := make([]model.Item, len(data))
	total := 0
	for i, d := range data {
		it, err := r.item(d)
		if err != nil {
			return nil, fmt.Errorf("datum %d: %w", i, err)
		}
		if total += len(it.Targets); total > lim.TokensPerOp {
			return nil, api.Errorf(api.BadRequest, "the batch has more than %d target tokens, the limit of one operation", lim.TokensPerOp)
		}
		out[i] = it
	}
	return out, nil
}

func (r *Run) item(d api.Datum) (it model.Item, err error) {
	tokens, err := d.ModelInput.Tokens()
	if err != nil {
		return it, err
	}
	n := len(tokens)
	if n == 0 {
		return it, api.Errorf(api.BadRequest, "model input is empty")
	}
	if spec := &r.base.info.Spec; n > spec.MaxPositions {
		return it, api.Errorf(api.BadRequest, "model input has %d tokens, the model's context is %s", n, spec.Context())
	}
	if err := r.base.model.CheckTokens(tokens); err != nil {
		return it, err
	}
	t, ok := d.LossInputs["target_tokens"]
	if !ok {
		return it, api.Errorf(api.BadRequest, "target_tokens is missing")
	}
	if t.Ints == nil {
		return it, api.Errorf(api.BadRequest, "target_tokens is float32, wanted int64")
	}
	if err := checkDims(t, n); err != nil {
		return it, err
	}
	it = model.Item{Tokens: slices.Clone(tokens), Targets: make([]int32, len(t.Ints))}
	for j, id := range t.Ints {
		if vocab := r.base.info.Spec.Vocab; id < 0 || id >= int64(vocab) {
			return it, api.Errorf(api.BadRequest, "target_tokens[%d] is %d, the vocabulary is 0..%d", j, id, vocab-1)
		}
		it.Targets[j] = int32(id)
	}
	return it, nil
}

// checkDims wants the shape [n] or [n, K].
func checkDims(t api.TensorData, n int) error {
	dims := t.Dims()
	size := 1
	for _, d := range dims {
		if d < 1 || d > len(t.Ints) {
			size = -1
			break
		}
		size *= d
	}
	switch {
	case len(dims) < 1 || len(dims) > 2:
		return api.Errorf(api.BadRequest, "target_tokens has shape %v, wanted (N) or (N,K)", dims)
	case len(dims) == 1 && len(t.Ints) != n, dims[0] != n:
		return api.Errorf(api.BadRequest, "target_tokens has %d entries, model input has %d", dims[0], n)
	case size != len(t.Ints):
		return api.Errorf(api.BadRequest, "target_tokens has shape %v but holds %d values", dims, len(t.Ints))
	}
	return nil
}
