package local_test

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
	"tinkerlocal/engine/loss"
	"tinkerlocal/engine/sft"
)

// preferences are pairs of answers of n tokens, the first quarter of each a prompt that does not count, and the Go loss for them: the reference's
// log-probabilities are -2.5 everywhere.
func preferences(pairs, n int) ([]api.Datum, sft.DPO) {
	l := sft.DPO{Beta: 0.1}
	var data []api.Datum
	for i := range 2 * pairs {
		d, w, ref := sequence(i, n), make([]float32, n), make([]float32, n)
		sum := 0.0
		for j := range w {
			ref[j] = -2.5
			if j >= n/4 {
				w[j] = 1
				sum -= 2.5
			}
		}
		data = append(data, with(with(d, "weights", api.Floats(w)), "ref_logprobs", api.Floats(ref)))
		l.Reference = append(l.Reference, sum)
	}
	return data, l
}

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

// BenchmarkPluginStep takes training steps of one batch of preferences on the embedded model by turns: with the built-in cross_entropy; with the dpo module; with dpo in Go;
// and with dpo in two passes, as a service does it whose clients compute losses: a forward, then a forward_backward of cross_entropy with the
// weights that the client found. The ratios are medians over rounds: what else the machine does slows the steps of a round alike.
func BenchmarkPluginStep(b *testing.B) {
	p := openPlugins(b)
	plugin := use(b, p, "dpo")
	dev, err := local.OpenDevice("cpu")
	if err != nil {
		b.Fatal(err)
	}
	e := openEngine(b, func(o *engine.Options) {
		o.Device, o.Models = dev, local.Models{}
		o.Limits.KeptForwards = -1 // a service that keeps nothing between the two passes
	})
	r := newRun(b, e, local.TinyModel, 16, 1)
	data, inGo := preferences(8, 80)
	var plain []api.Datum
	for _, d := range data {
		plain = append(plain, with(api.Datum{ModelInput: d.ModelInput, LossInputs: map[string]api.TensorData{"weights": d.LossInputs["weights"]}}, "target_tokens", d.LossInputs["target_tokens"]))
	}
	custom := func(data []api.Datum, l loss.Loss) float64 {
		f, err := r.ForwardBackwardCustom(data, l, nil)
		return done(b, f, err).Metrics["loss:sum"]
	}
	names := []string{"builtin", "wasm", "go", "twopass"}
	forms := []func() float64{
		func() float64 {
			f, err := r.ForwardBackward(crossEntropy(plain))
			return done(b, f, err).Metrics["loss:sum"]
		},
		func() float64 { return custom(data, plugin) },
		func() float64 { return custom(plain, inGo) },
		func() float64 {
			f, err := r.Forward(crossEntropy(plain))
			out, err := inGo.Eval(b.Context(), loss.Input{Data: plain, LogProbs: logProbs(done(b, f, err))})
			if err != nil {
				b.Fatal(err)
			}
			weighted := make([]api.Datum, len(plain))
			for i, d := range plain {
				weighted[i] = with(d, "weights", api.Floats(out.Weights[i]))
			}
			f, err = r.ForwardBackward(crossEntropy(weighted))
			done(b, f, err)
			return out.Metrics["loss:sum"]
		},
	}
	took, values := make([][]float64, len(forms)), make([]float64, len(forms))
	n := 0
	round := func() {
		for k := range forms {
			i := (n + k) % len(forms) // each form comes first as often as the others
			begin := time.Now()
			values[i] = forms[i]()
			o, err := r.OptimStep(api.AdamParams{Beta1: 0.9, Beta2: 0.95, Eps: 1e-8})
			done(b, o, err)
			took[i] = append(took[i], time.Since(begin).Seconds())
		}
		n++
	}
	for range 3 { // warm up
		round()
	}
	for _, v := range values[2:] { // correct first
		if math.Abs(v-values[1]) > 1e-9*math.Abs(v) {
			b.Fatalf("the losses are %v in %v", values, names)
		}
	}
	took = make([][]float64, len(forms))
	for b.Loop() {
		for range 15 {
			round()
		}
	}
	b.ReportMetric(1e3*median(took[0]), "builtin-ms")
	for i := 1; i < len(forms); i++ {
		ratios := make([]float64, len(took[i]))
		for j := range ratios {
			ratios[j] = took[i][j] / took[0][j]
		}
		b.ReportMetric(median(ratios), names[i]+"/builtin")
	}
}

// BenchmarkPluginMillion evaluates dpo for a million log-probabilities, in 1000 pairs of 500 tokens, on one core: as a module, with all copies into and out of its
// memory and a fresh instance for each call, and in Go; by turns. The ratio is a median over rounds.
func BenchmarkPluginMillion(b *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	p := openPlugins(b)
	data, inGo := preferences(1000, 500)
	lp := make([][]float32, len(data))
	for i := range lp {
		lp[i] = make([]float32, 500)
		for j := range lp[i] {
			lp[i][j] = -2 - float32((i*7+j*13)%101)/101
		}
	}
	in := loss.Input{Data: data, LogProbs: lp}
	losses := []loss.Loss{use(b, p, "dpo"), inGo}
	took := make([][]float64, len(losses))
	var fuel float64
	round := func(n int) {
		values := make([]float64, len(losses))
		for k := range losses {
			i := (n + k) % len(losses)
			begin := time.Now()
			out, err := losses[i].Eval(b.Context(), in)
			if err != nil {
				b.Fatal(err)
			}
			took[i] = append(took[i], 1e3*time.Since(begin).Seconds())
			values[i] = out.Metrics["loss:sum"]
			fuel = max(fuel, out.Metrics["plugin/fuel:sum"])
		}
		if math.Abs(values[0]-values[1]) > 1e-9*values[1] {
			b.Fatal(fmt.Sprint("the losses are ", values))
		}
	}
	round(0) // warm up
	clear(took)
	n := 0
	for b.Loop() {
		round(n)
		n++
	}
	ratios := make([]float64, len(took[0]))
	for i := range ratios {
		ratios[i] = took[0][i] / took[1][i]
	}
	b.ReportMetric(median(took[0]), "wasm-ms")
	b.ReportMetric(slices.Min(took[0]), "wasm-least-ms")
	b.ReportMetric(median(took[1]), "go-ms")
	b.ReportMetric(median(ratios), "wasm/go")
	b.ReportMetric(fuel/1e6, "fuel/logprob")
}
