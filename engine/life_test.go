package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/engine/loss"
	"tinkerlocal/kernels"
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

// watched counts the bytes of a device's buffers and weights, and fails on demand.
type watched struct {
	kernels.Device
	bytes  atomic.Int64 // of buffers
	closed atomic.Bool
	mu     sync.Mutex
	packed []kernels.Weight
	free   int64               // what Info says; 0: the device's
	fault  atomic.Pointer[any] // what the next attention does: returns an error, or panics
}

func (w *watched) Info() kernels.Info {
	i := w.Device.Info()
	if w.free > 0 {
		i.Free = max(1, w.free-w.used())
	}
	return i
}

func (w *watched) Alloc(n int64) (kernels.Buffer, error) {
	b, err := w.Device.Alloc(n)
	if err == nil {
		w.bytes.Add(n)
	}
	return b, err
}

func (w *watched) Free(b kernels.Buffer) {
	if b != nil {
		w.bytes.Add(-b.Len())
	}
	w.Device.Free(b)
}

func (w *watched) Pack(parts []kernels.Matrix, store kernels.DType) (kernels.Weight, error) {
	p, err := w.Device.Pack(parts, store)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.packed = append(w.packed, p)
	return p, nil
}

// used is the bytes of buffers and weights. The engine is idle or closed, or this is its goroutine.
func (w *watched) used() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.bytes.Load()
	for _, p := range w.packed {
		if p.Rows() > 0 {
			n += p.Bytes()
		}
	}
	return n
}

func (w *watched) Close() error {
	w.closed.Store(true)
	return w.Device.Close()
}

func (w *watched) Ops() kernels.Ops { return faulty{w.Device.Ops(), w} }

type faulty struct {
	kernels.Ops
	w *watched
}

func (f faulty) SwiGLU(h, gu kernels.Tensor) error {
	if p := f.w.fault.Swap(nil); p != nil {
		if err, ok := (*p).(error); ok {
			return err
		}
		panic(*p)
	}
	return f.Ops.SwiGLU(h, gu)
}

func (w *watched) failNext(what any) { w.fault.Store(&what) }

// TestDefects: an error or a panic on the device's goroutine fails the operation that it happened in and
// no other.
func TestDefects(t *testing.T) {
	dev := &watched{Device: device(t)}
	var text bytes.Buffer
	e := open(t, func(o *engine.Options) { o.Device = dev; o.Log = slog.New(slog.NewTextHandler(&text, nil)) })
	r := newRun(t, e.NewSession(), "small", 1)
	p := sampler(t, r)
	for _, what := range []any{"index out of range", errors.New("bad shape")} {
		msg := fmt.Sprintf("defect in the engine: %v", what)
		prefix := ": "
		if err, ok := what.(error); ok {
			msg, prefix = "layer 0: "+err.Error(), ""
		}
		name := func(op string) string {
			if prefix == "" {
				return msg
			}
			return op + prefix + msg
		}
		dev.failNext(what)
		_, err := result(r.ForwardBackward(batch(datum(1, 5))))
		fails(t, err, api.Internal, name("forward_backward"))
		dev.failNext(what)
		_, err = result(p.Sample(ctx, ask(tokens(1, 4), 2, 9, 1)))
		fails(t, err, api.Internal, name("sample"))
		train(t, r, 1, datum(1, 5))
		draw(t, p, ask(tokens(1, 4), 2, 9, 1))
	}
	f, err := r.OptimStep(adam(0.01))
	if norm := wait(t, f, err).Metrics["grad_norm"]; norm != 0 {
		t.Errorf("a failed operation left a gradient of norm %v", norm)
	}
	e.Close()
	if n := strings.Count(text.String(), "operation failed"); n != 4 || !strings.Contains(text.String(), "engine closed") {
		t.Errorf("the log tells of %d failures:\n%s", n, text.String())
	}
	if n := dev.used(); n != 0 {
		t.Errorf("%d bytes are still allocated", n)
	}
}

// TestDeviceLost: after the device has failed, everything that waits and everything later says so.
func TestDeviceLost(t *testing.T) {
	dev := &watched{Device: device(t)}
	e := open(t, func(o *engine.Options) { o.Device = dev })
	s := e.NewSession()
	r, other := newRun(t, s, "small", 1), newRun(t, s, "small", 2)
	p := sampler(t, r)
	g := newGate()
	held, err := other.ForwardBackwardCustom([]api.Datum{datum(1, 4)}, g, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-g.entered
	dev.failNext(fmt.Errorf("launch: %w 719", kernels.ErrLost))
	const msg = "the device is lost: layer 0: launch: device fault 719"
	_, err = result(r.ForwardBackward(batch(datum(1, 5))))
	fails(t, err, api.DeviceLost, msg)
	_, err = result(held, nil)
	fails(t, err, api.DeviceLost, msg)
	_, err = r.OptimStep(adam(0.1))
	fails(t, err, api.DeviceLost, msg)
	_, err = p.Sample(ctx, ask(tokens(1, 4), 2, 9, 1))
	fails(t, err, api.DeviceLost, msg)
	_, err = s.NewSampler("small")
	fails(t, err, api.DeviceLost, msg)
	close(g.open)
	s.Close()
	e.Close()
	if n := dev.used(); n != 0 {
		t.Errorf("%d bytes are still allocated", n)
	}
}

// TestMemory: work that does not fit is refused with the bytes it needs and the bytes that are free, and what fits still runs.
func TestMemory(t *testing.T) {
	numbers := regexp.MustCompile(`\d+ bytes of device memory, \d+ are free$`)
	refused := func(err error, begin string) {
		t.Helper()
		if api.CodeOf(err) != api.OutOfMemory || !strings.HasPrefix(err.Error(), begin) || !numbers.MatchString(err.Error()) {
			t.Errorf("got %v (%s), wanted %s ... N bytes of device memory, N are free", err, api.CodeOf(err), begin)
		}
	}
	for name, change := range map[string]func(*engine.Options){
		"limit":  func(o *engine.Options) { o.Limits.Memory = 600_000 },
		"device": func(o *engine.Options) { o.Device = &watched{Device: device(t), free: 650_000} },
	} {
		t.Run(name, func(t *testing.T) {
			e := open(t, func(o *engine.Options) { o.Limits.KVPositions = 128; change(o) })
			s := e.NewSession()
			r := newRun(t, s, "small", 1)
			_, err := result(r.ForwardBackward(batch(datum(1, 5), datum(1, 199))))
			refused(err, "forward_backward: datum 1 with 199 tokens needs ")
			big := api.DefaultLora()
			big.Rank = 512
			_, err = result(s.NewRun(api.CreateModelRequest{BaseModel: "small", Lora: big}))
			refused(err, "an adapter of rank 512 (")
			train(t, r, 2, datum(1, 20), datum(2, 20), datum(3, 20), datum(4, 20))
			p := sampler(t, r)
			draw(t, p, ask(tokens(1, 20), 1, 5, 1))
			_, err = result(p.Sample(ctx, ask(tokens(1, 20), 1, 170, 1)))
			fails(t, err, api.OutOfMemory, "sample: a prompt of 20 tokens and max_tokens 170 do not fit the key/value pool of 128 positions")
			if out := draw(t, p, ask(tokens(1, 20), 2, 0, 1)); len(out.Sequences[1].Tokens) != 108 {
				t.Errorf("without a limit %d tokens", len(out.Sequences[1].Tokens))
			}
			_, err = result(p.Sample(ctx, ask(tokens(1, 150), 1, 0, 1)))
			fails(t, err, api.OutOfMemory, "sample: a prompt of 150 tokens and max_tokens 0 do not fit the key/value pool of 128 positions")
		})
	}
}

// TestIdleBases: a base that nobody uses makes room for another.
func TestIdleBases(t *testing.T) {
	dev := &watched{Device: device(t), free: 160_000}
	big := enginetest.Small
	big.Vocab = 700
	e := open(t, func(o *engine.Options) {
		o.Device, o.Models = dev, enginetest.Models{"a": big, "b": big}
		o.Limits.KVPositions = 64
	})
	s := e.NewSession()
	for _, name := range []string{"a", "b", "a"} {
		f, err := s.NewSampler(name)
		p := wait(t, f, err)
		draw(t, p, ask(tokens(1, 3), 1, 2, 1))
		if name == "b" {
			_, err = result(s.NewSampler("a"))
			if api.CodeOf(err) != api.OutOfMemory {
				t.Errorf("loaded a second base: %v", err)
			}
		}
		p.Close()
	}
}

// TestTapesMakeWay: operations that keep tapes while their losses are evaluated do not block each other for ever.
func TestTapesMakeWay(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.Memory, o.Limits.MicroBatchTokens = 700_000, 20 })
	s := e.NewSession()
	var futures []*engine.Future[api.ForwardBackwardOutput]
	var data []api.Datum
	for i := range 6 {
		data = append(data, datum(i, 20))
	}
	gates := []gate{newGate(), newGate(), newGate()}
	for i, g := range gates {
		r := newRun(t, s, "small", int64(i))
		f, err := r.ForwardBackwardCustom(data, g, nil)
		if err != nil {
			t.Fatal(err)
		}
		futures = append(futures, f)
	}
	for _, g := range gates {
		close(g.open)
	}
	for _, f := range futures {
		wait(t, f, nil)
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
