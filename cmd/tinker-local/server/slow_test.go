package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// dial opens a connection.
func (f *fixture) dial() net.Conn {
	f.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn
}

// closed waits until the other side has closed the connection, and gives what it sent.
func closed(t *testing.T, conn net.Conn) string {
	t.Helper()
	b, err := io.ReadAll(conn)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Errorf("the connection is open after 20 s; it said %q", b)
	}
	return string(b)
}

// TestSlowRequests: whoever does not send what it promised is cut off, with or without a key.
func TestSlowRequests(t *testing.T) {
	f := start(t, func(s *setting) {
		s.Server.Limits.HeadTime, s.Server.Limits.BodyTime = 200*time.Millisecond, 300*time.Millisecond
	})
	head := func(path, key string, length int) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: h\r\nX-API-Key: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", path, key, length)
	}
	for name, c := range map[string]struct{ send, want string }{
		"nothing":               {"", ""},
		"half a header":         {"GET /healthz HTTP/1.1\r\nHost: h\r\nX-", ""},
		"half a body":           {head("/api/v1/optim_step", key, 100) + `{"model_id"`, "HTTP/1.1 400 Bad Request"},
		"no body":               {head("/api/v1/forward_backward", key, 1<<20), "HTTP/1.1 400 Bad Request"},
		"no body, no key":       {head("/api/v1/forward_backward", "", 1000), "HTTP/1.1 401 Unauthorized"},
		"no body, no route":     {head("/nothing", key, 1000), "HTTP/1.1 404 Not Found"},
		"no body, for a method": {head("/healthz", key, 1000), "HTTP/1.1 405 Method Not Allowed"},
		"no body, too large":    {head("/api/v1/optim_step", key, 1<<30), "HTTP/1.1 413 Request Entity Too Large"},
		"a chunk that is none":  {"POST /api/v1/optim_step HTTP/1.1\r\nHost: h\r\nX-API-Key: " + key + "\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 400 Bad Request"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := f.dial()
			began := time.Now()
			io.WriteString(conn, c.send)
			if got := closed(t, conn); !strings.HasPrefix(got, c.want) {
				t.Errorf("%q, wanted %s", got, c.want)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// endless is an answer that no socket's buffer takes.
var endless = make([]byte, 64<<20)

// TestSlowReaders: whoever does not read an answer is cut off; whoever reads it slowly gets it.
func TestSlowReaders(t *testing.T) {
	f := start(t, func(s *setting) { s.Server.Limits.AnswerTime = 300 * time.Millisecond })
	plain := f.server.handler
	defer func() { f.server.handler = plain }()
	ended := make(chan string, 10)
	f.server.handler = f.server.guarded(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { ended <- r.URL.Path }()
		switch r.URL.Path {
		case "/reply":
			f.server.send(w, reply{200, "x", endless})
		case "/slow":
			f.server.send(w, reply{200, "x", endless[:8<<20]})
		case "/stream":
			f.server.sendStream(&call{Request: r, w: w}, stream{
				kind: "x", name: "x", bytes: int64(len(endless)), close: func() error { return nil },
				write: func(_ context.Context, w io.Writer) error { _, err := w.Write(endless); return err },
			})
		}
	}))
	for _, path := range []string{"/reply", "/stream"} {
		conn := f.dial()
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", path)
		began := time.Now()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: nobody reads, and it goes on", path)
		}
		if took := time.Since(began); took < 200*time.Millisecond {
			t.Errorf("%s: it ended after %v", path, took)
		}
	}
	if !strings.Contains(f.log.String(), "download ended early") {
		t.Error("the log has no download that ended early")
	}
	conn := f.dial()
	io.WriteString(conn, "GET /slow HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
	total := 0
	for b := make([]byte, 256<<10); ; {
		n, err := conn.Read(b)
		total += n
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("after %d bytes: %v", total, err)
		}
		time.Sleep(10 * time.Millisecond) // all in all longer than AnswerTime
	}
	if total < 8<<20 {
		t.Errorf("a slow reader got %d bytes", total)
	}
}

// TestIdleConnection: a deadline of one request does not end the next one of its connection.
func TestIdleConnection(t *testing.T) {
	f := start(t, func(s *setting) {
		s.Server.Limits.AnswerTime, s.Server.Limits.HeadTime, s.Server.Limits.BodyTime = 100*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
		s.Server.Limits.PollWait = 300 * time.Millisecond
	})
	c := f.client()
	m := c.model(c.session(), 0)
	id := c.submit("optim_step", optimStep(m, 2)) // waits for 1
	conn := f.dial()
	r := bufio.NewReader(conn)
	ask := func(head, body string) (int, string) {
		t.Helper()
		fmt.Fprintf(conn, "POST /api/v1/%s\r\nHost: h\r\nX-API-Key: %s\r\nContent-Length: %d\r\n\r\n", head, key, len(body))
		time.Sleep(10 * time.Millisecond)
		io.WriteString(conn, body)
		resp, err := http.ReadResponse(r, nil)
		for err == nil && resp.StatusCode == 100 {
			resp, err = http.ReadResponse(r, nil)
		}
		if err != nil {
			t.Fatalf("%s: %v", head, err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text)
	}
	poll := fmt.Sprintf(`{"request_id": %q}`, id)
	for range 2 {
		// Longer than any of the deadlines, within the request and between two.
		if status, text := ask("retrieve_future HTTP/1.1", poll); status != 408 {
			t.Errorf("a poll: %d %s", status, text)
		}
		time.Sleep(250 * time.Millisecond)
		if status, text := ask("retrieve_future HTTP/1.1\r\nExpect: 100-continue", poll); status != 408 {
			t.Errorf("a poll that asks first: %d %s", status, text)
		}
	}
}

// TestFloodOfConnections: as many connections as there may be are served; more wait, and come in when one ends.
func TestFloodOfConnections(t *testing.T) {
	f := start(t, func(s *setting) { s.Server.Limits.Connections = 300 })
	var open []net.Conn
	for range 300 {
		conn := f.dial()
		io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	late := f.dial()
	io.WriteString(late, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
	_ = late.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := late.Read(make([]byte, 10)); err == nil {
		t.Errorf("one more connection gets %d bytes", n)
	}
	open[7].Close()
	_ = late.SetReadDeadline(time.Now().Add(20 * time.Second))
	if resp, err := http.ReadResponse(bufio.NewReader(late), nil); err != nil || resp.StatusCode != 200 {
		t.Errorf("when one has ended: %v", err)
	}
}

// fakeListener gives connections of its own making.
type fakeListener struct {
	net.Listener
	conns chan net.Conn
}

func (l fakeListener) Accept() (net.Conn, error) { return <-l.conns, nil }
func (l fakeListener) Addr() net.Addr            { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 8000} }

// fakeConn comes from an address.
type fakeConn struct {
	net.Conn
	from  string
	ended chan struct{}
}

func (c *fakeConn) RemoteAddr() net.Addr {
	a, _ := net.ResolveTCPAddr("tcp", c.from)
	return a
}
func (c *fakeConn) Close() error { close(c.ended); return nil }

// TestFairConnections: one address leaves others theirs.
func TestFairConnections(t *testing.T) {
	l := fakeListener{conns: make(chan net.Conn)}
	bounded := Listen(l, 8)
	accepted := make(chan net.Conn, 20)
	go func() {
		for {
			c, err := bounded.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	come := func(from string) bool {
		c := &fakeConn{from: from, ended: make(chan struct{})}
		select {
		case l.conns <- c:
		case <-time.After(50 * time.Millisecond):
			return false // nobody accepts
		}
		select {
		case <-accepted:
			return true
		case <-c.ended:
			return false
		}
	}
	count := func(from func(i int) string) (n int) {
		for i := range 12 {
			if come(from(i)) {
				n++
			}
		}
		return n
	}
	if n := count(func(i int) string { return fmt.Sprintf("198.51.100.7:%d", i+1) }); n != 4 {
		t.Errorf("one address has %d of 8 connections", n)
	}
	if n := count(func(i int) string { return fmt.Sprintf("[2001:db8::%x]:%d", i, i+1) }); n != 2 {
		t.Errorf("a network of many addresses has %d", n)
	}
	if n := count(func(i int) string { return fmt.Sprintf("[2001:db8:%x::1]:1", i+1) }); n != 2 {
		t.Errorf("others have %d", n)
	}
}

// TestFloodOfRequests: a flood of requests of one owner, of every kind that leaves something behind, takes bounded memory, and others are served meanwhile.
func TestFloodOfRequests(t *testing.T) {
	f, g := startGated(t, func(s *setting) {
		s.Keys = twoKeys
		s.Server.Limits.Sessions, s.Server.Limits.Ops, s.Server.Limits.Samplers, s.Server.Limits.Held = 100, 1000, 100, 2<<20
		s.Server.Limits.PollWait = time.Millisecond
	})
	alice, bob := f.as(aliceKey), f.as(bobKey)
	s := alice.session()
	m := alice.model(s, 0)
	p := alice.baseSampler(s, 0)
	g.shut()
	before := heap()
	notes := strings.Repeat("n", 20_000)
	refused := map[int]int{}
	for _, statuses := range atOnce(8, func(worker int) map[int]int {
		seen := map[int]int{}
		for i := range 120 {
			n := worker*1000 + i
			for _, r := range []request{
				{"POST", "/api/v1/create_session", object{"user_metadata": object{"note": notes}}},
				{"POST", "/api/v1/create_model", object{"session_id": s, "model_seq_id": n + 1, "base_model": "test/none", "lora_config": object{"rank": 4}, "user_metadata": object{"note": notes}}},
				{"POST", "/api/v1/optim_step", object{"model_id": m, "seq_id": 1e6 + n, "adam_params": object{"beta1": 5}}},
				{"POST", "/api/v1/asample", sampleFrom(p, n, 1_000_000)},
				{"POST", "/api/v1/create_sampling_session", object{"session_id": s, "sampling_session_seq_id": n + 1, "base_model": "test/small"}},
				{"POST", "/api/v1/unload_model", object{"model_id": fmt.Sprint(n, notes)}},
				{"POST", "/api/v1/retrieve_future", object{"request_id": fmt.Sprint(n, notes)}},
			} {
				a, err := alice.try(r.method, r.path, r.body)
				if err != nil {
					t.Error(err)
					return seen
				}
				seen[a.status]++
			}
		}
		return seen
	}) {
		for status, n := range statuses {
			refused[status] += n
		}
	}
	if refused[429] == 0 || refused[200] == 0 || refused[500] != 0 {
		t.Errorf("the statuses are %v", refused)
	}
	if grown := heap() - before; grown > 20<<20 {
		t.Errorf("the flood has left %d MiB", grown>>20)
	}
	g.open()
	if n := len(f.server.ops); n > 1000 {
		t.Errorf("%d ops", n)
	}
	mine := bob.model(bob.session(), 0)
	bob.work("optim_step", optimStep(mine, 1))
}
