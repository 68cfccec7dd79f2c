package model_test

import (
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/model"
	"tinkerlocal/kernels/cpu"
)

// TestRouterMetrics: worked by hand for two layers of four experts and eight choices.
func TestRouterMetrics(t *testing.T) {
	got := model.RouterMetrics([][]int{{2, 2, 2, 2}, {0, 5, 3, 0}})
	want := map[string]float64{
		"e_frac_with_tokens:mean": 0.75, "e_frac_oversubscribed:mean": 0.25,
		"e_max_violation:mean": 0.75, "e_max_violation:max": 1.5, "e_min_violation:mean": -0.5,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, wanted %v", got, want)
	}
	if got := model.RouterMetrics(nil); got != nil {
		t.Errorf("without experts: %v", got)
	}
}

// TestExpertLoads: the loads of a batch are the sums of those of its data, in a forward that keeps nothing too, and each
// layer's add up to its tokens times the experts of each.
func TestExpertLoads(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		its, _ := items(g.Batch, nil)
		loads := func(its []model.Item, keep bool) [][]int {
			t.Helper()
			tape, _ := forward(t, b, its, keep)
			defer tape.Release()
			l, err := tape.ExpertLoads(0, len(its))
			if err != nil {
				t.Fatal(err)
			}
			parts, err := tape.ExpertLoads(0, 1)
			if err != nil {
				t.Fatal(err)
			}
			if len(its) > 1 {
				rest, err := tape.ExpertLoads(1, len(its))
				if err != nil {
					t.Fatal(err)
				}
				for i := range parts {
					for e := range parts[i] {
						parts[i][e] += rest[i][e]
					}
				}
			}
			if !slices.EqualFunc(parts, l, slices.Equal) {
				t.Errorf("loads %v, of the first item and the rest %v", l, parts)
			}
			return l
		}
		all, sum := loads(its, true), [][]int{}
		sparse, tokens := 0, 0
		for i := range b.Spec.Layers {
			if b.Spec.IsSparse(i) {
				sparse++
				sum = append(sum, make([]int, b.Spec.Experts))
			}
		}
		if len(all) != sparse {
			t.Fatalf("loads of %d layers, wanted %d", len(all), sparse)
		}
		for _, it := range its {
			tokens += len(it.Tokens)
			for i, layer := range loads([]model.Item{it}, false) {
				for e, n := range layer {
					sum[i][e] += n
				}
			}
		}
		for i := range sum {
			n := 0
			for _, x := range all[i] {
				n += x
			}
			if !slices.Equal(sum[i], all[i]) || n != tokens*b.Spec.TopK {
				t.Errorf("layer %d: loads %v together, %v one by one; %d tokens choose %d", i, all[i], sum[i], tokens, b.Spec.TopK)
			}
		}
	})
}

// TestPoisonedFrame: nothing is read from a batch's memory that the batch did not write. A frame full of NaN from another
// batch's leftovers must not change a bit.
func TestPoisonedFrame(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		its, w := items(g.Batch[2:3], weightsOf(adapter(t, b, g.Dir, g.Adapter.AdapterName)))
		_, first := forward(t, b, its, true)
		for range 2 {
			big, bw := items(g.Batch, weightsOf(adapter(t, b, g.Dir, g.AdapterAttn.AdapterName)))
			tape, _ := forward(t, b, big, true)
			for i := range bw {
				for j := range bw[i] {
					bw[i][j] = 1e38 // gradients overflow all over the frame
				}
			}
			if err := tape.Backward(bw); err != nil {
				t.Fatal(err)
			}
			tape.Release()
			a := adapter(t, b, g.Dir, g.Adapter.AdapterName)
			its, _ := items(g.Batch[2:3], a.Weights)
			backward(t, b, its, w, a)
			_, again := forward(t, b, its, true)
			for i, v := range again[0] {
				if math.Float32bits(v) != math.Float32bits(first[0][i]) {
					t.Fatalf("logprob %d is %v in a used frame, %v before", i, v, first[0][i])
				}
			}
			ts, err := a.Gradients()
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range ts {
				for i, v := range x.Values {
					if v-v != 0 {
						t.Fatalf("gradient %s[%d] is %v", x.Name, i, v)
					}
				}
			}
		}
	})
}

// TestPublishedConfig: the configuration of Qwen3-30B-A3B, whose size is known, under either name of the number of experts.
func TestPublishedConfig(t *testing.T) {
	for _, key := range []string{"num_experts", "num_local_experts"} {
		c, err := hf.ParseConfig([]byte(`{"model_type": "qwen3_moe", "attention_bias": false, "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu",
			"hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [],
			"moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32, "num_experts_per_tok": 8, "num_hidden_layers": 48,
			"num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000.0, "sliding_window": null,
			"tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 151936, "` + key + `": 128}`))
		if err != nil {
			t.Fatal(err)
		}
		s, err := model.NewSpec(c)
		if err != nil {
			t.Fatal(err)
		}
		if s.Params() != 30532122624 || !s.NormTopK || s.TopK != 8 || !s.QKNorm {
			t.Errorf("%d parameters, %+v", s.Params(), s)
		}
	}
}

// TestParamsAreCounted: a load reads exactly the parameters that the architecture counts.
func TestParamsAreCounted(t *testing.T) {
	for _, name := range goldenModels {
		dev, err := cpu.Open(cpu.Options{Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer dev.Close()
		var done, total int64
		b := load(t, dev, filepath.Join("testdata", name), model.LoadOptions{Progress: func(d, t int64) { done, total = d, t }})
		if done != total || total != b.Spec.Params() {
			t.Errorf("%s: %d of %d parameters read, %d counted", name, done, total, b.Spec.Params())
		}
	}
}

// TestExpertsRefused: a mixture of experts that the configuration or the files do not bear out is refused by name.
func TestExpertsRefused(t *testing.T) {
	copied := func(folder string, edit func(name string, b []byte) []byte) string {
		dir := t.TempDir()
		for _, name := range []string{"config.json", "model.safetensors"} {
			b, err := os.ReadFile(filepath.Join("testdata", folder, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), edit(name, b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	for _, c := range []struct{ folder, file, old, new, want string }{
		{"qwen3moe-hub", "config.json", `"num_experts_per_tok": 2`, `"num_experts_per_tok": 7`, "num_experts_per_tok is 7, wanted 1..6"},
		{"qwen3moe-hub", "config.json", `"num_experts_per_tok": 2`, `"other": 2`, "num_experts_per_tok is missing"},
		{"qwen3moe-hub", "config.json", `"num_experts": 6`, `"num_experts": 0`, "num_experts is 0, wanted 1..16384"},
		{"qwen3moe-hub", "config.json", `"num_experts": 6`, `"num_experts": 7`, `tensor "model.layers.0.mlp.gate.weight" has shape [6 22], wanted [7 22]`},
		{"qwen3moe-hub", "config.json", `"decoder_sparse_step": 1`, `"decoder_sparse_step": 0`, "decoder_sparse_step is 0"},
		{"qwen3moe-hub", "config.json", `"mlp_only_layers": [`, `"mlp_only_layers": [0, `, `tensor "model.layers.0.mlp.gate_proj.weight" is missing`},
		{"qwen3moe-hub", "config.json", `"moe_intermediate_size": 9`, `"moe_intermediate_size": 8`, `experts.0.gate_proj.weight" has shape [9 22], wanted [8 22]`},
		{"qwen3moe-hub", "model.safetensors", `experts.4.up_proj`, `experts.4.xx_proj`, `tensor "model.layers.0.mlp.experts.4.up_proj.weight" is missing`},
		{"qwen3moe-fused", "config.json", `"moe_intermediate_size": 7`, `"moe_intermediate_size": 8`, `experts.gate_up_proj" has shape [5 14 18], wanted [5 16 18]`},
		{"qwen3moe-fused", "model.safetensors", `experts.down_proj`, `experts.xxxx_proj`, `tensor "model.layers.1.mlp.experts.down_proj" is missing`},
		{"qwen3moe-fused", "config.json", `"intermediate_size": 13,`, ``, "intermediate_size is missing, and some layers are dense"},
	} {
		dir := copied(c.folder, func(name string, b []byte) []byte {
			if name != c.file {
				return b
			}
			if !strings.Contains(string(b), c.old) {
				t.Fatalf("%s/%s has no %s", c.folder, name, c.old)
			}
			return []byte(strings.Replace(string(b), c.old, c.new, 1))
		})
		if err := tryLoad(t, dir, cpu.Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s for %s: got %v, wanted %q", c.new, c.old, err, c.want)
		}
	}
}
