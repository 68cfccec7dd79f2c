package server

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestRestart: a server that is started anew with the same secret and store knows its owners' sessions, and nobody else's.
func TestRestart(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, 32)
	with := func(s *setting) { s.Keys, s.Server.Secret = twoKeys, secret }
	old := start(t, with)
	alice := old.as(aliceKey)
	n := furnish(alice, "note")
	link := alice.do("GET", n.path("weights", n.checkpoint)+"/archive", nil).json()["url"].(string)
	_, query, _ := strings.Cut(link, "?")
	old.stop()

	f := start(t, func(s *setting) { with(s); s.Library = old.store })
	alice, bob := f.as(aliceKey), f.as(bobKey)
	// What is lost is said.
	if a := alice.do("POST", "/api/v1/forward_backward", forwardBackward(n.model, 4, datum(1, 3))); a.status != 404 || !strings.Contains(string(a.body), n.tinker("weights", n.checkpoint)) {
		t.Errorf("a model of the old server: %v", a)
	}
	if a := alice.poll(n.op); a.status != 200 || a.json()["category"] != "server" {
		t.Errorf("an operation of the old server: %v", a)
	}
	if a := alice.poll(n.sampleOp); a.status != 410 {
		t.Errorf("a sample of the old server: %v", a)
	}
	// The session goes on, for its owner.
	random, mac, _ := strings.Cut(n.session, "-")
	if a := bob.do("POST", "/api/v1/session_heartbeat", object{"session_id": n.session}); a.status != 404 {
		t.Errorf("bob takes alice's session: %v", a)
	}
	for _, id := range []string{
		random, random + "-", random + "-" + mac[1:], random + "-" + strings.ToUpper(mac), "-" + mac, random + "-" + mac + "0", random + "0-" + mac,
		random + "-0000000000000000", random + "-" + mac + "-", mac + "-" + random, "", "-", strings.Repeat("a", 5000), random + "\x00-" + mac,
	} {
		if a := alice.do("POST", "/api/v1/session_heartbeat", object{"session_id": id}); a.status != 404 && (id != "" || a.status != 400) {
			t.Errorf("%.40q: %v", id, a)
		}
	}
	if len(f.server.sessions) != 0 {
		t.Errorf("there are sessions: %v", f.server.sessions)
	}
	atOnce(8, func(int) object { return alice.post("session_heartbeat", object{"session_id": n.session}) })
	m := alice.model(n.session, 1)
	alice.work("load_weights", object{"model_id": m, "seq_id": 1, "path": n.tinker("weights", n.checkpoint), "optimizer": true})
	if a := bob.do("GET", "/api/v1/sessions/"+n.session, nil); a.status != 404 {
		t.Errorf("bob sees alice's session: %v", a)
	}
	// Links outlive the server.
	if a := bob.do("GET", "/archive/"+n.model+"/weights/"+n.checkpoint+"?"+query, nil); a.status != 200 {
		t.Errorf("a link of the old server: %v", a)
	}

	// With another secret nothing of the kind is known.
	other := start(t, func(s *setting) { s.Keys, s.Library = twoKeys, old.store })
	if a := other.as(aliceKey).do("POST", "/api/v1/session_heartbeat", object{"session_id": n.session}); a.status != 404 {
		t.Errorf("a session under another secret: %v", a)
	}
	if a := bobAt(other).do("GET", "/archive/"+n.model+"/weights/"+n.checkpoint+"?"+query, nil); a.status != 403 {
		t.Errorf("a link under another secret: %v", a)
	}
}

func bobAt(f *fixture) client { return f.as(bobKey) }

// TestStop: a server that is stopped ends what is under way and lets clients fetch it, takes nothing new, and tells polls what became of the rest.
func TestStop(t *testing.T) {
	f, g := startGated(t, func(s *setting) { s.Server.Limits.PollWait = 20 * time.Second })
	c := f.client()
	s := c.session()
	m := c.model(s, 0)
	p := c.baseSampler(s, 0)
	g.shut()
	var ids []string
	for seq := 1; seq <= 4; seq++ {
		ids = append(ids, c.submit("forward_backward", forwardBackward(m, seq, datum(seq, 5))))
	}
	ids = append(ids, c.submit("asample", sampleFrom(p, 0, 5)))
	results := make(chan object, len(ids))
	for _, id := range ids {
		go func() { results <- c.result(id) }()
	}
	drained := make(chan error)
	go func() { drained <- f.server.Drain(background) }()
	eventually(t, "new work is refused", func() bool {
		a := c.do("POST", "/api/v1/create_session", object{})
		return a.status == 503 && strings.Contains(string(a.body), "the server is being stopped")
	})
	for name, body := range map[string]object{
		"optim_step": optimStep(m, 5), "create_model": createModel(s, 1), "asample": sampleFrom(p, 1, 2),
		"save_weights": {"model_id": m, "seq_id": 5, "path": "x"},
	} {
		if a := c.do("POST", "/api/v1/"+name, body); a.status != 503 {
			t.Errorf("%s: %v", name, a)
		}
	}
	if again := c.submit("forward_backward", forwardBackward(m, 1, datum(1, 5))); again != ids[0] {
		t.Errorf("a repeat of what was taken: %s", again)
	}
	g.open()
	for range ids {
		if out := <-results; out["error"] != nil {
			t.Errorf("work under way ends with %v", out)
		}
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// TestCutOff: what is not waited for when the server is stopped fails for its clients: with an error that they show, and samples so that they are sent again.
func TestCutOff(t *testing.T) {
	f, g := startGated(t, func(s *setting) { s.Server.Limits.PollWait = 20 * time.Second })
	c := f.client()
	s := c.session()
	m := c.model(s, 0)
	p := c.baseSampler(s, 0)
	g.shut()
	train, sample := c.submit("optim_step", optimStep(m, 1)), c.submit("asample", sampleFrom(p, 0, 5))
	polls := make(chan string, 20)
	for i := range 10 {
		go func() {
			a := c.poll(train)
			polls <- fmt.Sprint("train ", a.status, " ", a.json()["category"])
		}()
		go func() { polls <- fmt.Sprint("sample ", c.poll(sample).status) }()
		if i == 5 {
			time.Sleep(20 * time.Millisecond)
		}
	}
	eventually(t, "polls wait", func() bool { return f.server.calls.all() == 20 })
	f.server.Close()
	for range 20 {
		if got := <-polls; got != "train 200 server" && got != "sample 410" {
			t.Errorf("a poll is answered with %s", got)
		}
	}
	g.open()
	f.web.Close()
	f.engine.Close()
	f.server = nil
}
