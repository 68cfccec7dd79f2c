package engine_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"math"
	"os"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
	"tinkerlocal/store"
)

// Custom losses as a program would write them. Each returns w = -dL/dlogprob.

// variance is the unbiased variance of all log-probabilities of all sequences: L = sum (x_i - mean)^2 / (n-1), so that
// dL/dx_i = 2 (x_i - mean) / (n-1), since the mean's own derivative sums to zero. (torch.var's definition.)
func variance(_ context.Context, in loss.Input) (loss.Output, error) {
	n, mean := 0.0, 0.0
	for _, lp := range in.LogProbs {
		for _, x := range lp {
			n++
			mean += float64(x)
		}
	}
	if n < 2 {
		return loss.Output{}, api.Errorf(api.BadRequest, "variance of %v log-probabilities", n)
	}
	mean /= n
	out := loss.Output{Weights: make([][]float32, len(in.LogProbs))}
	sum := 0.0
	for i, lp := range in.LogProbs {
		out.Weights[i] = make([]float32, len(lp))
		for j, x := range lp {
			d := float64(x) - mean
			sum += d * d
			out.Weights[i][j] = float32(-2 * d / (n - 1))
		}
	}
	out.Metrics = map[string]float64{"loss:sum": sum / (n - 1)}
	return out, nil
}

// score is the log-probability of a datum's completion: its positions where weights are 1.
func score(d api.Datum, lp []float32) (sum float64) {
	for j, w := range d.LossInputs["weights"].Floats {
		sum += float64(w) * float64(lp[j])
	}
	return sum
}

// spread gives every position of a completion the weight g: the derivative of its score, times g.
func spread(d api.Datum, g float64) []float32 {
	out := make([]float32, d.LossInputs["weights"].Len())
	for j, w := range d.LossInputs["weights"].Floats {
		out[j] = float32(float64(w) * g)
	}
	return out
}

// softplus is log(1 + exp(x)), so that -log sigmoid(x) = softplus(-x).
func softplus(x float64) float64 { return max(x, 0) + math.Log1p(math.Exp(-math.Abs(x))) }

// sigmoid is 1/(1 + exp(-x)) = softplus'(x).
func sigmoid(x float64) float64 { return 1 / (1 + math.Exp(-x)) }

// bradleyTerry is a sum over pairs, data 2i preferred to 2i+1: L = -sum log sigmoid(s_2i - s_2i+1), s the score of a sequence.
// (Bradley & Terry 1952, Biometrika 39; as a loss: Ouyang et al. 2022, arXiv 2203.02155, eq. 1.) With d = s_2i - s_2i+1,
// dL/ds_2i = -sigmoid(-d) = -dL/ds_2i+1.
func bradleyTerry(_ context.Context, in loss.Input) (loss.Output, error) {
	out := loss.Output{Weights: make([][]float32, len(in.Data))}
	sum, right := 0.0, 0.0
	for i := 0; i < len(in.Data); i += 2 {
		d := score(in.Data[i], in.LogProbs[i]) - score(in.Data[i+1], in.LogProbs[i+1])
		sum += softplus(-d)
		if d > 0 {
			right += 2 / float64(len(in.Data))
		}
		g := sigmoid(-d)
		out.Weights[i], out.Weights[i+1] = spread(in.Data[i], g), spread(in.Data[i+1], -g)
	}
	out.Metrics = map[string]float64{"loss:sum": sum, "accuracy:mean": right}
	return out, nil
}

// dpo is direct preference optimisation: L = -mean log sigmoid(beta*d) over pairs as in bradleyTerry, d the difference of what the
// scores have gained over the reference, whose log-probabilities are the input "reference". (Rafailov et al.
// 2023, arXiv 2305.18290, eq. 7, and for the gradient the equation after it.) dL/ds_2i = -beta sigmoid(-beta d)/pairs = -dL/ds_2i+1.
func dpo(_ context.Context, in loss.Input) (loss.Output, error) {
	beta, pairs := in.Config["beta"], float64(len(in.Data)/2)
	out := loss.Output{Weights: make([][]float32, len(in.Data))}
	sum := 0.0
	gain := func(i int) float64 {
		d := in.Data[i]
		return score(d, in.LogProbs[i]) - score(d, d.LossInputs["reference"].Floats)
	}
	for i := 0; i < len(in.Data); i += 2 {
		d := beta * (gain(i) - gain(i+1))
		sum += softplus(-d) / pairs
		g := beta * sigmoid(-d) / pairs
		out.Weights[i], out.Weights[i+1] = spread(in.Data[i], g), spread(in.Data[i+1], -g)
	}
	out.Metrics = map[string]float64{"loss:sum": sum}
	return out, nil
}

// completion is a datum of a prompt and its continuation, which alone has weights.
func completion(prompt, answer []int32) api.Datum {
	all := append(append([]int32{}, prompt...), answer...)
	targets, weights := make([]int64, len(all)-1), make([]float32, len(all)-1)
	for i := range targets {
		targets[i] = int64(all[i+1])
		if i+1 >= len(prompt) {
			weights[i] = 1
		}
	}
	return api.Datum{
		ModelInput: api.FromInts(all[:len(all)-1]),
		LossInputs: map[string]api.TensorData{"target_tokens": api.Ints(targets), "weights": api.Floats(weights)},
	}
}

// A loss over several sequences at once: the log-probabilities of all their tokens are to be alike.
func ExampleRun_ForwardBackwardCustom_variance() {
	e := openExample()
	defer e.Close()
	run := newExampleRun(e)
	data := []api.Datum{completion([]int32{1}, []int32{2, 3, 4}), completion([]int32{5}, []int32{6, 7})}
	first := must(run.ForwardBackwardCustom(data, loss.Func(variance), nil)).Metrics["loss:sum"]
	var last float64
	for range 20 {
		must(run.OptimStep(api.AdamParams{LearningRate: 0.01, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8}))
		last = must(run.ForwardBackwardCustom(data, loss.Func(variance), nil)).Metrics["loss:sum"]
	}
	fmt.Println("variance fell below a tenth:", last < first/10)
	// Output: variance fell below a tenth: true
}

// Preference pairs, by the loss of Bradley and Terry.
func ExampleRun_ForwardBackwardCustom_bradleyTerry() {
	e := openExample()
	defer e.Close()
	run := newExampleRun(e)
	prompt := []int32{1, 2, 3}
	data := []api.Datum{
		completion(prompt, []int32{10, 11}), completion(prompt, []int32{20, 21, 22}), // preferred, rejected
		completion(prompt, []int32{12, 13}), completion(prompt, []int32{23}),
	}
	var out api.ForwardBackwardOutput
	for range 20 {
		out = must(run.ForwardBackwardCustom(data, loss.Func(bradleyTerry), nil))
		must(run.OptimStep(api.AdamParams{LearningRate: 0.01, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8}))
	}
	fmt.Println("pairs in the right order:", out.Metrics["accuracy:mean"], "loss below 0.1:", out.Metrics["loss:sum"] < 0.1)
	// Output: pairs in the right order: 1 loss below 0.1: true
}

// Direct preference optimisation. A fresh run equals its base model, so a forward before the first step is the reference.
func ExampleRun_ForwardBackwardCustom_dpo() {
	e := openExample()
	defer e.Close()
	run := newExampleRun(e)
	prompt := []int32{1, 2, 3}
	data := []api.Datum{
		completion(prompt, []int32{10, 11}), completion(prompt, []int32{20, 21, 22}), // preferred, rejected
		completion(prompt, []int32{12, 13}), completion(prompt, []int32{23}),
	}
	reference := must(run.Forward(api.ForwardBackwardInput{Data: data, LossFn: "cross_entropy"}))
	for i := range data {
		data[i].LossInputs["reference"] = reference.LossFnOutputs[i]["logprobs"]
	}
	config := map[string]float64{"beta": 0.1}
	for i := range 20 {
		out := must(run.ForwardBackwardCustom(data, loss.Func(dpo), config))
		if i == 0 {
			fmt.Printf("at the reference the loss is ln 2 = %.4f\n", out.Metrics["loss:sum"])
		}
		must(run.OptimStep(api.AdamParams{LearningRate: 0.01, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8}))
	}
	out := must(run.ForwardBackwardCustom(data, loss.Func(dpo), config))
	fmt.Println("the loss halved:", out.Metrics["loss:sum"] < math.Ln2/2)
	// Output:
	// at the reference the loss is ln 2 = 0.6931
	// the loss halved: true
}

// The same without a callback: the log-probabilities come to the caller, who sends weights back.
func ExampleRun_Hold() {
	e := openExample()
	defer e.Close()
	run := newExampleRun(e)
	data := []api.Datum{completion([]int32{1}, []int32{2, 3, 4}), completion([]int32{5}, []int32{6, 7})}
	held := must(run.Hold(data))
	defer held.Release()
	out, err := variance(context.Background(), loss.Input{Data: data, LogProbs: held.LogProbs()}) // or anything else, anywhere
	if err != nil {
		log.Fatal(err)
	}
	must(held.Backward(out.Weights))
	norm := must(run.OptimStep(api.DefaultAdam())).Metrics["grad_norm"]
	fmt.Println("a gradient:", norm > 0)
	// Output: a gradient: true
}

// customGolden is what torch autograd says about a loss: testdata/custom_losses.py.
type customGolden struct {
	Loss     string                 `json:"loss"`
	Config   map[string]float64     `json:"config"`
	LogProbs [][]float32            `json:"logprobs"`
	Inputs   []map[string][]float32 `json:"inputs"`
	Value    float64                `json:"value"`
	Grads    [][]float64            `json:"gradients"`
}

// TestCustomLosses: value and weights are torch's in float64, and the weights are the differences of the value.
func TestCustomLosses(t *testing.T) {
	text, err := os.ReadFile("testdata/custom_losses.json")
	if err != nil {
		t.Fatal(err)
	}
	var goldens []customGolden
	if err := json.Unmarshal(text, &goldens); err != nil {
		t.Fatal(err)
	}
	byName := map[string]loss.Func{"variance": variance, "bradley_terry": bradleyTerry, "dpo": dpo}
	if len(goldens) != len(byName) {
		t.Errorf("%d goldens", len(goldens))
	}
	for _, g := range goldens {
		in := loss.Input{LogProbs: g.LogProbs, Config: g.Config, Data: make([]api.Datum, len(g.LogProbs))}
		for i := range in.Data {
			in.Data[i].LossInputs = map[string]api.TensorData{}
			for name, v := range g.Inputs[i] {
				in.Data[i].LossInputs[name] = api.Floats(v)
			}
		}
		value := func() float64 {
			out, err := byName[g.Loss](ctx, in)
			if err != nil {
				t.Fatal(err)
			}
			return out.Metrics["loss:sum"]
		}
		if got := value(); math.Abs(got-g.Value) > 1e-12*math.Abs(g.Value) {
			t.Errorf("%s is %v, torch says %v", g.Loss, got, g.Value)
		}
		out, err := byName[g.Loss](ctx, in)
		if err != nil {
			t.Fatal(err)
		}
		const step = 1.0 / 256 // exact in float32 beside every log-probability here
		for i, lp := range in.LogProbs {
			for j := range lp {
				w := float64(-out.Weights[i][j])
				if want := g.Grads[i][j]; math.Abs(w-want) > 1e-7*(1+math.Abs(want)) {
					t.Errorf("%s: gradient of datum %d position %d is %v, torch says %v", g.Loss, i, j, w, want)
				}
				at := lp[j]
				lp[j] = at + step
				up := value()
				lp[j] = at - step
				down := value()
				lp[j] = at
				if slope := (up - down) / (2 * step); math.Abs(w-slope) > 1e-5 {
					t.Errorf("%s: gradient of datum %d position %d is %v, differences say %v", g.Loss, i, j, w, slope)
				}
			}
		}
	}
}

// TestLossFunc: a Go func is a loss, and what it returns wrong is said.
func TestLossFunc(t *testing.T) {
	e := open(t, nil)
	r := newRun(t, e.NewSession(), "small", 1)
	_, err := result(r.ForwardBackwardCustom([]api.Datum{datum(1, 1)}, loss.Func(variance), nil))
	fails(t, err, api.BadRequest, "variance of 1 log-probabilities")
}

// dated is a loss of which the exact make matters. It refuses to make weights that nobody wants.
type dated struct{ squares }

func (dated) Plugin() api.PluginRecord {
	return api.PluginRecord{Name: "dated", Version: "1.2.3", Digest: "00ff", ABI: "1.0"}
}

func (d dated) Eval(ctx context.Context, in loss.Input) (loss.Output, error) {
	out, err := d.squares.Eval(ctx, in)
	if in.ValueOnly {
		out.Weights = nil
	}
	return out, err
}

// Loss gives it whatever the name.
func (d dated) Loss(string) (loss.Loss, error) { return d, nil }

// TestPluginRecord: a checkpoint tells which custom losses its weights were trained with, and so does a run that goes on from it; a
// loss that was only evaluated is none of them.
func TestPluginRecord(t *testing.T) {
	saved := store.OpenMemory(store.Options{})
	e := open(t, func(o *engine.Options) { o.Losses, o.Checkpoints = dated{}, saved })
	s := e.NewSession()
	r := newRun(t, s, "small", 4)
	data := batch(datum(1, 6), datum(2, 9)).Data
	save := func(r *engine.Run, name string) api.Checkpoint {
		f, err := r.SaveState(name, api.SaveOptions{})
		return wait(t, f, err)
	}
	input := func(config map[string]float64) api.ForwardBackwardInput {
		return api.ForwardBackwardInput{Data: data, LossFn: "x", LossConfig: config}
	}
	f, err := r.Forward(input(nil))
	if out := wait(t, f, err); out.Metrics["loss:sum"] == 0 {
		t.Errorf("metrics %v", out.Metrics)
	}
	if c := save(r, "before"); len(c.Plugins) != 0 {
		t.Errorf("after a forward: %+v", c.Plugins)
	}
	for _, beta := range []float64{1, 2, 1} {
		f, err := r.ForwardBackward(input(map[string]float64{"beta": beta}))
		wait(t, f, err)
	}
	c := save(r, "after")
	if len(c.Plugins) != 2 || c.Plugins[0].Digest != "00ff" || c.Plugins[0].Config["beta"] != 1 || c.Plugins[1].Config["beta"] != 2 {
		t.Errorf("after three passes: %+v", c.Plugins)
	}
	g, err := s.NewRunFrom(engine.RunSource{Path: c.Path.String(), Optimizer: true})
	on := wait(t, g, err)
	if got := save(on, "on"); len(got.Plugins) != 2 || len(on.Info().Plugins) != 2 {
		t.Errorf("the run that went on: %+v", got.Plugins)
	}
}
