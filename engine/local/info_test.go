package local

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/model"
	"tinkerlocal/kernels"
)

// TestNeedsAreWhatIsUsed: the memory that is foretold for the embedded model is what it takes once it is loaded.
func TestNeedsAreWhatIsUsed(t *testing.T) {
	i, err := Models{}.Describe(TinyModel)
	if err != nil || i.Problem != "" {
		t.Fatal(err, i.Problem)
	}
	dev, err := OpenDevice("cpu")
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	src, err := Models{}.Open(TinyModel)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	for _, dtype := range []string{"auto", "float32", "bfloat16"} {
		store, _ := storeType(dtype)
		b, err := model.Load(context.Background(), dev, src, model.LoadOptions{Store: store})
		if err != nil {
			t.Fatal(err)
		}
		n, err := i.Needs(dev.Info(), dtype)
		if err != nil {
			t.Fatal(err)
		}
		if diff := float64(b.Bytes()-n.Weights) / float64(n.Weights); diff < 0 || diff > 0.02 {
			t.Errorf("%s: the weights take %d bytes, foretold %d", dtype, b.Bytes(), n.Weights)
		}
		if n.KV != b.KVBytes(i.Context) || n.Batch != b.TrainBytes(NeedBatch, 1, 32, true, 0) || n.Sample != n.Weights+n.KV || n.Train != n.Weights+n.Adapter+n.Batch {
			t.Errorf("%s: %+v, wanted %d for keys and values, %d for a batch", dtype, n, b.KVBytes(i.Context), b.TrainBytes(NeedBatch, 1, 32, true, 0))
		}
		if dev.Info().Free > 0 && (n.FitsSample == nil || !*n.FitsSample || n.FitsTrain == nil || !*n.FitsTrain) {
			t.Errorf("%s: %+v, wanted it to fit", dtype, n)
		}
		b.Free()
	}
	info := dev.Info()
	info.Free = 1 << 20
	if n, err := i.Needs(info, ""); err != nil || *n.FitsSample || *n.FitsTrain {
		t.Errorf("in 1 MiB: %+v, %v", n, err)
	}
	info.Free = 0
	if n, err := i.Needs(info, ""); err != nil || n.FitsSample != nil || n.FitsTrain != nil {
		t.Errorf("in unknown memory: %+v, %v", n, err)
	}
}

// TestDescribeExperts: of a mixture of experts the published counts are known, and its memory follows the plan.
func TestDescribeExperts(t *testing.T) {
	i, err := Models{}.Describe(filepath.Join("..", "model", "testdata", "qwen3moe-hub"))
	if err != nil || i.Problem != "" {
		t.Fatal(err, i.Problem)
	}
	if i.Kind != "MoE" || i.Experts != 6 || i.TopK != 2 || i.ExpertFFN != 9 || i.LoraMLP != 2*3*(22+6*9)+3*(22+19) {
		t.Errorf("%+v", i)
	}
	n, err := i.Needs(kernels.Info{Act: kernels.F32}, "")
	if err != nil || n.Adapter != 5*4*int64(i.LoraRank32) || n.Batch == 0 || n.Weights < 4*i.Params {
		t.Errorf("%+v, %v", n, err)
	}
}

// TestDescribe: one golden model of another family, in full.
func TestDescribe(t *testing.T) {
	dir := filepath.Join("..", "model", "testdata", "qwen2")
	i, err := Models{}.Describe(dir)
	if err != nil {
		t.Fatal(err)
	}
	i.spec = nil
	want := Info{
		Name: dir, Source: ByPath, Dir: dir, Family: "qwen2", Params: i.Params, Kind: "Dense", Training: "Base", Context: 128, DType: "BF16", DiskBytes: 21136,
		Layers: 2, Hidden: 24, Heads: 4, KVHeads: 2, HeadDim: 6, FFN: 29, Vocab: 59, Tied: true,
		LoraAttn: 2 * ((24 + 24) + 2*(24+12) + (24 + 24)), LoraMLP: 2 * 3 * (24 + 29), LoraHead: 24 + 59,
	}
	want.LoraRank32 = 32 * (want.LoraAttn + want.LoraMLP + want.LoraHead)
	if i != want {
		t.Errorf("got  %+v\nwanted %+v", i, want)
	}
	if params := int64(59*24 + 24 + 2*(24*24*2+2*24*12+3*24*29+2*24+24+2*12)); i.Params != params {
		t.Errorf("%d parameters, wanted %d", i.Params, params)
	}
}

// TestTrainingType holds the rule, step by step.
func TestTrainingType(t *testing.T) {
	const chatML, both = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}", "<|im_end|>{% if enable_thinking %}<think>{% endif %}"
	tokens := map[string]any{"7": map[string]any{"content": "<|endoftext|>"}, "8": map[string]any{"content": "<|im_end|>"}}
	quote := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	tokenizer := func(template any) string {
		return quote(map[string]any{"chat_template": template, "added_tokens_decoder": tokens})
	}
	for _, c := range []struct {
		name, tokenizer, jinja string
		eos                    int
		want                   string
	}{
		{"Qwen/Qwen3-8B-Base", tokenizer(both), "", 8, "Base"},
		{"google/gemma-3-1b-pt", "", "", 8, "Base"},
		{"Qwen/Qwen3-4B-Instruct-2507", "", "", 8, "Instruction"},
		{"google/gemma-3-1b-it", "", "", 8, "Instruction"},
		{"Qwen/Qwen3-4B-Thinking-2507", tokenizer(chatML), "", 8, "Reasoning"},
		{"deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "", "", 8, "Reasoning"},
		{"Base-Org/model", tokenizer(chatML), "", 8, "Instruction"},
		{"x/database", "", chatML, 8, "Instruction"}, // "base" is not a word of it
		{"meta-llama/Llama-3.2-1B", "", "", 8, "Base"},
		{"meta-llama/Llama-3.2-1B", tokenizer(nil), "", 8, "Base"},
		{"Qwen/Qwen2.5-7B", tokenizer(chatML), "", 7, "Base"},
		{"Qwen/Qwen3-8B", tokenizer(both), "", 8, "Hybrid"},
		{"Qwen/Qwen3-8B", tokenizer(nil), both, 8, "Hybrid"},
		{"x/y", tokenizer([]map[string]string{{"name": "default", "template": chatML}}), "", 8, "Instruction"},
		{"x/y", tokenizer("{{ eos_token }}"), "", 7, "Instruction"},
		{"x/y", quote(map[string]any{"chat_template": chatML}), "", 7, "Instruction"}, // its tokens are not known
		{"x/y", "{", "", 8, "Unknown"},
		{"x/y", tokenizer(5), "", 8, "Unknown"},
		{"x/y", `{"added_tokens_decoder": []}`, "", 8, "Unknown"},
	} {
		shape := enginetest.Small
		shape.EosTokenIDs = []int{c.eos}
		folder := shape.Folder()
		if c.tokenizer != "" {
			folder["tokenizer_config.json"] = &fstest.MapFile{Data: []byte(c.tokenizer)}
		}
		if c.jinja != "" {
			folder["chat_template.jinja"] = &fstest.MapFile{Data: []byte(c.jinja)}
		}
		src, err := hf.OpenFS(c.name, folder)
		if err != nil {
			t.Fatal(err)
		}
		if got := TrainingType(c.name, src); got != c.want {
			t.Errorf("%s with %.60s: %s, wanted %s", c.name, c.tokenizer, got, c.want)
		}
		src.Close()
	}
}

// TestCatalog: a folder full of mistakes is listed, each with what is wrong; what is no model is not.
func TestCatalog(t *testing.T) {
	root := filepath.Join(t.TempDir(), "[models]")
	put := func(name string, change map[string]string) {
		t.Helper()
		dir := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		files := map[string]string{}
		for file, f := range enginetest.Small.Folder() {
			files[file] = string(f.Data)
		}
		for file, text := range change {
			files[file] = text
		}
		for file, text := range files {
			if text == "" {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	folder := enginetest.Small.Folder()
	config, weights := string(folder["config.json"].Data), string(folder["model.safetensors"].Data)
	edit := func(old, new string) map[string]string {
		if !strings.Contains(config, old) {
			t.Fatalf("no %s in %s", old, config)
		}
		return map[string]string{"config.json": strings.Replace(config, old, new, 1)}
	}
	put("Org/good", nil)
	put("Org/experts", edit(`"model_type":"qwen3"`, `"model_type":"new_moe","num_experts":8`))
	put("Org/yarn", edit(`"rope_theta":10000`, `"rope_theta":10000,"rope_scaling":{"rope_type":"yarn","factor":4}`))
	put("Org/layers", edit(`"num_hidden_layers":2`, `"num_hidden_layers":3`))
	put("Org/syntax", map[string]string{"config.json": "{"})
	put("Org/cut", map[string]string{"model.safetensors": weights[:len(weights)-10]})
	put("Org/weightless", map[string]string{"model.safetensors": ""})
	put("Org/configless", map[string]string{"config.json": ""})
	put("Org/gguf", map[string]string{"config.json": "", "generation_config.json": "", "model.safetensors": "", "q8.gguf": "GGUF"})
	put("alone", nil)
	put("data/set", map[string]string{"config.json": "", "generation_config.json": "", "model.safetensors": "", "train.jsonl": "{}"})
	put(".cache/model", nil)
	put("Org/.part", nil)
	if err := os.MkdirAll(filepath.Join(root, "Org", "folder", "config.json"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "README.md"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	wants := map[string]string{ // name: what its problem contains
		TinyModel: "", "Org/good": "",
		"Org/experts":    `model_type is "new_moe"; this build knows`,
		"Org/yarn":       `rope_scaling of type "yarn" is not supported`,
		"Org/layers":     "config.json asks for",
		"Org/syntax":     "config.json",
		"Org/cut":        "model.safetensors",
		"Org/weightless": "neither model.safetensors nor",
		"Org/configless": `has a file "generation_config.json" and no config.json`,
		"Org/gguf":       `has a file "q8.gguf" and no config.json`,
		"Org/folder":     "config.json is not a regular file",
		"alone":          "directly below",
	}
	if runtime.GOOS != "windows" {
		wants["Org/link"] = "no such file"
		if err := os.Symlink(filepath.Join(root, "gone"), filepath.Join(root, "Org", "link")); err != nil {
			t.Fatal(err)
		}
	}
	all := Models{Dir: root}.Catalog()
	if !slices.IsSortedFunc(all, func(a, b Info) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("the catalog is not sorted")
	}
	for _, i := range all {
		want, ok := wants[i.Name]
		switch {
		case !ok:
			t.Errorf("%s is listed: %s", i.Name, i.Problem)
		case (want == "") != (i.Problem == "") || !strings.Contains(i.Problem, want):
			t.Errorf("%s: problem %q, wanted %q", i.Name, i.Problem, want)
		}
		if _, err := i.Needs(kernels.Info{Act: kernels.F32}, ""); (err == nil) != (i.Problem == "") {
			t.Errorf("%s: needs: %v, with problem %q", i.Name, err, i.Problem)
		}
		delete(wants, i.Name)
		if i.Name == "Org/experts" && (i.Kind != "MoE" || i.Params == 0 || i.DType != "F32" || i.Layers != 2) {
			t.Errorf("what is known of a model that is not supported: %+v", i)
		}
	}
	if len(wants) > 0 {
		t.Errorf("not listed: %v", wants)
	}
	if _, err := (Models{Dir: root}).Describe("Org/syntax"); api.CodeOf(err) != api.BadRequest {
		t.Errorf("describe a broken folder: %v", err)
	}
	if all := (Models{Dir: filepath.Join(root, "nothing")}).Catalog(); len(all) != 1 || all[0].Name != TinyModel {
		t.Errorf("without a folder: %+v", all)
	}
}
