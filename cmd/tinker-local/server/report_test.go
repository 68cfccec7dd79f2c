package server

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

const adminKey = KeyPrefix + "the-servers-own-key"

func (c client) report() Report {
	c.t.Helper()
	a := c.do("GET", "/local/v1/status", nil)
	var r Report
	if err := json.Unmarshal(a.body, &r); a.status != 200 || err != nil {
		c.t.Fatalf("status: %v, %v", a, err)
	}
	return r
}

// TestReport: the command line's key sees all that is open, another key what is its owner's and not a word of others.
func TestReport(t *testing.T) {
	f := start(t, func(s *setting) {
		s.Keys = "ann tml-key-of-ann-0001\nbob tml-key-of-bob-0001\ncarl tml-key-of-carl-001\n"
		s.Server.Admin, s.Server.Version = adminKey, "v1.2.3"
	})
	ann, bob := f.as("tml-key-of-ann-0001"), f.as("tml-key-of-bob-0001")
	type mine struct{ session, model, sampler string }
	open := func(c client) mine {
		s := c.session()
		m := mine{s, c.model(s, 1), c.baseSampler(s, 0)}
		c.work("forward_backward", forwardBackward(m.model, 1, datum(1, 9)))
		c.submit("optim_step", optimStep(m.model, 3)) // 2 is missing: it stays open
		return m
	}
	a, b := open(ann), open(bob)
	ann.work("asample", sampleFrom(a.sampler, 1, 4))
	f.clock.add(time.Minute)

	r := f.as(adminKey).report()
	if len(r.Sessions) != 2 || len(r.Runs) != 2 || len(r.Samplers) != 2 || len(r.Bases) != 1 || r.Bases[0].Runs != 2 || r.Bases[0].Samplers != 2 {
		t.Fatalf("everything: %+v", r)
	}
	for i, want := range []struct {
		owner string
		mine
	}{{"ann", a}, {"bob", b}} {
		s, run, p := r.Sessions[i], r.Runs[i], r.Samplers[0]
		if r.Samplers[1].Owner == want.owner {
			p = r.Samplers[1]
		}
		if s.ID != want.session || s.Owner != want.owner || s.SDK != "0.25.0" || s.Runs != 1 || s.Samplers != 1 || s.Open != 1 || s.Kept < 2 || f.clock.now().Sub(s.LastHeard) < time.Minute {
			t.Errorf("session: %+v, wanted %v", s, want)
		}
		if run.ID != want.model || run.Owner != want.owner || run.State != "gap" || run.Queued != 1 || run.Rank != 4 {
			t.Errorf("run: %+v, wanted %v", run, want)
		}
		if p.ID != want.sampler || p.Session != want.session || p.State != "ready" || p.BaseModel != "test/small" {
			t.Errorf("sampler: %+v, wanted %v", p, want)
		}
	}
	s := r.Server
	if s.Version != "v1.2.3" || s.UptimeSeconds < 60 || !s.Ready || s.Stopping || s.Owners != 2 || s.Open != 2 || s.Kept < 5 || s.HeldBytes <= 0 || s.Connections < 1 || s.Calls != 1 {
		t.Errorf("server: %+v", s)
	}
	if p := r.Products; len(p) != 1 || p[0].Forward <= 0 || p[0].Backward <= 0 || p[0].Sample <= 0 {
		t.Errorf("products: %+v", p)
	}
	if r.Memory.Used <= 0 {
		t.Errorf("memory: %+v", r.Memory)
	}

	text := ann.do("GET", "/local/v1/status", nil)
	for _, other := range []string{"bob", b.session, b.model, b.sampler} {
		if strings.Contains(string(text.body), other) {
			t.Errorf("ann reads %q: %s", other, text.body)
		}
	}
	r = ann.report()
	if len(r.Sessions) != 1 || r.Sessions[0].ID != a.session || len(r.Runs) != 1 || r.Runs[0].ID != a.model || len(r.Samplers) != 1 || r.Samplers[0].ID != a.sampler {
		t.Errorf("ann's: %+v", r)
	}
	if len(r.Bases) != 1 || r.Bases[0].Runs != 1 || r.Bases[0].Samplers != 1 || len(r.Products) != 0 || r.Memory.Used != 0 || r.Server.Connections != 0 || r.Server.PID != 0 {
		t.Errorf("ann's: %+v", r)
	}
	if s := r.Server; s.Open != 1 || s.Kept < 3 || s.HeldBytes <= 0 || !s.Ready || s.Version != "v1.2.3" {
		t.Errorf("ann's: %+v", s)
	}
	text = f.as("tml-key-of-carl-001").do("GET", "/local/v1/status", nil)
	if !strings.Contains(string(text.body), `"sessions":[]`) || !strings.Contains(string(text.body), `"runs":[]`) || strings.Contains(string(text.body), "test/small") {
		t.Errorf("who has nothing reads %s", text.body)
	}
	if a := f.as("tml-nobody").do("GET", "/local/v1/status", nil); a.status != 401 {
		t.Errorf("somebody without a key: %v", a)
	}
}

// TestStoreIsTheServersOwn: no client reaches the store that the commands beside the server use, whatever the method.
func TestStoreIsTheServersOwn(t *testing.T) {
	f := start(t, func(s *setting) { s.Server.Admin = adminKey })
	for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
		for _, path := range []string{"session", "call/list", "call/delete", "session/x/readers/1", ""} {
			if a := f.client().do(method, "/local/v1/store/"+path, object{}); a.status != 403 {
				t.Errorf("%s %s: %v, wanted 403", method, path, a)
			}
		}
	}
	if a := f.as("").do("POST", "/local/v1/store/session", object{}); a.status != 401 {
		t.Errorf("without a key: %v", a)
	}
}

// TestOneForward: the two requests of a client's custom loss cost one forward and one backward, as a built-in loss does, and the report shows
// it; a backward on other data costs its own forward.
func TestOneForward(t *testing.T) {
	f := start(t, func(s *setting) { s.Server.Admin = adminKey })
	c := f.client()
	m := c.model(c.session(), 1)
	seq := 0
	cost := func(name string, data ...object) [2]int64 {
		t.Helper()
		before := f.as(adminKey).report().Products
		seq++
		body := forwardBackward(m, seq, data...)
		if name == "forward" {
			body["forward_input"] = body["forward_backward_input"]
			delete(body, "forward_backward_input")
		}
		c.work(name, body)
		after := f.as(adminKey).report().Products
		return [2]int64{after[0].Forward - before[0].Forward, after[0].Backward - before[0].Backward}
	}
	whole := cost("forward_backward", datum(1, 9), datum(2, 7))
	forward := cost("forward", datum(1, 9), datum(2, 7))
	if whole[0] == 0 || whole[1] == 0 || forward != [2]int64{whole[0], 0} {
		t.Fatalf("a pass costs %v, a forward %v", whole, forward)
	}
	if got := cost("forward_backward", datum(1, 9), datum(2, 7)); got != [2]int64{0, whole[1]} {
		t.Errorf("the backward behind its forward costs %v, wanted no forward and %d", got, whole[1])
	}
	cost("forward", datum(1, 9), datum(2, 7))
	if got := cost("forward_backward", datum(1, 9), datum(3, 7)); got != whole {
		t.Errorf("a backward on other data costs %v, wanted %v", got, whole)
	}
}
