package local

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/interchange"
	"tinkerlocal/engine/model"
	"tinkerlocal/store"
)

// goldens are tiny models and adapters made by peft, with the log-probabilities that peft computes.
const goldens = "../interchange/testdata"

// folderModels serves the model folders of goldens.
type folderModels struct{}

func (folderModels) List() []string { return []string{"dense", "moe"} }
func (folderModels) Open(name string) (*hf.Checkpoint, error) {
	return hf.Open(filepath.Join(goldens, name))
}

// TestPEFTGoldens: adapters of peft give peft's log-probabilities: read as they are, imported, and exported again.
func TestPEFTGoldens(t *testing.T) {
	ctx := context.Background()
	text, err := os.ReadFile(filepath.Join(goldens, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Tokens   []int32
		LogProbs map[string][]float64
	}
	if err := json.Unmarshal(text, &golden); err != nil {
		t.Fatal(err)
	}
	dev, err := OpenDevice("cpu")
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(ctx, engine.Options{Device: dev, Models: folderModels{}, Checkpoints: store.OpenMemory(store.Options{})})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	s := e.NewSession()
	check := func(what, want string, f *engine.Future[*engine.Sampler], err error) {
		t.Helper()
		p := done(t, f, err)
		defer p.Close()
		g, err := p.Sample(ctx, api.SampleRequest{Prompt: api.FromInts(golden.Tokens), NumSamples: 1, PromptLogProbs: true, Params: api.SamplingParams{MaxTokens: 1, Temperature: 1, TopP: 1, TopK: -1}})
		got := done(t, g, err).PromptLogProbs[1:]
		for i, v := range golden.LogProbs[want] {
			if math.Abs(v-float64(got[i])) > 2e-5*(1+math.Abs(v)) {
				t.Errorf("%s: token %d has %v, peft computes %v", what, i+1, got[i], v)
				return
			}
		}
		if len(got) != len(golden.LogProbs[want]) {
			t.Errorf("%s: %d log-probabilities, wanted %d", what, len(got), len(golden.LogProbs[want]))
		}
	}
	bare, err := s.NewSampler("dense")
	check("base", "base", bare, err)
	for _, name := range []string{"dense/alpha", "dense/rslora", "dense/subset", "moe/experts"} {
		base, adapter := filepath.Split(name)
		base = strings.TrimSuffix(base, "/")
		dir := filepath.Join(goldens, name)
		w, err := ReadAdapter(dir)
		if err != nil {
			t.Fatal(err)
		}
		f, err := s.NewAdapterSampler(base, w)
		check(name+" as it is", adapter, f, err)

		src, err := interchange.OpenPEFT(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		m, err := folderModels{}.Open(base)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		spec, err := model.NewSpec(m.Config)
		if err != nil {
			t.Fatal(err)
		}
		to := api.Checkpoint{Path: api.Path{Run: "imported", Kind: api.KindSampler, Name: adapter}, Owner: "local", BaseModel: base}
		c, err := interchange.Import(ctx, src, spec.Sites(), e.Checkpoints(), to, interchange.ImportOptions{})
		if err != nil {
			t.Fatal(err)
		}
		f, err = s.NewSamplerFrom(c.Path.String())
		check(name+" imported", adapter, f, err)

		r, err := e.Checkpoints().Open(ctx, c.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		x, err := interchange.PlanPEFT(interchange.FromCheckpoint(r), interchange.PEFTOptions{})
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "a")
		if err := x.Write(ctx, out, interchange.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		w, err = ReadAdapter(out)
		if err != nil {
			t.Fatal(err)
		}
		f, err = s.NewAdapterSampler(base, w)
		check(name+" exported", adapter, f, err)
		if adapter != "experts" {
			continue
		}
		// This adapter is complete and of our alpha: the folder has to be peft's, tensor for tensor.
		ours, theirs := tensorsOf(t, out), tensorsOf(t, dir)
		same := slices.EqualFunc(ours, theirs, func(a, b hf.Tensor) bool {
			return a.Name == b.Name && a.Stored == b.Stored && slices.Equal(a.Shape, b.Shape) && string(a.Data) == string(b.Data)
		})
		if !same || len(ours) == 0 {
			t.Errorf("%s: %d tensors are written, peft wrote %d others", name, len(ours), len(theirs))
		}
	}
	if _, err := ReadAdapter(filepath.Join(goldens, "moe/apart")); api.CodeOf(err) != api.Unsupported || !strings.Contains(err.Error(), "differs from that of expert 0") {
		t.Errorf("experts with nothing in common: %v", err)
	}
}

// tensorsOf are the tensors of an adapter's folder, in the order of their names.
func tensorsOf(t *testing.T, dir string) []hf.Tensor {
	t.Helper()
	f, err := hf.OpenFile(filepath.Join(dir, "adapter_model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	ts := slices.Clone(f.Tensors)
	slices.SortFunc(ts, func(a, b hf.Tensor) int { return strings.Compare(a.Name, b.Name) })
	return ts
}
