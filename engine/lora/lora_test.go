package lora

import (
	"math"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/kernels"
	"tinkerlocal/kernels/ref"
)

// sites is a small base: a stacked attention weight, an MLP weight, a head.
var sites = []Site{
	{Kind: Attn, In: 6, Parts: []Part{{"model.layers.0.self_attn.q_proj", 8}, {"model.layers.0.self_attn.k_proj", 4}}},
	{Kind: MLP, In: 6, Parts: []Part{{"model.layers.0.mlp.gate_proj", 5}}},
	{Kind: Unembed, In: 6, Parts: []Part{{"lm_head", 11}}},
}

func newAdapter(t *testing.T, c api.LoraConfig, seed int64) *Adapter {
	t.Helper()
	a, err := New(ref.Open(), sites, c, seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Free)
	return a
}

func values(t *testing.T, w *Weights) map[string][]float32 {
	t.Helper()
	ts, err := w.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]float32{}
	for _, x := range ts {
		out[x.Name] = x.Values
	}
	return out
}

// TestInit: A is uniform within 1/sqrt(in), B is zero, and a seed fixes every value.
func TestInit(t *testing.T) {
	c := api.DefaultLora()
	c.Rank = 300
	a, same, other := values(t, newAdapter(t, c, 5).Weights), values(t, newAdapter(t, c, 5).Weights), values(t, newAdapter(t, c, 6).Weights)
	if len(a) != 8 {
		t.Fatalf("%d factors, wanted 8", len(a))
	}
	for name, v := range a {
		isA := strings.Contains(name, "lora_A")
		bound, sum, sq, differs := 1/math.Sqrt(6), 0.0, 0.0, false
		for i, x := range v {
			if x != same[name][i] {
				t.Fatalf("%s[%d] is %v and %v from one seed", name, i, x, same[name][i])
			}
			differs = differs || x != other[name][i]
			if math.Abs(float64(x)) > bound || !isA && x != 0 {
				t.Fatalf("%s[%d] is %v", name, i, x)
			}
			sum, sq = sum+float64(x), sq+float64(x)*float64(x)
		}
		if !isA {
			continue
		}
		n := float64(len(v))
		sd := bound / math.Sqrt(3) // of a uniform distribution
		if !differs || math.Abs(sum/n) > 5*sd/math.Sqrt(n) || math.Abs(math.Sqrt(sq/n)/sd-1) > 0.1 {
			t.Errorf("%s: differs between seeds %v, mean %v, deviation %v, wanted 0 and %v", name, differs, sum/n, math.Sqrt(sq/n), sd)
		}
	}
}

// TestTrainFlags: only the chosen kinds get factors, and Params counts them.
func TestTrainFlags(t *testing.T) {
	for _, c := range []api.LoraConfig{
		{Rank: 3, TrainAttn: true}, {Rank: 3, TrainMLP: true}, {Rank: 2, TrainUnembed: true}, {Rank: 1, TrainAttn: true, TrainUnembed: true},
	} {
		a := newAdapter(t, c, 1)
		n := 0
		for name, v := range values(t, a.Weights) {
			n += len(v)
			kind := strings.Contains(name, "attn") && c.TrainAttn || strings.Contains(name, "mlp") && c.TrainMLP || strings.Contains(name, "lm_head") && c.TrainUnembed
			if !kind {
				t.Errorf("%+v has a factor %s", c, name)
			}
		}
		if n != Params(sites, c) {
			t.Errorf("%+v has %d parameters, Params says %d", c, n, Params(sites, c))
		}
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		cfg  api.LoraConfig
		want string
	}{
		{api.LoraConfig{Rank: 0, TrainMLP: true}, "lora rank is 0, wanted 1..512"},
		{api.LoraConfig{Rank: -1, TrainMLP: true}, "lora rank is -1"},
		{api.LoraConfig{Rank: 1 << 40, TrainMLP: true}, "wanted 1..512"},
		{api.LoraConfig{Rank: 8}, "trains nothing"},
	} {
		if _, err := New(ref.Open(), sites, c.cfg, 1); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, wanted %q", c.cfg, err, c.want)
		}
	}
}

func TestCheckAdam(t *testing.T) {
	good := api.DefaultAdam()
	if err := CheckAdam(good); err != nil {
		t.Error(err)
	}
	for want, edit := range map[string]func(*api.AdamParams){
		"learning_rate is -1":               func(p *api.AdamParams) { p.LearningRate = -1 },
		"learning_rate is NaN":              func(p *api.AdamParams) { p.LearningRate = math.NaN() },
		"beta1 is 1, wanted 0 <= beta1 < 1": func(p *api.AdamParams) { p.Beta1 = 1 },
		"beta2 is -0.1":                     func(p *api.AdamParams) { p.Beta2 = -0.1 },
		"eps is +Inf":                       func(p *api.AdamParams) { p.Eps = math.Inf(1) },
		"weight_decay is -1":                func(p *api.AdamParams) { p.WeightDecay = -1 },
		"grad_clip_norm is NaN":             func(p *api.AdamParams) { p.GradClipNorm = math.NaN() },
	} {
		p := good
		edit(&p)
		if err := CheckAdam(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, wanted %q", p, err, want)
		}
	}
}

func setGradient(t *testing.T, a *Adapter, v float32) {
	t.Helper()
	g := make([]float32, a.op.Len())
	for i := range g {
		g[i] = v
	}
	if err := kernels.WriteFloats(a.dev, a.op, g); err != nil {
		t.Fatal(err)
	}
	if err := a.CommitOp(); err != nil {
		t.Fatal(err)
	}
}

// TestOptimStep: gradients add up until the step, the step clears them, and a snapshot does not follow.
func TestOptimStep(t *testing.T) {
	a := newAdapter(t, api.LoraConfig{Rank: 2, TrainMLP: true}, 1)
	setGradient(t, a, 1)
	setGradient(t, a, 2)
	s, err := a.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Free()
	before := values(t, a.Weights)
	norm, err := a.OptimStep(api.DefaultAdam())
	if err != nil {
		t.Fatal(err)
	}
	if want := 3 * math.Sqrt(float64(a.flat.Len())); math.Abs(norm-want) > 1e-9 {
		t.Errorf("the gradient norm is %v, wanted %v", norm, want)
	}
	for name, v := range values(t, a.Weights) {
		for i := range v { // the first Adam step moves every weight by the learning rate
			if d := before[name][i] - v[i]; math.Abs(float64(d)-1e-4) > 1e-7 {
				t.Fatalf("%s[%d] moved by %v, wanted 1e-4", name, i, d)
			}
			if got := values(t, s.Weights)[name][i]; got != before[name][i] {
				t.Fatalf("the snapshot's %s[%d] is %v, was %v", name, i, got, before[name][i])
			}
		}
	}
	if a.Version != 1 || a.Step != 1 || s.Version != 0 {
		t.Errorf("version %d, step %d, snapshot's version %d; wanted 1, 1, 0", a.Version, a.Step, s.Version)
	}
	gs, err := a.Gradients()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range gs {
		for i, v := range g.Values {
			if v != 0 {
				t.Fatalf("%s[%d] is %v after the step", g.Name, i, v)
			}
		}
	}
}

// TestGradientNotFinite: a broken gradient is dropped and said; weights, moments and version stay.
func TestGradientNotFinite(t *testing.T) {
	for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1))} {
		a := newAdapter(t, api.LoraConfig{Rank: 2, TrainMLP: true}, 1)
		before := values(t, a.Weights)
		setGradient(t, a, bad)
		if _, err := a.OptimStep(api.DefaultAdam()); err == nil || !strings.Contains(err.Error(), "gradient was dropped") {
			t.Errorf("gradient %v: got %v", bad, err)
		}
		if _, err := a.OptimStep(api.DefaultAdam()); err != nil {
			t.Errorf("the next step: %v", err)
		}
		for name, v := range values(t, a.Weights) {
			for i := range v {
				if v[i] != before[name][i] {
					t.Fatalf("%s[%d] is %v, was %v", name, i, v[i], before[name][i])
				}
			}
		}
	}
}

// TestLoad: factors come back as they were written; another scale is folded into B; strangers are refused.
func TestLoad(t *testing.T) {
	c := api.LoraConfig{Rank: 2, TrainMLP: true}
	a, b := newAdapter(t, c, 1), newAdapter(t, c, 2)
	setGradient(t, a, 1)
	if _, err := a.OptimStep(api.DefaultAdam()); err != nil {
		t.Fatal(err)
	}
	ts, err := a.Weights.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Load(ts, 2*float64(api.LoraAlpha)/2); err != nil {
		t.Fatal(err)
	}
	got, want := values(t, b.Weights), values(t, a.Weights)
	for name, v := range want {
		for i := range v {
			w := v[i]
			if strings.Contains(name, "lora_B") {
				w *= 2
			}
			if got[name][i] != w {
				t.Fatalf("%s[%d] is %v, wanted %v", name, i, got[name][i], w)
			}
		}
	}
	for want, bad := range map[string][]Tensor{
		"adapter has no tensor model.layers.0.mlp.gate_proj.lora_B.weight": ts[:1],
		"has shape [2 5], wanted [2 6]":                                    {{ts[0].Name, []int{2, 5}, make([]float32, 10)}, ts[1]},
		"adapter tensor stranger belongs to no module":                     append(append([]Tensor{}, ts...), Tensor{"stranger", []int{1, 1}, []float32{1}}),
	} {
		if err := b.Load(bad, 1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, wanted %q", err, want)
		}
	}
}
