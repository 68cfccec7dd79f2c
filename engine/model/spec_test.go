package model

import (
	"slices"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
)

// TestParameterCounts: the adapters' sizes are those that the Tinker cookbook's hyperparam_utils lists per
// rank (Qwen3, Llama 3.2) or would list by the same rule, and the bases' those of the published models.
func TestParameterCounts(t *testing.T) {
	for _, c := range []struct {
		name               string
		spec               Spec
		attn, mlp, unembed int
		params             int64
	}{
		{"Qwen3-8B", Spec{Layers: 36, Hidden: 4096, Heads: 32, KVHeads: 8, HeadDim: 128, FFN: 12288, Vocab: 151936, QKNorm: true},
			958464, 1769472, 156032, 8190735360},
		{"Qwen3-32B", Spec{Layers: 64, Hidden: 5120, Heads: 64, KVHeads: 8, HeadDim: 128, FFN: 25600, Vocab: 151936, QKNorm: true},
			2490368, 5898240, 157056, 32762123264},
		{"Qwen3-0.6B", Spec{Layers: 28, Hidden: 1024, Heads: 16, KVHeads: 8, HeadDim: 128, FFN: 3072, Vocab: 151936, QKNorm: true, Tied: true},
			286720, 344064, 152960, 596049920},
		{"Qwen3-30B-A3B", Spec{Layers: 48, Hidden: 2048, Heads: 32, KVHeads: 4, HeadDim: 128, FFN: 6144, Vocab: 151936, QKNorm: true,
			Sparse: slices.Repeat([]bool{true}, 48), Experts: 128, TopK: 8, ExpertFFN: 768},
			835584, 14450688, 153984, 30532122624},
		{"Llama-3.2-1B", Spec{Layers: 16, Hidden: 2048, Heads: 32, KVHeads: 8, HeadDim: 64, FFN: 8192, Vocab: 128256, Tied: true},
			212992, 491520, 130304, 1235814400},
		{"Llama-3.1-8B", Spec{Layers: 32, Hidden: 4096, Heads: 32, KVHeads: 8, HeadDim: 128, FFN: 14336, Vocab: 128256},
			851968, 1769472, 132352, 8030261248},
		{"Qwen2.5-7B", Spec{Layers: 28, Hidden: 3584, Heads: 28, KVHeads: 4, HeadDim: 128, FFN: 18944, Vocab: 152064, QKVBias: true},
			630784, 1892352, 155648, 7615616512},
		{"Mistral-7B-v0.3", Spec{Layers: 32, Hidden: 4096, Heads: 32, KVHeads: 8, HeadDim: 128, FFN: 14336, Vocab: 32768},
			851968, 1769472, 36864, 7248023552},
	} {
		sites := c.spec.Sites()
		for _, x := range []struct {
			what string
			cfg  api.LoraConfig
			want int
		}{
			{"attn", api.LoraConfig{Rank: 1, TrainAttn: true}, c.attn},
			{"mlp", api.LoraConfig{Rank: 1, TrainMLP: true}, c.mlp},
			{"unembed", api.LoraConfig{Rank: 1, TrainUnembed: true}, c.unembed},
		} {
			if got := lora.Params(sites, x.cfg); got != x.want {
				t.Errorf("%s: %s has %d parameters per rank, wanted %d", c.name, x.what, got, x.want)
			}
		}
		if got := c.spec.Params(); got != c.params {
			t.Errorf("%s: %d parameters, wanted %d", c.name, got, c.params)
		}
	}
}
