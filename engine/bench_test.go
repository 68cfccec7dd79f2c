package engine_test

import (
	"context"
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
