package engine_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/kernels"
)

// until asks for the status until it is as wanted: what the device's goroutine tells comes a moment after a future's end.
func until(t testing.TB, e *engine.Engine, what string, ok func(s api.Status) bool) api.Status {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		s := e.Status()
		if ok(s) {
			return s
		}
		if time.Now().After(end) {
			text, _ := json.MarshalIndent(s, "", " ")
			t.Fatalf("%s: the status is %s", what, text)
		}
	}
}

// TestStatusWhileBusy: the status is there at once while the device is at work, and says at what.
func TestStatusWhileBusy(t *testing.T) {
	loading, goOn := make(chan struct{}, 100), make(chan struct{})
	e := open(t, func(o *engine.Options) {
		o.Progress = func(string, int64, int64) { loading <- struct{}{}; <-goOn }
	})
	if s := e.Status(); s.State != api.StatusReady || s.Doing != "" || s.Bases == nil || s.Runs == nil || s.Sessions == nil || s.Loading != nil {
		t.Errorf("at first: %+v", s)
	}
	sess := e.NewSession()
	a, err := sess.NewRun(create("small", 1))
	if err != nil {
		t.Fatal(err)
	}
	b, err := sess.NewSampler("small")
	if err != nil {
		t.Fatal(err)
	}
	<-loading
	s := e.Status()
	if s.Doing != "create model" || s.Since.IsZero() || s.QueuedJobs != 1 || s.Loading == nil || s.Loading.Model != "small" || s.Loading.Done == 0 || s.Loading.Done >= s.Loading.Total {
		t.Errorf("while a base is loaded: %+v, %+v", s, s.Loading)
	}
	close(goOn)
	wait(t, a, nil)
	wait(t, b, nil)
	s = until(t, e, "loaded", func(s api.Status) bool { return s.Doing == "" })
	if len(s.Bases) != 1 || s.Loading != nil || s.Bases[0].Runs != 1 || s.Bases[0].Samplers != 1 || s.Bases[0].Idle {
		t.Errorf("after loading: %+v", s)
	}
}

// TestStatus follows runs and samplers from their opening to their end.
func TestStatus(t *testing.T) {
	var now atomic.Int64
	dev := &watched{Device: device(t), free: 50 << 20}
	e := open(t, func(o *engine.Options) {
		o.Device = dev
		o.Limits.Memory, o.Limits.KVPositions = 40<<20, 512
		o.Now = func() time.Time { return time.Unix(1e9+now.Load(), 0) }
	})
	ann, bob := e.NewSessionFor("ann"), e.NewSessionFor("bob")
	r := newRun(t, ann, "small", 1)
	other := newRun(t, bob, "other", 1)
	train(t, r, 2, datum(1, 6))
	p := sampler(t, r)
	draw(t, p, ask(tokens(1, 5), 1, 3, 1))
	now.Store(10)
	g := newGate()
	held, err := r.ForwardBackwardCustom([]api.Datum{datum(1, 6)}, g, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-g.entered
	for range 3 {
		if _, err := r.OptimStep(adam(0)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := other.At(5).OptimStep(adam(0)); err != nil {
		t.Fatal(err)
	}
	s := until(t, e, "running", func(s api.Status) bool {
		return len(s.Runs) == 2 && s.Runs[1].State == api.RunGap && s.Runs[0].State == api.RunPaused && s.Doing == ""
	})
	want := api.RunStatus{
		ID: r.ID(), Session: ann.ID(), Owner: "ann", BaseModel: "small", Rank: 4, Bytes: s.Runs[0].Bytes, Version: 2, Step: 2,
		State: api.RunPaused, Operation: "forward_backward", Queued: 3, LastRequest: time.Unix(1e9+10, 0),
	}
	if s.Runs[0] != want || want.Bytes == 0 {
		t.Errorf("the run is %+v, wanted %+v", s.Runs[0], want)
	}
	if got := s.Runs[1]; got.Owner != "bob" || got.Queued != 1 || got.BaseModel != "other" || got.Operation != "" {
		t.Errorf("the other run is %+v", got)
	}
	if len(s.Sessions) != 2 || s.Sessions[0].Runs != 1 || s.Sessions[0].Samplers+s.Sessions[1].Samplers != 1 {
		t.Errorf("sessions are %+v", s.Sessions)
	}
	small := s.Bases[slices.IndexFunc(s.Bases, func(b api.BaseStatus) bool { return b.Name == "small" })]
	if small.Runs != 1 || small.Samplers != 1 || small.Sampling.Positions != 512 || small.Sampling.Used != 0 || small.Sampling.Bytes == 0 || small.Params == 0 || small.LastUsed.Unix() != 1e9+10 {
		t.Errorf("the base is %+v", small)
	}
	if m := s.Memory; m.Limit != 40<<20 || m.Used < small.Bytes+want.Bytes || m.Free <= 0 || m.Free >= 50<<20 || m.Holds != 0 || m.IdleBytes != 0 {
		t.Errorf("memory is %+v", m)
	}
	close(g.open)
	wait(t, held, nil)

	// Sampling: more sequences than have places, and what they use of the pool.
	long := ask(tokens(1, 20), 100, 170, 1)
	f, err := p.Sample(ctx, long)
	if err != nil {
		t.Fatal(err)
	}
	s = until(t, e, "sampling", func(s api.Status) bool { return s.Bases[1].Sampling.Running > 1 })
	if x := s.Bases[1].Sampling; s.SampleRequests != 1 || x.Used == 0 || x.Used > x.Positions || x.Running+x.Waiting > 101 {
		t.Errorf("sampling is %+v of %d requests", x, s.SampleRequests)
	}
	f.Cancel()
	if _, err := result(f, nil); api.CodeOf(err) != api.Cancelled {
		t.Error(err)
	}

	// A hold is counted with its memory, until it is released.
	h := hold(t, r, datum(1, 7))
	if s := until(t, e, "hold", func(s api.Status) bool { return s.Memory.Holds == 1 }); s.Memory.HoldBytes == 0 {
		t.Errorf("memory is %+v", s.Memory)
	}
	h.Release()
	until(t, e, "no hold", func(s api.Status) bool { return s.Memory.Holds == 0 && s.Memory.HoldBytes == 0 })
	ann.Close()
	s = until(t, e, "idle", func(s api.Status) bool { return s.Bases[1].Idle })
	if s.Memory.IdleBytes < s.Bases[1].Bytes || len(s.Runs) != 1 || len(s.Sessions) != 1 || s.Bases[1].Runs+s.Bases[1].Samplers != 0 {
		t.Errorf("after the session's end: %+v", s)
	}
	text, err := json.Marshal(s)
	if err != nil || !strings.Contains(string(text), `"kv_positions_used":0`) || strings.Contains(string(text), "null") {
		t.Errorf("as JSON: %s, %v", text, err)
	}
	e.Close()
	if s := e.Status(); s.State != api.StatusClosed {
		t.Errorf("state %q", s.State)
	}
}

// TestStatusFree: an idle device tells how much memory is free now, not when it last worked.
func TestStatusFree(t *testing.T) {
	var now atomic.Int64
	dev := &watched{Device: device(t), free: 50 << 20}
	e := open(t, func(o *engine.Options) {
		o.Device = dev
		o.Now = func() time.Time { return time.Unix(1e9+now.Load(), 0) }
	})
	until(t, e, "first", func(s api.Status) bool { return s.Memory.Free == 50<<20 })
	dev.bytes.Add(10 << 20) // somebody else takes memory
	now.Store(60)
	until(t, e, "later", func(s api.Status) bool { return s.Memory.Free == 40<<20 })
	dev.bytes.Add(-10 << 20)
}

// TestStatusLost: a lost device is no secret.
func TestStatusLost(t *testing.T) {
	dev := &watched{Device: device(t)}
	e := open(t, func(o *engine.Options) { o.Device = dev })
	r := newRun(t, e.NewSession(), "small", 1)
	lost := fmt.Errorf("launch: %w 719", kernels.ErrLost)
	dev.failNext(lost)
	if _, err := result(r.ForwardBackward(batch(datum(1, 4)))); api.CodeOf(err) != api.DeviceLost {
		t.Fatal(err)
	}
	if s := e.Status(); s.State != api.StatusDeviceLost || !strings.HasSuffix(s.Error, lost.Error()) {
		t.Errorf("state %q, %q", s.State, s.Error)
	}
}
