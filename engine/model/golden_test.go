package model_test

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// goldenModels are the tiny models under testdata, each a Hugging Face folder with its golden. What
// the files hold, and how they are made, is in testdata/README.md.
var goldenModels = []string{"qwen3-tied", "qwen3-untied", "qwen3moe-hub", "qwen3moe-fused", "llama", "qwen2", "mistral"}

// goldenFormat is the version of the layout that make_goldens.py writes.
const goldenFormat = 1

// noiseFactor is how far our float32 results may lie from the float64 golden, in units of the noise:
// the distance of torch's own float32 evaluations from it.
const noiseFactor = 10

// golden is what torch computes with one tiny model. Losses are sums, never means. A field named F64
// is the value to compare with; F32 is what torch gets in float32, for information. Noise is the
// largest absolute difference between float32 evaluations and F64, over all entries of the
// quantity that it stands beside.
type golden struct {
	Dir      string            `json:"-"` // the model's folder
	Format   int               `json:"format"`
	Name     string            `json:"name"`
	Seed     int64             `json:"seed"`
	Versions map[string]string `json:"versions"`

	Batch []goldenDatum `json:"batch"`

	// Base is the batch with no adapter, Adapter and AdapterAttn with the adapter of that name.
	// Adapter gradients of one batch that holds every datum once per adapter are those of the two.
	Base        goldenEval `json:"base"`
	Adapter     goldenEval `json:"adapter"`
	AdapterAttn goldenEval `json:"adapter_attn"`

	Train  goldenTrain    `json:"train"`
	Greedy []goldenGreedy `json:"greedy"`
}

// goldenDatum is one sequence: Tokens[i] predicts Targets[i] with weight Weights[i]. Every weight is
// a float32 exactly.
type goldenDatum struct {
	Tokens  []int     `json:"tokens"`
	Targets []int     `json:"target_tokens"`
	Weights []float64 `json:"weights"`
}

// goldenEval is one forward and backward of the batch; loss = -sum of weight times log probability.
type goldenEval struct {
	AdapterName string `json:"adapter"` // folder below Dir; "" is no adapter

	LossF64   float64 `json:"loss_f64"`
	LossF32   float64 `json:"loss_f32"`
	LossNoise float64 `json:"loss_noise"`

	// Log probabilities of the targets, per datum and position.
	LogprobsF64   [][]float64 `json:"logprobs_f64"`
	LogprobsF32   [][]float64 `json:"logprobs_f32"`
	LogprobsNoise float64     `json:"logprobs_noise"`

	// dLoss/dA and dLoss/dB under the tensor's name in the adapter's file; empty for the base.
	GradsF64   map[string]goldenTensor `json:"-"`
	GradsF32   map[string]goldenTensor `json:"-"`
	GradsNoise map[string]float64      `json:"grads_noise"`

	// Only for the base: the logits [T, V] of datum LogitsDatum, and the float32 inverse frequencies
	// of the rotation, one per pair of a head.
	LogitsDatum int          `json:"logits_datum"`
	LogitsF64   goldenTensor `json:"-"`
	LogitsF32   goldenTensor `json:"-"`
	LogitsNoise float64      `json:"logits_noise"`
	RopeInvFreq []float64    `json:"rope_inv_freq"`
}

// goldenTrain is a run of optimiser steps on the batch from the adapter AdapterName (B is zero there).
type goldenTrain struct {
	AdapterName string       `json:"adapter"`
	Steps       []goldenStep `json:"steps"`
	// Final is the loss after the last step.
	Final goldenLoss `json:"final"`
	// The adapter's tensors after the last step, under their names in the adapter's file.
	TensorsF64   map[string]goldenTensor `json:"-"`
	TensorsF32   map[string]goldenTensor `json:"-"`
	TensorsNoise map[string]float64      `json:"tensors_noise"`
}

type goldenLoss struct {
	F64   float64 `json:"loss_f64"`
	F32   float64 `json:"loss_f32"`
	Noise float64 `json:"loss_noise"`
}

// goldenStep is a forward and backward of the whole batch and one optimiser step.
type goldenStep struct {
	LR          float64 `json:"lr"`
	Beta1       float64 `json:"beta1"`
	Beta2       float64 `json:"beta2"`
	Eps         float64 `json:"eps"`
	WeightDecay float64 `json:"weight_decay"`
	Clip        float64 `json:"clip"`    // limit of the global gradient norm; 0 is off
	Clipped     bool    `json:"clipped"` // the limit bound

	goldenLoss            // before the step
	GradNormF64   float64 `json:"grad_norm_f64"` // global, before clipping
	GradNormF32   float64 `json:"grad_norm_f32"`
	GradNormNoise float64 `json:"grad_norm_noise"`
}

// goldenGreedy is one greedy generation. No stop token exists.
type goldenGreedy struct {
	AdapterName   string    `json:"adapter"` // folder below Dir; "" is no adapter
	Prompt        []int     `json:"prompt"`
	Tokens        []int     `json:"tokens"` // the new tokens
	LogprobsF64   []float64 `json:"logprobs_f64"`
	LogprobsF32   []float64 `json:"logprobs_f32"`
	LogprobsNoise float64   `json:"logprobs_noise"`
	// Margin is the smallest lead, in logits, of a chosen token over its runner-up.
	Margin float64 `json:"margin"`
}

// goldenTensor is a dense tensor, row by row, widened to float64.
type goldenTensor struct {
	Shape []int
	Data  []float64
}

// loadGolden reads testdata/dir. It reads with code of its own, so that a fault of our readers
// shows up as a difference.
func loadGolden(t testing.TB, dir string) golden {
	t.Helper()
	dir = filepath.Join("testdata", dir)
	raw, err := os.ReadFile(filepath.Join(dir, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	g := golden{Dir: dir}
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatalf("%s/golden.json: %v", dir, err)
	}
	if g.Format != goldenFormat {
		t.Fatalf("%s/golden.json: format is %d, wanted %d", dir, g.Format, goldenFormat)
	}
	tensors := readGoldenTensors(t, filepath.Join(dir, "golden.safetensors"))
	under := func(prefix string) map[string]goldenTensor {
		m := map[string]goldenTensor{}
		for k, v := range tensors {
			if name, ok := strings.CutPrefix(k, prefix); ok {
				m[name] = v
			}
		}
		return m
	}
	for _, e := range []*goldenEval{&g.Base, &g.Adapter, &g.AdapterAttn} {
		e.GradsF64 = under("grad/" + e.AdapterName + "/f64/")
		e.GradsF32 = under("grad/" + e.AdapterName + "/f32/")
	}
	g.Base.LogitsF64, g.Base.LogitsF32 = tensors["logits/f64"], tensors["logits/f32"]
	g.Train.TensorsF64, g.Train.TensorsF32 = under("final/f64/"), under("final/f32/")
	return g
}

// readGoldenTensors reads the F32 and F64 tensors of a safetensors file.
func readGoldenTensors(t testing.TB, path string) map[string]goldenTensor {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) < 8 || binary.LittleEndian.Uint64(raw) > uint64(len(raw)-8) {
		t.Fatalf("%s: no header", path)
	}
	head := binary.LittleEndian.Uint64(raw)
	var entries map[string]json.RawMessage
	if err := json.Unmarshal(raw[8:8+head], &entries); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	body, tensors := raw[8+head:], map[string]goldenTensor{}
	for name, e := range entries {
		if name == "__metadata__" {
			continue
		}
		var entry struct {
			DType   string `json:"dtype"`
			Shape   []int  `json:"shape"`
			Offsets [2]int `json:"data_offsets"`
		}
		if err := json.Unmarshal(e, &entry); err != nil {
			t.Fatalf("%s: %s: %v", path, name, err)
		}
		n := 1
		for _, d := range entry.Shape {
			n *= d
		}
		width := map[string]int{"F32": 4, "F64": 8}[entry.DType]
		if width == 0 || entry.Offsets[0] < 0 || entry.Offsets[1] > len(body) || entry.Offsets[1]-entry.Offsets[0] != n*width {
			t.Fatalf("%s: %s: %s of shape %v at %v of %d bytes", path, name, entry.DType, entry.Shape, entry.Offsets, len(body))
		}
		data := make([]float64, n)
		for i := range data {
			if at := body[entry.Offsets[0]+i*width:]; width == 4 {
				data[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(at)))
			} else {
				data[i] = math.Float64frombits(binary.LittleEndian.Uint64(at))
			}
		}
		tensors[name] = goldenTensor{entry.Shape, data}
	}
	return tensors
}

// TestGoldensAreConsistent checks the goldens against themselves: lengths, names and shapes agree, and
// what torch computes in float32 lies within the noise that is stated for it.
func TestGoldensAreConsistent(t *testing.T) {
	for _, name := range goldenModels {
		t.Run(name, func(t *testing.T) {
			g := loadGolden(t, name)
			if g.Name != name || g.Versions["torch"] == "" || len(g.Batch) == 0 || len(g.Train.Steps) == 0 || len(g.Greedy) == 0 {
				t.Fatalf("golden of %q, made by %v, has %d datums, %d steps, %d generations", g.Name, g.Versions, len(g.Batch), len(g.Train.Steps), len(g.Greedy))
			}
			var cfg struct {
				Vocab   int `json:"vocab_size"`
				HeadDim int `json:"head_dim"`
				Hidden  int `json:"hidden_size"`
				Heads   int `json:"num_attention_heads"`
			}
			raw, err := os.ReadFile(filepath.Join(g.Dir, "config.json"))
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(raw, &cfg); err != nil {
				t.Fatal(err)
			}
			if cfg.HeadDim == 0 {
				cfg.HeadDim = cfg.Hidden / cfg.Heads
			}

			for i, d := range g.Batch {
				if n := len(d.Tokens); n == 0 || len(d.Targets) != n || len(d.Weights) != n {
					t.Errorf("datum %d: %d tokens, %d targets, %d weights", i, n, len(d.Targets), len(d.Weights))
				}
				for _, w := range d.Weights {
					if float64(float32(w)) != w {
						t.Errorf("datum %d: weight %v is not a float32", i, w)
					}
				}
			}

			for _, e := range []goldenEval{g.Base, g.Adapter, g.AdapterAttn} {
				loss := 0.0
				for i, d := range g.Batch {
					checkClose(t, e.AdapterName+" logprobs", e.LogprobsF64[i], e.LogprobsF32[i], e.LogprobsNoise)
					for j, w := range d.Weights {
						loss -= w * e.LogprobsF64[i][j]
					}
				}
				if len(e.LogprobsF64) != len(g.Batch) || math.Abs(loss-e.LossF64) > 1e-10 {
					t.Errorf("adapter %q: %d logprob lists give loss %v, golden %v", e.AdapterName, len(e.LogprobsF64), loss, e.LossF64)
				}
				checkClose(t, e.AdapterName+" loss", []float64{e.LossF64}, []float64{e.LossF32}, e.LossNoise)
				if e.AdapterName == "" {
					if len(e.GradsF64) != 0 {
						t.Errorf("the base has %d gradients", len(e.GradsF64))
					}
					continue
				}
				checkTensors(t, e.AdapterName+" gradient", adapterTensors(t, g, e.AdapterName), e.GradsF64, e.GradsF32, e.GradsNoise)
			}

			want := []int{len(g.Batch[g.Base.LogitsDatum].Tokens), cfg.Vocab}
			if s := g.Base.LogitsF64.Shape; len(s) != 2 || s[0] != want[0] || s[1] != want[1] {
				t.Errorf("logits have shape %v, wanted %v", s, want)
			}
			checkClose(t, "logits", g.Base.LogitsF64.Data, g.Base.LogitsF32.Data, g.Base.LogitsNoise)
			if len(g.Base.RopeInvFreq) != cfg.HeadDim/2 {
				t.Errorf("%d inverse frequencies, wanted %d", len(g.Base.RopeInvFreq), cfg.HeadDim/2)
			}

			start := adapterTensors(t, g, g.Train.AdapterName)
			for k, v := range start {
				for _, x := range v.Data {
					if strings.Contains(k, "lora_B") && x != 0 {
						t.Fatalf("%s: %s is not zero", g.Train.AdapterName, k)
					}
				}
			}
			checkTensors(t, "final", start, g.Train.TensorsF64, g.Train.TensorsF32, g.Train.TensorsNoise)
			last := 0.0
			for i, s := range g.Train.Steps {
				checkClose(t, "step loss", []float64{s.F64}, []float64{s.F32}, s.Noise)
				checkClose(t, "gradient norm", []float64{s.GradNormF64}, []float64{s.GradNormF32}, s.GradNormNoise)
				if s.Clipped != (s.Clip > 0 && s.GradNormF64 > s.Clip) || s.Noise < last || s.LR <= 0 {
					t.Errorf("step %d: %+v after noise %v", i, s, last)
				}
				last = s.Noise
			}
			if first := g.Train.Steps[0]; first.F64 != g.Base.LossF64 || g.Train.Final.F64 >= first.F64 {
				t.Errorf("training starts at loss %v and ends at %v; the base has %v", first.F64, g.Train.Final.F64, g.Base.LossF64)
			}
			checkClose(t, "final loss", []float64{g.Train.Final.F64}, []float64{g.Train.Final.F32}, g.Train.Final.Noise)

			for i, r := range g.Greedy {
				if len(r.Prompt) == 0 || len(r.Tokens) == 0 || r.Margin < 2*noiseFactor*r.LogprobsNoise {
					t.Errorf("generation %d: %d tokens after %d, margin %v, noise %v", i, len(r.Tokens), len(r.Prompt), r.Margin, r.LogprobsNoise)
				}
				if len(r.Tokens) != len(r.LogprobsF64) {
					t.Errorf("generation %d: %d tokens, %d logprobs", i, len(r.Tokens), len(r.LogprobsF64))
				}
				checkClose(t, "generated logprobs", r.LogprobsF64, r.LogprobsF32, r.LogprobsNoise)
			}
		})
	}
}

// adapterTensors reads the named adapter below g.Dir.
func adapterTensors(t testing.TB, g golden, name string) map[string]goldenTensor {
	t.Helper()
	return readGoldenTensors(t, filepath.Join(g.Dir, name, "adapter_model.safetensors"))
}

// checkTensors compares two sets that must have the names and shapes of like.
func checkTensors(t testing.TB, what string, like, f64, f32 map[string]goldenTensor, noise map[string]float64) {
	t.Helper()
	if len(f64) != len(like) || len(f32) != len(like) || len(noise) != len(like) {
		t.Errorf("%s: %d, %d tensors and %d noises, wanted %d", what, len(f64), len(f32), len(noise), len(like))
	}
	for k, v := range like {
		if s := f64[k].Shape; !slices.Equal(s, v.Shape) {
			t.Errorf("%s: %s has shape %v, wanted %v", what, k, s, v.Shape)
		}
		checkClose(t, what+" "+k, f64[k].Data, f32[k].Data, noise[k])
	}
}

// checkClose compares two lists of one length; noise is a positive bound of their difference.
func checkClose(t testing.TB, what string, want, got []float64, noise float64) {
	t.Helper()
	if len(want) == 0 || len(want) != len(got) || !(noise > 0) {
		t.Errorf("%s: %d and %d values, noise %v", what, len(want), len(got), noise)
		return
	}
	for i := range want {
		if d := math.Abs(want[i] - got[i]); !(d <= noise) {
			t.Errorf("%s: entry %d: %v and %v differ by more than %v", what, i, want[i], got[i], noise)
			return
		}
	}
}
