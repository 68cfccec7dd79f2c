package gguf_test

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/gguf"
)

// TestConverted holds our tensors against those of llama.cpp's own converter, bit for bit, and the metadata that its loader looks at.
func TestConverted(t *testing.T) {
	for _, c := range fixtures {
		if c.ownHead {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			theirs, err := gguf.Open(filepath.Join("testdata", "converted", c.name+".gguf"))
			if err != nil {
				t.Fatal(err)
			}
			defer theirs.Close()
			ours := parse(t, written(t, c.read(t)))
			for _, key := range []string{gguf.KeyArchitecture, gguf.KeyType, gguf.KeyAdapterType, gguf.KeyLoraAlpha} {
				if got, want := ours.Value(key), theirs.Value(key); got != want || got == nil {
					t.Errorf("%s is %T %v, the converter's %T %v", key, got, got, want, want)
				}
			}
			if len(ours.Tensors) != len(theirs.Tensors) {
				t.Errorf("%d tensors, the converter's file has %d", len(ours.Tensors), len(theirs.Tensors))
			}
			for _, want := range theirs.Tensors {
				i := slices.IndexFunc(ours.Tensors, func(x gguf.Tensor) bool { return x.Name == want.Name })
				if i < 0 {
					t.Errorf("%s is missing", want.Name)
					continue
				}
				got := ours.Tensors[i]
				if got.Type != want.Type || !slices.Equal(got.Shape, want.Shape) || !bytes.Equal(raw(t, got), raw(t, want)) {
					t.Errorf("%s: %v%v differs from the converter's %v%v", want.Name, got.Type, got.Shape, want.Type, want.Shape)
				}
			}
		})
	}
}

// TestOurs pins the bytes of our files, which check_llamacpp.py runs llama.cpp with. They depend on nothing but the adapter: not on the order
// of its factors.
func TestOurs(t *testing.T) {
	for _, c := range fixtures {
		path := filepath.Join("testdata", "ours", c.name+".gguf")
		a := c.read(t)
		a.Name = "golden adapter of " + c.model
		got := written(t, a)
		slices.Reverse(a.Factors)
		if again := written(t, a); !bytes.Equal(got, again) {
			t.Errorf("%s: another order of factors gives another file", c.name)
		}
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: differs from testdata/ours (%v); run with -update and read the diff", c.name, err)
		}
	}
}

// TestRows says in numbers which rows move: with 2 heads of 6, rows 0, 3, 1, 4, 2, 5 of each. A stays as it is.
func TestRows(t *testing.T) {
	const out, rank = 12, 1
	for _, c := range []struct {
		family, module string
		want           []float32
	}{
		{"llama", "q_proj", []float32{0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11}},
		{"mistral", "q_proj", []float32{0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11}},
		{"llama", "k_proj", []float32{0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11}}, // one head
		{"llama", "v_proj", []float32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
		{"qwen2", "q_proj", []float32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
		{"qwen3", "k_proj", []float32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
	} {
		a := &gguf.Adapter{Base: gguf.Base{Family: c.family, Heads: 2, KVHeads: 1}, Rank: rank, Alpha: 32, Factors: []gguf.Factor{
			counted("model.layers.7.self_attn."+c.module, "A", rank, out),
			counted("model.layers.7.self_attn."+c.module, "B", out, rank),
		}}
		f := parse(t, written(t, a))
		for i, want := range [][]float32{{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, c.want} {
			if got, err := f.Tensors[i].Float32s(); err != nil || !slices.Equal(got, want) {
				t.Errorf("%s %s: %s is %v (%v), want %v", c.family, c.module, f.Tensors[i].Name, got, err, want)
			}
		}
	}
}

// counted makes a factor whose values are 0, 1, 2, …
func counted(module, which string, shape ...int) gguf.Factor {
	return gguf.Factor{Module: module, Which: which, Shape: shape, Values: func() ([]float32, error) {
		n := 1
		for _, d := range shape {
			n *= d
		}
		values := make([]float32, n)
		for i := range values {
			values[i] = float32(i)
		}
		return values, nil
	}}
}

// TestExperts repeats what is shared, and nothing else.
func TestExperts(t *testing.T) {
	f := parse(t, written(t, experts()))
	want := map[string][]float32{
		"blk.3.ffn_gate_exps.weight.lora_a": {0, 1, 0, 1, 0, 1},
		"blk.3.ffn_gate_exps.weight.lora_b": {0, 1, 2, 3, 4, 5, 6, 7, 8},
		"blk.3.ffn_down_exps.weight.lora_a": {0, 1, 2, 3, 4, 5, 6, 7, 8},
		"blk.3.ffn_down_exps.weight.lora_b": {0, 1, 0, 1, 0, 1},
	}
	if len(f.Tensors) != len(want) {
		t.Fatalf("%d tensors, want %d", len(f.Tensors), len(want))
	}
	for _, x := range f.Tensors {
		if got, err := x.Float32s(); err != nil || !slices.Equal(got, want[x.Name]) || x.Shape[0] != 3 {
			t.Errorf("%s%v is %v (%v), want %v", x.Name, x.Shape, got, err, want[x.Name])
		}
	}
}

// experts is an adapter of 3 experts: hidden size 2, 3 features, rank 1.
func experts() *gguf.Adapter {
	const p = "model.layers.3.mlp.experts."
	return &gguf.Adapter{Base: gguf.Base{Family: "qwen3_moe", Heads: 2, KVHeads: 1, Experts: 3, NormTopK: true}, Rank: 1, Alpha: 32, Factors: []gguf.Factor{
		counted(p+"w1", "A", 1, 1, 2), counted(p+"w1", "B", 3, 3, 1),
		counted(p+"w2", "A", 3, 1, 3), counted(p+"w2", "B", 1, 2, 1),
	}}
}

// TestLargeFactor crosses the writer's pieces, with rows that do not fit them.
func TestLargeFactor(t *testing.T) {
	const in, out, rank = 1237, 4099, 7
	a := &gguf.Adapter{Base: gguf.Base{Family: "qwen3", Heads: 1, KVHeads: 1}, Rank: rank, Alpha: 32, Factors: []gguf.Factor{
		counted("lm_head", "A", rank, in), counted("lm_head", "B", out, rank)}}
	for _, x := range parse(t, written(t, a)).Tensors {
		got, err := x.Float32s()
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range got {
			if v != float32(i) {
				t.Fatalf("%s: value %d is %v", x.Name, i, v)
			}
		}
	}
}

// TestAdapterRefuses names what llama.cpp could not compute, and every contradiction.
func TestAdapterRefuses(t *testing.T) {
	const q = "model.layers.0.self_attn.q_proj"
	dense := func() *gguf.Adapter {
		return &gguf.Adapter{Base: gguf.Base{Family: "llama", Heads: 2, KVHeads: 1}, Rank: 1, Alpha: 32,
			Factors: []gguf.Factor{counted(q, "A", 1, 3), counted(q, "B", 8, 1)}}
	}
	for _, c := range []struct {
		name   string
		from   func() *gguf.Adapter
		change func(a *gguf.Adapter)
		code   api.Code
		want   string
	}{
		{"good", dense, func(a *gguf.Adapter) {}, "", ""},
		{"good experts", experts, func(a *gguf.Adapter) {}, "", ""},
		{"tied head", dense, func(a *gguf.Adapter) {
			a.Base.Tied = true
			a.Factors = append(a.Factors, counted("lm_head", "A", 1, 3), counted("lm_head", "B", 5, 1))
		}, api.Unsupported, "module lm_head: the head of this base is its embedding, and llama.cpp cannot adapt the one without the other; leave lm_head out to write the rest"},
		{"family", dense, func(a *gguf.Adapter) { a.Base.Family = "gemma" }, api.Unsupported,
			`family "gemma" cannot become a GGUF adapter yet, wanted llama, mistral, qwen2, qwen3 or qwen3_moe`},
		{"heads", dense, func(a *gguf.Adapter) { a.Base.KVHeads = 0 }, api.BadRequest, "the base has 2 heads and 0 key-value heads, wanted a multiple"},
		{"experts of a dense family", dense, func(a *gguf.Adapter) { a.Base.Experts = 4 }, api.BadRequest, "the base has 4 experts and family llama"},
		{"no experts", experts, func(a *gguf.Adapter) { a.Base.Experts = 0 }, api.BadRequest, "the base has 0 experts and family qwen3_moe"},
		{"gates", experts, func(a *gguf.Adapter) { a.Base.NormTopK = false }, api.Unsupported,
			"the base does not normalise the gates of its experts (norm_topk_prob), llama.cpp always does: it would compute something else"},
		{"rank 0", dense, func(a *gguf.Adapter) { a.Rank = 0 }, api.BadRequest, "rank is 0, wanted at least 1"},
		{"alpha 0", dense, func(a *gguf.Adapter) { a.Alpha = 0 }, api.BadRequest, "alpha is 0, wanted a float32 above 0: llama.cpp takes 0 for a scale of 1"},
		{"alpha too small", dense, func(a *gguf.Adapter) { a.Alpha = 1e-60 }, api.BadRequest, "alpha is 1e-60, wanted a float32 above 0: llama.cpp takes 0 for a scale of 1"},
		{"alpha NaN", dense, func(a *gguf.Adapter) { a.Alpha = math.NaN() }, api.BadRequest, "alpha is NaN, wanted a float32 above 0: llama.cpp takes 0 for a scale of 1"},
		{"empty", dense, func(a *gguf.Adapter) { a.Factors = nil }, api.BadRequest, "the adapter has no factors"},
		{"which", dense, func(a *gguf.Adapter) { a.Factors[0].Which = "C" }, api.BadRequest, `module "` + q + `": factor "C", wanted A or B`},
		{"embedding", dense, func(a *gguf.Adapter) { a.Factors[0].Module = "model.embed_tokens" }, api.Unsupported, `module "model.embed_tokens" has no place in a GGUF adapter`},
		{"router", dense, func(a *gguf.Adapter) { a.Factors[0].Module = "model.layers.0.mlp.gate" }, api.Unsupported, `module "model.layers.0.mlp.gate" has no place in a GGUF adapter`},
		{"layer", dense, func(a *gguf.Adapter) { a.Factors[0].Module = "model.layers.00.self_attn.q_proj" }, api.Unsupported,
			`module "model.layers.00.self_attn.q_proj" has no place in a GGUF adapter`},
		{"experts in llama", dense, func(a *gguf.Adapter) { a.Factors[0].Module = "model.layers.0.mlp.experts.w1" }, api.BadRequest,
			`module "model.layers.0.mlp.experts.w1", but family llama has no experts`},
		{"dense layer", experts, func(a *gguf.Adapter) { a.Factors[0].Module = "model.layers.1.mlp.up_proj" }, api.Unsupported,
			`module "model.layers.1.mlp.up_proj": llama.cpp has experts in every layer of qwen3moe`},
		{"rank of A", dense, func(a *gguf.Adapter) { a.Factors[0] = counted(q, "A", 2, 3) }, api.BadRequest, `module "` + q + `": A has shape [2 3], wanted [rank, in] with rank 1`},
		{"B turned", dense, func(a *gguf.Adapter) { a.Factors[1] = counted(q, "B", 1, 8) }, api.BadRequest, `module "` + q + `": B has shape [1 8], wanted [out, rank] with rank 1`},
		{"no rows", dense, func(a *gguf.Adapter) { a.Factors[1].Shape = []int{0, 1} }, api.BadRequest, `module "` + q + `": B has shape [0 1], wanted [out, rank] with rank 1`},
		{"rows of heads", dense, func(a *gguf.Adapter) { a.Factors[1] = counted(q, "B", 6, 1) }, api.BadRequest, `module "` + q + `": B has 6 rows, wanted a multiple of twice the 2 heads`},
		{"shared by few", experts, func(a *gguf.Adapter) { a.Factors[0].Shape = []int{2, 1, 1} }, api.BadRequest,
			`module "model.layers.3.mlp.experts.w1": A has shape [2 1 1], wanted [1, rank, in] with rank 1`},
		{"own of few", experts, func(a *gguf.Adapter) { a.Factors[1].Shape = []int{1, 9, 1} }, api.BadRequest,
			`module "model.layers.3.mlp.experts.w1": B has shape [1 9 1], wanted [3, out, rank] with rank 1`},
		{"twice", dense, func(a *gguf.Adapter) { a.Factors = append(a.Factors, a.Factors[0]) }, api.BadRequest, `module "` + q + `": factor A appears twice`},
		{"A alone", dense, func(a *gguf.Adapter) { a.Factors = a.Factors[:1] }, api.BadRequest, `module "` + q + `" has factor A alone`},
		{"B alone", dense, func(a *gguf.Adapter) {
			a.Factors = append(a.Factors, counted("lm_head", "B", 4, 1))
		}, api.BadRequest, `module "lm_head" has factor B alone`},
		{"key twice", dense, func(a *gguf.Adapter) { a.Meta = []gguf.KV{{Key: gguf.KeyType, Value: "model"}} }, api.BadRequest, `key "general.type" appears twice`},
	} {
		a := c.from()
		c.change(a)
		_, _, err := a.Contents()
		expect(t, c.name, err, c.code, c.want)
	}
}

// TestValuesRefused: values are looked at when their turn comes.
func TestValuesRefused(t *testing.T) {
	gone := errors.New("the chunk is gone")
	const q = "model.layers.0.self_attn.q_proj"
	for _, c := range []struct {
		name   string
		values []float32
		err    error
		want   string
	}{
		{"NaN", []float32{1, 2, float32(math.NaN())}, nil, `module "` + q + `": A: value 2 is NaN`},
		{"infinite", []float32{1, float32(math.Inf(-1)), 2}, nil, `module "` + q + `": A: value 1 is -Inf`},
		{"too few", []float32{1, 2}, nil, `module "` + q + `": A has 2 values, its shape is [1 3]`},
		{"not there", nil, gone, `module "` + q + `": A: the chunk is gone`},
	} {
		a := &gguf.Adapter{Base: gguf.Base{Family: "qwen3", Heads: 1, KVHeads: 1}, Rank: 1, Alpha: 32, Factors: []gguf.Factor{
			{Module: q, Which: "A", Shape: []int{1, 3}, Values: func() ([]float32, error) { return c.values, c.err }}, counted(q, "B", 4, 1)}}
		meta, tensors, err := a.Contents()
		if err != nil {
			t.Fatal(err)
		}
		err = gguf.Write(&bytes.Buffer{}, meta, tensors)
		if err == nil || !strings.HasPrefix(err.Error(), c.want) || c.err != nil && !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
}
