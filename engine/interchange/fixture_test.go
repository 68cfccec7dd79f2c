package interchange

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/model"
	"tinkerlocal/store"
)

// experts is a model whose second layer has experts.
var experts = enginetest.Shape{Layers: 2, Hidden: 8, Heads: 2, KVHeads: 1, HeadDim: 6, FFN: 10, Vocab: 13, Context: 32, Seed: 2, Experts: 3, TopK: 2, ExpertFFN: 4}

// folder is a model folder in memory.
func folder(t testing.TB, shape enginetest.Shape) *hf.Checkpoint {
	t.Helper()
	c, err := hf.OpenFS("base", shape.Folder())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func sitesOf(t testing.TB, shape enginetest.Shape) []lora.Site {
	t.Helper()
	spec, err := model.NewSpec(folder(t, shape).Config)
	if err != nil {
		t.Fatal(err)
	}
	return spec.Sites()
}

// saved puts a checkpoint of random values, with the notes that c has, in the store.
func saved(t testing.TB, st api.Store, sites []lora.Site, c api.Checkpoint) api.Checkpoint {
	t.Helper()
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(uint64(c.Step), 5))
	w, err := st.Create(ctx, c, api.SaveOptions{UserMetadata: c.UserMetadata})
	if err != nil {
		t.Fatal(err)
	}
	prefixes := []string{""}
	if c.Optimizer {
		prefixes = []string{"", lora.MomentM, lora.MomentV}
	}
	for _, prefix := range prefixes {
		for _, f := range lora.Factors(sites, c.Lora) {
			data := make([]byte, 4*f.Size)
			for i := range f.Size {
				binary.LittleEndian.PutUint32(data[4*i:], math.Float32bits(float32(rng.NormFloat64())))
			}
			if err := w.Tensor(ctx, api.TensorInfo{Name: prefix + f.Name, DType: "F32", Shape: f.Shape}, data); err != nil {
				t.Fatal(err)
			}
		}
	}
	c, err = w.Commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// state is what a run's checkpoint says about itself.
func state(run string, c api.LoraConfig) api.Checkpoint {
	return api.Checkpoint{
		Path: api.Path{Run: run, Kind: api.KindState, Name: "x"}, Owner: "me", BaseModel: "Org/Name",
		Lora: c, Version: 7, Step: 5, Optimizer: true, UserMetadata: map[string]string{"note": "mine"},
	}
}

func seeded(rank int, attn, mlp, unembed bool) api.LoraConfig {
	seed := int64(42)
	return api.LoraConfig{Rank: rank, Seed: &seed, TrainAttn: attn, TrainMLP: mlp, TrainUnembed: unembed}
}

func opened(t testing.TB, st api.Store, p api.Path) api.CheckpointReader {
	t.Helper()
	r, err := st.Open(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func memory(t testing.TB) *store.Store {
	t.Helper()
	st := store.OpenMemory(store.Options{Interval: -1, Workers: 1})
	t.Cleanup(func() { st.Close() })
	return st
}

// files are the names and contents of a folder.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil && !e.IsDir() {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

// expect compares an error's code and a part of its message. A want of "" is no error.
func expect(t testing.TB, what string, err error, code api.Code, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", what, err)
	case want != "" && (err == nil || api.CodeOf(err) != code || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: error is %v (%v), wanted %s: %s", what, err, api.CodeOf(err), code, want)
	}
}

// peftDir writes a PEFT folder from a config's text and tensors.
func peftDir(t testing.TB, config string, tensors []hf.Source) string {
	t.Helper()
	dir := t.TempDir()
	var b bytes.Buffer
	if err := hf.WriteSafetensors(&b, tensors, nil); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{configFile: []byte(config), weightsFile: b.Bytes()} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
