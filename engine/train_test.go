package engine_test

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
)

// TestTrain: futures overlap, the loss falls, and the answers have the right shape.
func TestTrain(t *testing.T) {
	e := open(t, nil)
	r := newRun(t, e.NewSession(), "small", 1)
	data := []api.Datum{datum(1, 9), datum(2, 14), datum(3, 1)}
	var passes []*engine.Future[api.ForwardBackwardOutput]
	var steps []*engine.Future[api.OptimStepOutput]
	for range 8 {
		p, err := r.ForwardBackward(batch(data...))
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.OptimStep(adam(0.02))
		if err != nil {
			t.Fatal(err)
		}
		passes, steps = append(passes, p), append(steps, s)
	}
	last := math.Inf(1)
	for i := range steps {
		step := wait(t, steps[i], nil)
		select {
		case <-passes[i].Done():
		default:
			t.Fatalf("step %d ended before its forward_backward", i)
		}
		out := wait(t, passes[i], nil)
		sum := 0.0
		for j, o := range out.LossFnOutputs {
			if n := o["logprobs"].Len(); n != len(data[j].ModelInput.Chunks[0].Tokens) {
				t.Fatalf("datum %d has %d logprobs", j, n)
			}
			for _, v := range o["logprobs"].Floats {
				sum -= float64(v)
			}
		}
		now := out.Metrics["loss:sum"]
		if math.Abs(now-sum) > 1e-9*sum || !(now < last) {
			t.Fatalf("step %d: loss %v after %v, its logprobs sum to %v", i, now, last, sum)
		}
		if !(step.Metrics["grad_norm"] > 0) {
			t.Fatalf("step %d: gradient norm %v", i, step.Metrics["grad_norm"])
		}
		last = now
	}
	if info := r.Info(); info.Version != 8 || info.Step != 8 || info.Queued != 0 || info.BaseModel != "small" || info.Params == 0 {
		t.Errorf("info is %+v", info)
	}
}

// TestAccumulate: gradients add up until optim_step and are cleared by it; a step without one does no harm.
func TestAccumulate(t *testing.T) {
	e := open(t, nil)
	s := e.NewSession()
	a, b := newRun(t, s, "small", 5), newRun(t, s, "small", 5)
	for _, d := range []api.Datum{datum(1, 8), datum(2, 5)} {
		if _, err := a.ForwardBackward(batch(d)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := a.OptimStep(adam(0.01))
	one := wait(t, f, err).Metrics["grad_norm"]
	if _, err := b.ForwardBackward(batch(datum(1, 8), datum(2, 5))); err != nil {
		t.Fatal(err)
	}
	f, err = b.OptimStep(adam(0.01))
	if two := wait(t, f, err).Metrics["grad_norm"]; math.Abs(one-two) > 1e-6*one {
		t.Errorf("gradient norms %v and %v", one, two)
	}
	f, err = a.OptimStep(adam(0))
	if norm := wait(t, f, err).Metrics["grad_norm"]; norm != 0 {
		t.Errorf("gradient norm of a step without a gradient is %v", norm)
	}
}

// TestForward leaves gradient and weights alone.
func TestForward(t *testing.T) {
	e := open(t, nil)
	r := newRun(t, e.NewSession(), "small", 1)
	f, err := r.Forward(batch(datum(1, 8)))
	out := wait(t, f, err)
	g, err := r.ForwardBackward(batch(datum(1, 8)))
	if both := wait(t, g, err); !slices.Equal(logProbs(out), logProbs(both)) || out.Metrics["loss:sum"] != both.Metrics["loss:sum"] {
		t.Error("forward and forward_backward differ")
	}
	wide := datum(1, 4)
	wide.LossInputs["target_tokens"] = api.TensorData{Ints: []int64{1, 2, 3, 4, 5, 6, 7, 8}, Shape: []int{4, 2}}
	f, err = r.Forward(batch(wide, datum(2, 3)))
	if lp := wait(t, f, err).LossFnOutputs[0]["logprobs"]; !slices.Equal(lp.Shape, []int{4, 2}) || lp.Len() != 8 {
		t.Errorf("(N,K) targets gave %+v", lp)
	}
	o, err := r.OptimStep(adam(0.1))
	wait(t, o, err)
	h, err := r.Forward(batch(datum(1, 8)))
	wait(t, h, err)
	o, err = r.OptimStep(adam(0.1))
	if norm := wait(t, o, err).Metrics["grad_norm"]; norm != 0 {
		t.Errorf("a forward left a gradient of norm %v", norm)
	}
}

// squares is a loss over the whole batch: the square of the sum of all log-probabilities over 100.
type squares struct{ calls chan int }

func (l squares) Eval(_ context.Context, in loss.Input) (loss.Output, error) {
	if l.calls != nil {
		l.calls <- len(in.Data)
	}
	sum := 0.0
	for _, lp := range in.LogProbs {
		for _, v := range lp {
			sum += float64(v)
		}
	}
	out := loss.Output{Metrics: map[string]float64{"loss:sum": sum * sum / 100}}
	for _, lp := range in.LogProbs {
		w := make([]float32, len(lp))
		for i := range w {
			w[i] = float32(-2 * sum / 100)
		}
		out.Weights = append(out.Weights, w)
	}
	return out, nil
}

// TestMicroBatches: the size of micro-batches changes no bit of logprobs, metrics or gradient, with a loss per datum and
// with one over the whole batch, whether tapes are kept or the forward is run again.
func TestMicroBatches(t *testing.T) {
	var data []api.Datum
	for i := range 9 {
		data = append(data, datum(i, 3+(i*7)%17))
	}
	for name, custom := range map[string]loss.Loss{"per datum": nil, "whole batch": squares{}} {
		t.Run(name, func(t *testing.T) {
			var wantOut api.ForwardBackwardOutput
			var want []float32
			for i, l := range []engine.Limits{{}, {MicroBatchTokens: 1}, {MicroBatchTokens: 20}, {MicroBatchTokens: 20, Memory: 1 << 20}, {Memory: 1 << 19}} {
				e := open(t, func(o *engine.Options) { o.Limits = l })
				r := newRun(t, e.NewSession(), "small", 3)
				var f *engine.Future[api.ForwardBackwardOutput]
				var err error
				if custom == nil {
					f, err = r.ForwardBackward(batch(data...))
				} else {
					f, err = r.ForwardBackwardCustom(data, custom, nil)
				}
				out := wait(t, f, err)
				o, err := r.OptimStep(adam(0.01))
				wait(t, o, err)
				got := weights(t, r)
				e.Close()
				if i == 0 {
					want, wantOut = got, out
					continue
				}
				if !slices.Equal(got, want) {
					t.Errorf("limits %+v: weights differ", l)
				}
				if !slices.Equal(logProbs(out), logProbs(wantOut)) || out.Metrics["loss:sum"] != wantOut.Metrics["loss:sum"] {
					t.Errorf("limits %+v: outputs differ", l)
				}
			}
		})
	}
}

// TestWholeBatch: a loss that is not per datum sees all datums at once, once.
func TestWholeBatch(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.MicroBatchTokens = 1 })
	r := newRun(t, e.NewSession(), "small", 3)
	calls := make(chan int, 10)
	f, err := r.ForwardBackwardCustom([]api.Datum{datum(1, 5), datum(2, 6), datum(3, 4)}, squares{calls}, nil)
	wait(t, f, err)
	close(calls)
	if n, again := <-calls, len(calls); n != 3 || again != 0 {
		t.Errorf("the loss was called with %d datums, and %d more times", n, again)
	}
}

// broken is a loss that fails in one way or another.
type broken func(in loss.Input) (loss.Output, error)

func (b broken) Eval(_ context.Context, in loss.Input) (loss.Output, error) { return b(in) }

// TestFailingOp: an operation that fails fails alone and leaves the gradient as it was.
func TestFailingOp(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.LossTime, o.Limits.MicroBatchTokens = time.Second, 8 })
	s := e.NewSession()
	r, clean := newRun(t, s, "small", 3), newRun(t, s, "small", 3)
	good := batch(datum(1, 7), datum(4, 9))
	data := []api.Datum{datum(2, 5), datum(3, 6)}
	ones := func(in loss.Input) loss.Output { out, _ := squares{}.Eval(ctx, in); return out }
	if _, err := r.ForwardBackward(good); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		code api.Code
		msg  string
		eval broken
	}{
		{api.Internal, "loss: defect in the engine: oh no", func(in loss.Input) (loss.Output, error) { panic("oh no") }},
		{api.BadRequest, "advantages are missing", func(in loss.Input) (loss.Output, error) {
			return loss.Output{}, api.Errorf(api.BadRequest, "advantages are missing")
		}},
		{api.BadRequest, "the loss returned weights for 0 datums, the batch has 2", func(in loss.Input) (loss.Output, error) {
			return loss.Output{}, nil
		}},
		{api.BadRequest, "datum 1: the loss returned 1 weights for 6 log-probabilities", func(in loss.Input) (loss.Output, error) {
			out := ones(in)
			out.Weights[1] = out.Weights[1][:1]
			return out, nil
		}},
		{api.BadRequest, "datum 1: the loss returned weight 2 = NaN, wanted a finite number", func(in loss.Input) (loss.Output, error) {
			out := ones(in)
			out.Weights[1][2] = float32(math.NaN())
			return out, nil
		}},
		{api.BadRequest, `the loss returned metric "loss", wanted a name that ends in one reduction, like loss:sum`, func(in loss.Input) (loss.Output, error) {
			out := ones(in)
			out.Metrics["loss"] = 1
			return out, nil
		}},
		{api.BadRequest, "the loss returned no metric loss:sum", func(in loss.Input) (loss.Output, error) {
			out := ones(in)
			clear(out.Metrics)
			return out, nil
		}},
	} {
		_, err := result(r.ForwardBackwardCustom(data, c.eval, nil))
		fails(t, err, c.code, c.msg)
	}
	for _, x := range []*engine.Run{clean, r} {
		if x == clean {
			if _, err := x.ForwardBackward(good); err != nil {
				t.Fatal(err)
			}
		}
		f, err := x.OptimStep(adam(0.01))
		wait(t, f, err)
	}
	if !slices.Equal(weights(t, r), weights(t, clean)) {
		t.Error("failed operations changed the gradient")
	}
}

// TestWrongInput: what is wrong with a request is said at once, with the datum and the numbers.
func TestWrongInput(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.DatumsPerOp, o.Limits.TokensPerOp = 4, 300 })
	r := newRun(t, e.NewSession(), "small", 1)
	change := func(f func(d *api.Datum)) api.ForwardBackwardInput {
		d := datum(2, 5)
		f(&d)
		return batch(datum(1, 3), d)
	}
	targets := func(v api.TensorData) api.ForwardBackwardInput {
		return change(func(d *api.Datum) { d.LossInputs["target_tokens"] = v })
	}
	for _, c := range []struct {
		in  api.ForwardBackwardInput
		msg string
	}{
		{batch(), "the batch is empty"},
		{batch(make([]api.Datum, 5)...), "the batch has 5 datums, the limit is 4"},
		{batch(datum(1, 160), datum(1, 160)), "the batch has more than 300 target tokens, the limit of one operation"},
		{api.ForwardBackwardInput{Data: []api.Datum{datum(1, 3)}, LossFn: "hinge"}, `unknown loss_fn "hinge", wanted one of cispo, cross_entropy, dro, importance_sampling, ppo`},
		{change(func(d *api.Datum) { d.ModelInput = api.ModelInput{} }), "datum 1: model input is empty"},
		{change(func(d *api.Datum) { d.ModelInput.Chunks[0].Type = "image" }), `datum 1: chunk 0 has type "image", wanted "encoded_text"`},
		{change(func(d *api.Datum) { *d = datum(1, 201) }), "datum 1: model input has 201 tokens, the model's context is 200"},
		{change(func(d *api.Datum) { d.ModelInput.Chunks[0].Tokens[3] = 61 }), "datum 1: token 3 has id 61, the vocabulary is 0..60"},
		{change(func(d *api.Datum) { d.ModelInput.Chunks[0].Tokens[3] = -1 }), "datum 1: token 3 has id -1, the vocabulary is 0..60"},
		{change(func(d *api.Datum) { d.LossInputs = nil }), "datum 1: target_tokens is missing"},
		{targets(api.Floats([]float32{1, 2, 3, 4, 5})), "datum 1: target_tokens is float32, wanted int64"},
		{targets(api.Ints([]int64{1, 2, 3, 4})), "datum 1: target_tokens has 4 entries, model input has 5"},
		{targets(api.TensorData{Ints: make([]int64, 10), Shape: []int{2, 5}}), "datum 1: target_tokens has 2 entries, model input has 5"},
		{targets(api.TensorData{Ints: make([]int64, 10), Shape: []int{5, 3}}), "datum 1: target_tokens has shape [5 3] but holds 10 values"},
		{targets(api.TensorData{Ints: make([]int64, 5), Shape: []int{5, 1, 1}}), "datum 1: target_tokens has shape [5 1 1], wanted (N) or (N,K)"},
		{targets(api.Ints([]int64{1, 2, 61, 4, 5})), "datum 1: target_tokens[2] is 61, the vocabulary is 0..60"},
		{targets(api.Ints([]int64{1, 2, 1 << 40, 4, 5})), "datum 1: target_tokens[2] is 1099511627776, the vocabulary is 0..60"},
		{targets(api.Ints([]int64{1, 2, -1, 4, 5})), "datum 1: target_tokens[2] is -1, the vocabulary is 0..60"},
		{change(func(d *api.Datum) { d.LossInputs["weights"] = api.Floats([]float32{1}) }), "datum 1: weights has 1 entries, target_tokens has 5"},
	} {
		for _, submit := range []func(api.ForwardBackwardInput) (*engine.Future[api.ForwardBackwardOutput], error){r.ForwardBackward, r.Forward} {
			f, err := submit(c.in)
			if f != nil {
				t.Errorf("%s: was accepted", c.msg)
				continue
			}
			code := api.BadRequest
			if strings.Contains(c.msg, "image") {
				code = api.Unsupported
			}
			fails(t, err, code, c.msg)
		}
	}
	_, err := r.OptimStep(api.AdamParams{LearningRate: -1})
	fails(t, err, api.BadRequest, "adam_params: learning_rate is -1, wanted a finite number >= 0")
	other := api.DefaultLora()
	_, err = r.Load(engine.Weights{Lora: other})
	fails(t, err, api.BadRequest, "load_weights: the weights have rank 32, train_attn true, train_mlp true, train_unembed true; the run has rank 4, true, true, true")
	s := e.NewSession()
	_, err = s.NewRun(api.CreateModelRequest{BaseModel: "small", Lora: api.LoraConfig{Rank: 100000, TrainMLP: true}})
	fails(t, err, api.BadRequest, "lora rank is 100000, wanted 1..512")
	_, err = result(s.NewRun(api.CreateModelRequest{BaseModel: "large", Lora: other}))
	fails(t, err, api.NotFound, `no model "large"`)
	if info := r.Info(); info.Queued != 0 || info.Version != 0 {
		t.Errorf("refused requests left %+v", info)
	}
}

// TestNumbered: requests that arrive in any order, some twice, some wrong, some of another kind, give the
// futures and the weights of delivery in order.
func TestNumbered(t *testing.T) {
	e := open(t, nil)
	s := e.NewSession()
	type request func(p engine.Place) (any, error)
	forward := func(i int) request {
		return func(p engine.Place) (any, error) { return p.ForwardBackward(batch(datum(i, 3+i%5))) }
	}
	step := func(p engine.Place) (any, error) { return p.OptimStep(adam(0.01)) }
	wrong := func(p engine.Place) (any, error) { return p.ForwardBackward(batch()) }
	requests := []request{forward(1), forward(2), wrong, step, forward(3), forward(4), step, wrong, forward(5), step}

	ordered := newRun(t, s, "small", 9)
	for i, f := range requests {
		f(ordered.At(int64(i + 1)))
	}
	want := weights(t, ordered)
	for seed := range uint64(12) {
		r := newRun(t, s, "small", 9)
		rng := rand.New(rand.NewPCG(seed, 3))
		order := append(rng.Perm(len(requests)), rng.Perm(len(requests))...)
		first := map[int]any{}
		for _, i := range order {
			f, err := requests[i](r.At(int64(i + 1)))
			bad := i == 2 || i == 7
			if bad {
				fails(t, err, api.BadRequest, "the batch is empty")
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if before, again := first[i]; again && before != f {
				t.Fatalf("number %d answered its repeat with another future", i+1)
			}
			first[i] = f
		}
		if !slices.Equal(weights(t, r), want) {
			t.Fatalf("seed %d: order %v gave other weights", seed, order)
		}
	}
	r := newRun(t, s, "small", 9)
	if _, err := r.At(1).OptimStep(adam(0.01)); err != nil {
		t.Fatal(err)
	}
	_, err := r.At(1).Forward(batch(datum(1, 3)))
	fails(t, err, api.BadRequest, "sequence number 1 was a optim_step, now it is a forward")
	// A rejected number rejects its repeats, whatever they ask for.
	_, err = r.At(2).Forward(batch())
	fails(t, err, api.BadRequest, "the batch is empty")
	_, err = r.At(2).Forward(batch(datum(1, 3)))
	fails(t, err, api.BadRequest, "the batch is empty")
}

// TestGap: a number that never comes holds the run up for a bounded time.
func TestGap(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.GapWait = 50 * time.Millisecond })
	r := newRun(t, e.NewSession(), "small", 9)
	begin := time.Now()
	f, err := r.At(2).OptimStep(adam(0.01))
	wait(t, f, err)
	if took := time.Since(begin); took < 50*time.Millisecond {
		t.Errorf("waited %v for the gap", took)
	}
	_, err = r.At(1).OptimStep(adam(0.01))
	fails(t, err, api.BadRequest, "sequence number 1 has passed: the run waits for 3")
}

// TestLoad: weights that were read from one run and loaded into another give the same bits.
func TestLoad(t *testing.T) {
	e := open(t, nil)
	s := e.NewSession()
	a, b := newRun(t, s, "small", 1), newRun(t, s, "small", 2)
	train(t, a, 3, datum(1, 8))
	f, err := a.Weights()
	w := wait(t, f, err)
	if w.Version != 3 || w.Scale != 8 || *w.Lora.Seed != 1 {
		t.Errorf("weights have version %d, scale %v, seed %d", w.Version, w.Scale, *w.Lora.Seed)
	}
	if _, err := b.ForwardBackward(batch(datum(2, 4))); err != nil { // is dropped by the load
		t.Fatal(err)
	}
	g, err := b.Load(w)
	wait(t, g, err)
	if !slices.Equal(weights(t, a), weights(t, b)) {
		t.Error("loaded weights differ")
	}
	o, err := b.OptimStep(adam(0.1))
	if norm := wait(t, o, err).Metrics["grad_norm"]; norm != 0 {
		t.Errorf("a load kept a gradient of norm %v", norm)
	}
	w.Tensors = w.Tensors[1:]
	_, err = result(b.Load(w))
	fails(t, err, api.BadRequest, "adapter has no tensor model.layers.0.self_attn.q_proj.lora_A.weight")
}

// TestTwoRuns: runs on one base, and on two, train at the same time and do not meet.
func TestTwoRuns(t *testing.T) {
	alone := func(model string, seed int64, data api.Datum) []float32 {
		e := open(t, nil)
		r := newRun(t, e.NewSession(), model, seed)
		train(t, r, 3, data)
		return weights(t, r)
	}
	e := open(t, nil)
	s := e.NewSession()
	runs := []*engine.Run{newRun(t, s, "small", 1), newRun(t, s, "small", 2), newRun(t, s, "other", 3)}
	for range 3 {
		for i, r := range runs {
			if _, err := r.ForwardBackward(batch(datum(i, 6+i))); err != nil {
				t.Fatal(err)
			}
			if _, err := r.OptimStep(adam(0.01)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, r := range runs {
		if !slices.Equal(weights(t, r), alone(r.Base().Name, int64(i+1), datum(i, 6+i))) {
			t.Errorf("run %d differs from the same run alone", i)
		}
	}
	if ids := []string{s.Runs()[0].ID(), s.Runs()[2].ID()}; !strings.HasSuffix(ids[0], ":train:0") || !strings.HasSuffix(ids[1], ":train:2") {
		t.Errorf("runs are %q", ids)
	}
}
