package engine_test

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// TestAbortSampler: a sampler that is aborted, or whose session is closed, gives its places up at once, whatever its requests still had to
// draw. Others go on.
func TestAbortSampler(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.DecodeSequences = 4 })
	s := e.NewSession()
	r := newRun(t, s, "small", 1)
	accounts := func() engine.Accounts {
		t.Helper()
		f, err := e.NewSession().Accounts()
		return wait(t, f, err)
	}
	other := sampler(t, r)
	want := draw(t, other, ask(tokens(2, 5), 1, 60, 7)) // the pool is open
	before := accounts()
	for _, end := range []func(p *engine.Sampler){(*engine.Sampler).Abort, func(p *engine.Sampler) { p.Close(); s.Close() }} {
		p := sampler(t, r)
		var futures []*engine.Future[api.SampleOutput]
		for range 50 {
			f, err := p.Sample(ctx, ask(tokens(1, 4), 16, 190, 1))
			if err != nil {
				t.Fatal(err)
			}
			futures = append(futures, f)
		}
		stream, err := p.Stream(ctx, ask(tokens(1, 4), 2, 190, 1))
		if err != nil {
			t.Fatal(err)
		}
		lp, err := p.ComputeLogProbs(ctx, api.FromInts(tokens(1, 90)))
		if err != nil {
			t.Fatal(err)
		}
		until(t, e, "sampling", func(s api.Status) bool { return s.Bases[0].Sampling.Running > 0 })
		kept, err := other.Sample(ctx, ask(tokens(2, 5), 1, 60, 7))
		if err != nil {
			t.Fatal(err)
		}
		end(p)
		why := "the sampler is closed"
		if _, err := other.Sample(ctx, ask(tokens(2, 5), 1, 1, 7)); err != nil {
			why = "the session is closed"
		}
		for _, f := range futures {
			_, err := result(f, nil)
			fails(t, err, api.Closed, why)
		}
		if _, err := result(lp, nil); err != nil {
			fails(t, err, api.Closed, why)
		}
		for err = nil; err == nil; _, err = stream.Next(ctx) {
		}
		fails(t, err, api.Closed, why)
		if why == "the sampler is closed" {
			if got := wait(t, kept, nil); !slices.Equal(got.Sequences[0].Tokens, want.Sequences[0].Tokens) {
				t.Error("the request of another sampler drew other tokens")
			}
			if now := accounts(); now != before {
				t.Errorf("the engine has %+v, %+v before", now, before)
			}
		} else {
			_, err := result(kept, nil)
			fails(t, err, api.Closed, why)
		}
		st := until(t, e, "ended", func(s api.Status) bool {
			return s.SampleRequests == 0 || why == "the sampler is closed" && s.SampleRequests == 1
		})
		if used := st.Bases[0].Sampling.Used; used != 0 {
			t.Errorf("%d positions are in use", used)
		}
	}
}

// TestCloseSampler: a sampler that is closed takes no more requests, and those that it has are answered.
func TestCloseSampler(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.DecodeSequences = 2 })
	s := e.NewSession()
	p := sampler(t, newRun(t, s, "small", 1))
	want := draw(t, p, ask(tokens(1, 4), 8, 50, 1))
	f, err := p.Sample(ctx, ask(tokens(1, 4), 8, 50, 1))
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	_, err = p.Sample(ctx, ask(tokens(1, 4), 1, 1, 1))
	fails(t, err, api.Closed, "the sampler is closed")
	if got := wait(t, f, nil); len(got.Sequences[7].Tokens) != 50 || !slices.Equal(got.Sequences[7].Tokens, want.Sequences[7].Tokens) {
		t.Errorf("a request of a closed sampler drew %v", got.Sequences[7].Tokens)
	}
	until(t, e, "freed", func(st api.Status) bool { return st.Bases[0].Samplers == 0 })
}

// TestCloseBehindLoading: what waits for the device fails when its session is closed, not when the device has time for it, and takes
// nothing when it has.
func TestCloseBehindLoading(t *testing.T) {
	loading, goOn := make(chan string, 100), make(chan struct{})
	e := open(t, func(o *engine.Options) {
		o.Limits.Runs, o.Limits.QueuedOps = 3000, 3000
		o.Progress = func(model string, _, _ int64) {
			if model == "other" {
				loading <- model
				<-goOn
			}
		}
	})
	s := e.NewSession()
	r := newRun(t, s, "small", 1)
	p := sampler(t, r)
	f, err := e.NewSession().NewSampler("other")
	if err != nil {
		t.Fatal(err)
	}
	release := sync.OnceFunc(func() { close(goOn) })
	t.Cleanup(release)
	<-loading // the device is busy from here on
	var ends []func() error
	add := func(end func() error, err error) {
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	for i := range int64(2000) {
		f, err := r.ForwardBackward(batch(datum(int(i), 3)))
		add(func() error { return second(result(f, nil)) }, err)
		g, err := s.NewRun(create("small", i))
		add(func() error { return second(result(g, nil)) }, err)
		h, err := s.NewSampler("small")
		add(func() error { return second(result(h, nil)) }, err)
	}
	drawn, err := p.Sample(ctx, ask(tokens(1, 3), 1, 50, 1))
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	for _, end := range ends {
		if err := end(); api.CodeOf(err) != api.Closed || !strings.HasSuffix(err.Error(), "is closed") {
			t.Fatalf("got %v", err)
		}
	}
	again := e.NewSession() // there is room: those that failed do not count
	for i := range int64(2500) {
		if _, err := again.NewRun(create("small", i)); err != nil {
			t.Fatal(err)
		}
	}
	again.Close()
	release()
	wait(t, f, nil)
	_, err = result(drawn, nil)
	fails(t, err, api.Closed, "the session is closed")
	st := until(t, e, "all is done", func(s api.Status) bool { return s.QueuedJobs == 0 && s.SampleRequests == 0 && s.Doing == "" })
	for _, b := range st.Bases {
		if b.Sampling.Positions > 0 {
			t.Errorf("a pool of %d positions was made for requests that had gone", b.Sampling.Positions)
		}
	}
	if len(st.Runs)+len(st.Sessions) != 1 { // that of the other sampler
		t.Errorf("open are %+v, %+v", st.Runs, st.Sessions)
	}
}

// TestCloseRunMidway: a run that is closed gives up the pass that it is at, between two micro-batches, and a loss that is being evaluated.
func TestCloseRunMidway(t *testing.T) {
	dev := &turns{watched: &watched{Device: device(t)}}
	e := open(t, func(o *engine.Options) { o.Device, o.Limits.MicroBatchTokens, o.Limits.LossTime = dev, 1, time.Hour })
	s := e.NewSession()
	var data []api.Datum
	for i := range 40 {
		data = append(data, datum(i, 5))
	}
	f, err := s.Accounts()
	before := wait(t, f, err)
	for name, ask := range map[string]func(r *engine.Run) func() error{
		"forward_backward": func(r *engine.Run) func() error {
			f, err := r.ForwardBackward(batch(data...))
			return func() error { return second(result(f, err)) }
		},
		"forward": func(r *engine.Run) func() error {
			f, err := r.Forward(batch(data...))
			return func() error { return second(result(f, err)) }
		},
		"hold": func(r *engine.Run) func() error {
			f, err := r.Hold(data)
			return func() error { return second(result(f, err)) }
		},
	} {
		r := newRun(t, s, "small", 1)
		dev.mu.Lock()
		dev.log.Reset()
		reached := dev.reached.Load()
		end := ask(r)
		for dev.reached.Load() == reached { // it is at its first micro-batch
			time.Sleep(time.Millisecond)
		}
		r.Close()
		dev.mu.Unlock()
		fails(t, end(), api.Closed, "the run is closed")
		if n := len(dev.log.String()); n != 1 {
			t.Errorf("%s: %d micro-batches were run", name, n)
		}
	}
	r := newRun(t, s, "small", 1)
	g := newGate()
	l, err := r.ForwardBackwardCustom(data[:2], g, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-g.entered
	r.Close()
	_, err = result(l, nil)
	fails(t, err, api.Closed, "the run is closed")
	f, err = s.Accounts()
	if now := wait(t, f, err); now.Tapes != 0 || now.Holds != 0 || now.Used-before.Used > 100_000 { // the base
		t.Errorf("the engine has %+v, %+v before", now, before)
	}
}
