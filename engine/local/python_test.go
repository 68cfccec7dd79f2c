package local

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/interchange"
	"tinkerlocal/engine/lora"
	"tinkerlocal/store"
)

// diskModels serves model folders below a folder.
type diskModels string

func (d diskModels) List() []string { return nil }
func (d diskModels) Open(name string) (*hf.Checkpoint, error) {
	return hf.Open(filepath.Join(string(d), name))
}

// TestForPython writes, into the folder that TINKER_EXPORTS names, base models with adapters in every form of export and the
// log-probabilities that they should give. engine/interchange/testdata/check_exports.py and check_cookbook.py read them.
func TestForPython(t *testing.T) {
	out := os.Getenv("TINKER_EXPORTS")
	if out == "" {
		t.Skip("TINKER_EXPORTS is not set: nothing to write for the checks in Python")
	}
	ctx := context.Background()
	tied := filepath.Join(out, "tied", "base")
	for name, from := range map[string]string{"dense": filepath.Join(goldens, "dense"), "moe": filepath.Join(goldens, "moe")} {
		if err := os.CopyFS(filepath.Join(out, name, "base"), os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(tied, enginetest.Small.Folder()); err != nil {
		t.Fatal(err)
	}
	dev, err := OpenDevice("cpu")
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(ctx, engine.Options{Device: dev, Models: diskModels(out), Checkpoints: store.OpenMemory(store.Options{})})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	s := e.NewSession()
	tokens := []int32{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8}
	seed := int64(1)
	for _, name := range []string{"dense", "moe", "tied"} {
		golden := map[string]any{"tokens": tokens}
		score := func(as string, f *engine.Future[*engine.Sampler], err error) {
			p := done(t, f, err)
			g, err := p.Sample(ctx, api.SampleRequest{Prompt: api.FromInts(tokens), NumSamples: 1, PromptLogProbs: true, Params: api.SamplingParams{MaxTokens: 1, Temperature: 1, TopP: 1, TopK: -1}})
			golden[as] = done(t, g, err).PromptLogProbs[1:]
		}
		base := name + "/base"
		f, err := s.NewSampler(base)
		score("base", f, err)
		g, err := s.NewRun(api.CreateModelRequest{BaseModel: base, Lora: api.LoraConfig{Rank: 3, Seed: &seed, TrainAttn: true, TrainMLP: true, TrainUnembed: true}})
		r := done(t, g, err)
		steps(t, r, 0, 5)
		h, err := r.SaveState("x", api.SaveOptions{})
		c := done(t, h, err)
		f, err = s.NewSamplerFrom(c.Path.String())
		score("keep", f, err)
		wf, err := r.Weights()
		w := done(t, wf, err)
		w.Lora.TrainUnembed = false
		w.Tensors = slices.DeleteFunc(slices.Clone(w.Tensors), func(x lora.Tensor) bool { return strings.HasPrefix(x.Name, "lm_head.") })
		f, err = s.NewAdapterSampler(base, w)
		score("drop", f, err)

		from, err := e.Checkpoints().Open(ctx, c.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		m, err := hf.Open(filepath.Join(out, base))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		write := func(as string, x *interchange.Export, err error) {
			if err == nil {
				err = x.Write(ctx, filepath.Join(out, name, as), interchange.WriteOptions{Replace: true})
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s %s: %d bytes; %s", name, as, x.Bytes, strings.Join(x.Notes, "; "))
		}
		a := interchange.FromCheckpoint(from)
		for _, unembed := range []interchange.Unembed{interchange.KeepUnembed, interchange.DropUnembed, interchange.MergeUnembed} {
			x, err := interchange.PlanPEFT(a, interchange.PEFTOptions{Unembed: unembed, Base: m})
			write("peft-"+string(unembed), x, err)
		}
		x, err := interchange.PlanArchive(from, interchange.ArchiveOptions{})
		write("archive.tar", x, err)
		x, err = interchange.PlanArchive(from, interchange.ArchiveOptions{Optimizer: true})
		write("state.tar", x, err)
		text, err := json.Marshal(golden)
		if err == nil {
			err = os.WriteFile(filepath.Join(out, name, "golden.json"), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
