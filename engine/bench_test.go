package engine_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/engine/loss"
	"tinkerlocal/kernels/cpu"
)

// embedded has the shape of the embedded model.
var embedded = enginetest.Shape{Layers: 4, Hidden: 128, Heads: 4, KVHeads: 2, HeadDim: 32, FFN: 384, Vocab: 320, Context: 2048, Tied: true, Seed: 1}

// BenchmarkCustomLoss takes steps of one batch by turns with the built-in cross_entropy, the same loss as a Go func, and a hold. The ratios
// are medians over rounds: what else the machine does slows the steps of a round alike.
func BenchmarkCustomLoss(b *testing.B) {
	dev, err := cpu.Open(cpu.Options{})
	if err != nil {
		b.Fatal(err)
	}
	e := open(b, func(o *engine.Options) { o.Device, o.Models = dev, enginetest.Models{"embedded": embedded} })
	seed := int64(1)
	f, err := e.NewSession().NewRun(api.CreateModelRequest{BaseModel: "embedded",
		Lora: api.LoraConfig{Rank: 16, Seed: &seed, TrainAttn: true, TrainMLP: true, TrainUnembed: true}})
	r := wait(b, f, err)
	var data []api.Datum
	for i := range 16 {
		data = append(data, datum(i, 80))
	}
	ones := func(lp [][]float32) (w [][]float32, sum float64) {
		w = make([][]float32, len(lp))
		for i := range lp {
			w[i] = make([]float32, len(lp[i]))
			for j, v := range lp[i] {
				w[i][j] = 1
				sum -= float64(v)
			}
		}
		return w, sum
	}
	custom := loss.Func(func(_ context.Context, in loss.Input) (loss.Output, error) {
		w, sum := ones(in.LogProbs)
		return loss.Output{Weights: w, Metrics: map[string]float64{"loss:sum": sum}}, nil
	})
	forms := []func(){
		func() { f, err := r.ForwardBackward(batch(data...)); wait(b, f, err) },
		func() { f, err := r.ForwardBackwardCustom(data, custom, nil); wait(b, f, err) },
		func() {
			f, err := r.Hold(data)
			h := wait(b, f, err)
			w, _ := ones(h.LogProbs())
			g, err := h.Backward(w)
			wait(b, g, err)
		},
	}
	var builtin []float64
	ratios := make([][]float64, len(forms))
	n := 0
	round := func() {
		took := make([]float64, len(forms))
		for k := range forms {
			i := (n + k) % len(forms) // each form comes first as often as the others
			begin := time.Now()
			forms[i]()
			o, err := r.OptimStep(adam(0))
			wait(b, o, err)
			took[i] = time.Since(begin).Seconds()
		}
		builtin = append(builtin, took[0])
		for i := range forms {
			ratios[i] = append(ratios[i], took[i]/took[0])
		}
		n++
	}
	for range 3 { // warm up
		round()
	}
	builtin, ratios = nil, make([][]float64, len(forms))
	for b.Loop() {
		for range 15 {
			round()
		}
	}
	median := func(v []float64) float64 {
		slices.Sort(v)
		return v[len(v)/2]
	}
	b.ReportMetric(1e3*median(builtin), "builtin-ms")
	b.ReportMetric(median(ratios[1]), "custom/builtin")
	b.ReportMetric(median(ratios[2]), "hold/builtin")
	w := e.Counters()["embedded"].Total()
	b.ReportMetric(float64(w.Forward)/float64(w.Backward), "forward/backward")
}

// BenchmarkClientLoss takes, by turns, a client's custom loss as it comes over the wire (a forward, then a forward_backward with weights) and a
// forward alone, with and without kept forwards, in one micro-batch and in several. The ratios are medians over rounds.
func BenchmarkClientLoss(b *testing.B) {
	for _, tokens := range []int{4096, 320} {
		b.Run(fmt.Sprintf("micro-batches of %d", tokens), func(b *testing.B) { benchmarkClientLoss(b, tokens) })
	}
}

func benchmarkClientLoss(b *testing.B, tokens int) {
	var data []api.Datum
	for i := range 16 {
		data = append(data, datum(i, 80))
	}
	var runs []*engine.Run // kept, not kept
	for _, kept := range []int{0, -1} {
		dev, err := cpu.Open(cpu.Options{})
		if err != nil {
			b.Fatal(err)
		}
		e := open(b, func(o *engine.Options) {
			o.Device, o.Models = dev, enginetest.Models{"embedded": embedded}
			o.Limits = engine.Limits{KeptForwards: kept, MicroBatchTokens: tokens}
		})
		seed := int64(1)
		for range 2 { // one that trains, one that evaluates
			f, err := e.NewSession().NewRun(api.CreateModelRequest{BaseModel: "embedded",
				Lora: api.LoraConfig{Rank: 16, Seed: &seed, TrainAttn: true, TrainMLP: true, TrainUnembed: true}})
			runs = append(runs, wait(b, f, err))
		}
	}
	client := func(r *engine.Run) {
		clientLoss(b, r, data)
		f, err := r.OptimStep(adam(0))
		wait(b, f, err)
	}
	evaluate := func(r *engine.Run) {
		f, err := r.Forward(batch(data...))
		wait(b, f, err)
	}
	forms := []func(){
		func() { // the built-in loss
			f, err := runs[0].ForwardBackward(batch(data...))
			wait(b, f, err)
			o, err := runs[0].OptimStep(adam(0))
			wait(b, o, err)
		},
		func() { client(runs[0]) }, func() { client(runs[2]) },
		func() { evaluate(runs[1]) }, func() { evaluate(runs[3]) },
	}
	var took [][]float64
	round := func() {
		t := make([]float64, len(forms))
		for k := range forms {
			i := (len(took) + k) % len(forms)
			begin := time.Now()
			forms[i]()
			t[i] = time.Since(begin).Seconds()
		}
		took = append(took, t)
	}
	for range 40 { // until the runs that evaluate are doubted
		round()
	}
	took = nil
	for b.Loop() {
		for range 15 {
			round()
		}
	}
	median := func(of func(t []float64) float64) float64 {
		var v []float64
		for _, t := range took {
			v = append(v, of(t))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	b.ReportMetric(1e3*median(func(t []float64) float64 { return t[0] }), "builtin-ms")
	b.ReportMetric(median(func(t []float64) float64 { return t[1] / t[0] }), "client/builtin")
	b.ReportMetric(median(func(t []float64) float64 { return t[2] / t[0] }), "unkept-client/builtin")
	b.ReportMetric(median(func(t []float64) float64 { return t[3] / t[4] }), "evaluation/unkept-evaluation")
}
