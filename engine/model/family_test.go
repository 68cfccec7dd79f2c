package model_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/model"
)

// config is a config.json with changes; a nil value removes the key.
func config(t *testing.T, change map[string]any) *hf.Config {
	t.Helper()
	all := map[string]any{
		"model_type": "llama", "hidden_act": "silu", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
		"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 1000,
	}
	maps.Copy(all, change)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	raw, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	c, err := hf.ParseConfig(raw)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestRopeScaling: scaled rotary frequencies have torch's bits. Where torch's power function is not rounded correctly, ours
// (float64, rounded once) differs by one unit in the last place: at most one frequency of a model.
func TestRopeScaling(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("testdata", "rope.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Cases []struct {
			HeadDim int            `json:"head_dim"`
			Theta   float64        `json:"rope_theta"`
			Scaling map[string]any `json:"rope_scaling"`
			InvFreq []float32      `json:"inv_freq"`
		}
	}
	if err := json.Unmarshal(raw, &golden); err != nil {
		t.Fatal(err)
	}
	for _, g := range golden.Cases {
		name := fmt.Sprintf("C %d theta %v %v", g.HeadDim, g.Theta, g.Scaling)
		s, err := model.NewSpec(config(t, map[string]any{"head_dim": g.HeadDim, "rope_theta": g.Theta, "rope_scaling": g.Scaling}))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(g.InvFreq) != g.HeadDim/2 {
			t.Errorf("%s: %d frequencies, wanted %d", name, len(g.InvFreq), g.HeadDim/2)
		}
		other := 0
		for c, want := range g.InvFreq {
			got := s.InvFreq(c)
			if got == want {
				continue
			}
			other++
			if math.Nextafter32(got, want) != want || other > 1 || g.Scaling["rope_type"] == "llama3" {
				t.Errorf("%s: frequency %d is %v, torch has %v", name, c, got, want)
			}
		}
	}
}

// TestSpecs: what each family makes of its configuration.
func TestSpecs(t *testing.T) {
	for _, c := range []struct {
		name    string
		change  map[string]any
		context int
		bias    bool
	}{
		{"llama", map[string]any{}, 1000, false},
		{"llama, rope type default", map[string]any{"rope_scaling": map[string]any{"rope_type": "default"}}, 1000, false},
		{"qwen2", map[string]any{"model_type": "qwen2"}, 1000, true},
		{"qwen2, window off", map[string]any{"model_type": "qwen2", "sliding_window": 100, "use_sliding_window": false}, 1000, true},
		{"qwen2, window on", map[string]any{"model_type": "qwen2", "sliding_window": 100, "use_sliding_window": true}, 100, true},
		{"qwen2, wide window", map[string]any{"model_type": "qwen2", "sliding_window": 1000, "use_sliding_window": true}, 1000, true},
		{"mistral, null", map[string]any{"model_type": "mistral", "sliding_window": json.RawMessage("null")}, 1000, false},
		{"mistral, window", map[string]any{"model_type": "mistral", "sliding_window": 500}, 500, false},
		{"mistral, unsaid", map[string]any{"model_type": "mistral", "max_position_embeddings": 32768}, 4096, false},
	} {
		s, err := model.NewSpec(config(t, c.change))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if s.MaxPositions != c.context || s.QKVBias != c.bias || s.HeadDim != 64 || s.QKNorm {
			t.Errorf("%s: context %d, bias %t, head size %d; wanted %d, %t, 64", c.name, s.MaxPositions, s.QKVBias, s.HeadDim, c.context, c.bias)
		}
		if limited := c.context == 100 || c.context == 500 || c.context == 4096; limited != strings.Contains(s.Context(), "sliding window") {
			t.Errorf("%s: the context is said to be %s", c.name, s.Context())
		}
	}
}

// TestSpecRefuses: what a family cannot compute is refused by its name and value.
func TestSpecRefuses(t *testing.T) {
	rope := func(kv ...any) map[string]any {
		m := map[string]any{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i].(string)] = kv[i+1]
		}
		return map[string]any{"rope_scaling": m}
	}
	for _, c := range []struct {
		change map[string]any
		code   api.Code
		want   string
	}{
		{rope("rope_type", "yarn", "factor", 4), api.Unsupported, `rope_scaling of type "yarn" is not supported`},
		{rope("type", "dynamic", "factor", 4), api.Unsupported, `rope_scaling of type "dynamic" is not supported`},
		{rope("rope_type", "longrope"), api.Unsupported, `type "longrope"`},
		{rope("rope_type", "linear"), api.BadRequest, "factor 0, wanted at least 1"},
		{rope("rope_type", "llama3", "factor", 8, "low_freq_factor", 1, "high_freq_factor", 4), api.BadRequest, "no original_max_position_embeddings"},
		{rope("rope_type", "llama3", "factor", 8, "low_freq_factor", 4, "high_freq_factor", 4, "original_max_position_embeddings", 64), api.BadRequest,
			"low_freq_factor 4 and high_freq_factor 4, wanted 0 < low < high"},
		{rope("rope_type", "llama3", "factor", 0.5, "low_freq_factor", 1, "high_freq_factor", 4, "original_max_position_embeddings", 64), api.BadRequest,
			"factor 0.5"},
		{rope("rope_type", "default", "partial_rotary_factor", 0.5), api.Unsupported, "partial_rotary_factor is 0.5, wanted 1"},
		{map[string]any{"partial_rotary_factor": 0.25}, api.Unsupported, "partial_rotary_factor is 0.25, wanted 1"},
		{map[string]any{"attention_bias": true}, api.Unsupported, "biases on linear layers are not supported by llama"},
		{map[string]any{"intermediate_size": nil}, api.BadRequest, "intermediate_size is missing"},
		{map[string]any{"max_position_embeddings": nil}, api.BadRequest, "max_position_embeddings is missing"},
	} {
		_, err := model.NewSpec(config(t, c.change))
		if api.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: got %v, wanted %s and %q", c.change, err, c.code, c.want)
		}
	}
}
