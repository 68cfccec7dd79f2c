package server

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

// world is a server with two owners, for a fuzzer that is one of them.
type world struct {
	f          *fixture
	alice, bob names
	swap       *strings.Replacer // placeholders in paths and bodies: {as} and the like are alice's, {bs} bob's
	asked      int
}

const privateNote = "alices-private-note"

func newWorld(t testing.TB) *world {
	f := launch(t, func(s *setting) {
		s.Keys = twoKeys
		s.Engine.Limits.Runs, s.Engine.Limits.SampleRequests, s.Engine.Limits.GapWait = 16, 8, time.Millisecond
		s.Server.Limits.PollWait, s.Server.Limits.Ops, s.Server.Limits.Held = time.Millisecond, 300, 4<<20
		s.Server.Limits.Sessions, s.Server.Limits.Samplers = 20, 50
		s.Server.AddPlugin = func(context.Context, string, []byte) (any, error) { return object{"name": "x"}, nil }
	})
	w := &world{f: f, alice: furnish(f.as(aliceKey), privateNote), bob: furnish(f.as(bobKey), "bobs-note")}
	var pairs []string
	for prefix, n := range map[string]names{"a": w.alice, "b": w.bob} {
		pairs = append(pairs, "{"+prefix+"o}", n.op, "{"+prefix+"d}", n.sampleOp, "{"+prefix+"m}", n.model, "{"+prefix+"p}", n.sampler, "{"+prefix+"s}", n.session)
	}
	w.swap = strings.NewReplacer(pairs...)
	return w
}

// generic is the opposite of swap, for seeds.
func (w *world) generic(text string) string {
	var pairs []string
	for prefix, n := range map[string]names{"a": w.alice, "b": w.bob} {
		pairs = append(pairs, n.op, "{"+prefix+"o}", n.sampleOp, "{"+prefix+"d}", n.model, "{"+prefix+"m}", n.sampler, "{"+prefix+"p}", n.session, "{"+prefix+"s}")
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// untouched checks that what is alice's is as it was.
func (w *world) untouched(t testing.TB) {
	t.Helper()
	w.f.t = t
	c := w.f.as(aliceKey)
	n := w.alice
	k, err := w.f.store.Info(background, mustPath(t, n.tinker("weights", n.checkpoint)))
	if err != nil || k.Public || !k.Expires.IsZero() {
		t.Errorf("alice's checkpoint is %+v (%v)", k, err)
	}
	if info := c.do("GET", "/api/v1/sessions/"+n.session, nil); info.status != 200 || !bytes.Contains(info.body, []byte(n.sampler)) || !bytes.Contains(info.body, []byte(privateNote)) {
		t.Errorf("alice's session: %v", info)
	}
	if run := w.f.run(n.model).Info(); run.Version != 0 || run.Queued != 0 {
		t.Errorf("alice's run is %+v", run)
	}
	if out := c.result(n.op); out["error"] != nil {
		t.Errorf("alice's result: %v", out)
	}
}

// FuzzRoutes: whatever a request is, it is answered without a defect, in JSON that says what is wrong, and without anything of another owner's.
func FuzzRoutes(f *testing.F) {
	w := newWorld(f)
	f.Cleanup(func() { w.f.stop() })
	for _, c := range routeCases {
		for _, n := range []names{w.bob, w.alice} {
			r := c.ask(n)
			var body []byte
			switch b := r.body.(type) {
			case nil:
			case raw:
				body = b.body
			default:
				body, _ = json.Marshal(b)
			}
			f.Add(byte(0), r.method, w.generic(r.path), "application/json", "", "application/json", []byte(w.generic(string(body))))
		}
	}
	p := protoForwardBackward("{bm}", 7, true, apiDatum(1, 3))
	f.Add(byte(0), "POST", "/api/v1/forward_backward", p.kind, "", p.kind, p.body)
	f.Add(byte(0), "POST", "/api/v1/forward_backward", p.kind, "zstd", p.kind, packed(f, p.body))
	f.Add(byte(1), "GET", "/api/v1/sessions", "", "", "", []byte(nil))
	f.Add(byte(2), "OPTIONS", "/api/v1/asample?x=%00", "", "identity", "*/*", []byte("{}"))
	f.Add(byte(0), "GET", "/api/v1/training_runs?limit=-1&offset=99999999999999999999&access_scope=accessible", "", "", "", []byte(nil))
	f.Fuzz(func(t *testing.T, who byte, method, target, kind, encoding, accept string, body []byte) {
		if len(target) > 4096 || len(body) > 1<<16 || method == "" {
			return
		}
		if w.asked++; w.asked%3000 == 0 { // so that what piles up does not slow everything down
			w.untouched(t)
			w.f.stop()
			w = newWorld(t)
		}
		target, text := w.swap.Replace(target), w.swap.Replace(string(body))
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return // the standard library answers
		}
		r := &http.Request{
			Method: method, URL: u, RequestURI: target, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: "localhost",
			Header: http.Header{"Content-Type": {kind}, "Content-Encoding": {encoding}, "Accept": {accept}},
			Body:   http.NoBody, ContentLength: int64(len(text)), RemoteAddr: "127.0.0.1:1",
		}
		switch who % 4 {
		case 1:
		case 2:
			r.Header.Set("X-API-Key", "tml-nobodys-key-at-all")
		default:
			r.Header.Set("X-API-Key", bobKey)
		}
		if text != "" {
			r.Body = http.NoBody
			r = r.WithContext(background)
			r.Body = readCloser{strings.NewReader(text)}
		}
		out := httptest.NewRecorder()
		w.f.server.ServeHTTP(out, r)
		got := answer{out.Code, out.Header(), out.Body.Bytes()}
		checkAnswer(t, w, got, target+text)
		if who%4 == 1 || who%4 == 2 {
			if got.status < 400 && !strings.HasPrefix(u.Path, "/healthz") && !strings.HasPrefix(u.Path, "/readyz") && !strings.HasPrefix(u.Path, "/api/v1/healthz") && !strings.HasPrefix(u.Path, "/archive/") {
				t.Errorf("without a key %s %s is answered with %v", method, target, got)
			}
		}
	})
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }

// checkAnswer holds an answer to bob to what every answer must be. asked is what his request said.
func checkAnswer(t *testing.T, w *world, a answer, asked string) {
	t.Helper()
	if a.status >= 500 && a.status != 503 {
		t.Errorf("%v", a)
	}
	if a.status >= 400 {
		v := a.json()
		if v["detail"] == nil && v["queue_state"] == nil || a.header.Get("Content-Type") != "application/json" {
			t.Errorf("an error without its detail: %v %v", a, a.header)
		}
		if len(a.body) > 20_000 {
			t.Errorf("an error of %d bytes", len(a.body))
		}
	}
	if a.status >= 300 && a.status < 400 && a.status != 302 {
		t.Errorf("%v", a)
	}
	for _, private := range []string{privateNote, w.alice.session} {
		if bytes.Contains(a.body, []byte(private)) && !strings.Contains(asked, private) {
			t.Errorf("the answer has %q: %v", private, a)
		}
	}
	// What alice's names say of her is told to nobody, also to those who know them.
	if bytes.Contains(a.body, []byte(`"note":"`+privateNote)) {
		t.Errorf("the answer has alice's notes: %v", a)
	}
}
