package local

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
)

// TestHeldoutWords: the lists obey the rule by which pre-training leaves words out (tiny/README.md).
func TestHeldoutWords(t *testing.T) {
	train, heldout := Words()
	if len(train) < 2000 || len(heldout) < 500 {
		t.Fatalf("%d training and %d held-out words", len(train), len(heldout))
	}
	for _, l := range []struct {
		words []string
		held  bool
	}{{train, false}, {heldout, true}} {
		for _, w := range l.words {
			if sum := sha256.Sum256([]byte(w)); (sum[0] < 26) != l.held {
				t.Errorf("%q is in the wrong list", w)
			}
		}
	}
}

// TestTiny: the embedded model opens through the same code as any folder, and is small.
func TestTiny(t *testing.T) {
	src, err := Models{}.Open(TinyModel)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if src.Config.ModelType != "qwen3" {
		t.Errorf("model_type is %q", src.Config.ModelType)
	}
	total := int64(0)
	entries, err := os.ReadDir("tiny")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if total > 8<<20 {
		t.Errorf("the folder has %d bytes, wanted at most 8 MiB", total)
	}
	tok, err := Models{}.Tokenizer(TinyModel)
	if err != nil {
		t.Fatal(err)
	}
	ids := tok.Encode("aé\n", false)
	if !slices.Equal(ids, []int32{'a', 0xc3, 0xa9, '\n'}) {
		t.Errorf("ids %v, wanted the bytes", ids)
	}
}

// TestModels: names below the folder, paths, and names that must not leave the folder.
func TestModels(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "models", "Org", "Name")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(root, "outside")
	if err := os.MkdirAll(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"config.json", "generation_config.json", "model.safetensors"} {
		data, err := os.ReadFile(filepath.Join("tiny", f))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{dir, outside} {
			if err := os.WriteFile(filepath.Join(d, f), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	m := Models{Dir: filepath.Join(root, "models")}
	if got := m.List(); !slices.Equal(got, []string{"Org/Name", TinyModel}) {
		t.Errorf("list %v", got)
	}
	for _, name := range []string{"Org/Name", dir} {
		src, err := m.Open(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		src.Close()
	}
	for _, name := range []string{"", "Org/Other", "../outside", "Org/../../outside", "Org", "\x00"} {
		if src, err := m.Open(name); err == nil || api.CodeOf(err) != api.NotFound {
			t.Errorf("%q: got %v, %v; wanted not found", name, src, err)
		}
	}
}

func TestDevices(t *testing.T) {
	for name, code := range map[string]api.Code{"cuda": api.Unsupported, "cuda:1": api.Unsupported, "tpu": api.BadRequest, "cpu:z80": api.BadRequest, "cpu:": api.BadRequest} {
		if _, err := OpenDevice(name); api.CodeOf(err) != code {
			t.Errorf("%s: got %v, wanted code %s", name, err, code)
		}
	}
	if _, err := storeType("int4"); api.CodeOf(err) != api.BadRequest {
		t.Errorf("int4: got %v", err)
	}
}

// TestAdapterFolder: weights come back as written.
func TestAdapterFolder(t *testing.T) {
	w := engine.Weights{
		Lora: api.LoraConfig{Rank: 2, TrainAttn: true, TrainUnembed: true}, Scale: 16,
		Tensors: []lora.Tensor{
			{Name: "model.layers.0.self_attn.q_proj.lora_A.weight", Shape: []int{2, 3}, Values: []float32{1, 2, 3, 4, 5, 6}},
			{Name: "model.layers.0.self_attn.q_proj.lora_B.weight", Shape: []int{1, 2}, Values: []float32{7, 8}},
			{Name: "lm_head.lora_A.weight", Shape: []int{2, 3}, Values: []float32{1, 2, 3, 4, 5, 6}},
			{Name: "lm_head.lora_B.weight", Shape: []int{1, 2}, Values: []float32{9, 10}},
		},
	}
	dir := filepath.Join(t.TempDir(), "a")
	if err := WriteAdapter(dir, "Org/Name", w); err != nil {
		t.Fatal(err)
	}
	got, err := ReadAdapter(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.Lora != w.Lora || got.Scale != w.Scale || len(got.Tensors) != len(w.Tensors) {
		t.Errorf("read %+v, wrote %+v", got, w)
	}
	for _, x := range got.Tensors {
		i := slices.IndexFunc(w.Tensors, func(y lora.Tensor) bool { return x.Name == y.Name })
		if i < 0 || !slices.Equal(x.Values, w.Tensors[i].Values) || !slices.Equal(x.Shape, w.Tensors[i].Shape) {
			t.Errorf("tensor %s came back as %v %v", x.Name, x.Shape, x.Values)
		}
	}
}

// TestFacts: what training and chatting need is known without loading weights.
func TestFacts(t *testing.T) {
	f, err := Models{}.Facts(TinyModel)
	if err != nil {
		t.Fatal(err)
	}
	if f.Spec.MaxPositions != 2048 || f.Spec.Hidden == 0 || !slices.Equal(f.EosTokenIDs, []int32{256, 258}) || f.EOS != "<|endoftext|>" || f.BOS != "" ||
		!strings.Contains(f.Template, "<|im_start|>") {
		t.Errorf("%+v", f)
	}
	for text, want := range map[string]string{`"<s>"`: "<s>", `{"content": "<s>", "lstrip": false}`: "<s>", "null": "", "3": ""} {
		if got := tokenName([]byte(text)); got != want {
			t.Errorf("token %s is %q, wanted %q", text, got, want)
		}
	}
	if got := tokenName(nil); got != "" {
		t.Errorf("no token is %q", got)
	}
}

// TestPaths: who serves others says which paths name models; the rest of the disk is not there.
func TestPaths(t *testing.T) {
	yes, no := filepath.Join("..", "model", "testdata", "qwen2"), filepath.Join("..", "model", "testdata", "llama")
	m := Models{Paths: []string{yes, "Org/Name"}}
	for _, name := range []string{no, yes + "/.", "/etc", "", "."} {
		_, err := m.Open(name)
		if api.CodeOf(err) != api.NotFound || !strings.Contains(err.Error(), "there is no model") || strings.Contains(err.Error(), "config.json") {
			t.Errorf("open %q: %v", name, err)
		}
		if _, err := m.Describe(name); api.CodeOf(err) != api.NotFound {
			t.Errorf("describe %q: %v", name, err)
		}
		if _, err := m.TokenizerDir(name, ""); api.CodeOf(err) != api.NotFound {
			t.Errorf("tokenizer of %q: %v", name, err)
		}
	}
	src, err := m.Open(yes)
	if err != nil {
		t.Fatal(err)
	}
	src.Close()
	if got, want := m.List(), []string{yes, TinyModel}; !slices.Equal(got, want) {
		t.Errorf("listed: %v, wanted %v", got, want)
	}
	if src, err = (Models{}).Open(no); err != nil {
		t.Fatal(err)
	}
	src.Close()
}
