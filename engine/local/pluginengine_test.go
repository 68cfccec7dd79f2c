package local_test

import (
	"context"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/engine/local"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/loss"
	"tinkerlocal/engine/model"
	"tinkerlocal/kernels/cpu"
	"tinkerlocal/plugins"
	"tinkerlocal/store"
)

// What the tests of plugins in an engine share.

// small is a base of some ten thousand parameters, deep one with layers to run again.
func pluginModels() enginetest.Models {
	deep := enginetest.Small
	deep.Layers = 6
	return enginetest.Models{"small": enginetest.Small, "deep": deep}
}

// openEngine opens an engine on those models that is closed at the end of the test. change may be nil.
func openEngine(t testing.TB, change func(o *engine.Options)) *engine.Engine {
	t.Helper()
	dev, err := cpu.Open(cpu.Options{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	o := engine.Options{Device: dev, Models: pluginModels(), Checkpoints: store.OpenMemory(store.Options{})}
	if change != nil {
		change(&o)
	}
	e, err := engine.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// openPlugins opens the bundled plugins.
func openPlugins(t testing.TB) *local.Plugins {
	t.Helper()
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	p, err := local.OpenPlugins(t.Context(), "", false, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// twin is the file of a module that computes a built-in loss.
func twin(name string) string {
	return filepath.Join("..", "..", "plugins", "losses", "testdata", name+".wasm")
}

// use loads a plugin by name or file.
func use(t testing.TB, p *local.Plugins, what string) loss.Loss {
	t.Helper()
	l, err := p.Use(t.Context(), what)
	if err != nil {
		t.Fatal(err)
	}
	return l.Loss
}

// mischief loads a module that does what its inputs say, on a host with that much fuel and all the time there is.
func mischief(t testing.TB, scope string, fuel int64) loss.Loss {
	t.Helper()
	h, err := plugins.Open(t.Context(), plugins.Options{Limits: plugins.Limits{FuelBase: fuel, CallTime: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	b, err := os.ReadFile(filepath.Join("testdata", "mischief_"+scope+".wasm"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := h.Load(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return m.Loss()
}

// Values of the input mark of testdata/mischief.c.
const (
	markTrap = iota + 2
	markSpin
	markNaNWeight
	markNaNLoss
	markUser
	markNumerical
	markRecurse
)

func marked(d api.Datum, mark int64) api.Datum {
	return with(d, "mark", api.Ints([]int64{mark}))
}

// with is a datum with one more input.
func with(d api.Datum, name string, v api.TensorData) api.Datum {
	in := map[string]api.TensorData{name: v}
	for k, x := range d.LossInputs {
		if k != name {
			in[k] = x
		}
	}
	return api.Datum{ModelInput: d.ModelInput, LossInputs: in}
}

// outcome waits for a future, for a minute at most.
func outcome[T any](f *engine.Future[T], err error) (T, error) {
	if err != nil {
		var zero T
		return zero, err
	}
	c, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return f.Wait(c)
}

// done is outcome without an error.
func done[T any](t testing.TB, f *engine.Future[T], err error) T {
	t.Helper()
	v, err := outcome(f, err)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func newRun(t testing.TB, e *engine.Engine, base string, rank int, seed int64) *engine.Run {
	t.Helper()
	f, err := e.NewSession().NewRun(api.CreateModelRequest{
		BaseModel: base, Lora: api.LoraConfig{Rank: rank, Seed: &seed, TrainAttn: true, TrainMLP: true, TrainUnembed: true},
	})
	return done(t, f, err)
}

// sequence is a datum of n targets that follows from seed, with a weight for each.
func sequence(seed, n int) api.Datum {
	in, targets, w := make([]int32, n), make([]int64, n), make([]float32, n)
	for i := range n {
		at := func(i int) int { return (seed*31 + i*i*7 + i*seed) % 61 }
		in[i], targets[i], w[i] = int32(at(i)), int64(at(i+1)), float32((seed+i)%4)-0.75
	}
	return api.Datum{
		ModelInput: api.FromInts(in), LossInputs: map[string]api.TensorData{"target_tokens": api.Ints(targets), "weights": api.Floats(w)},
	}
}

// candidates is a datum of n positions with k targets each.
func candidates(seed, n, k int) api.Datum {
	d := sequence(seed, n*k)
	d.ModelInput = sequence(seed, n).ModelInput
	for name, v := range d.LossInputs {
		v.Shape = []int{n, k}
		d.LossInputs[name] = v
	}
	return d
}

// sequences are data of different lengths.
func sequences(n int) (out []api.Datum) {
	for i := range n {
		out = append(out, sequence(i, 3+(i*7)%17))
	}
	return out
}

func crossEntropy(data []api.Datum) api.ForwardBackwardInput {
	return api.ForwardBackwardInput{Data: data, LossFn: "cross_entropy"}
}

// optimStep takes a step and returns the factors after it, one after another.
func optimStep(t testing.TB, r *engine.Run) (factors []float32) {
	t.Helper()
	o, err := r.OptimStep(api.AdamParams{LearningRate: 0.01, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8})
	done(t, o, err)
	f, err := r.Weights()
	for _, x := range done(t, f, err).Tensors {
		factors = append(factors, x.Values...)
	}
	return factors
}

// gradients are what the passes of a fresh run have left, by factor: a step with beta1 = 0 makes the gradient Adam's first moment, and
// a saved state holds that.
func gradients(t testing.TB, e *engine.Engine, r *engine.Run) map[string][]float32 {
	t.Helper()
	o, err := r.OptimStep(api.AdamParams{Eps: 1})
	done(t, o, err)
	s, err := r.SaveState("gradients", api.SaveOptions{})
	c := done(t, s, err)
	saved, err := e.Checkpoints().Open(t.Context(), c.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer saved.Close()
	out := map[string][]float32{}
	for _, x := range saved.Tensors() {
		name, ok := strings.CutPrefix(x.Name, lora.MomentM)
		if !ok {
			continue
		}
		n := 1
		for _, d := range x.Shape {
			n *= d
		}
		raw := make([]byte, 4*n)
		if err := saved.Read(t.Context(), x.Name, raw); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			out[name] = append(out[name], math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:])))
		}
	}
	return out
}

func norm(v []float32) float64 {
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	return math.Sqrt(sum)
}

// logProbs are those of an answer.
func logProbs(out api.ForwardBackwardOutput) (lp [][]float32) {
	for _, o := range out.LossFnOutputs {
		lp = append(lp, o["logprobs"].Floats)
	}
	return lp
}

func sameRows(a, b [][]float32) bool { return slices.EqualFunc(a, b, slices.Equal[[]float32]) }

// work is what has been computed with a base's weights.
func work(e *engine.Engine, base string) model.Work { return e.Counters()[base].Total() }
