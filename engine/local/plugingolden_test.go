package local_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
	"tinkerlocal/engine/loss"
	"tinkerlocal/kernels/cpu"
	"tinkerlocal/plugins/losses"
)

// pluginGolden is what torch computes: see testdata/make_plugin_goldens.py.
type pluginGolden struct {
	Format  int
	Model   string
	Adapter string
	Factors []string
	Cases   []pluginCase
}

// pluginCase is one batch with a loss.
type pluginCase struct {
	Loss          string
	Config        map[string]float64
	Value         float64
	ValueNoise    float64 `json:"value_noise"`
	WeightsNoise  float64 `json:"weights_noise"`
	LogProbsNoise float64 `json:"logprobs_noise"`
	Data          []struct {
		Tokens   []int32
		Targets  []int64 `json:"target_tokens"`
		Dims     []int
		LogProbs []float64
		Weights  []float64
		Floats   map[string][]float32
		Ints     map[string][]int64
	}
	Gradients [][5]float64 // of each factor: norm, three projections, their noise
}

func (c pluginCase) batch() (data []api.Datum) {
	for _, d := range c.Data {
		in := map[string]api.TensorData{"target_tokens": {Ints: d.Targets, Shape: d.Dims}}
		for name, v := range d.Floats {
			in[name] = api.TensorData{Floats: v, Shape: []int{len(v)}}
			if len(v) == len(d.Targets) {
				in[name] = api.TensorData{Floats: v, Shape: d.Dims}
			}
		}
		for name, v := range d.Ints {
			in[name] = api.Ints(v)
		}
		data = append(data, api.Datum{ModelInput: api.FromInts(d.Tokens), LossInputs: in})
	}
	return data
}

// noiseFactor is that of engine/model's goldens: how far our float32 results may lie from the float64 golden, in units
// of the distance of torch's own float32 evaluations from it.
const noiseFactor = 10

func readPluginGolden(t *testing.T) (g pluginGolden) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "plugin_goldens.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &g); err != nil {
		t.Fatal(err)
	}
	if g.Format != 1 {
		t.Fatalf("format %d", g.Format)
	}
	return g
}

// TestPluginGoldens: with every bundled loss, one forward_backward through a whole model has torch's loss, torch's weights, and
// torch's gradient in every factor of the adapter.
func TestPluginGoldens(t *testing.T) {
	g := readPluginGolden(t)
	p := openPlugins(t)
	base, err := filepath.Abs(filepath.Join("..", "model", "testdata", g.Model))
	if err != nil {
		t.Fatal(err)
	}
	start, err := local.ReadAdapter(filepath.Join(base, g.Adapter))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, variant := range []string{"portable", ""} {
		dev, err := cpu.Open(cpu.Options{Variant: variant, Threads: 2})
		if err != nil {
			t.Fatal(err)
		}
		e := openEngine(t, func(o *engine.Options) { o.Device, o.Models = dev, local.Models{} })
		for i, c := range g.Cases {
			t.Run(fmt.Sprint(e.Device().Variant, " ", i, " ", c.Loss), func(t *testing.T) {
				seen[c.Loss] = true
				data := c.batch()
				r := newRun(t, e, base, start.Lora.Rank, 1)
				defer r.Close()
				l, err := r.Load(start)
				done(t, l, err)
				plugin := use(t, p, c.Loss)
				f, err := r.ForwardBackwardCustom(data, plugin, c.Config)
				out := done(t, f, err)
				if got := out.Metrics["loss:sum"]; !within(got, c.Value, c.ValueNoise) {
					t.Errorf("loss %v, torch has %v with noise %v", got, c.Value, c.ValueNoise)
				}
				lp := logProbs(out)
				w, err := plugin.Eval(t.Context(), loss.Input{Data: data, LogProbs: lp, Config: c.Config})
				if err != nil {
					t.Fatal(err)
				}
				for i, d := range c.Data {
					for j := range d.LogProbs {
						if got := float64(lp[i][j]); !within(got, d.LogProbs[j], c.LogProbsNoise) {
							t.Errorf("datum %d log-probability %d is %v, torch has %v with noise %v", i, j, got, d.LogProbs[j], c.LogProbsNoise)
						}
						if got := float64(w.Weights[i][j]); !within(got, d.Weights[j], c.WeightsNoise) {
							t.Errorf("datum %d weight %d is %v, torch has %v with noise %v", i, j, got, d.Weights[j], c.WeightsNoise)
						}
					}
				}
				have := gradients(t, e, r)
				if len(have) != len(g.Factors) {
					t.Errorf("%d gradients, torch has %d", len(have), len(g.Factors))
				}
				for i, name := range g.Factors {
					want := c.Gradients[i]
					for k, got := range projections(have[strings.TrimPrefix(name, "base_model.model.")]) {
						if !within(got, want[k], want[4]) {
							t.Errorf("gradient of %s: number %d is %v, torch has %v with noise %v", name, k, got, want[k], want[4])
						}
					}
				}
			})
		}
	}
	for name := range losses.Bundled() {
		if !seen[name] {
			t.Errorf("%s has no golden", name)
		}
	}
}

// TestPluginsTogether: runs that train at the same time, each with another loss, have the bits that each has alone.
func TestPluginsTogether(t *testing.T) {
	g := readPluginGolden(t)
	p := openPlugins(t)
	base, err := filepath.Abs(filepath.Join("..", "model", "testdata", g.Model))
	if err != nil {
		t.Fatal(err)
	}
	open := func() *engine.Engine {
		return openEngine(t, func(o *engine.Options) { o.Models, o.Limits.MicroBatchTokens = local.Models{}, 32 })
	}
	train := func(r *engine.Run, c pluginCase) ([]float32, error) {
		l, err := p.Use(t.Context(), c.Loss)
		if err != nil {
			return nil, err
		}
		for range 3 {
			if _, err := outcome(r.ForwardBackwardCustom(c.batch(), l.Loss, c.Config)); err != nil {
				return nil, err
			}
			if _, err := outcome(r.OptimStep(api.AdamParams{LearningRate: 0.01, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8})); err != nil {
				return nil, err
			}
		}
		w, err := outcome(r.Weights())
		var factors []float32
		for _, x := range w.Tensors {
			factors = append(factors, x.Values...)
		}
		return factors, err
	}
	e := open()
	together, errs := make([][]float32, len(g.Cases)), make([]error, len(g.Cases))
	var wg sync.WaitGroup
	for i, c := range g.Cases {
		r := newRun(t, e, base, 2, 1)
		wg.Go(func() { together[i], errs[i] = train(r, c) })
	}
	wg.Wait()
	for i, c := range g.Cases {
		alone, err := train(newRun(t, open(), base, 2, 1), c)
		if err != nil || errs[i] != nil || !slices.Equal(alone, together[i]) {
			t.Errorf("%s: errors %v and %v, or other bits beside other runs than alone", c.Loss, err, errs[i])
		}
	}
}

func within(got, want, noise float64) bool { return math.Abs(got-want) <= noiseFactor*noise }

// projections are the norm of a gradient and three sums over it, as the script makes them.
func projections(g []float32) [4]float64 {
	out := [4]float64{norm(g)}
	for i, x := range g {
		for k := 1; k <= 3; k++ {
			out[k] += float64(x) * math.Cos(float64((i+1)*k))
		}
	}
	return out
}
