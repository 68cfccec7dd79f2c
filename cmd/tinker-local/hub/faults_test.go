package hub

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine/api"
)

// fails runs a pull that must fail for good: with this code and text, with no model to be seen.
func (f *fake) fails(p *pull, code api.Code, wants ...string) {
	f.t.Helper()
	_, err := p.run(f.t.Context())
	if err == nil || api.CodeOf(err) != code {
		f.t.Errorf("got %v (code %s), wanted code %s", err, api.CodeOf(err), code)
		return
	}
	for _, want := range wants {
		if !strings.Contains(err.Error(), want) {
			f.t.Errorf("got %q, wanted %q in it", err, want)
		}
	}
	if p.s.Token.value != "" && strings.Contains(err.Error(), p.s.Token.value) || strings.Contains(err.Error(), "sesame") {
		f.t.Errorf("a secret is in %q", err)
	}
	f.absent(p.r.Models)
}

// TestRefusals: each status says what to do.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name   string
		ending string // of the path that is answered so
		answer func(http.ResponseWriter, *http.Request)
		token  bool
		code   api.Code
		wants  []string
	}{
		{"401", "/revision/main", status(401), false, api.NotFound, []string{"no model " + testName + ", or it is private or gated", "$HF_TOKEN"}},
		{"401 with a token", "/revision/main", status(401), true, api.NotFound, []string{"check the token from $TEST"}},
		{"gated", "/config.json", status(401, "X-Error-Code", "GatedRepo"), false, api.BadRequest, []string{"is gated: accept its terms at http://127.0.0.1", "/" + testName, "$HF_TOKEN"}},
		{"gated, not accepted", "/config.json", status(403, "X-Error-Code", "GatedRepo", "X-Error-Message", "ask first"), true, api.BadRequest, []string{"is gated", "check the token from $TEST", `"ask first"`}},
		{"403", "/revision/main", status(403), true, api.BadRequest, []string{"403", "access to " + testName + " is refused"}},
		{"404", "/revision/main", status(404, "X-Error-Code", "RepoNotFound"), false, api.NotFound, []string{"no model " + testName}},
		{"404 revision", "/revision/main", status(404, "X-Error-Code", "RevisionNotFound"), false, api.NotFound, []string{`has no revision "main"`}},
		{"404 file", "/config.json", status(404, "X-Error-Code", "EntryNotFound"), false, api.NotFound, []string{"config.json: 127.0.0.1", "404"}},
		{"418", "/config.json", status(418), false, api.BadRequest, []string{"418 I'm a teapot, wanted 200"}},
		{"not JSON", "/revision/main", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, false, api.BadRequest, []string{"not what a hub answers"}},
		{"no commit", "/revision/main", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"sha": "../../x"}`) }, false, api.BadRequest, []string{`of commit "../../x"`}},
		{"another commit", "/config.json", status(200, "X-Repo-Commit", strings.Repeat("a", 40)), false, api.BadRequest, []string{"with the file of commit"}},
		{"another size", "/resolve/" + testCommit + "/model.safetensors", status(200, "X-Linked-Size", "12"), false, api.BadRequest, []string{`it has "12" bytes, wanted 1000000`}},
		{"another sum", "/resolve/" + testCommit + "/model.safetensors", status(200, "X-Linked-Etag", `"`+strings.Repeat("0", 64)+`"`), false, api.BadRequest, []string{"its sha256 is 000"}},
		{"short page", "/config.json", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "please log in") }, false, api.BadRequest, []string{"config.json: 127.0.0.1", "sends 13 bytes, wanted 23"}},
		{"compressed", "/config.json", status(200, "Content-Encoding", "gzip"), false, api.BadRequest, []string{`Content-Encoding "gzip"`}},
		{"endless", "/config.json", func(w http.ResponseWriter, _ *http.Request) {
			for range 100 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}, false, api.BadRequest, []string{"sends more than the 23 bytes"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			f.fault = times(1000, c.ending, c.answer)
			p := f.pull(t.TempDir())
			if c.token {
				p.s.Token = NewToken(testToken, "$TEST")
			}
			f.fails(p, c.code, c.wants...)
			if len(p.waits) > 0 {
				t.Errorf("it was tried again, after %v", p.waits)
			}
		})
	}
}

// TestPassing: what may pass is tried again, after as long as the server asks for.
func TestPassing(t *testing.T) {
	half := 500 * time.Millisecond
	for _, c := range []struct {
		name   string
		n      int
		ending string
		answer func(http.ResponseWriter, *http.Request)
		waits  []time.Duration
	}{
		{"429 with seconds", 1, "/revision/main", status(429, "Retry-After", "7"), []time.Duration{7 * time.Second}},
		{"429 with a date", 1, "/config.json", status(429, "Retry-After", time.Unix(1_000_009, 0).UTC().Format(http.TimeFormat)), []time.Duration{9 * time.Second}},
		{"429 with a window", 1, "/config.json", status(429, "RateLimit", `"resolvers";r=0;t=55`), []time.Duration{55 * time.Second}},
		{"429 alone", 1, "/config.json", status(429), []time.Duration{half}},
		{"503 with seconds", 1, "/config.json", status(503, "Retry-After", "3"), []time.Duration{3 * time.Second}},
		{"500s", 5, "/revision/main", status(500), []time.Duration{half, 2 * half, 4 * half, 8 * half, 16 * half}},
		{"an expired signature", 1, "?cdn" + cdnModel, status(403), []time.Duration{half}},
		{"an early end", 1, "?cdn" + cdnModel, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(content("model", 1_000_000)[:300_000])
			_ = http.NewResponseController(w).Flush() // no Content-Length: chunks, and a proper end
		}, []time.Duration{half}},
		{"a range of another version", 1, "?range" + cdnModel, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"other"`)
			w.Header().Set("Content-Range", "bytes 400000-999999/1000000")
			w.WriteHeader(http.StatusPartialContent)
		}, []time.Duration{half, half}},
		{"another range", 1, "?range" + cdnModel, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-999999/1000000")
			w.WriteHeader(http.StatusPartialContent)
		}, []time.Duration{half, half}},
		{"no such range", 1, "?range" + cdnModel, status(416), []time.Duration{half, half}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, dir := newFake(t), t.TempDir()
			ending, ranged := strings.CutPrefix(c.ending, "?range")
			ending, cdn := strings.CutPrefix(ending, "?cdn")
			early := c.name == "an early end"
			f.fault = times(c.n, ending, c.answer)
			if cdn {
				f.fault = onCDN(f.fault)
			}
			if ranged { // the first attempt is cut, the second gets the answer
				answer, cut := f.fault, times(1, ending, f.drop(modelPath, 400_000))
				f.fault = onCDN(func(w http.ResponseWriter, r *http.Request) bool {
					if r.Header.Get("Range") != "" {
						return answer(w, r)
					}
					return cut(w, r)
				})
			}
			p := f.pull(dir)
			p.change = func(c *Client) { c.now = func() time.Time { return time.Unix(1_000_000, 0) } }
			if _, err := p.run(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.whole(dir, "config.json", "tokenizer.json", modelPath)
			if n := len(f.requests("GET cdn /model.safetensors bytes=")); n > 1 || (n == 1) != (ranged || early) {
				t.Errorf("ranges %q; wanted one where a part was to be continued, and none after it was given up", f.requests("GET cdn /model.safetensors bytes="))
			}
			if !ranged && !slices.Equal(p.waits, c.waits) || ranged && (len(p.waits) < 1 || len(p.waits) > 2) {
				t.Errorf("waits %v, wanted %v", p.waits, c.waits)
			}
		})
	}
}

// TestGivesUp: attempts and waits are bounded.
func TestGivesUp(t *testing.T) {
	f := newFake(t)
	f.fault = times(1000, "/revision/main", status(500, "X-Error-Message", "sorry"))
	p := f.pull(t.TempDir())
	f.fails(p, api.Busy, `500 Internal Server Error (the server says "sorry"); gave up after 6 attempts`)
	if len(p.waits) != 5 {
		t.Errorf("waits %v, wanted 5", p.waits)
	}
	f.fault = times(1000, "/revision/main", status(429, "Retry-After", "100000"))
	p = f.pull(t.TempDir())
	f.fails(p, api.Busy, "it asks to wait 27h46m40s, longer than the 5m0s")
	if len(p.waits) != 0 {
		t.Errorf("waits %v, wanted none", p.waits)
	}
	if left := tree(t, p.r.Models); len(left) != 0 {
		t.Errorf("left over: %v", keys(left))
	}
	f.hub.Close()
	f.fails(f.pull(t.TempDir()), api.Busy, "127.0.0.1", "refused", "gave up after 6 attempts")
}

// TestWrongChecksum: bad bytes are thrown away; a part that went bad costs one more download.
func TestWrongChecksum(t *testing.T) {
	f, dir := newFake(t), t.TempDir()
	evil := func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content("evil", 1_000_000)))
	}
	f.fault = onCDN(times(1000, cdnModel, evil))
	p := f.pull(dir)
	f.fails(p, api.BadRequest, "model.safetensors: the checksum is", "wanted "+sha(f.files[modelPath]), "thrown away")
	for name := range tree(t, dir) {
		if strings.Contains(name, sha(f.files[modelPath])) {
			t.Errorf("%s is kept", name)
		}
	}
	if got := f.requests("GET cdn /model.safetensors"); len(got) != 1 {
		t.Errorf("requests %q, wanted one", got)
	}
	f.fault = times(1, "/config.json", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, strings.Repeat("x", 23)) })
	f.fails(f.pull(t.TempDir()), api.BadRequest, "config.json: the checksum is")

	// The part on disk is bad: it is noticed at the end, and begun anew.
	f.fault = nil
	staging := filepath.Join(dir, "Org", ".Name-1.5.pull")
	if err := os.WriteFile(filepath.Join(staging, sha(f.files[modelPath])+".part"), content("bad", 500_000), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := f.pull(dir).run(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.whole(dir, "config.json", "tokenizer.json", modelPath)
}

// TestStall: a server that trickles is left and asked again.
func TestStall(t *testing.T) {
	for _, where := range []string{cdnModel, "/revision/main"} {
		f, dir := newFake(t), t.TempDir()
		f.fault = times(1, where, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("Signature") == "" && where == cdnModel {
				f.resolve(w, r, modelPath)
				return
			}
			w.Header().Set("Content-Length", "1000000")
			for {
				if _, err := w.Write([]byte(" ")); err != nil {
					return
				}
				_ = http.NewResponseController(w).Flush()
				select {
				case <-r.Context().Done():
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
		if where == cdnModel {
			f.fault = onCDN(f.fault)
		}
		p := f.pull(dir)
		p.l.Stall, p.l.MinBytes = 300*time.Millisecond, 4<<10
		if _, err := p.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.whole(dir, "config.json", "tokenizer.json", modelPath)
		if !slices.ContainsFunc(p.events, func(e Event) bool {
			return e.Kind == Retrying && strings.Contains(e.Err.Error(), "sends less than 4096 bytes in 300ms")
		}) {
			t.Errorf("%s: nothing was said of the stall", where)
		}
	}
}

// TestTokenStays: the token goes to the endpoint and never to where that redirects.
func TestTokenStays(t *testing.T) {
	f, dir := newFake(t), t.TempDir()
	p := f.pull(dir)
	p.s.Token = NewToken(testToken, "$HF_TOKEN")
	if _, err := p.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	with, cdn := f.requests("Bearer "+testToken), f.requests(" cdn ")
	if len(with) != 4 || len(cdn) != 2 {
		t.Errorf("%d requests with the token, %d to the other host; wanted 4 and 2", len(with), len(cdn))
	}
	for _, s := range cdn {
		if strings.Contains(s, "Bearer") {
			t.Errorf("the other host was told: %s", s)
		}
	}
	// Through the other host back to the hub: the same address may have it.
	f.seen = nil
	f.fault = onCDN(times(1000, cdnModel, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "http://"+strings.Replace(strings.TrimPrefix(f.hub.URL, "http://"), "127.0.0.1", "localhost", 1)+"/x")
		w.WriteHeader(http.StatusFound)
	}))
	p = f.pull(t.TempDir())
	p.s.Token = NewToken(testToken, "$HF_TOKEN")
	f.fails(p, api.BadRequest, "to which the hub redirects, answers 404", "gave up")
	if len(f.requests("GET hub /x")) == 0 {
		t.Error("the other name of the host was not asked")
	}
	for _, s := range f.requests("GET hub /x") {
		if strings.Contains(s, "Bearer") {
			t.Errorf("another name of the host was told: %s", s)
		}
	}
}

// TestRedirects: loops end, and a redirect does not lead to other schemes, plain http or passwords.
func TestRedirects(t *testing.T) {
	for _, c := range []struct {
		to   string
		want string
	}{
		{"/" + testName + "/resolve/" + testCommit + "/config.json", "more than 8 redirects"},
		{"file:///etc/passwd", `redirects to scheme "file", wanted https`},
		{"//user:sesame@127.0.0.1/", "with a user name in it"},
		{"http://[::1", "malformed address"},
		{"", "malformed address"},
	} {
		f := newFake(t)
		f.fault = times(1000, "/config.json", status(302, "Location", c.to))
		f.fails(f.pull(t.TempDir()), api.BadRequest, c.want)
	}
	from, _ := url.Parse("https://hub.example/a")
	if _, err := redirect(from, "http://hub.example/a", place{file: "x"}); err == nil || !strings.Contains(err.Error(), "from https to plain http") {
		t.Errorf("got %v, wanted https to stay", err)
	}
	if u, err := redirect(from, "../b?x=1#y", place{}); err != nil || u.String() != "https://hub.example/b?x=1" {
		t.Errorf("got %v, %v", u, err)
	}
	// A renamed model: a redirect within the hub, for the listing too.
	f, dir := newFake(t), t.TempDir()
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		old := strings.Contains(r.URL.Path, "Org/Old")
		if old {
			http.Redirect(w, r, strings.Replace(r.URL.String(), "Org/Old", testName, 1), http.StatusTemporaryRedirect)
		}
		return old
	}
	p := f.pull(dir)
	p.r.Name = "Org/Old"
	if _, err := p.run(t.Context()); err != nil {
		t.Error(err)
	}
	if got := tree(t, dir); len(got["Org/Old/model.safetensors"]) != 1_000_000 {
		t.Errorf("got %v", keys(got))
	}
}

// TestTLS: a certificate that nobody vouches for ends the pull at once.
func TestTLS(t *testing.T) {
	f := newFake(t)
	secure := httptest.NewUnstartedServer(f.hub.Config.Handler)
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	secure.StartTLS()
	defer secure.Close()
	p := f.pull(t.TempDir())
	p.s.Endpoint, _ = url.Parse(secure.URL)
	f.fails(p, api.BadRequest, "certificate")
	if len(p.waits) > 0 {
		t.Errorf("it was tried again, after %v", p.waits)
	}
	p.change = func(c *Client) { c.web = secure.Client().Transport }
	if _, err := p.run(t.Context()); err == nil || !strings.Contains(err.Error(), "from https to plain http on 127.0.0.1") {
		t.Errorf("got %v, wanted the redirect to plain http refused", err)
	}
}

// TestHostileListings: nothing of a server that tries to leave the folder, or that lies about sizes, is kept.
func TestHostileListings(t *testing.T) {
	entry := func(name string, size any) map[string]any {
		return map[string]any{"rfilename": name, "size": size, "blobId": strings.Repeat("0", 40)}
	}
	for _, c := range []struct {
		name  string
		entry map[string]any
		want  string
	}{
		{"up", entry("../../evil", 1), "stays inside"},
		{"up below", entry("a/../../evil", 1), "stays inside"},
		{"absolute", entry("/etc/evil", 1), "stays inside"},
		{"backslash", entry(`..\evil.txt`, 1), "stays inside"},
		{"drive", entry("C:evil.txt", 1), "stays inside"},
		{"stream", entry("config.json:evil.txt", 1), "stays inside"},
		{"control", entry("a\x00.txt", 1), "stays inside"},
		{"hidden", entry(".pull.json.txt", 1), "stays inside"},
		{"long", entry(strings.Repeat("a", 300)+".txt", 1), "stays inside"},
		{"case", entry("A/CONFIG.json.txt", 1), ""},
		{"twice", entry("Tokenizer.JSON", 1), "one file on some systems"},
		{"file and folder", entry("config.json/a.txt", 1), "as a file and as a folder"},
		{"negative", entry("a.txt", -5), "-5 bytes, wanted 0 to"},
		{"minus one", entry("a.txt", -1), "-1 bytes, wanted 0 to"},
		{"huge", entry("a.txt", int64(1)<<50), "1125899906842624 bytes, wanted 0 to"},
		{"beyond int64", entry("a.txt", 1e30), "not what a hub answers"},
		{"checksum", map[string]any{"rfilename": "a.txt", "lfs": map[string]any{"sha256": "../x", "size": 1}}, `sha256 is "../x"`},
	} {
		f := newFake(t)
		f.listing = func(l map[string]any) { l["siblings"] = append(l["siblings"].([]map[string]any), c.entry) }
		outside := t.TempDir()
		p := f.pull(filepath.Join(outside, "models"))
		p.r.Include = []string{"*.txt", "*.JSON"}
		if c.want == "" { // a strange name that is harmless; the server does not have the file
			f.fails(p, api.NotFound, "404 for this file")
			continue
		}
		f.fails(p, api.BadRequest, c.want)
		if left := tree(t, outside); len(left) != 0 {
			t.Errorf("%s: left over: %v", c.name, keys(left))
		}
	}
	for name, c := range map[string]struct{ index, want string }{
		"up":      {`{"weight_map": {"a": "../evil.safetensors"}}`, "stays inside"},
		"missing": {`{"weight_map": {"a": "model-3.safetensors"}}`, "which the repository does not have"},
		"nothing": {`{}`, "names no file"},
		"text":    {`hello`, "model.safetensors.index.json: invalid character"},
	} {
		f := newFake(t).sharded()
		f.files[indexName] = []byte(c.index)
		t.Run(name, func(t *testing.T) { f.fails(f.pull(t.TempDir()), api.BadRequest, c.want) })
	}
	for want, drop := range map[string]string{
		"no config.json; this engine":                           "config.json",
		", a format that is not read here":                      modelPath,
		"neither model.safetensors nor model.safetensors.index": modelPath,
	} {
		f := newFake(t)
		delete(f.files, drop)
		f.fails(f.pull(t.TempDir()), api.NotFound, want)
	}
}

// TestRequests: what cannot be meant is refused before anything is asked.
func TestRequests(t *testing.T) {
	f := newFake(t)
	for _, c := range []struct {
		change func(*pull)
		want   string
	}{
		{func(p *pull) { p.r.Name = "Name" }, "wanted ORG/NAME"},
		{func(p *pull) { p.r.Name = "../Name" }, "wanted ORG/NAME"},
		{func(p *pull) { p.r.Name = "Org/.." }, "wanted ORG/NAME"},
		{func(p *pull) { p.r.Name = "Org/.Name" }, "wanted ORG/NAME"},
		{func(p *pull) { p.r.Name = "a/b/c" }, "wanted ORG/NAME"},
		{func(p *pull) { p.r.Name = "Org/Na me" }, "wanted ORG/NAME"},
		{func(p *pull) { p.r.Revision = "../../x" }, "wanted a branch"},
		{func(p *pull) { p.r.Revision = "a b" }, "wanted a branch"},
		{func(p *pull) { p.r.Include = []string{"[a"} }, `pattern "[a" is malformed`},
		{func(p *pull) { p.r.Models = "" }, "no models folder"},
		{func(p *pull) { p.s.Offline = "HF_HUB_OFFLINE=1" }, "offline mode, HF_HUB_OFFLINE=1 is set"},
	} {
		p := f.pull(t.TempDir())
		c.change(p)
		if _, err := p.run(t.Context()); api.CodeOf(err) != api.BadRequest || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("got %v, wanted %q", err, c.want)
		}
	}
	if len(f.seen) != 0 {
		t.Errorf("requests %q", f.seen)
	}
	p := f.pull(t.TempDir())
	p.r.Revision = "refs/pr/1"
	if _, err := p.run(t.Context()); err != nil || len(f.requests("/revision/refs%2Fpr%2F1")) != 1 {
		t.Errorf("%v; requests %q, wanted the slashes escaped", err, f.seen)
	}
}
