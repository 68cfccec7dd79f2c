package model_test

import (
	"context"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/model"
	"tinkerlocal/kernels"
	"tinkerlocal/kernels/cpu"
	"tinkerlocal/kernels/ref"
)

// devices are the devices that every model test runs on.
var devices = []struct {
	name string
	open func() (kernels.Device, error)
}{
	{"ref", func() (kernels.Device, error) { return ref.Open(), nil }},
	{"cpu-portable", func() (kernels.Device, error) { return cpu.Open(cpu.Options{Variant: "portable", Threads: 2}) }},
	{"cpu", func() (kernels.Device, error) { return cpu.Open(cpu.Options{}) }},
}

// each runs f for every golden model on every device.
func each(t *testing.T, f func(t *testing.T, b *model.Base, g golden)) {
	for _, name := range goldenModels {
		g := loadGolden(t, name)
		for _, d := range devices {
			t.Run(name+"/"+d.name, func(t *testing.T) {
				dev, err := d.open()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { dev.Close() })
				f(t, load(t, dev, g.Dir, model.LoadOptions{}), g)
			})
		}
	}
}

func load(t *testing.T, dev kernels.Device, dir string, o model.LoadOptions) *model.Base {
	t.Helper()
	src, err := hf.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	b, err := model.Load(context.Background(), dev, src, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Free)
	return b
}

// adapter loads a golden's PEFT folder into a trainable adapter; "" is none.
func adapter(t *testing.T, b *model.Base, dir, name string) *lora.Adapter {
	t.Helper()
	if name == "" {
		return nil
	}

	p, err := hf.ReadAdapter(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	cfg := api.LoraConfig{Rank: p.Rank}
	var ts []lora.Tensor
	for _, x := range p.Tensors {
		cfg.TrainAttn = cfg.TrainAttn || strings.Contains(x.Name, "self_attn")
		cfg.TrainMLP = cfg.TrainMLP || strings.Contains(x.Name, "mlp")
		cfg.TrainUnembed = cfg.TrainUnembed || strings.Contains(x.Name, "lm_head")
		ts = append(ts, lora.Tensor{Name: strings.TrimPrefix(x.Name, "base_model.model."), Shape: x.Shape, Values: x.Values})
	}
	a, err := lora.New(b.Device(), b.Sites, cfg, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Free)
	if err := a.Load(ts, p.Scale()); err != nil {
		t.Fatal(err)
	}
	return a
}

func weightsOf(a *lora.Adapter) *lora.Weights {
	if a == nil {
		return nil
	}
	return a.Weights
}

// item is a golden datum as the model takes it.
func item(d goldenDatum, w *lora.Weights) model.Item {
	it := model.Item{Adapter: w}
	for i := range d.Tokens {
		it.Tokens = append(it.Tokens, int32(d.Tokens[i]))
		it.Targets = append(it.Targets, int32(d.Targets[i]))
	}
	return it
}

func items(ds []goldenDatum, w *lora.Weights) (its []model.Item, weights [][]float32) {
	for _, d := range ds {
		its = append(its, item(d, w))
		var row []float32
		for _, v := range d.Weights {
			row = append(row, float32(v))
		}
		weights = append(weights, row)
	}
	return its, weights
}

func forward(t *testing.T, b *model.Base, its []model.Item, keep bool) (*model.Tape, [][]float32) {
	t.Helper()
	tape, err := b.Forward(its, keep)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tape.Release)
	lp, err := tape.LogProbs()
	if err != nil {
		t.Fatal(err)
	}
	return tape, lp
}

func wide(v []float32) []float64 {
	out := make([]float64, len(v))
	for i := range v {
		out[i] = float64(v[i])
	}
	return out
}

func sumLoss(lp, w [][]float32) float64 {
	sum := 0.0
	for i := range lp {
		for j := range lp[i] {
			sum -= float64(w[i][j]) * float64(lp[i][j])
		}
	}
	return sum
}

// TestLogProbs: target log-probabilities and loss, bare and with two adapters, equal torch's.
func TestLogProbs(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		for _, e := range []goldenEval{g.Base, g.Adapter, g.AdapterAttn} {
			its, w := items(g.Batch, weightsOf(adapter(t, b, g.Dir, e.AdapterName)))
			_, lp := forward(t, b, its, false)
			for i := range lp {
				checkClose(t, "logprobs", e.LogprobsF64[i], wide(lp[i]), noiseFactor*e.LogprobsNoise)
			}
			checkClose(t, "loss", []float64{e.LossF64}, []float64{sumLoss(lp, w)}, noiseFactor*e.LossNoise)
		}
	})
}

// TestLogits: generation's logits at every position of a sequence equal torch's.
func TestLogits(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		kv, err := b.NewKV(256)
		if err != nil {
			t.Fatal(err)
		}
		defer kv.Free()
		c := kv.NewCache()
		for p, tok := range g.Batch[g.Base.LogitsDatum].Tokens {
			lg, err := b.Extend([]model.Feed{{Cache: c, Tokens: []int32{int32(tok)}}})
			if err != nil {
				t.Fatal(err)
			}
			V := b.Spec.Vocab
			checkClose(t, "logits", g.Base.LogitsF64.Data[p*V:(p+1)*V], wide(lg.Z[0]), noiseFactor*g.Base.LogitsNoise)
		}
	})
}

// TestGradients: every adapter gradient equals torch autograd's, each adapter alone.
func TestGradients(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		for _, e := range []goldenEval{g.Adapter, g.AdapterAttn} {
			a := adapter(t, b, g.Dir, e.AdapterName)
			its, w := items(g.Batch, a.Weights)
			backward(t, b, its, w, a)
			checkGradients(t, e, a)
		}
	})
}

// TestMixedBatch: two adapters of different rank and targets in one packed batch, interleaved with bare
// sequences, get the gradients they get alone.
func TestMixedBatch(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		a1, a2 := adapter(t, b, g.Dir, g.Adapter.AdapterName), adapter(t, b, g.Dir, g.AdapterAttn.AdapterName)
		var its []model.Item
		var w [][]float32
		for i, d := range g.Batch {
			for _, x := range []*lora.Weights{a1.Weights, nil, a2.Weights} {
				one, ow := items(g.Batch[i:i+1], x)
				its, w = append(its, one...), append(w, ow...)
			}
			_ = d
		}
		backward(t, b, its, w, a1, a2)
		checkGradients(t, g.Adapter, a1)
		checkGradients(t, g.AdapterAttn, a2)
	})
}

func backward(t *testing.T, b *model.Base, its []model.Item, w [][]float32, as ...*lora.Adapter) {
	t.Helper()
	for _, a := range as {
		if err := a.BeginOp(); err != nil {
			t.Fatal(err)
		}
	}
	tape, _ := forward(t, b, its, true)
	if err := tape.Backward(w); err != nil {
		t.Fatal(err)
	}
	tape.Release()
	for _, a := range as {
		if err := a.CommitOp(); err != nil {
			t.Fatal(err)
		}
	}
}

func checkGradients(t *testing.T, e goldenEval, a *lora.Adapter) {
	t.Helper()
	ts, err := a.Gradients()
	if err != nil {
		t.Fatal(err)
	}
	if len(ts) != len(e.GradsF64) {
		t.Errorf("%d gradients, torch has %d", len(ts), len(e.GradsF64))
	}
	for _, x := range ts {
		name := "base_model.model." + x.Name
		checkClose(t, "gradient of "+name, e.GradsF64[name].Data, wide(x.Values), noiseFactor*e.GradsNoise[name])
	}
}

// TestTenSteps: ten optimiser steps with changing hyper-parameters have torch's losses, gradient norms and final factors.
func TestTenSteps(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		a := adapter(t, b, g.Dir, g.Train.AdapterName)
		its, w := items(g.Batch, a.Weights)
		check := func(what string, l goldenLoss) {
			_, lp := forward(t, b, its, false)
			checkClose(t, what, []float64{l.F64}, []float64{sumLoss(lp, w)}, noiseFactor*l.Noise)
		}
		for _, s := range g.Train.Steps {
			check("loss", s.goldenLoss)
			backward(t, b, its, w, a)
			norm, err := a.OptimStep(api.AdamParams{LearningRate: s.LR, Beta1: s.Beta1, Beta2: s.Beta2, Eps: s.Eps,
				WeightDecay: s.WeightDecay, GradClipNorm: s.Clip})
			if err != nil {
				t.Fatal(err)
			}
			checkClose(t, "gradient norm", []float64{s.GradNormF64}, []float64{norm}, noiseFactor*s.GradNormNoise)
		}
		check("final loss", g.Train.Final)
		ts, err := a.Weights.Tensors()
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range ts {
			name := "base_model.model." + x.Name
			checkClose(t, "final "+name, g.Train.TensorsF64[name].Data, wide(x.Values), noiseFactor*g.Train.TensorsNoise[name])
		}
	})
}

// TestGreedy: greedy generation gives torch's tokens, and its log-probabilities are those of a forward
// over the whole text, bit for bit.
func TestGreedy(t *testing.T) {
	each(t, func(t *testing.T, b *model.Base, g golden) {
		kv, err := b.NewKV(1024)
		if err != nil {
			t.Fatal(err)
		}
		defer kv.Free()
		for _, gr := range g.Greedy {
			w := weightsOf(adapter(t, b, g.Dir, gr.AdapterName))
			c := kv.NewCache()
			var feed []int32
			for _, id := range gr.Prompt {
				feed = append(feed, int32(id))
			}
			text, sampled := append([]int32(nil), feed...), []float32{}
			for range gr.Tokens {
				lg, err := b.Extend([]model.Feed{{Cache: c, Tokens: feed, Adapter: w}})
				if err != nil {
					t.Fatal(err)
				}
				best := 0
				for i, z := range lg.Z[0] {
					if z > lg.Z[0][best] {
						best = i
					}
				}
				feed = []int32{int32(best)}
				text = append(text, int32(best))
				sampled = append(sampled, lg.Z[0][best]-lg.LSE[0])
			}
			n := len(gr.Prompt)
			for i, want := range gr.Tokens {
				if text[n+i] != int32(want) {
					t.Fatalf("token %d is %d, torch has %d", i, text[n+i], want)
				}
			}
			checkClose(t, "generated logprobs", gr.LogprobsF64, wide(sampled), noiseFactor*gr.LogprobsNoise)
			_, lp := forward(t, b, []model.Item{
				{Tokens: []int32{1, 2, 3}, Targets: []int32{1, 2, 3}},
				{Tokens: text[:len(text)-1], Targets: text[1:], Adapter: w},
			}, false)
			for i, s := range sampled {
				if f := lp[1][n-1+i]; math.Float32bits(f) != math.Float32bits(s) && b.Device().Info().Act == kernels.F32 {
					t.Fatalf("token %d: sampled logprob %v, forward gives %v", i, s, f)
				}
			}
			c.Release()
		}
	})
}
