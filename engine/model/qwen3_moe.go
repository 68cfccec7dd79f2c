package model

import (
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
)

// qwen3MoE is Qwen3 with mixtures of experts: the attention of qwen3, and in the sparse layers TopK of Experts feed-forwards, chosen by a
// softmax over all of them. Defaults of absent fields are those of transformers 5.23 (Qwen3MoeConfig).
func qwen3MoE(c *hf.Config) (*Spec, error) {
	s, err := qwen3(c)
	if err != nil {
		return nil, err
	}
	step := 1
	var denseLayers []int
	for _, f := range []struct {
		keys     []string
		into     any
		optional bool
	}{
		{[]string{"num_experts", "num_local_experts"}, &s.Experts, false}, // transformers 5 writes the second name
		{[]string{"num_experts_per_tok"}, &s.TopK, false},
		{[]string{"moe_intermediate_size"}, &s.ExpertFFN, false},
		{[]string{"norm_topk_prob"}, &s.NormTopK, true},
		{[]string{"decoder_sparse_step"}, &step, true},
		{[]string{"mlp_only_layers"}, &denseLayers, true},
	} {
		err := c.Decode(f.keys[0], f.into)
		if len(f.keys) > 1 && api.CodeOf(err) == api.NotFound && c.Decode(f.keys[1], f.into) == nil {
			err = nil
		}
		if err != nil && !(f.optional && api.CodeOf(err) == api.NotFound) {
			return nil, err
		}
	}
	for _, f := range []struct {
		key           string
		value, lo, hi int
	}{
		{"num_experts", s.Experts, 1, maxExperts},
		{"num_experts_per_tok", s.TopK, 1, s.Experts},
		{"moe_intermediate_size", s.ExpertFFN, 1, maxExpertFFN},
		{"decoder_sparse_step", step, 1, 1 << 20},
	} {
		if f.value < f.lo || f.value > f.hi {
			return nil, api.Errorf(api.BadRequest, "config.json: %s is %d, wanted %d..%d", f.key, f.value, f.lo, f.hi)
		}
	}
	s.Sparse = make([]bool, s.Layers)
	for i := range s.Sparse {
		s.Sparse[i] = (i+1)%step == 0 && !slices.Contains(denseLayers, i)
	}
	if s.sparseLayers() == 0 {
		s.Sparse = nil
	}
	return s, nil
}

// Bounds of config.json: above every published model, and low enough that sizes cannot overflow.
const (
	maxExperts   = 1 << 14
	maxExpertFFN = 1 << 22
)
