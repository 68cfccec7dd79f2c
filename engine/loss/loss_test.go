package loss

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
)

// goldenCase is one evaluation by torch autograd: see testdata/make_goldens.py.
type goldenCase struct {
	LossFn  string             `json:"loss_fn"`
	Config  map[string]float64 `json:"config"`
	Loss    float64            `json:"loss"`
	Weights [][]float64        `json:"weights"`
	Datums  []map[string]struct {
		Shape []int     `json:"shape"`
		Data  []float64 `json:"data"`
	} `json:"datums"`
}

func goldenCases(t *testing.T) []goldenCase {
	t.Helper()
	raw, err := os.ReadFile("testdata/losses.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Cases []goldenCase }
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	return file.Cases
}

// input is the case as a loss sees it.
func (g goldenCase) input() Input {
	in := Input{Config: g.Config}
	for _, d := range g.Datums {
		inputs := map[string]api.TensorData{}
		var lp []float32
		for name, x := range d {
			v := make([]float32, len(x.Data))
			for i := range v {
				v[i] = float32(x.Data[i])
			}
			if name == "logprobs_model" {
				lp = v
				inputs["target_tokens"] = api.TensorData{Ints: make([]int64, len(v)), Shape: x.Shape}
			} else {
				inputs[name] = api.TensorData{Floats: v, Shape: x.Shape}
			}
		}
		in.Data = append(in.Data, api.Datum{LossInputs: inputs})
		in.LogProbs = append(in.LogProbs, lp)
	}
	return in
}

func eval(t *testing.T, name string, in Input) Output {
	t.Helper()
	l, err := Builtin(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := Check(l, in.Data, in.Config); err != nil {
		t.Fatal(err)
	}
	out, err := l.Eval(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestGoldens: value and weights equal torch autograd's in float64, to float32's rounding of the weights.
func TestGoldens(t *testing.T) {
	for i, g := range goldenCases(t) {
		t.Run(fmt.Sprint(i, " ", g.LossFn), func(t *testing.T) {
			out := eval(t, g.LossFn, g.input())
			if got := out.Metrics["loss:sum"]; math.Abs(got-g.Loss) > 1e-12*math.Max(1, math.Abs(g.Loss)) {
				t.Errorf("loss %v, torch has %v", got, g.Loss)
			}
			for d := range g.Weights {
				for j, want := range g.Weights[d] {
					if got := out.Weights[d][j]; math.Abs(float64(got)-want) > math.Abs(want)/(1<<23) {
						t.Errorf("datum %d weight %d is %v, torch has %v", d, j, got, want)
					}
				}
			}
		})
	}
}

// TestFiniteDifferences: w = -dL/dlogprob for every loss. cispo stops the gradient of the ratio, so there q moves with
// t and the ratio stays; its value is then linear in t, and a long step keeps rounding of the ratio small.
func TestFiniteDifferences(t *testing.T) {
	for i, g := range goldenCases(t) {
		step := float32(1.0 / 1024) // exact in float32 beside log-probabilities of a few units
		if g.LossFn == "cispo" {
			step = 4
		}
		in := g.input()
		out := eval(t, g.LossFn, in)
		checked := 0
		for d := range in.LogProbs {
			for j := range in.LogProbs[d] {
				at := func(delta float32) (loss, weight float64) {
					old := in.LogProbs[d][j]
					in.LogProbs[d][j] = old + delta
					if g.LossFn == "cispo" {
						q := &in.Data[d].LossInputs["logprobs"].Floats[j]
						defer func(old float32) { *q = old }(*q)
						*q += delta
					}
					o := eval(t, g.LossFn, in)
					in.LogProbs[d][j] = old
					return o.Metrics["loss:sum"], float64(o.Weights[d][j])
				}
				hi, wHi := at(step)
				lo, wLo := at(-step)
				if wHi == 0 != (wLo == 0) {
					continue // a clip's corner lies between: no derivative there
				}
				checked++
				moved := float64(in.LogProbs[d][j]+step) - float64(in.LogProbs[d][j]-step)
				want, got := -(hi-lo)/moved, float64(out.Weights[d][j])
				if math.Abs(got-want) > 1e-5*math.Max(1, math.Abs(want)) {
					t.Errorf("case %d %s: datum %d weight %d is %v, the difference quotient %v", i, g.LossFn, d, j, got, want)
				}
			}
		}
		if checked == 0 {
			t.Errorf("case %d: nothing was checked", i)
		}
	}
}

// TestMaskedPositions: a position of weight or advantage 0 may have any log-probability.
func TestMaskedPositions(t *testing.T) {
	inf := float32(math.Inf(-1))
	for _, name := range []string{"cross_entropy", "importance_sampling", "ppo", "cispo"} {
		in := Input{
			Data: []api.Datum{{LossInputs: map[string]api.TensorData{
				"target_tokens": api.Ints([]int64{1, 2}), "weights": api.Floats([]float32{0, 1}),
				"logprobs": api.Floats([]float32{0, -1}), "advantages": api.Floats([]float32{0, 1}),
			}}},
			LogProbs: [][]float32{{inf, -1}},
		}
		out := eval(t, name, in)
		if l := out.Metrics["loss:sum"]; math.IsNaN(l) || math.IsInf(l, 0) || out.Weights[0][0] != 0 {
			t.Errorf("%s: loss %v, weight %v of a masked position", name, l, out.Weights[0][0])
		}
	}
}

// TestRefused: every wrong input is named with its datum, what was wanted and what was got.
func TestRefused(t *testing.T) {
	good := func() map[string]api.TensorData {
		return map[string]api.TensorData{
			"target_tokens": api.Ints([]int64{1, 2}), "weights": api.Floats([]float32{1, 1}),
			"logprobs": api.Floats([]float32{-1, -1}), "advantages": api.Floats([]float32{1, 1}),
		}
	}
	nan := float32(math.NaN())
	for _, c := range []struct {
		loss   string
		config map[string]float64
		edit   func(map[string]api.TensorData)
		want   string
	}{
		{"cross_entropy", map[string]float64{"beta": 1}, nil, `loss_fn_config: cross_entropy does not know "beta", wanted no keys`},
		{"ppo", map[string]float64{"epsilon": 1}, nil, `loss_fn_config: ppo does not know "epsilon", wanted clip_low_threshold, clip_high_threshold`},
		{"ppo", map[string]float64{keyLow: 2}, nil, "datum 0: position 0 is clipped to 2..1.2, wanted 0 <= low <= high"},
		{"ppo", map[string]float64{keyLow: -1}, nil, "clipped to -1..1.2"},
		{"cispo", map[string]float64{keyHigh: math.Inf(1)}, nil, "clip_high_threshold is +Inf, wanted a finite number"},
		{"dro", nil, nil, `loss_fn_config: dro needs "beta"; it has no default`},
		{"dro", map[string]float64{"beta": -1}, nil, "beta is -1, wanted at least 0"},
		{"dro", map[string]float64{"beta": 1}, func(m map[string]api.TensorData) { m[keyLow] = api.Floats([]float32{1, 1}) }, `dro does not know the input "clip_low_threshold"`},
		{"cross_entropy", nil, func(m map[string]api.TensorData) { m["weights"] = api.Floats([]float32{1}) }, "datum 0: weights has 1 entries, target_tokens has 2"},
		{"cross_entropy", nil, func(m map[string]api.TensorData) { m["weights"] = api.Ints([]int64{1, 1}) }, "datum 0: weights is int64, wanted float32"},
		{"cross_entropy", nil, func(m map[string]api.TensorData) { m["weights"] = api.Floats([]float32{1, nan}) }, "datum 0: weights[1] is NaN, wanted a finite number"},
		{"cross_entropy", nil, func(m map[string]api.TensorData) {
			m["weights"] = api.TensorData{Floats: []float32{1, 1}, Shape: []int{2, 1}}
		}, "datum 0: weights has shape [2 1], target_tokens has [2]"},
		{"importance_sampling", nil, func(m map[string]api.TensorData) { delete(m, "logprobs") }, "datum 0: logprobs is missing"},
		{"importance_sampling", nil, func(m map[string]api.TensorData) { delete(m, "advantages") }, "datum 0: advantages is missing"},
		{"importance_sampling", nil, func(m map[string]api.TensorData) { m["advantages"] = api.Floats([]float32{1, 2, 3}) }, "advantages has 3 entries, target_tokens has 2"},
		{"importance_sampling", nil, func(m map[string]api.TensorData) {
			m["target_tokens"] = api.TensorData{Ints: []int64{1, 2}, Shape: []int{1, 2}}
		}, "target_tokens has shape [1 2], importance_sampling wants (N)"},
		{"ppo", nil, func(m map[string]api.TensorData) { m[keyHigh] = api.Floats([]float32{2}) }, "clip_high_threshold has 1 entries, target_tokens has 2"},
		{"ppo", nil, func(m map[string]api.TensorData) { m[keyHigh] = api.Floats([]float32{2, 0.1}) }, "position 1 is clipped to 0.8..0.1"},
	} {
		l, err := Builtin(c.loss)
		if err != nil {
			t.Fatal(err)
		}
		inputs := good()
		if c.edit != nil {
			c.edit(inputs)
		}
		if err := Check(l, []api.Datum{{LossInputs: inputs}}, c.config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, wanted %q", c.loss, err, c.want)
		}
	}
	if _, err := Builtin("mse"); err == nil || !strings.Contains(err.Error(), "wanted one of cispo, cross_entropy, dro, importance_sampling, ppo") {
		t.Errorf("mse: got %v", err)
	}
}
