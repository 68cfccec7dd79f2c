package server

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"tinkerlocal/engine"
)

func packed(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

// TestBodySizes: a body is taken up to its limit, whatever it says of its size, however it is packed and however it comes.
func TestBodySizes(t *testing.T) {
	f := start(t, func(s *setting) {
		s.Server.Limits.SmallBody, s.Server.Limits.PromptBody, s.Server.Limits.TrainingBody = 1000, 2000, 100_000
	})
	c := f.client()
	m := c.model(c.session(), 0)
	padded := func(n int) []byte {
		head := `{"request_id": "x", "more": "`
		return []byte(head + strings.Repeat("x", n-len(head)-2) + `"}`)
	}
	for _, body := range []struct {
		name     string
		body     raw
		status   int
		chunked  bool
		mentions string
	}{
		{"as large as may be", raw{body: padded(1000)}, 404, false, "no request"},
		{"as large, in chunks", raw{body: padded(1000)}, 404, true, "no request"},
		{"one more", raw{body: padded(1001)}, 413, false, "the body has 1001 bytes, the limit is 1000"},
		{"one more, in chunks", raw{body: padded(1001)}, 413, true, "more than 1000 bytes"},
		{"packed", raw{encoding: "zstd", body: packed(t, padded(1000))}, 404, false, "no request"},
		{"packed, one more", raw{encoding: "zstd", body: packed(t, padded(1001))}, 413, false, "more than 1000 bytes"},
		{"a bomb", raw{encoding: "zstd", body: packed(t, make([]byte, 4<<20))}, 413, false, "more than 1000 bytes"},
		{"no zstd", raw{encoding: "zstd", body: padded(100)}, 400, false, "no zstd"},
		{"gzip", raw{encoding: "gzip", body: padded(100)}, 400, false, "content encoding"},
		{"two encodings", raw{encoding: "zstd, zstd", body: padded(100)}, 400, false, "content encoding"},
		{"nothing", raw{}, 400, false, ""},
	} {
		in := io.Reader(bytes.NewReader(body.body.body))
		if body.chunked {
			in = io.MultiReader(in) // of unknown length
		}
		r, err := http.NewRequest("POST", f.url+"/api/v1/retrieve_future", in)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-API-Key", key)
		if body.body.encoding != "" {
			r.Header.Set("Content-Encoding", body.body.encoding)
		}
		resp, err := web.Do(r)
		if err != nil {
			t.Errorf("%s: %v", body.name, err)
			continue
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != body.status || !strings.Contains(string(text), body.mentions) || !strings.HasPrefix(string(text), `{"detail":"`) {
			t.Errorf("%s: %d %s, wanted %d and %q", body.name, resp.StatusCode, text, body.status, body.mentions)
		}
	}
	for length, want := range map[string]int{"99999999999": 413, "9223372036854775807": 413, "9223372036854775808": 400, "-1": 400, "0x10": 400, "1, 2": 400} {
		if status, body := f.raw("POST /api/v1/optim_step HTTP/1.1\r\nHost: h\r\nX-API-Key: " + key + "\r\nConnection: close\r\nContent-Length: " + length + "\r\n\r\n{}"); status != want {
			t.Errorf("a length of %s: %d %s", length, status, body)
		}
	}
	// A prompt and a batch may be larger than other bodies.
	long := sampleFrom(c.baseSampler(strings.Split(m, ":")[0], 0), 0, 1)
	long["more"] = strings.Repeat("x", 1500)
	if a := c.do("POST", "/api/v1/asample", long); a.status != 200 {
		t.Errorf("a long prompt: %v", a)
	}
	long["more"] = strings.Repeat("x", 2500)
	if a := c.do("POST", "/api/v1/asample", long); a.status != 413 {
		t.Errorf("a longer prompt: %v", a)
	}
	batch := forwardBackward(m, 1, datum(1, 3))
	batch["more"] = strings.Repeat("x", 90_000)
	if a := c.do("POST", "/api/v1/forward_backward", batch); a.status != 200 {
		t.Errorf("a large batch: %v", a)
	}
	batch["more"] = strings.Repeat("x", 110_000)
	if a := c.do("POST", "/api/v1/forward_backward", batch); a.status != 413 {
		t.Errorf("a larger batch: %v", a)
	}
	if n := f.server.bodies.all(); n != 0 {
		t.Errorf("%d bytes of bodies are not given back", n)
	}
}

// TestBodiesWait: large bodies wait for one another; what is small passes them; and what has waited too long is told to come again.
func TestBodiesWait(t *testing.T) {
	f := start(t, func(s *setting) {
		s.Server.Limits.Bodies, s.Server.Limits.TrainingBody = 1<<20, 1<<20
		s.Server.Limits.BodyTime = 20 * time.Second
	})
	c := f.client()
	m := c.model(c.session(), 0)
	large := func(seq int) object {
		b := forwardBackward(m, seq, datum(1, 3))
		b["more"] = strings.Repeat("x", 400_000) // two at a time do not fit while they are read
		return b
	}
	for _, id := range atOnce(12, func(i int) string { return c.submit("forward_backward", large(1+i)) }) {
		if out := c.result(id); out["error"] != nil {
			t.Error(out)
		}
	}
	if !f.server.bodies.take(engine.LocalOwner, 1<<20) {
		t.Fatalf("%d bytes of bodies are not given back", f.server.bodies.all())
	}
	answers := make(chan answer)
	go func() { answers <- c.do("POST", "/api/v1/forward_backward", large(13)) }()
	c.post("session_heartbeat", object{"session_id": strings.Split(m, ":")[0]})
	c.work("optim_step", optimStep(m, 14-1))
	select {
	case a := <-answers:
		t.Errorf("a large body does not wait: %v", a)
	case <-time.After(50 * time.Millisecond):
	}
	f.server.bodies.give(engine.LocalOwner, 1<<20)
	if a := <-answers; a.status != 200 { // a repeat of number 13
		t.Error(a)
	}

	hasty := start(t, func(s *setting) { s.Server.Limits.Bodies, s.Server.Limits.BodyTime = 1<<20, 100*time.Millisecond })
	c = hasty.client()
	m = c.model(c.session(), 0)
	hasty.server.bodies.take(engine.LocalOwner, 1<<20)
	if a := c.do("POST", "/api/v1/forward_backward", large(1)); a.status != 429 {
		t.Errorf("after it has waited: %v", a)
	}
	hasty.server.bodies.give(engine.LocalOwner, 1<<20)
	c.work("forward_backward", forwardBackward(m, 1, datum(1, 3)))
}

// TestLargeAnswersWait: results that are being sent are bounded in bytes, too.
func TestLargeAnswersWait(t *testing.T) {
	f := start(t, func(s *setting) {
		s.Server.Limits.Answers = 1 << 20
		s.Server.Limits.PollWait = 200 * time.Millisecond
	})
	c := f.client()
	m := c.model(c.session(), 0)
	var data []object
	for i := range 20 {
		data = append(data, datum(i, 150))
	}
	id := c.submit("forward_backward", forwardBackward(m, 1, data...))
	whole := c.result(id)
	if n := len(outputOf(whole)); n != 20*150+1 {
		t.Fatalf("%d numbers", n)
	}
	eventually(t, "the bytes of answers are given back", func() bool { return f.server.answers.take(engine.LocalOwner, 1<<20) })
	if a := c.poll(id); a.status != 408 {
		t.Errorf("without room: %s", fmt.Sprint(a)[:100])
	}
	c.work("optim_step", optimStep(m, 2)) // small ones pass
	f.server.answers.give(engine.LocalOwner, 1<<20)
	c.result(id)
}
