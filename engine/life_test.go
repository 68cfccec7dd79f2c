package engine_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
)

// gate is a loss that waits until it is opened or its ctx ends.
type gate struct{ entered, open chan struct{} }

func newGate() gate { return gate{make(chan struct{}, 10), make(chan struct{})} }

func (g gate) Eval(c context.Context, in loss.Input) (loss.Output, error) {
	g.entered <- struct{}{}
	select {
	case <-g.open:
	case <-c.Done():
		return loss.Output{}, api.Errorf(api.BadRequest, "the loss was stopped: %w", context.Cause(c))
	}
	return squares{}.Eval(c, in)
}

// TestCancelOp: a queued operation is dropped, a started one finishes.
func TestCancelOp(t *testing.T) {
	e := open(t, nil)
	r := newRun(t, e.NewSession(), "small", 1)
	g := newGate()
	a, err := r.ForwardBackwardCustom([]api.Datum{datum(1, 4)}, g, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-g.entered
	b, _ := r.ForwardBackward(batch(datum(2, 4)))
	c, _ := r.OptimStep(adam(0.01))
	if n := r.Info().Queued; n != 2 {
		t.Errorf("%d operations wait, wanted 2", n)
	}
	far, err := newRun(t, e.NewSession(), "small", 1).At(2).OptimStep(adam(0.01))
	if err != nil {
		t.Fatal(err)
	}
	newRun(t, e.NewSession(), "small", 1) // the loop has seen the gap
	if a.State() != engine.Running || b.State() != engine.Queued || far.State() != engine.Gap {
		t.Errorf("states %d, %d, %d", a.State(), b.State(), far.State())
	}
	a.Cancel()
	b.Cancel()
	_, err = result(b, nil)
	fails(t, err, api.Cancelled, "forward_backward: cancelled")
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if _, err := c.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a wait that ends first gives %v", err)
	}
	close(g.open)
	wait(t, a, nil)
	if norm := wait(t, c, nil).Metrics["grad_norm"]; norm == 0 {
		t.Error("the started operation left no gradient")
	}
	if a.State() != engine.Ended || b.State() != engine.Ended {
		t.Errorf("states %d and %d at the end", a.State(), b.State())
	}
	b.Cancel()
	if _, err := b.Wait(ctx); api.CodeOf(err) != api.Cancelled {
		t.Errorf("cancelled twice: %v", err)
	}
}

// TestLossMeanwhile: while one run's loss is being evaluated, others train and sample; a loss that takes too long is stopped.
func TestLossMeanwhile(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.LossTime = 300 * time.Millisecond })
	s := e.NewSession()
	a, b := newRun(t, s, "small", 1), newRun(t, s, "small", 2)
	g := newGate()
	f, err := a.ForwardBackwardCustom([]api.Datum{datum(1, 4)}, g, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-g.entered
	train(t, b, 2, datum(1, 5))
	draw(t, sampler(t, b), ask(tokens(1, 3), 1, 5, 1))
	select {
	case <-f.Done():
		t.Fatal("the loss did not hold its operation")
	default:
	}
	_, err = result(f, nil)
	fails(t, err, api.BadRequest, "the loss was stopped: context deadline exceeded")
}

// TestClose: whatever is queued, under way or asked for later fails with Closed, and the device's memory is given back.
func TestClose(t *testing.T) {
	dev := &watched{Device: device(t)}
	e := open(t, func(o *engine.Options) { o.Device = dev })
	s := e.NewSession()
	r, idle := newRun(t, s, "small", 1), newRun(t, s, "other", 1)
	p := sampler(t, r)
	g := newGate()
	started, err := r.ForwardBackwardCustom([]api.Datum{datum(1, 4)}, g, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-g.entered
	queued, _ := r.OptimStep(adam(0.1))
	drawing, err := p.Sample(ctx, ask(tokens(1, 4), 16, 190, 1))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := p.Stream(ctx, ask(tokens(1, 4), 16, 190, 1))
	if err != nil {
		t.Fatal(err)
	}
	var closing sync.WaitGroup
	for range 2 {
		closing.Go(func() {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	closing.Wait()
	const msg = "the engine is closed"
	_, err = result(started, nil)
	fails(t, err, api.Closed, msg)
	_, err = result(queued, nil)
	fails(t, err, api.Closed, msg)
	_, err = result(drawing, nil)
	fails(t, err, api.Closed, msg)
	for err = nil; err == nil; _, err = stream.Next(ctx) {
	}
	fails(t, err, api.Closed, msg)
	_, err = idle.OptimStep(adam(0.1))
	fails(t, err, api.Closed, msg)
	_, err = s.NewSampler("small")
	fails(t, err, api.Closed, msg)
	_, err = p.Sample(ctx, ask(tokens(1, 4), 1, 1, 1))
	fails(t, err, api.Closed, msg)
	if n := dev.used(); n != 0 || !dev.closed.Load() {
		t.Errorf("%d bytes are still allocated, device closed: %v", n, dev.closed.Load())
	}
}

// TestCloseParts: sessions, runs and samplers give their memory back; bases stay for the next one.
func TestCloseParts(t *testing.T) {
	dev := &watched{Device: device(t)}
	e := open(t, func(o *engine.Options) { o.Device = dev; o.Limits.Runs = 2 })
	first := e.NewSession()
	r := newRun(t, first, "small", 1)
	train(t, r, 1, datum(1, 8))
	draw(t, sampler(t, r), ask(tokens(1, 3), 1, 3, 1))
	loaded := e.NewSession()
	f, err := loaded.NewSampler("small") // the queue is empty when this has ended
	wait(t, f, err)
	used := dev.used()
	for range 5 {
		s := e.NewSession()
		r := newRun(t, s, "small", 1)
		p := sampler(t, r)
		draw(t, p, ask(tokens(1, 3), 1, 3, 1))
		queued, err := r.OptimStep(adam(0.1))
		if err != nil {
			t.Fatal(err)
		}
		_, err = result(s.NewRun(api.CreateModelRequest{BaseModel: "small", Lora: api.DefaultLora()}))
		fails(t, err, api.Busy, "2 runs are open, the limit is 2")
		s.Close()
		s.Close()
		if _, err := result(queued, nil); err != nil {
			fails(t, err, api.Closed, "the run is closed")
		}
		_, err = r.Forward(batch(datum(1, 3)))
		fails(t, err, api.Closed, "the run is closed")
		_, err = s.NewSampler("small")
		fails(t, err, api.Closed, "the session is closed")
	}
	f, err = loaded.NewSampler("small")
	wait(t, f, err)
	if now := dev.used(); now != used {
		t.Errorf("%d bytes are allocated, %d before", now, used)
	}
}

// TestCloseEarly: what is closed while it is being opened or used ends cleanly.
func TestCloseEarly(t *testing.T) {
	dev := &watched{Device: device(t)}
	e := open(t, func(o *engine.Options) { o.Device, o.Limits.LossTime = dev, time.Hour })
	s := e.NewSession()
	r := newRun(t, s, "small", 1)
	g := newGate()
	f, err := r.ForwardBackwardCustom([]api.Datum{datum(1, 4)}, g, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-g.entered
	r.Close()
	r.Close()
	_, err = result(f, nil) // it had started, and its loss is stopped
	fails(t, err, api.Closed, "the run is closed")
	c, err := s.NewRun(api.CreateModelRequest{BaseModel: "other", Lora: api.DefaultLora()})
	if err != nil {
		t.Fatal(err)
	}
	c.Cancel()
	if _, err := result(c, nil); err != nil { // it may have started
		fails(t, err, api.Cancelled, "create model: cancelled")
	}
	for range 20 {
		s := e.NewSession()
		a, err := s.NewRun(api.CreateModelRequest{BaseModel: "small", Lora: api.DefaultLora()})
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.NewSampler("small")
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		for _, err := range []error{second(result(a, nil)), second(result(b, nil))} {
			if err != nil {
				fails(t, err, api.Closed, "the session is closed")
			}
		}
	}
	e.Close()
	if n := dev.used(); n != 0 {
		t.Errorf("%d bytes are still allocated", n)
	}
	c.Cancel()
}

func second[T any](_ T, err error) error { return err }

// TestDiverged: weights that are not finite are named when they are sampled from, and training from them changes nothing.
func TestDiverged(t *testing.T) {
	e := open(t, nil)
	r := newRun(t, e.NewSession(), "small", 1)
	f, err := r.Weights()
	w := wait(t, f, err)
	for i := range w.Tensors {
		if strings.HasSuffix(w.Tensors[i].Name, "q_proj.lora_B.weight") {
			w.Tensors[i].Values[0] = float32(math.NaN())
		}
	}
	l, err := r.Load(w)
	wait(t, l, err)
	_, err = result(sampler(t, r).Sample(ctx, ask(tokens(1, 4), 3, 9, 1)))
	fails(t, err, api.BadRequest, "sample: the logit of token 0 is NaN: the weights have diverged")
	if _, err := r.ForwardBackward(batch(datum(1, 5))); err != nil {
		t.Fatal(err)
	}
	_, err = result(r.OptimStep(adam(0.1)))
	fails(t, err, api.BadRequest, "optim_step: the gradient norm is NaN; the gradient was dropped and the weights are unchanged")
	if v := r.Info().Version; v != 1 {
		t.Errorf("version is %d", v)
	}
}

// TestQueueLimit: a full queue refuses, numbered or not, and a number that was refused for it may be sent again.
func TestQueueLimit(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.QueuedOps = 2 })
	r := newRun(t, e.NewSession(), "small", 1)
	g := newGate()
	if _, err := r.ForwardBackwardCustom([]api.Datum{datum(1, 4)}, g, nil); err != nil {
		t.Fatal(err)
	}
	<-g.entered
	for range 2 {
		if _, err := r.OptimStep(adam(0)); err != nil {
			t.Fatal(err)
		}
	}
	const msg = "2 requests of this run are waiting, the limit is 2"
	_, err := r.OptimStep(adam(0))
	fails(t, err, api.Busy, msg)
	_, err = r.At(4).OptimStep(adam(0))
	fails(t, err, api.Busy, msg)
	close(g.open)
	for err != nil {
		time.Sleep(time.Millisecond)
		var f *engine.Future[api.OptimStepOutput]
		if f, err = r.At(4).OptimStep(adam(0)); err == nil {
			wait(t, f, nil)
		}
	}
}

// TestZeroWeights: a batch whose weights are all zero gives log-probabilities and no gradient.
func TestZeroWeights(t *testing.T) {
	e := open(t, nil)
	r := newRun(t, e.NewSession(), "small", 1)
	d := datum(1, 5)
	d.LossInputs["weights"] = api.Floats(make([]float32, 5))
	f, err := r.ForwardBackward(batch(d))
	if out := wait(t, f, err); out.Metrics["loss:sum"] != 0 || out.LossFnOutputs[0]["logprobs"].Floats[4] == 0 {
		t.Errorf("output is %+v", out)
	}
	o, err := r.OptimStep(adam(0))
	if norm := wait(t, o, err).Metrics["grad_norm"]; norm != 0 {
		t.Errorf("gradient norm is %v", norm)
	}
}

// TestOpen: what an engine needs, and what it tells.
func TestOpen(t *testing.T) {
	_, err := engine.Open(ctx, engine.Options{Models: models})
	fails(t, err, api.BadRequest, "open engine: no device was given")
	dev := device(t)
	_, err = engine.Open(ctx, engine.Options{Device: dev})
	fails(t, err, api.BadRequest, "open engine: no models were given")
	var last, total int64
	e, err := engine.Open(ctx, engine.Options{Device: dev, Models: models, Progress: func(_ string, done, all int64) { last, total = done, all }})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if e.Device().Kind != "cpu" || strings.Join(e.Models(), " ") != "other small" || e.Limits().MicroBatchTokens == 0 {
		t.Errorf("engine tells %+v, %v, %+v", e.Device(), e.Models(), e.Limits())
	}
	r := newRun(t, e.NewSession(), "other", 1)
	b := r.Base()
	if last != b.Params || total != b.Params || b.Params == 0 || b.Bytes < 4*b.Params || b.Spec.Vocab != 37 || fmt.Sprint(b.EosTokenIDs) != "[5]" {
		t.Errorf("loaded %d of %d parameters; base is %+v", last, total, b)
	}
	if n := b.AdapterParams(r.Info().Lora); n != r.Info().Params || n == 0 {
		t.Errorf("an adapter has %d parameters, or %d", n, r.Info().Params)
	}
}

// TestCloseWhileLoading: closing stops the loading of a base model.
func TestCloseWhileLoading(t *testing.T) {
	dev := &watched{Device: device(t)}
	loading, goOn := make(chan struct{}, 100), make(chan struct{})
	e := open(t, func(o *engine.Options) {
		o.Device = dev
		o.Progress = func(string, int64, int64) { loading <- struct{}{}; <-goOn }
	})
	f, err := e.NewSession().NewSampler("small")
	if err != nil {
		t.Fatal(err)
	}
	<-loading
	closed := make(chan error)
	go func() { closed <- e.Close() }()
	for err == nil { // until Close has begun
		_, err = e.NewSession().NewSampler("small")
	}
	close(goOn)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	_, err = result(f, nil)
	fails(t, err, api.Closed, "the engine is closed")
	if n := dev.used(); n != 0 {
		t.Errorf("%d bytes are still allocated", n)
	}
}
