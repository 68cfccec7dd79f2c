package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine"
)

// TestAbandonedSample: a sample that nobody asks for gives its place up; one that is asked for goes on.
func TestAbandonedSample(t *testing.T) {
	f, g := startGated(t, func(s *setting) {
		s.Server.Limits.PollWait = 20 * time.Millisecond
		s.Engine.Limits.SampleRequests = 3
	})
	c := f.client()
	p := c.baseSampler(c.session(), 0)
	g.shut()
	left, asked := c.submit("asample", sampleFrom(p, 0, 100)), c.submit("asample", sampleFrom(p, 1, 100))
	patience := f.server.lim.SamplePatience
	for range 3 {
		f.clock.add(patience*2/3 - time.Second)
		c.poll(asked)
		f.server.sweep(f.clock.now())
	}
	if n := f.server.samples.of(engine.LocalOwner); n != 1 {
		t.Errorf("%d samples are under way, wanted the one that is asked for", n)
	}
	if a := c.poll(left); a.status != 410 {
		t.Errorf("a client that comes back: %v", a)
	}
	again := c.submit("asample", sampleFrom(p, 0, 3)) // with the number that it had
	g.open()
	for _, id := range []string{again, asked} {
		if out := c.result(id); out["error"] != nil {
			t.Errorf("%s: %v", id, out)
		}
	}
	eventually(t, "the engine has no sample left", func() bool { return f.engine.Status().SampleRequests == 0 })
}

// TestAbandonedBeforeWeights: the same for samples whose weights are not there yet.
func TestAbandonedBeforeWeights(t *testing.T) {
	f, g := startGated(t, func(s *setting) { s.Server.Limits.PollWait = 20 * time.Millisecond })
	c := f.client()
	p := c.post("create_sampling_session", object{"session_id": c.session(), "sampling_session_seq_id": 0, "base_model": "test/ends"})["sampling_session_id"].(string)
	left, asked := c.submit("asample", sampleFrom(p, 0, 3)), c.submit("asample", sampleFrom(p, 1, 3))
	f.clock.add(f.server.lim.SamplePatience + time.Second)
	c.poll(asked)
	f.server.sweep(f.clock.now())
	if n := f.server.samples.of(engine.LocalOwner); n != 1 {
		t.Errorf("%d samples are under way", n)
	}
	g.open()
	c.result(asked)
	if a := c.poll(left); a.status != 410 {
		t.Error(a)
	}
	if st := f.engine.Status(); st.SampleRequests != 0 {
		t.Errorf("%+v", st)
	}
}

// TestTrainingIsNotAbandoned: operations of a run go on, whoever asks.
func TestTrainingIsNotAbandoned(t *testing.T) {
	f, g := startGated(t, nil)
	c := f.client()
	m := c.model(c.session(), 0)
	g.shut()
	id := c.submit("optim_step", optimStep(m, 1))
	f.clock.add(30 * time.Minute)
	f.server.sweep(f.clock.now())
	c.do("POST", "/api/v1/cancel_future", object{"request_id": id})
	g.open()
	if out := c.result(id); out["error"] != nil {
		t.Error(out)
	}
}

// TestForgotten: results stay for a while after they were fetched, and go then.
func TestForgotten(t *testing.T) {
	f := start(t, nil)
	c := f.client()
	m := c.model(c.session(), 0)
	fetched, waiting := c.submit("optim_step", optimStep(m, 1)), c.submit("optim_step", optimStep(m, 2))
	c.result(fetched)
	eventually(t, "the second has ended", func() bool { o, _ := f.server.find(waiting, engine.LocalOwner); return o.done() })
	f.clock.add(f.server.lim.Keep - time.Minute)
	f.server.sweep(f.clock.now())
	c.result(fetched) // asked again: it stays as long again
	f.clock.add(2 * time.Minute)
	f.server.sweep(f.clock.now())
	if out := c.result(fetched); out["error"] != nil {
		t.Errorf("a result that is asked for: %v", out)
	}
	f.clock.add(f.server.lim.Keep + time.Minute)
	f.server.sweep(f.clock.now())
	if out := c.result(fetched); out["error"] == nil {
		t.Errorf("long after it was fetched: %v", out)
	}
	if out := c.result(waiting); out["error"] != nil {
		t.Errorf("one that was not fetched: %v", out)
	}
}

// TestSilentSession: a session that is not heard of is closed with all that it has; whatever a client does keeps it open; and a heartbeat opens
// it again, empty.
func TestSilentSession(t *testing.T) {
	f := start(t, func(s *setting) {
		s.Server.Limits.PollWait = 10 * time.Millisecond
		s.Engine.Limits.GapWait = 300 * time.Millisecond
	})
	c := f.client()
	s := c.session()
	m := c.model(s, 0)
	p := c.baseSampler(s, 1)
	gap := c.submit("optim_step", optimStep(m, 2))
	for name, ask := range map[string]func(){
		"heartbeat": func() { c.post("session_heartbeat", object{"session_id": s}) },
		"poll":      func() { c.poll(gap) },
		"model":     func() { c.post("get_info", object{"model_id": m}) },
		"sampler":   func() { c.do("GET", "/api/v1/samplers/"+p, nil) },
	} {
		f.clock.add(f.server.lim.SessionIdle - time.Minute)
		ask()
		f.server.sweep(f.clock.now())
		if len(f.server.sessions) != 1 {
			t.Fatalf("after a %s the session is closed", name)
		}
	}
	c.result(gap)
	c.work("save_weights", object{"model_id": m, "seq_id": 3, "path": "kept"})
	f.clock.add(f.server.lim.SessionIdle + time.Minute)
	f.server.sweep(f.clock.now())
	if st := f.engine.Status(); len(st.Sessions) != 0 || len(st.Runs) != 0 || len(f.server.runs) != 0 || len(f.server.samplers) != 0 {
		t.Errorf("the session is closed; there are %+v, %v and %v", st, f.server.runs, f.server.samplers)
	}
	a := c.do("POST", "/api/v1/optim_step", optimStep(m, 4))
	if want := fmt.Sprintf(`create_training_client_from_state_with_optimizer(\"tinker://%s/weights/kept\")`, m); a.status != 404 || !strings.Contains(string(a.body), want) {
		t.Errorf("a model of a closed session: %v, wanted %s", a, want)
	}
	if a := c.do("POST", "/api/v1/asample", sampleFrom(p, 0, 2)); a.status != 404 || !strings.Contains(string(a.body), "create the sampling client again") {
		t.Errorf("a sampler of a closed session: %v", a)
	}
	c.post("session_heartbeat", object{"session_id": s})
	fresh := c.model(s, 1)
	c.work("load_weights", object{"model_id": fresh, "seq_id": 1, "path": "tinker://" + m + "/weights/kept", "optimizer": true})
	if fresh != s+":train:1" {
		t.Errorf("the session goes on with %s", fresh)
	}
}

// TestWatchHoldsNothing: who is told of ends of samples, and never says that it knows, does not keep results that are forgotten.
func TestWatchHoldsNothing(t *testing.T) {
	f := start(t, func(s *setting) { s.Server.Limits.PollWait = 20 * time.Millisecond })
	c := f.client()
	p := c.baseSampler(c.session(), 0)
	ask := func(retrieved ...string) object {
		return c.post("retrieve_futures", object{
			"target": object{"sampling_session_id": p, "client_id": 0}, "cursor": 0, "retrieved_request_ids": retrieved, "timeout_ms": 20,
		})
	}
	ask()
	for i := range 20 {
		id := c.submit("asample", sampleFrom(p, i, 2))
		eventually(t, "the client is told", func() bool { return len(ask()["completions"].([]any)) == 1 })
		c.result(id)
		if out := ask(id); len(out["completions"].([]any)) != 0 {
			t.Fatalf("what it has is told again: %v", out)
		}
	}
	f.server.mu.Lock()
	defer f.server.mu.Unlock()
	for _, w := range f.server.samplers[p].watches {
		if len(w.ended) != 0 || len(w.known) != 0 || len(f.server.samplers[p].ops) != 0 {
			t.Errorf("%d ends and %d samples are held", len(w.ended), len(w.known))
		}
	}
}
