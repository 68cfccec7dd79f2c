package local_test

import (
	"context"
	"math"
	"slices"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
	"tinkerlocal/engine/model"
)

// TestPluginCrossEntropy: the module that computes cross_entropy gives the built-in loss's answer and, after a step, its adapter, bit for bit,
// with one target or several at a position, in micro-batches or not.
func TestPluginCrossEntropy(t *testing.T) {
	p := openPlugins(t)
	plugin := use(t, p, twin("cross_entropy"))
	for name, data := range map[string][]api.Datum{
		"N": sequences(9), "N x K": {candidates(1, 7, 3), candidates(2, 1, 4), candidates(3, 12, 2), candidates(4, 5, 3)},
	} {
		for _, tokens := range []int{4096, 20} {
			e := openEngine(t, func(o *engine.Options) { o.Limits.MicroBatchTokens = tokens })
			var want api.ForwardBackwardOutput
			var factors []float32
			for i, l := range []loss.Loss{nil, plugin} {
				r := newRun(t, e, "small", 4, 7)
				var f *engine.Future[api.ForwardBackwardOutput]
				var err error
				if l == nil {
					f, err = r.ForwardBackward(crossEntropy(data))
				} else {
					f, err = r.ForwardBackwardCustom(data, l, nil)
				}
				out, got := done(t, f, err), optimStep(t, r)
				if i == 0 {
					want, factors = out, got
					continue
				}
				if out.Metrics["loss:sum"] != want.Metrics["loss:sum"] || !sameRows(logProbs(out), logProbs(want)) {
					t.Errorf("%s, %d tokens, form %d: loss %v, the built-in has %v", name, tokens, i, out.Metrics["loss:sum"], want.Metrics["loss:sum"])
				}
				if !slices.Equal(got, factors) {
					t.Errorf("%s, %d tokens, form %d: the adapter has other bits than with the built-in loss", name, tokens, i)
				}
			}
			e.Close()
		}
	}
}

// TestPluginTwins: importance_sampling and ppo as modules have the built-in losses' value and gradient up to 1e-6. (Their weights may differ in the last
// bit of float32.)
func TestPluginTwins(t *testing.T) {
	p := openPlugins(t)
	e := openEngine(t, nil)
	for _, name := range []string{"importance_sampling", "ppo"} {
		f, err := newRun(t, e, "small", 4, 8).Forward(crossEntropy(sequences(9)))
		var data []api.Datum
		for i, lp := range logProbs(done(t, f, err)) {
			d, q, a := sequence(i, len(lp)), slices.Clone(lp), make([]float32, len(lp))
			for j := range q { // ratios from 0.7 to 1.5: on both sides of the clips
				q[j] += float32((i+3*j)%9-4) / 10
				a[j] = float32((i*5+j)%7-3) / 2
			}
			delete(d.LossInputs, "weights")
			data = append(data, with(with(d, "logprobs", api.Floats(q)), "advantages", api.Floats(a)))
		}
		own, wasm := newRun(t, e, "small", 4, 7), newRun(t, e, "small", 4, 7)
		f, err = own.ForwardBackward(api.ForwardBackwardInput{Data: data, LossFn: name})
		want := done(t, f, err).Metrics["loss:sum"]
		f, err = wasm.ForwardBackwardCustom(data, use(t, p, twin(name)), nil)
		if got := done(t, f, err).Metrics["loss:sum"]; want == 0 || math.Abs(got-want) > 1e-6*math.Abs(want) {
			t.Errorf("%s: loss %v, the built-in has %v", name, got, want)
		}
		have := gradients(t, e, wasm)
		for factor, g := range gradients(t, e, own) {
			size := norm(g)
			for i := range g {
				g[i] -= have[factor][i]
			}
			if !(norm(g) <= 1e-6*size) || (size == 0) == (factor[len(factor)-13:] == "lora_B.weight") {
				t.Errorf("%s: gradient of %s, of norm %v, differs by %v", name, factor, size, norm(g))
			}
		}
	}
}

// products are the multiply-adds with the frozen weights of a dense model for n tokens, forward and backward. A backward has no product for the inputs of the
// first layer's q, k and v, since nothing before them is trained, and runs the head forward again: its logits are never kept.
func products(s model.Spec, n int) (forward, backward model.Work) {
	qkv := s.Hidden * (s.Heads + 2*s.KVHeads) * s.HeadDim
	layer := qkv + s.Heads*s.HeadDim*s.Hidden + 3*s.Hidden*s.FFN
	head := s.Hidden * s.Vocab
	all := s.Layers*layer + head
	return model.Work{Forward: int64(n * all)}, model.Work{Backward: int64(n * (all - qkv)), Recompute: int64(n * head)}
}

// TestPluginWork: whatever computes the loss, a forward_backward is one forward and one backward, to the same bits; a forward is one forward and nothing more.
func TestPluginWork(t *testing.T) {
	p := openPlugins(t)
	dpo, perDatum := use(t, p, "dpo"), use(t, p, twin("cross_entropy"))
	data := sequences(8)
	tokens := 0
	for i, d := range data {
		n := d.LossInputs["target_tokens"].Len()
		tokens += n
		data[i] = with(d, "ref_logprobs", api.Floats(make([]float32, n)))
	}
	plain := sequences(8)
	weights := func(lp [][]float32) [][]float32 {
		out, err := dpo.Eval(t.Context(), loss.Input{Data: data, LogProbs: lp})
		if err != nil {
			t.Fatal(err)
		}
		return out.Weights
	}
	goFunc := loss.Func(func(ctx context.Context, in loss.Input) (loss.Output, error) { return dpo.Eval(ctx, in) })
	type form struct {
		name string
		pass func(r *engine.Run) (*engine.Future[api.ForwardBackwardOutput], error)
	}
	for _, micro := range []int{4096, 20} {
		e := openEngine(t, func(o *engine.Options) { o.Limits.MicroBatchTokens = micro })
		forward, backward := products(newRun(t, e, "small", 4, 7).Base().Spec, tokens)
		bits := map[string][]float32{}
		for _, f := range []form{
			{"built-in", func(r *engine.Run) (*engine.Future[api.ForwardBackwardOutput], error) {
				return r.ForwardBackward(crossEntropy(plain))
			}},
			{"module", func(r *engine.Run) (*engine.Future[api.ForwardBackwardOutput], error) {
				return r.ForwardBackwardCustom(data, dpo, nil)
			}},
			{"module of datums", func(r *engine.Run) (*engine.Future[api.ForwardBackwardOutput], error) {
				return r.ForwardBackwardCustom(plain, perDatum, nil)
			}},
			{"Go function", func(r *engine.Run) (*engine.Future[api.ForwardBackwardOutput], error) {
				return r.ForwardBackwardCustom(data, goFunc, nil)
			}},
			{"hold", func(r *engine.Run) (*engine.Future[api.ForwardBackwardOutput], error) {
				f, err := r.Hold(data)
				h := done(t, f, err)
				return h.Backward(weights(h.LogProbs()))
			}},
		} {
			r := newRun(t, e, "small", 4, 7)
			before := work(e, "small")
			fut, err := f.pass(r)
			done(t, fut, err)
			if got, want := work(e, "small").Sub(before), forward.Add(backward); got != want {
				t.Errorf("%s, micro-batches of %d: computed %+v, wanted %+v", f.name, micro, got, want)
			}
			bits[f.name] = optimStep(t, r)
		}
		for a, b := range map[string]string{"module": "Go function", "hold": "Go function", "module of datums": "built-in"} {
			if !slices.Equal(bits[a], bits[b]) {
				t.Errorf("micro-batches of %d: the adapter of the %s has other bits than that of the %s", micro, a, b)
			}
		}
		r := newRun(t, e, "small", 4, 7)
		for _, l := range []loss.Loss{dpo, goFunc} {
			before := work(e, "small")
			f, err := r.ForwardCustom(data, l, nil)
			done(t, f, err)
			if got := work(e, "small").Sub(before); got != forward {
				t.Errorf("forward, micro-batches of %d: computed %+v, wanted %+v", micro, got, forward)
			}
		}
		e.Close()
	}
}

// TestPluginRecompute: with less and less memory, tapes are kept in part or not at all; a plugin's gradients keep their bits.
func TestPluginRecompute(t *testing.T) {
	p := openPlugins(t)
	data := []api.Datum{sequence(1, 40), sequence(2, 40)}
	for i, d := range data {
		data[i] = with(d, "ref_logprobs", api.Floats(make([]float32, 40)))
	}
	for _, name := range []string{"dpo", twin("cross_entropy")} {
		plugin, plain := use(t, p, name), data
		if name != "dpo" {
			plain = []api.Datum{sequence(1, 40), sequence(2, 40)}
		}
		t.Run(name, func(t *testing.T) {
			var want []float32
			var plenty model.Work
			layers, twice, refused := 0, 0, 0
			for memory := int64(2_000_000); refused < 2 && memory > 100_000; memory -= 60_000 {
				e := openEngine(t, func(o *engine.Options) { o.Limits.MicroBatchTokens, o.Limits.Memory = 50, memory })
				seed := int64(1)
				nf, err := e.NewSession().NewRun(api.CreateModelRequest{BaseModel: "deep", Lora: api.LoraConfig{Rank: 2, Seed: &seed, TrainAttn: true, TrainMLP: true}})
				r, err := outcome(nf, err)
				if err != nil {
					e.Close()
					break
				}
				before := work(e, "deep")
				_, err = outcome(r.ForwardBackwardCustom(plain, plugin, nil))
				if api.CodeOf(err) == api.OutOfMemory {
					refused++
					e.Close()
					continue
				} else if err != nil {
					t.Fatal(err)
				}
				w := work(e, "deep").Sub(before)
				got := optimStep(t, r)
				e.Close()
				if want == nil {
					want, plenty = got, w
				}
				if !slices.Equal(got, want) {
					t.Errorf("%d bytes: other bits", memory)
				}
				if w.Backward != plenty.Backward {
					t.Errorf("%d bytes: computed %+v, with plenty of memory %+v", memory, w, plenty)
				}
				if w.Recompute > plenty.Recompute {
					layers++
				}
				if w.Forward > plenty.Forward {
					twice++
				}
			}
			if layers < 3 || twice == 0 {
				t.Errorf("layers were recomputed %d times, the forward run twice %d times, %d refused", layers, twice, refused)
			}
		})
	}
}
