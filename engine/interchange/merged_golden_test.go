package interchange

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/model"
	"tinkerlocal/kernels"
	"tinkerlocal/kernels/cpu"
)

// mergeModels are the tiny models that testdata/make_merged.py merged.
var mergeModels = []string{
	"testdata/llama-untied", // float16
	"../model/testdata/llama", "../model/testdata/mistral", "../model/testdata/qwen2", "../model/testdata/qwen3-tied",
	"../model/testdata/qwen3-untied", "../model/testdata/qwen3moe-hub", "../model/testdata/qwen3moe-fused",
}

func openBase(t testing.TB, dir string) *hf.Checkpoint {
	t.Helper()
	c, err := hf.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// peftAdapter reads a PEFT folder of engine/model's kind.
func peftAdapter(t testing.TB, dir string) *Adapter {
	t.Helper()
	p, err := hf.ReadAdapter(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := api.LoraConfig{Rank: p.Rank}
	var ts []lora.Tensor
	for _, x := range p.Tensors {
		c.TrainAttn = c.TrainAttn || strings.Contains(x.Name, "self_attn")
		c.TrainMLP = c.TrainMLP || strings.Contains(x.Name, "mlp")
		c.TrainUnembed = c.TrainUnembed || strings.Contains(x.Name, "lm_head")
		ts = append(ts, lora.Tensor{Name: strings.TrimPrefix(x.Name, "base_model.model."), Shape: x.Shape, Values: x.Values})
	}
	return FromTensors("org/"+filepath.Base(filepath.Dir(dir)), c, p.Scale(), ts)
}

// merge plans and writes, and holds the plan's size against the disk's.
func merge(t testing.TB, a *Adapter, base *hf.Checkpoint, o MergedOptions) (string, *Export) {
	t.Helper()
	x, err := PlanMerged(context.Background(), a, base, o)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "merged")
	var last, total int64
	err = x.Write(context.Background(), dir, WriteOptions{Progress: func(d, n int64) {
		if d < last || d > n {
			t.Errorf("progress is %d of %d after %d", d, n, last)
		}
		last, total = d, n
	}})
	if err != nil {
		t.Fatal(err)
	}
	if last != total || total == 0 {
		t.Errorf("progress ends at %d of %d", last, total)
	}
	if size := folderBytes(t, dir); size != x.Bytes {
		t.Errorf("%s: %d bytes are on the disk, the plan said %d", base.Name, size, x.Bytes)
	}
	return dir, x
}

func folderBytes(t testing.TB, dir string) (n int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		n += st.Size()
	}
	return n
}

// TestMergedGolden: merged weights are those of peft, 16-bit ones bit for bit, and the other tensors are the base's.
func TestMergedGolden(t *testing.T) {
	for _, from := range mergeModels {
		name := filepath.Base(from)
		base := openBase(t, from)
		dir, _ := merge(t, peftAdapter(t, filepath.Join(from, "adapter")), base, MergedOptions{})
		got := openBase(t, dir)
		file, err := os.ReadFile(filepath.Join("testdata/merged", name+".safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		wantDir := t.TempDir()
		for n, b := range map[string][]byte{"model.safetensors": file, "config.json": base.Config.Raw} {
			if err := os.WriteFile(filepath.Join(wantDir, n), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want := openBase(t, wantDir)
		values, worst := 0, 0.0
		for _, n := range want.Names() {
			w, _ := want.Tensor(n)
			x, ok := got.Tensor(n)
			if !ok || x.Stored != w.Stored || !slices.Equal(x.Shape, w.Shape) {
				t.Errorf("%s: tensor %s is %s%v, wanted %s%v", name, n, x.Stored, x.Shape, w.Stored, w.Shape)
				continue
			}
			values += w.Len()
			if w.DType == kernels.F32 {
				v := x.Float32s()
				for i, y := range w.Float32s() {
					d := math.Abs(float64(v[i]) - float64(y))
					if worst = max(worst, d); d > 1e-6*max(1, math.Abs(float64(y))) {
						t.Fatalf("%s: tensor %s, value %d is %v, wanted %v", name, n, i, v[i], y)
					}
				}
				continue
			}
			if !bytes.Equal(x.Data, w.Data) {
				t.Errorf("%s: tensor %s is not the reference's, bit for bit", name, n)
			}
		}
		t.Logf("%s: %d values; largest float32 difference %.2g", name, values, worst)
		sameButMerged(t, base, got)
	}
}

// sameButMerged: tensors and files that the merge has no business with have the base's bytes, and the names are the base's.
func sameButMerged(t *testing.T, base, got *hf.Checkpoint) {
	t.Helper()
	plain := 0
	for _, n := range base.Names() {
		b, _ := base.Tensor(n)
		x, ok := got.Tensor(n)
		if !ok || x.File != b.File {
			t.Errorf("%s: tensor %s is in %q, wanted %q", base.Name, n, x.File, b.File)
		}
		if strings.Contains(n, "_proj") && strings.HasSuffix(n, "weight") || strings.Contains(n, "experts.") || n == "lm_head.weight" {
			if bytes.Equal(x.Data, b.Data) {
				t.Errorf("%s: tensor %s is not merged", base.Name, n)
			}
			continue
		}
		if plain++; !bytes.Equal(x.Data, b.Data) {
			t.Errorf("%s: tensor %s is not the base's", base.Name, n)
		}
	}
	if plain == 0 {
		t.Errorf("%s: no tensor was compared", base.Name)
	}
	for _, n := range got.Names() {
		if _, ok := base.Tensor(n); !ok && !(n == "lm_head.weight" && base.Config.TieWordEmbeddings) {
			t.Errorf("%s: tensor %s is new", base.Name, n)
		}
	}
	if got.Config.TieWordEmbeddings {
		t.Errorf("%s: the merged model is tied", base.Name)
	}
	b, err := base.File("generation_config.json")
	if err != nil {
		t.Fatal(err)
	}
	if x, err := got.File("generation_config.json"); err != nil || !bytes.Equal(x, b) {
		t.Errorf("%s: generation_config.json: %v", base.Name, err)
	}
}

// TestMergedLogProbs: the merged model alone computes what the base computes with the adapter. In float32, so that no rounding is between
// them; a 16-bit base is converted.
func TestMergedLogProbs(t *testing.T) {
	dev, err := cpu.Open(cpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	for _, from := range mergeModels {
		for _, which := range []string{"adapter", "adapter_attn"} {
			if _, err := os.Stat(filepath.Join(from, which)); err != nil {
				continue
			}
			a := peftAdapter(t, filepath.Join(from, which))
			base := openBase(t, from)
			dir, x := merge(t, a, base, MergedOptions{DType: kernels.F32})
			if strings.Contains(strings.Join(x.Notes, " "), "rounded to 16") {
				t.Errorf("%s: notes of an F32 export are %q", base.Name, x.Notes)
			}
			got := openBase(t, dir)
			if got.Config.TorchDType != "float32" {
				t.Errorf("%s: dtype is %s", dir, got.Config.TorchDType)
			}
			plain := scoreAll(t, dev, base, nil)
			want := scoreAll(t, dev, base, a)
			have := scoreAll(t, dev, got, nil)
			worst, moved := 0.0, 0.0
			for i := range want {
				worst = max(worst, math.Abs(want[i]-have[i]))
				moved = max(moved, math.Abs(want[i]-plain[i]))
			}
			t.Logf("%s, %s: logprobs differ by at most %.2g; the adapter moves them by up to %.2g", filepath.Base(from), which, worst, moved)
			if worst > 1e-5 || moved < 0.01 {
				t.Errorf("%s, %s: logprobs differ by %g, wanted 1e-5; the adapter moves them by %g", from, which, worst, moved)
			}
		}
	}
}

func scoreAll(t *testing.T, dev kernels.Device, c *hf.Checkpoint, a *Adapter) []float64 {
	t.Helper()
	b, err := model.Load(context.Background(), dev, c, model.LoadOptions{Store: kernels.F32})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Free()
	var w *lora.Weights
	if a != nil {
		var ts []lora.Tensor
		for _, f := range a.Factors {
			v, err := a.Floats(context.Background(), f)
			if err != nil {
				t.Fatal(err)
			}
			ts = append(ts, lora.Tensor{Name: f.Name, Shape: f.Shape, Values: v})
		}
		s, err := lora.NewSnapshot(dev, b.Sites, a.Lora, ts, a.Scale)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Free()
		w = s.Weights
	}
	it := model.Item{Adapter: w}
	for i := range 24 {
		it.Tokens = append(it.Tokens, int32((i*7+3)%b.Spec.Vocab))
		it.Targets = append(it.Targets, int32((i*11+5)%b.Spec.Vocab))
	}
	tape, err := b.Forward([]model.Item{it}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer tape.Release()
	lp, err := tape.LogProbs()
	if err != nil {
		t.Fatal(err)
	}
	var out []float64
	for _, v := range lp[0] {
		out = append(out, float64(v))
	}
	return out
}

// TestMergedIndex: a sharded base stays sharded, with an index that agrees with the files.
func TestMergedIndex(t *testing.T) {
	const from = "../model/testdata/qwen3-untied"
	dir, _ := merge(t, peftAdapter(t, from+"/adapter"), openBase(t, from), MergedOptions{})
	var got, want struct {
		Metadata struct {
			TotalSize int64 `json:"total_size"`
		}
		WeightMap map[string]string `json:"weight_map"`
	}
	for d, into := range map[string]any{dir: &got, from: &want} {
		text, err := os.ReadFile(filepath.Join(d, "model.safetensors.index.json"))
		if err == nil {
			err = json.Unmarshal(text, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	g, _ := json.Marshal(got)
	w, _ := json.Marshal(want)
	if !bytes.Equal(g, w) {
		t.Errorf("index is %s, wanted %s", g, w)
	}
}
