package server

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestHosts: on this machine alone, a server answers only under its own names; and never a web page.
func TestHosts(t *testing.T) {
	f := start(t, func(s *setting) { s.Server.Hosts = []string{"localhost", "127.0.0.1", "::1"} })
	for _, c := range []struct {
		host, header, value string
		status              int
	}{
		{"localhost", "", "", 200},
		{"LOCALHOST:8000", "", "", 200},
		{"127.0.0.1:1", "", "", 200},
		{"[::1]:8000", "", "", 200},
		{"[::1]", "", "", 200},
		{"evil.example", "", "", 403},
		{"evil.example:8000", "", "", 403},
		{"localhost.evil.example", "", "", 403},
		{"127.0.0.1.evil.example", "", "", 403},
		{"localhost:8000@evil.example", "", "", 400},
		{"0.0.0.0", "", "", 403},
		{"localhost", "Origin", "https://evil.example", 403},
		{"localhost", "Origin", "null", 403},
		{"localhost", "Origin", "http://localhost:8000", 403},
		{"localhost", "Sec-Fetch-Site", "cross-site", 403},
		{"localhost", "Sec-Fetch-Site", "same-origin", 403},
		{"localhost", "Sec-Fetch-Site", "none", 200},
	} {
		for _, path := range []string{"/healthz", "/api/v1/get_server_capabilities", "/nothing"} {
			want := c.status
			if want == 200 && path == "/nothing" {
				want = 404
			}
			header := ""
			if c.header != "" {
				header = c.header + ": " + c.value + "\r\n"
			}
			status, body := f.raw("GET " + path + " HTTP/1.1\r\nHost: " + c.host + "\r\nX-API-Key: " + key + "\r\n" + header + "Connection: close\r\n\r\n")
			if status != want || status == 403 && !strings.Contains(body, `"detail":"`) {
				t.Errorf("host %q, %s %q: %d %s, wanted %d", c.host, c.header, c.value, status, body, want)
			}
		}
	}
	if status, _ := f.raw("GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); status != 403 {
		t.Errorf("another host in the request line: %d", status)
	}
	if status, _ := f.raw("GET /healthz HTTP/1.0\r\n\r\n"); status != 403 {
		t.Errorf("without a host: %d", status)
	}
}

// raw sends bytes and reads an answer.
func (f *fixture) raw(request string) (status int, body string) {
	f.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		f.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		f.t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		f.t.Fatalf("%.100q: %v", request, err)
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	return r.StatusCode, string(b)
}

// TestKeysAsked: every route but the public ones wants a key, and the right one.
func TestKeysAsked(t *testing.T) {
	f := start(t, func(s *setting) { s.Keys = twoKeys; s.Server.Admin = KeyPrefix + "admin-0123456789" })
	open := start(t, nil)
	for _, c := range routeCases {
		var public bool
		for _, r := range table {
			if r.pattern == c.pattern {
				public = r.public
			}
		}
		r := c.ask(nobodys(names{session: "x", model: "x:train:0", sampler: "x:sample:0", op: "x:train:0:1", sampleOp: "x:sample:0:1", checkpoint: "a", samplerWeights: "b", external: "c"}))
		for _, wrong := range []string{"", "x", KeyPrefix, aliceKey + "x", aliceKey[:len(aliceKey)-1], strings.ToUpper(aliceKey), "Bearer " + aliceKey, strings.Repeat("k", 30000)} {
			a := f.as(wrong).do(r.method, r.path, r.body)
			if (a.status == 401) == public {
				t.Errorf("%s with the key %.30q: %v", c.pattern, wrong, a)
			}
			if a.status == 401 && (len(wrong) > 8 && bytes.Contains(a.body, []byte(wrong)) || a.json()["detail"] == nil) {
				t.Errorf("%s: %v", c.pattern, a)
			}
		}
		if a := open.as("sk-not-one").do(r.method, r.path, r.body); (a.status == 401) == public {
			t.Errorf("%s without a key file, with a key that does not begin with %s: %v", c.pattern, KeyPrefix, a)
		}
		if a := open.as(KeyPrefix).do(r.method, r.path, r.body); a.status == 401 {
			t.Errorf("%s without a key file: %v", c.pattern, a)
		}
	}
	if a := f.as(KeyPrefix+"admin-0123456789").do("GET", "/api/v1/auth/apikey/me", nil); a.json()["name"] != "key of local" {
		t.Errorf("the command line's own key: %v", a)
	}
	// Two keys in one request: the first counts, as the standard library has it, and the second does not add to it.
	status, _ := f.raw("GET /api/v1/sessions HTTP/1.1\r\nHost: h\r\nX-API-Key: wrong\r\nX-API-Key: " + aliceKey + "\r\nConnection: close\r\n\r\n")
	if status != 401 {
		t.Errorf("two keys: %d", status)
	}
}

// TestReadKeys: a key file is read line by line, and no error tells a key.
func TestReadKeys(t *testing.T) {
	k, err := ReadKeys(strings.NewReader("# keys\r\n\n  alice\ttml-alice-secret-1 \nalice tml-alice-secret-2\r\nbob   tml-bobs-secret-12\n"))
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"tml-alice-secret-1": "alice", "tml-alice-secret-2": "alice", "tml-bobs-secret-12": "bob",
		"tml-alice-secret-": "", "": "", "tml-bobs-secret-12 ": "", "alice": "", "tml-bobs-secret-12\x00": "",
	} {
		if owner, ok := k.owner(key); owner != want || ok != (want != "") {
			t.Errorf("%q is %q's (%t), wanted %q", key, owner, ok, want)
		}
	}
	if !k.several() || (&Keys{}).several() || (*Keys)(nil).several() {
		t.Error("alice and bob are several")
	}
	if one, _ := ReadKeys(strings.NewReader("alice tml-alice-secret-1\nalice tml-alice-secret-2")); one.several() {
		t.Error("alice is several")
	}
	if strings.Contains(fmt.Sprintf("%v %+v %#v", k, *k, k.owners), "secret") {
		t.Error("the keys themselves are kept")
	}
	const secret = "tml-very-secret-key"
	for file, want := range map[string]string{
		"":                                      "there is no key",
		"# nothing\n":                           "there is no key",
		"alice\n":                               "line 1 has 1 words",
		secret + "\n":                           "line 1 has 1 words",
		"alice " + secret + " more\n":           "line 1 has 3 words",
		secret + " alice\n":                     "line 1 begins with tml-",
		"alice very-secret-key-1\n":             "line 1: the key of alice is not one",
		"alice tml-short\n":                     "line 1: the key of alice is not one",
		"\nalice " + secret + "\nbob " + secret: "line 3: the key of bob is there already",
		"../alice " + secret:                    "line 1: the owner",
		"al/ice " + secret:                      "line 1: the owner",
		"alice tml-" + strings.Repeat("x", 100000): "token too long",
	} {
		if _, err := ReadKeys(strings.NewReader(file)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.60q: %v, wanted %s", file, err, want)
		}
	}
}

// TestKeyTime: finding an owner looks at every key, whether the first matches or none does.
func TestKeyTime(t *testing.T) {
	k := &Keys{}
	for i := range 3 {
		if err := k.Add("owner", fmt.Sprintf("tml-key-number-%012d", i)); err != nil {
			t.Fatal(err)
		}
	}
	// The last of two that match counts: had the search ended with the first, it would be the first.
	k.owners = append(k.owners, keyOwner{sha256.Sum256([]byte("tml-key-number-000000000000")), "last"})
	if owner, _ := k.owner("tml-key-number-000000000000"); owner != "last" {
		t.Errorf("the search ended early, with %q", owner)
	}
}

// TestMethods: what no route has is answered in JSON: 404, or 405 with what is allowed.
func TestMethods(t *testing.T) {
	f := start(t, nil)
	c := f.client()
	for _, r := range table {
		method, path, some := strings.Cut(r.pattern, " ")
		if !some {
			continue // every method
		}
		path = strings.NewReplacer("{", "", "}", "").Replace(path)
		for _, wrong := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "GETT", "get"} {
			known := false
			for _, other := range table {
				m, p, _ := strings.Cut(other.pattern, " ")
				known = known || m == wrong && (strings.NewReplacer("{", "", "}", "").Replace(p) == path || p == "/api/v1/sessions/{session}" && path == "/api/v1/sessions/search")
			}
			if known {
				continue
			}
			a := c.do(wrong, path, nil)
			if a.status != 405 || !strings.Contains(a.header.Get("Allow"), method) || a.json()["detail"] == nil {
				t.Errorf("%s %s: %v, allowed %q", wrong, path, a, a.header.Get("Allow"))
			}
		}
	}
	for _, r := range []string{
		"GET / HTTP/1.1", "GET /x HTTP/1.1", "GET //healthz HTTP/1.1", "GET /./healthz HTTP/1.1", "GET /a/../healthz HTTP/1.1", "GET /healthz/ HTTP/1.1",
		"GET /healthz// HTTP/1.1", "GET /%2e%2e/healthz HTTP/1.1", "GET /../../etc/passwd HTTP/1.1", "GET /api/v1/sessions/.. HTTP/1.1", "GET // HTTP/1.1",
		"GET /HEALTHZ HTTP/1.1", "GET /healthz%00 HTTP/1.1", "GET /healthz%2f HTTP/1.1", "POST * HTTP/1.1", "CONNECT localhost:80 HTTP/1.1", "CONNECT /healthz HTTP/1.1",
		"GET /archive/a/b HTTP/1.1", "GET /api/v1/training_runs//checkpoints HTTP/1.1", "GET /api/v1/sessions//trace_export HTTP/1.1", "GET /?x HTTP/1.1",
		"GET /api/v1/training_runs/a%2Fb/../c HTTP/1.1", "GET /" + strings.Repeat("a/", 5000) + " HTTP/1.1",
	} {
		status, body := f.raw(r + "\r\nHost: localhost\r\nX-API-Key: " + key + "\r\nConnection: close\r\n\r\n")
		if (status != 404 && status != 405) || !strings.HasPrefix(body, `{"detail":"`) || len(body) > 2000 {
			t.Errorf("%.60s: %d %.200s", r, status, body)
		}
	}
}

// TestPathParameters: whatever stands in a path is looked up or refused, never taken for a file.
func TestPathParameters(t *testing.T) {
	f := start(t, nil)
	c := f.client()
	furnish(c, "note")
	hostile := []string{
		"..%2f..%2fetc%2fpasswd", "%2e%2e", "%2fetc%2fpasswd", "%00", "a%00b", "a%2fb", "%ff%fe", "%c3%28", "%e2%80%ae", "%20", "-rf", "--help", ".hidden", "a%0d%0aSet-Cookie:x",
		"weights", "tinker:%2f%2fx", strings.Repeat("a", 129), strings.Repeat("a", 20000), "%F0%9F%A6%80", "a;b", "a%3fb", "a%23b", "{x}", "*", "S1:train:0", "~", "%5c..%5c", "con", "a%25b", "%25%30%30", "a+b",
	}
	for _, r := range table {
		method, pattern, _ := strings.Cut(r.pattern, " ")
		parts := strings.Split(pattern, "/")
		for i, part := range parts {
			if !strings.HasPrefix(part, "{") {
				continue
			}
			for _, h := range hostile {
				path := make([]string, len(parts))
				for j, p := range parts {
					path[j] = strings.Trim(p, "{}")
					if p == "{kind}" {
						path[j] = "weights"
					}
				}
				path[i] = h
				a := c.do(method, strings.Join(path, "/"), object{"ttl_seconds": 5, "project_id": "p"})
				if a.status < 400 || a.status >= 500 || a.json()["detail"] == nil || len(a.body) > 3000 {
					t.Errorf("%s with %.30q: %v", r.pattern, h, a)
				}
			}
		}
	}
	if n := len(f.server.sessions); n != 1 {
		t.Errorf("there are %d sessions", n)
	}
}

// TestPanic: a defect fails one request, with an id that the log has; in the middle of an answer it ends the connection.
func TestPanic(t *testing.T) {
	f := start(t, nil)
	plain := f.server.handler
	defer func() { f.server.handler = plain }()
	f.server.handler = f.server.guarded(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/early":
			panic("early defect")
		case "/late":
			w.Header().Set("Content-Length", "100")
			w.Write(make([]byte, 50))
			panic("late defect")
		case "/abort":
			panic(http.ErrAbortHandler)
		}
		w.Write([]byte("fine"))
	}))
	c := f.client()
	a := c.do("GET", "/early", nil)
	id := a.header.Get("X-Request-Id")
	if a.status != 500 || id == "" || !strings.Contains(string(a.body), id) || strings.Contains(string(a.body), "early defect") {
		t.Errorf("%v", a)
	}
	if log := f.log.String(); !strings.Contains(log, id) || !strings.Contains(log, "early defect") || !strings.Contains(log, "guard_test.go") {
		t.Errorf("the log has no defect of request %s", id)
	}
	for _, path := range []string{"/late", "/abort"} {
		if a, err := c.try("GET", path, nil); err == nil {
			t.Errorf("%s: %v", path, a)
		}
	}
	if !strings.Contains(f.log.String(), "late defect") {
		t.Error("the log has no late defect")
	}
	if a := c.do("GET", "/", nil); string(a.body) != "fine" {
		t.Errorf("afterwards: %v", a)
	}
}

// TestDefectInResult: a result that cannot be written fails for its client, and is not asked for again and again.
func TestDefectInResult(t *testing.T) {
	f := start(t, nil)
	c := f.client()
	m := c.model(c.session(), 0)
	id := c.submit("optim_step", optimStep(m, 1))
	c.result(id)
	o, _ := f.server.find(id, "local")
	o.result = func(bool) (reply, error) { panic("a defect") }
	if a := c.poll(id); a.status != 200 || a.json()["category"] != "server" {
		t.Error(a)
	}
	if !strings.Contains(f.log.String(), "a defect") {
		t.Error("the log does not have it")
	}
}
