package engine_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/kernels"
)

// watched counts the bytes of a device's buffers and weights, and fails on demand.
type watched struct {
	kernels.Device
	bytes  atomic.Int64 // of buffers
	peak   int64        // of bytes and weights; the engine's goroutine only
	closed atomic.Bool
	mu     sync.Mutex
	packed []kernels.Weight
	free   int64               // what Info says; 0: the device's
	fault  atomic.Pointer[any] // what the next SwiGLU does: returns an error, or panics
	skip   atomic.Int64        // how many SwiGLU calls come before it
	halt   atomic.Bool         // the next optimiser step panics when it has changed the weights
}

func (w *watched) Info() kernels.Info {
	i := w.Device.Info()
	if w.free > 0 {
		i.Free = max(1, w.free-w.used())
	}
	return i
}

func (w *watched) Alloc(n int64) (kernels.Buffer, error) {
	if w.free > 0 && w.used()+n > w.free {
		return nil, fmt.Errorf("%w: %d bytes wanted, %d free", kernels.ErrMemory, n, w.free-w.used())
	}
	b, err := w.Device.Alloc(n)
	if err == nil {
		w.bytes.Add(n)
		w.peak = max(w.peak, w.used())
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
	if f.w.skip.Load() > 0 {
		f.w.skip.Add(-1)
	} else if p := f.w.fault.Swap(nil); p != nil {
		if err, ok := (*p).(error); ok {
			return err
		}
		panic(*p)
	}
	return f.Ops.SwiGLU(h, gu)
}

func (f faulty) AdamW(a kernels.AdamWArgs) error {
	err := f.Ops.AdamW(a)
	if f.w.halt.Swap(false) {
		panic("half-way")
	}
	return err
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
	dev := &watched{Device: device(t), free: 215_000}
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

// TestAnyMemory: with whatever memory there is, operations that keep tapes while their losses are evaluated
// side by side end: with the same bits as with plenty of it, or refused.
func TestAnyMemory(t *testing.T) {
	var data []api.Datum
	for i := range 6 {
		data = append(data, datum(i, 20))
	}
	run := func(memory int64) (norms []float64, refused int) {
		e := open(t, func(o *engine.Options) { o.Limits.Memory, o.Limits.MicroBatchTokens = memory, 20 })
		defer e.Close()
		s := e.NewSession()
		var runs []*engine.Run
		for i := range 3 {
			c := api.DefaultLora()
			seed := int64(i)
			c.Rank, c.Seed = 2, &seed
			r, err := result(s.NewRun(api.CreateModelRequest{BaseModel: "small", Lora: c}))
			if err != nil && api.CodeOf(err) != api.OutOfMemory {
				t.Fatal(err)
			}
			if err == nil {
				runs = append(runs, r)
			}
		}
		var passes []*engine.Future[api.ForwardBackwardOutput]
		for _, r := range runs {
			f, err := r.ForwardBackwardCustom(data, squares{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			passes = append(passes, f)
		}
		for i, f := range passes {
			if _, err := result(f, nil); api.CodeOf(err) == api.OutOfMemory {
				refused++
				continue
			} else if err != nil {
				t.Fatal(err)
			}
			o, err := runs[i].OptimStep(adam(0))
			norms = append(norms, wait(t, o, err).Metrics["grad_norm"])
		}
		return norms, refused + 3 - len(runs)
	}
	want, _ := run(0)
	all, some := 0, 0
	for memory := int64(100_000); memory < 1_500_000; memory += 20_000 {
		got, refused := run(memory)
		if refused > 0 {
			some++
		} else {
			all++
		}
		if len(got)+refused != 3 || refused == 0 && !slices.Equal(got, want) {
			t.Errorf("%d bytes: gradient norms %v, %d refused, wanted %v", memory, got, refused, want)
		}
	}
	if all == 0 || some == 0 {
		t.Errorf("all ran %d times, some were refused %d times", all, some)
	}
}

// TestSampleBesideTapes: a pool that is open has set aside what a decode step needs, so that sampling beside as many tapes as
// there is memory for stays within the limit.
func TestSampleBesideTapes(t *testing.T) {
	var data []api.Datum
	for i := range 10 {
		data = append(data, datum(i, 20))
	}
	sampled := 0
	for limit := int64(300_000); limit < 1_600_000; limit += 35_000 {
		dev := &watched{Device: device(t)}
		e := open(t, func(o *engine.Options) { o.Device, o.Limits.MicroBatchTokens, o.Limits.Memory = dev, 20, limit })
		s := e.NewSession()
		f, err := s.NewRun(api.CreateModelRequest{BaseModel: "small", Lora: api.LoraConfig{Rank: 2, TrainMLP: true}})
		r, err := result(f, err)
		if api.CodeOf(err) == api.OutOfMemory {
			continue
		}
		p := sampler(t, r)
		if _, err := result(p.Sample(ctx, ask(tokens(1, 4), 1, 4, 1))); err != nil {
			fails(t, err, api.OutOfMemory, err.Error()) // refused by the plan
			continue
		}
		g := newGate()
		pass, err := r.ForwardBackwardCustom(data, g, nil)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-g.entered:
			draw(t, p, ask(tokens(1, 30), 20, 9, 1))
			sampled++
			close(g.open)
			wait(t, pass, nil)
		case <-pass.Done():
			_, err := result(pass, nil)
			fails(t, err, api.OutOfMemory, err.Error())
		}
		e.Close()
		if dev.peak > limit+ropes {
			t.Errorf("limit %d: the device had %d bytes", limit, dev.peak)
		}
	}
	if sampled < 20 {
		t.Errorf("sampled %d times beside tapes", sampled)
	}
}

// turns counts, between two steps of decoding, the micro-batches of training.
type turns struct {
	*watched
	mu      sync.Mutex
	log     strings.Builder
	reached atomic.Int64 // heads that were begun, mu free or not
}

func (d *turns) Ops() kernels.Ops { return turnOps{d.watched.Ops(), d} }

type turnOps struct {
	kernels.Ops
	d *turns
}

func (o turnOps) LogProbs(a kernels.LogProbsArgs) error { o.d.write('t'); return o.Ops.LogProbs(a) }
func (o turnOps) Logits(a kernels.LogitsArgs) error     { o.d.write('d'); return o.Ops.Logits(a) }

func (d *turns) write(c byte) {
	d.reached.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log.WriteByte(c)
}

// TestFairness: with both to do, training and decoding take turns, and so do runs.
func TestFairness(t *testing.T) {
	dev := &turns{watched: &watched{Device: device(t)}}
	e := open(t, func(o *engine.Options) { o.Device = dev; o.Limits.MicroBatchTokens = 1 })
	s := e.NewSession()
	a, b := newRun(t, s, "small", 1), newRun(t, s, "small", 2)
	p := sampler(t, a)
	draw(t, p, ask(tokens(1, 4), 1, 1, 1))
	// Everything below is queued while a job holds the loop.
	hold := newGate()
	h, err := newRun(t, s, "small", 3).ForwardBackwardCustom([]api.Datum{datum(1, 4)}, hold, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-hold.entered
	close(hold.open)
	wait(t, h, nil)
	dev.mu.Lock()
	dev.log.Reset()
	var data []api.Datum
	for i := range 40 {
		data = append(data, datum(i, 8))
	}
	drawn, err := p.Sample(ctx, ask(tokens(1, 4), 1, 60, 1))
	if err != nil {
		t.Fatal(err)
	}
	var passes []*engine.Future[api.ForwardBackwardOutput]
	for _, r := range []*engine.Run{a, b} {
		f, err := r.ForwardBackward(batch(data...))
		if err != nil {
			t.Fatal(err)
		}
		passes = append(passes, f)
	}
	dev.mu.Unlock()
	for _, f := range passes {
		wait(t, f, nil)
	}
	wait(t, drawn, nil)
	log := dev.log.String()
	if strings.Count(log, "t") != 80 || strings.Count(log, "d") != 60 {
		t.Fatalf("work was %s", log)
	}
	both := log[strings.Index(log, "t"):strings.LastIndex(log, "d")]
	if strings.Contains(both, "tt") || strings.Contains(both, "dd") {
		t.Errorf("work was %s", log)
	}
}
