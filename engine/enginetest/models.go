// Package enginetest makes tiny random base models in memory, for tests of the engine and of its doors.
package enginetest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing/fstest"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
)

// Shape is the size of a model with the Qwen3 architecture, or the Qwen3-MoE one when it has experts.
type Shape struct {
	Layers, Hidden, Heads, KVHeads, HeadDim, FFN, Vocab, Context int
	Tied                                                         bool
	EosTokenIDs                                                  []int
	Seed                                                         uint64

	Experts, TopK, ExpertFFN int // of the last layer; the others are dense
}

// Small is a model of some ten thousand parameters with odd sizes. No token ends its sequences.
var Small = Shape{Layers: 2, Hidden: 24, Heads: 4, KVHeads: 2, HeadDim: 10, FFN: 36, Vocab: 61, Context: 200, Tied: true, Seed: 1}

// Models serves models by name; it is an engine.Models.
type Models map[string]Shape

// List names the models in alphabetical order.
func (m Models) List() []string { return slices.Sorted(maps.Keys(m)) }

// Open makes the model's folder in memory and opens it.
func (m Models) Open(name string) (*hf.Checkpoint, error) {
	s, ok := m[name]
	if !ok {
		return nil, api.Errorf(api.NotFound, "no model %q", name)
	}
	return hf.OpenFS(name, s.Folder())
}

// Folder is the model in the Hugging Face layout: config.json, generation_config.json, model.safetensors. The
// same shape gives the same weights.
func (s Shape) Folder() fstest.MapFS {
	config := map[string]any{
		"model_type": "qwen3", "architectures": []string{"Qwen3ForCausalLM"}, "hidden_act": "silu",
		"hidden_size": s.Hidden, "intermediate_size": s.FFN, "num_hidden_layers": s.Layers,
		"num_attention_heads": s.Heads, "num_key_value_heads": s.KVHeads, "head_dim": s.HeadDim,
		"vocab_size": s.Vocab, "max_position_embeddings": s.Context, "rms_norm_eps": 1e-6,
		"rope_theta": 10000.0, "tie_word_embeddings": s.Tied, "attention_bias": false,
	}
	if s.Experts > 0 {
		config["model_type"], config["architectures"] = "qwen3_moe", []string{"Qwen3MoeForCausalLM"}
		config["num_experts"], config["num_experts_per_tok"], config["moe_intermediate_size"] = s.Experts, s.TopK, s.ExpertFFN
		config["decoder_sparse_step"], config["norm_topk_prob"] = s.Layers, true
	}
	return fstest.MapFS{
		"config.json":            {Data: toJSON(config)},
		"generation_config.json": {Data: toJSON(map[string]any{"eos_token_id": append([]int{}, s.EosTokenIDs...)})},
		"model.safetensors":      {Data: s.weights()},
	}
}

func toJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain maps always encode
	}
	return b
}

// weights writes a safetensors file of random float32 matrices; norms are ones with some noise.
func (s Shape) weights() []byte {
	rng := rand.New(rand.NewPCG(s.Seed, 7))
	header := map[string]any{}
	var data []byte
	add := func(name string, shape ...int) {
		n, begin := 1, len(data)
		for _, d := range shape {
			n *= d
		}
		for range n {
			v := rng.NormFloat64() * 1.5 / math.Sqrt(float64(shape[len(shape)-1]))
			if len(shape) == 1 {
				v = 1 + rng.NormFloat64()*0.1
			}
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(float32(v)))
		}
		header[name] = map[string]any{"dtype": "F32", "shape": shape, "data_offsets": []int{begin, len(data)}}
	}
	q, kv := s.Heads*s.HeadDim, s.KVHeads*s.HeadDim
	add("model.embed_tokens.weight", s.Vocab, s.Hidden)
	for l := range s.Layers {
		p := fmt.Sprintf("model.layers.%d.", l)
		add(p+"input_layernorm.weight", s.Hidden)
		add(p+"self_attn.q_proj.weight", q, s.Hidden)
		add(p+"self_attn.k_proj.weight", kv, s.Hidden)
		add(p+"self_attn.v_proj.weight", kv, s.Hidden)
		add(p+"self_attn.q_norm.weight", s.HeadDim)
		add(p+"self_attn.k_norm.weight", s.HeadDim)
		add(p+"self_attn.o_proj.weight", s.Hidden, q)
		add(p+"post_attention_layernorm.weight", s.Hidden)
		if s.Experts > 0 && l == s.Layers-1 {
			add(p+"mlp.gate.weight", s.Experts, s.Hidden)
			add(p+"mlp.experts.gate_up_proj", s.Experts, 2*s.ExpertFFN, s.Hidden)
			add(p+"mlp.experts.down_proj", s.Experts, s.Hidden, s.ExpertFFN)
			continue
		}
		add(p+"mlp.gate_proj.weight", s.FFN, s.Hidden)
		add(p+"mlp.up_proj.weight", s.FFN, s.Hidden)
		add(p+"mlp.down_proj.weight", s.Hidden, s.FFN)
	}
	add("model.norm.weight", s.Hidden)
	if !s.Tied {
		add("lm_head.weight", s.Vocab, s.Hidden)
	}
	head := toJSON(header)
	for len(head)%8 != 0 {
		head = append(head, ' ')
	}
	return append(binary.LittleEndian.AppendUint64(nil, uint64(len(head))), append(head, data...)...)
}
