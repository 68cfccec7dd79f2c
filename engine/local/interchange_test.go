package local

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/engine/interchange"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/model"
	"tinkerlocal/store"
)

// machine is an engine with a store of its own, as on another machine.
func machine(t *testing.T, models enginetest.Models) *engine.Engine {
	t.Helper()
	dev, err := OpenDevice("cpu")
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(context.Background(), engine.Options{Device: dev, Models: models, Checkpoints: store.OpenMemory(store.Options{})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

var portable = enginetest.Models{
	"dense":   enginetest.Small,
	"experts": {Layers: 2, Hidden: 8, Heads: 2, KVHeads: 1, HeadDim: 6, FFN: 10, Vocab: 61, Context: 64, Seed: 2, Experts: 3, TopK: 2, ExpertFFN: 4},
}

func sitesOf(t *testing.T, name string) []lora.Site {
	t.Helper()
	c, err := portable.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := model.NewSpec(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	return s.Sites()
}

func done[T any](t *testing.T, f *engine.Future[T], err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	v, err := f.Wait(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// steps takes steps from to..to-1 and returns the weights.
func steps(t *testing.T, r *engine.Run, from, to int) []lora.Tensor {
	t.Helper()
	for i := from; i < to; i++ {
		d := api.Datum{LossInputs: map[string]api.TensorData{}}
		var tokens []int32
		var targets []int64
		for j := range 12 {
			tokens, targets = append(tokens, int32((i*7+j*j)%13)), append(targets, int64((i+3*j)%13))
		}
		d.ModelInput, d.LossInputs["target_tokens"] = api.FromInts(tokens), api.Ints(targets)
		f, err := r.ForwardBackward(api.ForwardBackwardInput{LossFn: "cross_entropy", Data: []api.Datum{d}})
		done(t, f, err)
		p := api.DefaultAdam()
		p.LearningRate = 1e-2
		g, err := r.OptimStep(p)
		done(t, g, err)
	}
	f, err := r.Weights()
	return done(t, f, err).Tensors
}

func sameWeights(a, b []lora.Tensor) bool {
	return slices.EqualFunc(a, b, func(x, y lora.Tensor) bool { return x.Name == y.Name && slices.Equal(x.Values, y.Values) })
}

// TestMoveRun: a run that went to another machine in an archive goes on with the bits of one that never stopped.
func TestMoveRun(t *testing.T) {
	ctx := context.Background()
	for name := range portable {
		t.Run(name, func(t *testing.T) {
			here, there := machine(t, portable), machine(t, portable)
			f, err := here.NewSession().NewRun(api.CreateModelRequest{BaseModel: name, Lora: api.LoraConfig{Rank: 4, TrainAttn: true, TrainMLP: true, TrainUnembed: true}})
			r := done(t, f, err)
			steps(t, r, 0, 3)
			g, err := r.SaveState("here", api.SaveOptions{})
			was := done(t, g, err)
			want := steps(t, r, 3, 6)

			from, err := here.Checkpoints().Open(ctx, was.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer from.Close()
			x, err := interchange.PlanArchive(from, interchange.ArchiveOptions{Optimizer: true})
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "run.tar")
			if err := x.Write(ctx, file, interchange.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
			if w, err := ReadAdapter(file); err != nil || w.Lora.Rank != 4 || len(w.Tensors) != len(want) || w.Scale != 8 {
				t.Errorf("read from the archive: %+v, %d tensors, %v", w.Lora, len(w.Tensors), err)
			}
			src, err := interchange.OpenArchive(ctx, file, interchange.ReadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			to := api.Checkpoint{Path: api.Path{Run: "moved", Kind: api.KindState, Name: "start"}, Owner: "local"}
			got, err := interchange.Import(ctx, src, sitesOf(t, name), there.Checkpoints(), to, interchange.ImportOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if got.SHA256 != was.SHA256 || got.Step != was.Step || got.Version != was.Version || *got.Lora.Seed != *was.Lora.Seed {
				t.Errorf("arrived as %+v, was %+v", got, was)
			}
			for _, optimizer := range []bool{true, false} {
				h, err := there.NewSession().NewRunFrom(engine.RunSource{Path: got.Path.String(), Optimizer: optimizer})
				after := steps(t, done(t, h, err), 3, 6)
				if sameWeights(after, want) != optimizer {
					t.Errorf("with the optimizer's state %v: the same weights as without a stop is %v", optimizer, !optimizer)
				}
			}
		})
	}
}

// TestPartOfAnAdapter: an adapter of some modules samples as it is, and the same after it was completed; training goes on from it.
func TestPartOfAnAdapter(t *testing.T) {
	ctx := context.Background()
	e := machine(t, portable)
	s := e.NewSession()
	f, err := s.NewRun(api.CreateModelRequest{BaseModel: "dense", Lora: api.LoraConfig{Rank: 3, TrainAttn: true, TrainMLP: true}})
	r := done(t, f, err)
	steps(t, r, 0, 3)
	g, err := r.Weights()
	w := done(t, g, err)
	w.Tensors = slices.DeleteFunc(slices.Clone(w.Tensors), func(x lora.Tensor) bool {
		return !strings.Contains(x.Name, "layers.1.") || strings.Contains(x.Name, "k_proj") || strings.Contains(x.Name, "up_proj")
	})
	w.Scale = 3.7 // its own
	dir := filepath.Join(t.TempDir(), "a")
	if err := WriteAdapter(dir, "dense", w); err != nil {
		t.Fatal(err)
	}
	read, err := ReadAdapter(dir)
	if err != nil {
		t.Fatal(err)
	}
	src, err := interchange.OpenPEFT(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	to := api.Checkpoint{Path: api.Path{Run: "imported", Kind: api.KindState, Name: "x"}, Owner: "local"}
	c, err := interchange.Import(ctx, src, sitesOf(t, "dense"), e.Checkpoints(), to, interchange.ImportOptions{Seed: 9})
	if err != nil {
		t.Fatal(err)
	}
	if c.Optimizer || c.Step != 0 || *c.Lora.Seed != 9 || c.BaseModel != "dense" || !c.Lora.TrainAttn || !c.Lora.TrainMLP || c.Lora.TrainUnembed {
		t.Errorf("%+v", c)
	}
	a, err := s.NewAdapterSampler("dense", read)
	part := done(t, a, err)
	b, err := s.NewSamplerFrom(c.Path.String())
	completed := done(t, b, err)
	bare, err := s.NewSampler("dense")
	var out []string
	for _, p := range []*engine.Sampler{part, completed, done(t, bare, err)} {
		f, err := p.Sample(ctx, api.SampleRequest{Prompt: api.FromInts([]int32{1, 2, 3}), NumSamples: 1, Params: api.SamplingParams{MaxTokens: 8, Temperature: 1, Seed: c.Lora.Seed, TopP: 1, TopK: -1}, PromptLogProbs: true})
		out = append(out, fmt.Sprint(done(t, f, err)))
	}
	if out[0] != out[1] || out[0] == out[2] {
		t.Errorf("part of an adapter, completed, and none:\n%s", strings.Join(out, "\n"))
	}
	h, err := s.NewRunFrom(engine.RunSource{Path: c.Path.String()})
	run := done(t, h, err)
	before := steps(t, run, 0, 0)
	moved := 0
	for i, x := range steps(t, run, 0, 2) {
		if !slices.Equal(x.Values, before[i].Values) {
			moved++
		}
	}
	if moved != len(before) {
		t.Errorf("%d of %d factors are trained", moved, len(before))
	}
	var fresh bytes.Buffer // the factors that were missing are those of a fresh run of the seed
	seed := int64(9)
	n, err := s.NewRun(api.CreateModelRequest{BaseModel: "dense", Lora: api.LoraConfig{Rank: 3, TrainAttn: true, TrainMLP: true, Seed: &seed}})
	for i, x := range steps(t, done(t, n, err), 0, 0) {
		if strings.Contains(x.Name, "layers.0.") && !slices.Equal(x.Values, before[i].Values) {
			fmt.Fprintln(&fresh, x.Name)
		}
	}
	if fresh.Len() > 0 {
		t.Errorf("not as in a fresh run: %s", &fresh)
	}
}
