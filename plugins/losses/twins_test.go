package losses

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
)

// twinCases are the engine's goldens of those built-in losses that have a twin here.
func twinCases() []golden {
	raw, err := os.ReadFile("../../engine/loss/testdata/losses.json")
	if err != nil {
		panic(err)
	}
	var file struct {
		Cases []struct {
			LossFn  string `json:"loss_fn"`
			Config  map[string]float64
			Loss    float64
			Weights [][]float64
			Datums  []map[string]struct {
				Shape []int
				Data  []float32
			}
		}
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		panic(err)
	}
	var out []golden
	for _, c := range file.Cases {
		if !slices.Contains(twins, c.LossFn) {
			continue
		}
		g := golden{Loss: c.LossFn, Config: c.Config, Value: c.Loss, Weights: c.Weights}
		for _, d := range c.Datums {
			t := d["logprobs_model"]
			dims := [2]int{t.Shape[0], 1}
			if len(t.Shape) == 2 {
				dims[1] = t.Shape[1]
			}
			floats := map[string][]float32{}
			for name, x := range d {
				if name != "logprobs_model" {
					floats[name] = x.Data
				}
			}
			g.Data = append(g.Data, struct {
				Dims     [2]int
				Logprobs []float32
				Floats   map[string][]float32
				Ints     map[string][]int64
			}{dims, t.Data, floats, nil})
		}
		out = append(out, g)
	}
	return out
}

// builtin evaluates the engine's own loss of that name on a batch.
func builtin(t *testing.T, name string, b batch) loss.Output {
	t.Helper()
	l, err := loss.Builtin(name)
	if err != nil {
		t.Fatal(err)
	}
	in := loss.Input{Config: b.config}
	for _, d := range b.data {
		shape := []int{d.dims[0]}
		if d.dims[1] > 1 {
			shape = []int{d.dims[0], d.dims[1]}
		}
		inputs := map[string]api.TensorData{"target_tokens": {Ints: make([]int64, len(d.logprobs)), Shape: shape}}
		for key, x := range d.inputs {
			inputs[key] = api.TensorData{Floats: x.floats, Shape: shape}
		}
		in.Data, in.LogProbs = append(in.Data, api.Datum{LossInputs: inputs}), append(in.LogProbs, d.logprobs)
	}
	if err := loss.Check(l, in.Data, in.Config); err != nil {
		t.Fatal(err)
	}
	out, err := l.Eval(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestTwins: cross_entropy's bits are the built-in's, for masked infinities too; the others' weights, up to one unit in
// the last place of float32 (their exponentials may differ in the last bit of float64).
func TestTwins(t *testing.T) {
	wasm := all(t)
	for i, g := range twinCases() {
		t.Run(fmt.Sprint(i, " ", g.Loss), func(t *testing.T) {
			b := g.batch()
			if g.Loss == "cross_entropy" {
				b.data[0].logprobs[0] = float32(math.Inf(-1)) // its weight is 0
				delete(b.data[1].inputs, "weights")           // ones
			}
			want := builtin(t, g.Loss, b)
			got, err := load(t, wasm[g.Loss]).run(t, b)
			if err != nil {
				t.Fatal(err)
			}
			if want := want.Metrics["loss:sum"]; got.loss != want && (g.Loss == "cross_entropy" || math.Abs(got.loss-want) > 1e-12*math.Abs(want)) {
				t.Errorf("loss %v, the built-in has %v", got.loss, want)
			}
			for d := range want.Weights {
				for j, w := range want.Weights[d] {
					apart := int64(math.Float32bits(w)) - int64(math.Float32bits(got.weights[d][j]))
					if apart != 0 && (g.Loss == "cross_entropy" || apart < -1 || apart > 1) {
						t.Errorf("datum %d weight %d is %v, the built-in has %v", d, j, got.weights[d][j], w)
					}
				}
			}
		})
	}
}
