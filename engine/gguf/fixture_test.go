package gguf_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/gguf"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/model"
)

var update = flag.Bool("update", false, "rewrite testdata/ours, which Write makes")

// fixture is an adapter of engine/model/testdata, under its name in testdata/ours and testdata/converted.
type fixture struct {
	name, model string
	ownHead     bool // for a base whose GGUF has an output.weight although the model is tied; the converter knows no such thing
}

var fixtures = []fixture{
	{"llama", "llama", false},
	{"llama-own-head", "llama", true},
	{"mistral", "mistral", false},
	{"qwen2", "qwen2", false},
	{"qwen3-tied", "qwen3-tied", false},
	{"qwen3-untied", "qwen3-untied", false},
	{"qwen3moe", "qwen3moe-hub", false},
}

// read reads the adapter. A tied model's loses its head, and the mixture of experts keeps layers 0 and 2, as 0 and 1: its
// middle layer is dense, which llama.cpp does not have.
func (x fixture) read(t testing.TB) *gguf.Adapter {
	t.Helper()
	folder := filepath.Join("..", "model", "testdata", x.model)
	text, err := os.ReadFile(filepath.Join(folder, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	config, err := hf.ParseConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := model.NewSpec(config)
	if err != nil {
		t.Fatal(err)
	}
	peft, err := hf.ReadAdapter(filepath.Join(folder, "adapter"))
	if err != nil {
		t.Fatal(err)
	}
	tied := spec.Tied && !x.ownHead
	a := &gguf.Adapter{Rank: peft.Rank, Alpha: peft.Alpha, Base: gguf.Base{
		Family: spec.Family, Heads: spec.Heads, KVHeads: spec.KVHeads, Tied: tied, Experts: spec.Experts, NormTopK: spec.NormTopK}}
	for _, x := range peft.Tensors {
		module, which, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(x.Name, "base_model.model."), ".weight"), ".lora_")
		if tied && module == "lm_head" || spec.Experts > 0 && strings.HasPrefix(module, "model.layers.1.") {
			continue
		}
		if spec.Experts > 0 {
			module = strings.Replace(module, ".layers.2.", ".layers.1.", 1)
		}
		a.Factors = append(a.Factors, gguf.Factor{Module: module, Which: which, Shape: x.Shape,
			Values: func() ([]float32, error) { return x.Values, nil }})
	}
	return a
}

// written returns the adapter's file, whose length must be what Size says.
func written(t testing.TB, a *gguf.Adapter) []byte {
	t.Helper()
	meta, tensors, err := a.Contents()
	if err != nil {
		t.Fatal(err)
	}
	return write(t, meta, tensors)
}

func write(t testing.TB, meta []gguf.KV, tensors []gguf.Tensor) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := gguf.Write(&out, meta, tensors); err != nil {
		t.Fatal(err)
	}
	if size, err := gguf.Size(meta, tensors); err != nil || size != int64(out.Len()) {
		t.Fatalf("Size says %d (%v), Write wrote %d", size, err, out.Len())
	}
	return out.Bytes()
}

func parse(t testing.TB, b []byte) *gguf.File {
	t.Helper()
	f, err := gguf.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// raw returns what a tensor writes.
func raw(t testing.TB, x gguf.Tensor) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := x.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// expect checks an error's words and code; want "" is none.
func expect(t *testing.T, name string, err error, code api.Code, want string) {
	t.Helper()
	var e *api.Error
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", name, err)
	case want == "":
	case err == nil:
		t.Errorf("%s: no error, want %s", name, want)
	case err.Error() != want:
		t.Errorf("%s:\n got %s\nwant %s", name, err, want)
	case !errors.As(err, &e) || e.Code != code:
		t.Errorf("%s: code %s, want %s", name, api.CodeOf(err), code)
	}
}
