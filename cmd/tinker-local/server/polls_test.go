package server

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"tinkerlocal/engine"
)

// TestLongPoll: a poll is held until the result is there, and not longer; two polls at once get the same, and so do later ones.
func TestLongPoll(t *testing.T) {
	f := start(t, func(s *setting) { s.Server.Limits.PollWait = 20 * time.Second })
	c := f.client()
	m := c.model(c.session(), 0)
	id := c.submit("forward_backward", forwardBackward(m, 2, datum(1, 6)))
	answers := make([]answer, 3)
	var polls sync.WaitGroup
	for i := range answers {
		polls.Go(func() { answers[i] = c.poll(id) })
	}
	o, _ := f.server.find(id, engine.LocalOwner)
	eventually(t, "polls wait", func() bool { f.server.mu.Lock(); defer f.server.mu.Unlock(); return o.asked })
	began := time.Now()
	c.submit("optim_step", optimStep(m, 1))
	polls.Wait()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the polls were answered after %v", took)
	}
	for _, a := range append(answers, c.poll(id), c.poll(id)) {
		if a.status != 200 || a.header.Get("Content-Type") != "application/json" || !reflect.DeepEqual(a.json(), answers[0].json()) {
			t.Errorf("one poll: %v, another: %v", answers[0], a)
		}
	}
}

// TestPollPending: without a result, a poll is answered with 408 after PollWait, and says why one has to wait.
func TestPollPending(t *testing.T) {
	f := start(t, func(s *setting) { s.Server.Limits.PollWait = 100 * time.Millisecond })
	c := f.client()
	m := c.model(c.session(), 0)
	id := c.submit("optim_step", optimStep(m, 2))
	began := time.Now()
	a := c.poll(id)
	if took := time.Since(began); took < 100*time.Millisecond || a.status != 408 || a.json()["queue_state"] != "active" {
		t.Errorf("after %v: %v", took, a)
	}
	for state, want := range map[engine.State]string{
		engine.Queued: `{active }`, engine.Running: `{active }`, engine.Gap: `{active an earlier request of the run has not arrived}`,
		engine.Starved: `{paused_capacity it waits for device memory that other work holds}`,
	} {
		if got := fmt.Sprint(pending(state)); got != want {
			t.Errorf("state %d: %s, wanted %s", state, got, want)
		}
	}
}

// TestAnnouncement: a large result is announced exactly once, to a client that allows it, with the size that it then has.
func TestAnnouncement(t *testing.T) {
	f := start(t, func(s *setting) { s.Server.Limits.Announce = 200 })
	c := f.client()
	m := c.model(c.session(), 0)
	small := c.submit("optim_step", optimStep(m, 1))
	large := c.submit("forward_backward", forwardBackward(m, 2, datum(1, 100), datum(2, 80)))
	poll := func(id string, allow bool) answer {
		return c.do("POST", "/api/v1/retrieve_future", object{"request_id": id, "allow_metadata_only": allow}, "Accept", "application/x-protobuf")
	}
	if a := poll(small, true); a.status != 200 || a.json()["metrics"] == nil {
		t.Errorf("a small result: %v", a)
	}
	if a := poll(large, false); a.status != 200 || a.header.Get("Content-Type") != "application/x-protobuf" {
		t.Errorf("to a client that does not allow it: %v", a)
	}
	told := poll(large, true)
	whole := poll(large, false)
	if told.status != 200 || told.json()["status"] != "complete_metadata" || told.json()["response_payload_size"].(float64) != float64(len(whole.body)) {
		t.Errorf("announced %v; the result has %d bytes", told, len(whole.body))
	}
	if a := poll(large, true); !bytes.Equal(a.body, whole.body) || whole.header.Get("Content-Type") != "application/x-protobuf" {
		t.Errorf("announced twice: %v", a)
	}
}

// TestBrokenPoll: a connection that breaks ends the wait and not the work.
func TestBrokenPoll(t *testing.T) {
	f := start(t, nil)
	c := f.client()
	m := c.model(c.session(), 0)
	id := c.submit("optim_step", optimStep(m, 2))
	ctx, cancel := context.WithCancel(background)
	r, err := http.NewRequestWithContext(ctx, "POST", f.url+"/api/v1/retrieve_future", strings.NewReader(`{"request_id": "`+id+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-API-Key", key)
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := web.Do(r); err == nil {
		t.Error("the poll was answered")
	}
	eventually(t, "no request is left", func() bool { return f.server.calls.of(engine.LocalOwner) == 0 })
	c.submit("optim_step", optimStep(m, 1))
	if out := c.result(id); out["error"] != nil {
		t.Error(out)
	}
}

// TestUnknownRequest: clients are told to send samples anew, get an error that they show for training, and 404 for what is neither.
func TestUnknownRequest(t *testing.T) {
	f := start(t, nil)
	c := f.client()
	s := c.session()
	if a := c.poll(s + ":sample:0:7"); a.status != 410 {
		t.Errorf("a sample: %v", a)
	}
	if a := c.poll(s + ":train:0:7"); a.status != 200 || a.json()["category"] != "server" || !strings.Contains(a.json()["error"].(string), "is not known (any more)") {
		t.Errorf("training: %v", a)
	}
	for _, id := range []string{s, "x", strings.Repeat("y", 10000), "\x00", "train"} {
		if a := c.poll(id); a.status != 404 || len(a.body) > 1500 {
			t.Errorf("%.20q: %v", id, a)
		}
	}
	for _, body := range []object{{}, {"request_id": ""}, {"request_id": 5}, {"request_id": nil}} {
		if a := c.do("POST", "/api/v1/retrieve_future", body); a.status != 400 {
			t.Errorf("%v: %v", body, a)
		}
	}
}
