package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine"
)

// TestPool: one hog gets half of what several share, two a third each, and whoever comes later finds something.
func TestPool(t *testing.T) {
	grab := func(p *pool, owner string) (n int) {
		for p.take(owner, 1) {
			n++
		}
		return n
	}
	p := newPool(120, true)
	if n := grab(p, "a"); n != 60 {
		t.Errorf("the first gets %d of 120", n)
	}
	if n := grab(p, "b"); n != 30 {
		t.Errorf("the second gets %d", n)
	}
	if n := grab(p, "a"); n != 0 {
		t.Errorf("the first gets %d more", n)
	}
	p.give("a", 20)
	if n := grab(p, "b"); n != 10 || p.of("b") != 40 {
		t.Errorf("when there are 20 more, the second gets %d", n)
	}
	if !p.take("c", 39) || p.take("c", 1) || p.take("d", 2) || !p.take("d", 1) || p.take("e", 1) {
		t.Error("whoever has nothing gets what is left, and no more")
	}
	if p.of("a") != 40 || p.of("e") != 0 || p.total != 120 {
		t.Errorf("the pool is %+v", p.held)
	}
	whole := newPool(120, false)
	if n := grab(whole, "a"); n != 120 || whole.take("b", 1) {
		t.Errorf("a single owner gets %d", n)
	}
	if !whole.force("a", 120) || whole.force("a", 1) {
		t.Error("more than there is: twice that, and no more")
	}
	whole.give("a", 240)
	if len(whole.held) != 0 || whole.total != 0 {
		t.Errorf("what is given back is remembered: %v", whole.held)
	}
}

// TestPoolWait: waiting ends when there is room, when it has taken too long, and with the caller.
func TestPoolWait(t *testing.T) {
	p := newPool(10, false)
	p.take("a", 8)
	began := time.Now()
	if err := p.wait(background, "b", 5, began.Add(30*time.Millisecond)); err != errNoRoom || time.Since(began) < 30*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	got := make(chan error)
	go func() { got <- p.wait(background, "b", 5, began.Add(time.Minute)) }()
	p.give("a", 1)
	p.give("a", 3)
	if err := <-got; err != nil || p.of("b") != 5 || p.of("a") != 4 {
		t.Errorf("%v: %v", err, p.held)
	}
}

// TestSamplesBusy: when as many samples are under way as may be, the next one is refused with 429, uses nothing up, and is taken when it
// comes again.
func TestSamplesBusy(t *testing.T) {
	f, g := startGated(t, func(s *setting) { s.Engine.Limits.SampleRequests = 4 })
	c := f.client()
	p := c.baseSampler(c.session(), 0)
	g.shut()
	var ids []string
	for i := range 4 {
		ids = append(ids, c.submit("asample", sampleFrom(p, i, 2)))
	}
	a := c.do("POST", "/api/v1/asample", sampleFrom(p, 4, 2), "X-Tinker-Sampling-Backpressure", "1")
	if a.status != 429 || a.header.Get("Retry-After") != "1" || !strings.Contains(a.json()["detail"].(string), "4 samples of local are under way, the limit is 4") {
		t.Errorf("one more: %v", a)
	}
	if again := c.submit("asample", sampleFrom(p, 0, 2)); again != ids[0] {
		t.Errorf("a repeat of one that was taken: %s", again)
	}
	g.open()
	for _, id := range ids {
		c.result(id)
	}
	c.work("asample", sampleFrom(p, 4, 2))
}

// TestSamplesFair: an owner who asks for all samples at once leaves others theirs.
func TestSamplesFair(t *testing.T) {
	f, g := startGated(t, func(s *setting) {
		s.Keys = twoKeys
		s.Engine.Limits.SampleRequests = 16
	})
	alice, bob := f.as(aliceKey), f.as(bobKey)
	ps, pb := alice.baseSampler(alice.session(), 0), bob.baseSampler(bob.session(), 0)
	g.shut()
	taken := func(c client, p string) (n int) {
		for i := range 20 {
			switch a := c.do("POST", "/api/v1/asample", sampleFrom(p, i, 2)); a.status {
			case 200:
				n++
			case 429:
			default:
				t.Fatal(a)
			}
		}
		return n
	}
	if a, b := taken(alice, ps), taken(bob, pb); a != 8 || b != 4 {
		t.Errorf("alice has %d samples under way and bob %d of 16", a, b)
	}
	g.open()
	for i := range 4 {
		alice.result(fmt.Sprintf("%s:%d", ps, i))
		bob.result(fmt.Sprintf("%s:%d", pb, i))
	}
}

// TestResultsGiveWay: results that were fetched make room for new requests; those that wait to be fetched do not, until nobody seems to want them.
func TestResultsGiveWay(t *testing.T) {
	f := start(t, func(s *setting) { s.Server.Limits.Ops = 20 })
	c := f.client()
	m := c.model(c.session(), 0)
	for seq := 1; seq <= 60; seq++ { // each is fetched
		c.work("optim_step", optimStep(m, seq))
	}
	if a := c.poll(fmt.Sprintf("%s:%d", m, 45)); a.json()["metrics"] == nil {
		t.Errorf("a result that was fetched lately: %v", a)
	}
	if a := c.poll(fmt.Sprintf("%s:%d", m, 1)); a.json()["error"] == nil {
		t.Errorf("one that was fetched before: %v", a)
	}
	first := 61
	last := first
	for ; last < first+40; last++ {
		a := c.do("POST", "/api/v1/optim_step", optimStep(m, last))
		if a.status == 429 {
			time.Sleep(2 * reapEvery) // the last look for room was too short ago
			if a = c.do("POST", "/api/v1/optim_step", optimStep(m, last)); a.status == 429 {
				break
			}
		}
	}
	if last != first+20 {
		t.Errorf("%d requests wait to be fetched, the limit is 20", last-first)
	}
	f.clock.add(2 * spareAge)
	if a := c.do("POST", "/api/v1/optim_step", optimStep(m, last)); a.status != 200 {
		t.Errorf("when nobody has asked for a while: %v", a)
	}
	if n := len(f.server.ops); int64(n) != f.server.places.of(engine.LocalOwner) || n > 20 {
		t.Errorf("%d ops, and %d are counted", n, f.server.places.of(engine.LocalOwner))
	}
}

// TestHeldBytes: what requests hold is bounded in bytes, their input while they wait and their results afterwards. A request that all others wait for is
// taken all the same: they would hold what they have for ever.
func TestHeldBytes(t *testing.T) {
	f := start(t, func(s *setting) {
		s.Server.Limits.Held = 100_000
		s.Engine.Limits.GapWait = time.Minute
	})
	c := f.client()
	m := c.model(c.session(), 0)
	large := func(seq int) answer {
		return c.do("POST", "/api/v1/forward_backward", forwardBackward(m, seq, datum(seq, 150), datum(seq, 150), datum(seq, 150)))
	}
	seq := 2
	for ; large(seq).status == 200; seq++ { // they wait for 1
	}
	if seq < 4 || seq > 30 {
		t.Errorf("%d large requests wait", seq-2)
	}
	if held := f.server.held.of(engine.LocalOwner); held > 100_000 {
		t.Errorf("%d bytes are held", held)
	}
	if a := large(seq); a.status != 429 || !strings.Contains(a.json()["detail"].(string), "bytes") {
		t.Error(a)
	}
	if a := large(1); a.status != 200 {
		t.Fatalf("the one that is waited for: %v", a)
	}
	for i := 1; i < seq; i++ {
		if out := c.result(fmt.Sprintf("%s:%d", m, i)); out["error"] != nil {
			t.Fatal(out)
		}
	}
	if a := large(seq); a.status != 200 {
		t.Errorf("when they have ended: %v", a)
	}
	c.result(fmt.Sprintf("%s:%d", m, seq))
	f.clock.add(f.server.lim.Unclaimed + time.Minute)
	f.server.sweep(f.clock.now())
	if n, held := f.server.places.of(engine.LocalOwner), f.server.held.of(engine.LocalOwner); n != 0 || held != 0 || len(f.server.ops) != 0 || len(f.server.open) != 0 {
		t.Errorf("when all is forgotten, %d ops and %d bytes are counted", n, held)
	}
}

// TestHeldBySamples: a sample is counted with what it may answer, and with what it did answer afterwards; one that may answer more than there
// is room for is taken when it is alone.
func TestHeldBySamples(t *testing.T) {
	f, g := startGated(t, func(s *setting) { s.Server.Limits.Held = 20_000 })
	c := f.client()
	p := c.baseSampler(c.session(), 0)
	g.shut()
	many := sampleFrom(p, 0, 100)
	many["num_samples"] = 1000
	id := c.submit("asample", many)
	if held := f.server.held.of(engine.LocalOwner); held != 20_000 {
		t.Errorf("%d bytes are held", held)
	}
	if a := c.do("POST", "/api/v1/asample", sampleFrom(p, 1, 10)); a.status != 429 {
		t.Errorf("beside a large one: %v", a)
	}
	if a := c.do("POST", "/api/v1/cancel_future", object{"request_id": id}); a.status != 200 {
		t.Error(a)
	}
	g.open()
	if out := c.result(id); out["error"] == nil {
		t.Error("a sample that was cancelled has a result")
	}
	for i := range 50 {
		c.work("asample", sampleFrom(p, 2+i, 10))
		if held := f.server.held.of(engine.LocalOwner); held > 20_000 {
			t.Fatalf("%d bytes are held", held)
		}
	}
	many["seq_id"], many["num_samples"] = 100, 1_000_000_000
	if out := c.result(c.submit("asample", many)); out["category"] != "user" || !strings.Contains(out["error"].(string), "num_samples is 1000000000, wanted 1..1024") {
		t.Errorf("very many samples: %v", out)
	}
}

// TestOpenFair: sessions, models and sampling sessions are shared by owners, and places of what could not be made come back.
func TestOpenFair(t *testing.T) {
	f := start(t, func(s *setting) {
		s.Keys = twoKeys
		s.Server.Limits.Sessions, s.Server.Limits.Samplers, s.Engine.Limits.Runs = 8, 8, 8
	})
	alice, bob := f.as(aliceKey), f.as(bobKey)
	count := func(n int, do func(i int) answer) (taken int) {
		t.Helper()
		for i := range n {
			a := do(i)
			if a.status == 200 && a.json()["error"] == nil {
				taken++
			} else if a.status != 429 {
				t.Fatal(a)
			}
		}
		return taken
	}
	session := func(c client) func(int) answer {
		return func(int) answer { return c.do("POST", "/api/v1/create_session", object{}) }
	}
	if a, b := count(9, session(alice)), count(9, session(bob)); a != 4 || b != 2 {
		t.Errorf("alice has %d sessions and bob %d of 8", a, b)
	}
	sessions := func(c client) string {
		return c.do("GET", "/api/v1/sessions", nil).json()["sessions"].([]any)[0].(string)
	}
	s := sessions(alice)
	// Models that cannot be made take no place for long.
	for i := range 20 {
		wrong := createModel(s, 100+i)
		wrong["base_model"] = "test/none"
		var a answer
		eventually(t, "a wrong model is taken", func() bool {
			a = alice.do("POST", "/api/v1/create_model", wrong)
			return a.status == 200
		})
		if out := alice.result(a.json()["request_id"].(string)); out["category"] != "user" {
			t.Fatal(out)
		}
	}
	time.Sleep(2 * reapEvery)
	model := func(c client, s string) func(int) answer {
		return func(i int) answer {
			a := c.do("POST", "/api/v1/create_model", createModel(s, i))
			if a.status == 200 {
				c.result(a.json()["request_id"].(string))
			}
			return a
		}
	}
	if a, b := count(9, model(alice, s)), count(9, model(bob, sessions(bob))); a != 4 || b != 2 {
		t.Errorf("alice has %d models and bob %d of 8", a, b)
	}
	alice.work("unload_model", object{"model_id": s + ":train:0"})
	alice.work("unload_model", object{"model_id": s + ":train:2"})
	if a := model(alice, s)(20); a.status != 200 {
		t.Errorf("after one was unloaded: %v", a)
	}
	sampling := func(c client, s string) func(int) answer {
		return func(i int) answer {
			return c.do("POST", "/api/v1/create_sampling_session", object{"session_id": s, "sampling_session_seq_id": i, "base_model": "test/small"})
		}
	}
	if a, b := count(9, sampling(alice, s)), count(9, sampling(bob, sessions(bob))); a != 4 || b != 2 {
		t.Errorf("alice has %d sampling sessions and bob %d of 8", a, b)
	}
	// With no place left, the request's number is not used up.
	m := s + ":train:1"
	ephemeral := object{"model_id": m, "seq_id": 1, "sampling_session_seq_id": 50}
	if a := alice.do("POST", "/api/v1/save_weights_for_sampler", ephemeral); a.status != 429 {
		t.Errorf("one sampling session more: %v", a)
	}
	f.clock.add(f.server.lim.SessionIdle + time.Minute)
	bob.post("session_heartbeat", object{"session_id": sessions(bob)})
	f.server.sweep(f.clock.now())
	for what, p := range map[string]*pool{"sessions": f.server.sessionPlaces, "models": f.server.runPlaces, "sampling sessions": f.server.samplerPlaces} {
		if p.of("alice") != 0 {
			t.Errorf("alice is silent and has %d %s", p.of("alice"), what)
		}
		if p.of("bob") == 0 {
			t.Errorf("bob has no %s any more", what)
		}
	}
}
