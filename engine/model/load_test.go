package model_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/model"
	"tinkerlocal/kernels"
	"tinkerlocal/kernels/cpu"
)

// broken copies a golden model's folder and lets edit change the configuration and the weights file, whose
// header it gets as JSON and whose data as bytes.
func broken(t *testing.T, edit func(config, header map[string]any, data []byte)) string {
	t.Helper()
	dir := t.TempDir()
	read := func(name string) []byte {
		raw, err := os.ReadFile(filepath.Join("testdata", "qwen3-tied", name))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	var config, header map[string]any
	raw := read("model.safetensors")
	n := 8 + binary.LittleEndian.Uint64(raw)
	for _, j := range []struct {
		raw  []byte
		into *map[string]any
	}{{read("config.json"), &config}, {raw[8:n], &header}} {
		if err := json.Unmarshal(j.raw, j.into); err != nil {
			t.Fatal(err)
		}
	}
	data := append([]byte(nil), raw[n:]...)
	edit(config, header, data)
	head, _ := json.Marshal(header)
	file := append(binary.LittleEndian.AppendUint64(nil, uint64(len(head))), head...)
	file = append(file, data...)
	conf, _ := json.Marshal(config)
	for name, content := range map[string][]byte{"model.safetensors": file, "config.json": conf} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// offset is where a tensor's data begin.
func offset(header map[string]any, name string) int {
	return int(header[name].(map[string]any)["data_offsets"].([]any)[0].(float64))
}

// TestLoadRefuses: a folder that cannot be this model is refused with the file or tensor, what was wanted and what was found.
func TestLoadRefuses(t *testing.T) {
	const down = "model.layers.1.mlp.down_proj.weight"
	for _, c := range []struct {
		name, want string
		edit       func(config, header map[string]any, data []byte)
	}{
		{"unknown family", `model_type is "gpt9"; this build knows: llama mistral qwen2 qwen3`,
			func(c, _ map[string]any, _ []byte) { c["model_type"] = "gpt9" }},
		{"no bias", `tensor "model.layers.0.self_attn.q_proj.bias" is missing`,
			func(c, _ map[string]any, _ []byte) { c["model_type"] = "qwen2" }},
		{"other activation", `hidden_act is "gelu", wanted "silu"`,
			func(c, _ map[string]any, _ []byte) { c["hidden_act"] = "gelu" }},
		{"heads", "num_attention_heads 7 is not a multiple of num_key_value_heads 2",
			func(c, _ map[string]any, _ []byte) { c["num_attention_heads"] = 7 }},
		{"odd head", "head_dim is 11, wanted an even number",
			func(c, _ map[string]any, _ []byte) { c["head_dim"] = 11 }},
		{"wrong shape", `tensor "model.embed_tokens.weight" has shape [71 28], wanted [72 28]`,
			func(c, _ map[string]any, _ []byte) { c["vocab_size"] = 72 }},
		{"transposed", `tensor "` + down + `" has shape [29 28], wanted [28 29]`,
			func(_, h map[string]any, _ []byte) { h[down].(map[string]any)["shape"] = []int{29, 28} }},
		{"missing tensor", `tensor "` + down + `" is missing`,
			func(_, h map[string]any, _ []byte) { h["other"] = h[down]; delete(h, down) }},
		{"nan", "tensor " + down + ": value 5 is NaN",
			func(_, h map[string]any, d []byte) {
				binary.LittleEndian.PutUint32(d[offset(h, down)+20:], 0x7fc00000)
			}},
		{"infinity", "tensor model.norm.weight: value 0 is -Inf",
			func(_, h map[string]any, d []byte) {
				binary.LittleEndian.PutUint32(d[offset(h, "model.norm.weight"):], 0xff800000)
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := tryLoad(t, broken(t, c.edit), cpu.Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, wanted %q", err, c.want)
			}
		})
	}
}

func tryLoad(t *testing.T, dir string, o cpu.Options) error {
	t.Helper()
	src, err := hf.Open(dir)
	if err != nil {
		return err
	}
	defer src.Close()
	dev, err := cpu.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	b, err := model.Load(context.Background(), dev, src, model.LoadOptions{})
	if err == nil {
		b.Free()
	}
	return err
}

// TestLoadMemory: a model that does not fit is refused before any of it is packed, with both numbers.
func TestLoadMemory(t *testing.T) {
	err := tryLoad(t, filepath.Join("testdata", "qwen3-tied"), cpu.Options{MemoryLimit: 1000})
	if err == nil || !strings.Contains(err.Error(), "bytes") || !strings.Contains(err.Error(), "1000") {
		t.Errorf("got %v, wanted needed and free bytes", err)
	}
}

// TestLoadCancel: loading stops when its context ends, and gives its memory back.
func TestLoadCancel(t *testing.T) {
	src, err := hf.Open(filepath.Join("testdata", "qwen3-tied"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dev, err := cpu.Open(cpu.Options{MemoryLimit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	free := dev.Info().Free
	ctx, cancel := context.WithCancel(context.Background())
	_, err = model.Load(ctx, dev, src, model.LoadOptions{Progress: func(done, total int64) {
		if done > total/2 {
			cancel()
		}
	}})
	if err == nil || ctx.Err() == nil {
		t.Errorf("got %v, wanted a cancelled load", err)
	}
	if now := dev.Info().Free; now != free {
		t.Errorf("%d bytes free after a cancelled load, %d before", now, free)
	}
}

// TestStoreBF16: float32 weights kept as bfloat16 give what a bfloat16 checkpoint gives: near, and not equal.
func TestStoreBF16(t *testing.T) {
	dev, err := cpu.Open(cpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	g := loadGolden(t, "qwen3-tied")
	full := load(t, dev, g.Dir, model.LoadOptions{})
	half := load(t, dev, g.Dir, model.LoadOptions{Store: kernels.BF16})
	if half.Bytes() >= full.Bytes()*3/4 {
		t.Errorf("bfloat16 weights take %d bytes, float32 %d", half.Bytes(), full.Bytes())
	}
	its, _ := items(g.Batch, nil)
	_, a := forward(t, full, its, false)
	_, b := forward(t, half, its, false)
	worst := 0.0
	for i := range a {
		for j := range a[i] {
			worst = max(worst, float64(a[i][j]-b[i][j]), float64(b[i][j]-a[i][j]))
		}
	}
	if worst == 0 || worst > 0.2 {
		t.Errorf("the largest difference of a logprob is %v", worst)
	}
}

// TestInvFreq: the rotation's frequencies have torch's bits; angles at far positions depend on them.
func TestInvFreq(t *testing.T) {
	for _, name := range goldenModels {
		g := loadGolden(t, name)
		src, err := hf.Open(g.Dir)
		if err != nil {
			t.Fatal(err)
		}
		spec, err := model.NewSpec(src.Config)
		src.Close()
		if err != nil {
			t.Fatal(err)
		}
		for c, want := range g.Base.RopeInvFreq {
			if got := spec.InvFreq(c); got != float32(want) {
				t.Errorf("%s: frequency %d is %v, torch has %v", name, c, got, float32(want))
			}
		}
	}
}
