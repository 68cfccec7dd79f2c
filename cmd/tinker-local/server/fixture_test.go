package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/kernels/cpu"
	"tinkerlocal/store"
)

var background = context.Background()

// models are what test servers serve; "test/large" is far too large for the memory that they have.
var models = enginetest.Models{"test/small": enginetest.Small, "test/ends": withEnd()}

func withEnd() enginetest.Shape {
	s := enginetest.Small
	s.Seed, s.EosTokenIDs = 2, []int{5}
	return s
}

// fixture is a server with an engine on the CPU and a store in memory, listening on this machine.
type fixture struct {
	t      testing.TB
	engine *engine.Engine
	server *Server
	store  api.Store
	url    string
	log    *lines
	clock  *clock
	web    *http.Server
	served chan struct{} // closed when it has ended
}

// setting is what a test changes.
type setting struct {
	Server  Options
	Engine  engine.Options
	Keys    string // lines of a key file
	Library api.Store
}

// start starts a server that ends with the test. change may be nil.
func start(t testing.TB, change func(*setting)) *fixture {
	t.Helper()
	f := launch(t, change)
	t.Cleanup(f.stop)
	return f
}

// launch starts a server that the caller stops.
func launch(t testing.TB, change func(*setting)) *fixture {
	t.Helper()
	dev, err := cpu.Open(cpu.Options{Variant: "portable", Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, log: &lines{}, clock: &clock{}}
	log := slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var seed int64
	var mu sync.Mutex
	next := func() int64 { mu.Lock(); defer mu.Unlock(); seed++; return seed }
	set := setting{
		Engine: engine.Options{Device: dev, Models: models, Seed: next, Log: log},
		Server: Options{Log: log, Now: f.clock.now, Describe: describe, Limits: Limits{PollWait: 5 * time.Second}},
	}
	if change != nil {
		change(&set)
	}
	if f.store = set.Library; f.store == nil {
		f.store = store.OpenMemory(store.Options{Interval: -1, Now: f.clock.now})
	}
	set.Engine.Checkpoints = borrowed{f.store}
	if f.engine, err = engine.Open(background, set.Engine); err != nil {
		t.Fatal(err)
	}
	if set.Keys != "" {
		if set.Server.Keys, err = ReadKeys(strings.NewReader(set.Keys)); err != nil {
			t.Fatal(err)
		}
	}
	set.Server.Engine = f.engine
	f.server = New(set.Server)
	f.server.Ready()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.url = "http://" + l.Addr().String()
	f.web = f.server.Web()
	f.served = make(chan struct{})
	go func() { defer close(f.served); f.web.Serve(Listen(l, f.server.lim.Connections)) }()
	return f
}

// stop ends server and engine, as serve does. The store stays.
func (f *fixture) stop() {
	if f.server == nil {
		return
	}
	f.server.Close()
	f.web.Close()
	f.engine.Close()
	f.server = nil
	<-f.served
}

// borrowed is a store that an engine does not close.
type borrowed struct{ api.Store }

func (borrowed) Close() error { return nil }

func describe(name string) (ModelFacts, error) {
	s, ok := models[name]
	if !ok {
		return ModelFacts{}, api.Errorf(api.NotFound, "there is no model %q", name)
	}
	return ModelFacts{Arch: "qwen3", Context: s.Context}, nil
}

// clock is the time, and what a test adds to it.
type clock struct {
	mu   sync.Mutex
	plus time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.plus)
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.plus += d
}

// lines is a log that can be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// key is one that a server without a key file takes.
const key = KeyPrefix + "a-key-for-tests"

// client is somebody with a key.
type client struct {
	f   *fixture
	t   testing.TB
	key string
}

func (f *fixture) client() client { return client{f, f.t, key} }

func (f *fixture) as(key string) client { return client{f, f.t, key} }

// answer is what a server said.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// object is the JSON of an answer or a body.
type object = map[string]any

// raw is a body that is not JSON made by the test.
type raw struct {
	kind, encoding string
	body           []byte
}

// do sends a request. body is nil, a raw, or a value for JSON. Headers are pairs.
func (c client) do(method, path string, body any, headers ...string) answer {
	c.t.Helper()
	a, err := c.try(method, path, body, headers...)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

var web = &http.Client{
	Transport:     &http.Transport{MaxIdleConnsPerHost: 256},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Timeout:       time.Minute,
}

func (c client) try(method, path string, body any, headers ...string) (a answer, err error) {
	var in io.Reader
	kind, encoding := "application/json", ""
	switch b := body.(type) {
	case nil:
	case raw:
		kind, encoding, in = b.kind, b.encoding, bytes.NewReader(b.body)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return a, err
		}
		in = bytes.NewReader(text)
	}
	r, err := http.NewRequest(method, c.f.url+path, in)
	if err != nil {
		return a, err
	}
	r.Header.Set("X-API-Key", c.key)
	r.Header.Set("Content-Type", kind)
	if encoding != "" {
		r.Header.Set("Content-Encoding", encoding)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := web.Do(r)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.status, a.header = resp.StatusCode, resp.Header
	a.body, err = io.ReadAll(resp.Body)
	return a, err
}

// json is the answer's object; nil when it is none.
func (a answer) json() object {
	var out object
	_ = json.Unmarshal(a.body, &out)
	return out
}

func (a answer) String() string {
	return fmt.Sprintf("%d %s", a.status, a.body[:min(len(a.body), 400)])
}

// post sends JSON to a path of the API and wants status 200.
func (c client) post(name string, body any, headers ...string) object {
	c.t.Helper()
	a := c.do("POST", "/api/v1/"+name, body, headers...)
	if a.status != 200 {
		c.t.Fatalf("%s: %v", name, a)
	}
	return a.json()
}

func (c client) session() string {
	c.t.Helper()
	return c.post("create_session", object{"sdk_version": "0.25.0"})["session_id"].(string)
}

// poll asks for a result once.
func (c client) poll(id string) answer {
	c.t.Helper()
	return c.do("POST", "/api/v1/retrieve_future", object{"request_id": id})
}

// result waits for a result.
func (c client) result(id string) object {
	c.t.Helper()
	for {
		switch a := c.poll(id); a.status {
		case 200:
			return a.json()
		case 408:
		default:
			c.t.Fatalf("result of %s: %v", id, a)
		}
	}
}

// submit sends a request for work and gives its id.
func (c client) submit(name string, body any) string {
	c.t.Helper()
	id, _ := c.post(name, body)["request_id"].(string)
	if id == "" {
		c.t.Fatalf("%s: no request id", name)
	}
	return id
}

// work is submit and result of work that succeeds.
func (c client) work(name string, body any) object {
	c.t.Helper()
	out := c.result(c.submit(name, body))
	if out["error"] != nil {
		c.t.Fatalf("%s: %v", name, out)
	}
	return out
}

func (c client) model(session string, n int) string {
	c.t.Helper()
	return c.work("create_model", createModel(session, n))["model_id"].(string)
}

func createModel(session string, n int) object {
	return object{
		"session_id": session, "model_seq_id": n, "base_model": "test/small", "lora_config": object{"rank": 4, "seed": 7},
		"type": "create_model",
	}
}

// tokens makes n ids out of a seed.
func tokens(seed, n int) []int32 {
	out := make([]int32, n)
	for i := range out {
		out[i] = int32((seed*31 + i*i*7 + i*seed) % 37)
	}
	return out
}

// datum predicts each next token of n+1, as the SDK's JSON has it.
func datum(seed, n int) object {
	seq := tokens(seed, n+1)
	return object{
		"model_input": object{"chunks": []object{{"type": "encoded_text", "tokens": seq[:n]}}},
		"loss_fn_inputs": object{
			"target_tokens": object{"data": seq[1:], "dtype": "int64", "shape": []int{n}},
			"weights":       object{"data": ones(n), "dtype": "float32", "shape": []int{n}},
		},
	}
}

func ones(n int) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = 1
	}
	return out
}

func forwardBackward(model string, seq int, data ...object) object {
	return object{"model_id": model, "seq_id": seq, "forward_backward_input": object{"data": data, "loss_fn": "cross_entropy"}}
}

func optimStep(model string, seq int) object {
	return object{"model_id": model, "seq_id": seq, "adam_params": object{"learning_rate": 0.01}, "type": "optim_step"}
}

func sampleFrom(sampler string, seq, maxTokens int) object {
	return object{
		"sampling_session_id": sampler, "seq_id": seq, "num_samples": 1, "prompt": object{"chunks": []object{{"type": "encoded_text", "tokens": tokens(3, 5)}}},
		"sampling_params": object{"max_tokens": maxTokens, "seed": 1, "temperature": 1}, "prompt_logprobs": false,
	}
}

func (c client) baseSampler(session string, n int) string {
	c.t.Helper()
	return c.post("create_sampling_session", object{"session_id": session, "sampling_session_seq_id": n, "base_model": "test/small"})["sampling_session_id"].(string)
}

// eventually waits until something is so.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func mustPath(t testing.TB, s string) api.Path {
	t.Helper()
	p, err := api.ParsePath(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// run is the engine's run behind a model's id.
func (f *fixture) run(model string) *engine.Run {
	f.t.Helper()
	f.server.mu.Lock()
	r := f.server.runs[model]
	f.server.mu.Unlock()
	made, err := r.made.Wait(background)
	if err != nil {
		f.t.Fatal(err)
	}
	return made
}

// gate holds the device up: until it is opened, nothing that was not ready runs.
type gate struct {
	f    *fixture
	open func()
}

// gated is a setting whose device waits at the gate while it loads test/ends, and with it everything else.
func gated(change func(*setting)) (func(*setting), *gate) {
	closed := make(chan struct{})
	g := &gate{open: sync.OnceFunc(func() { close(closed) })}
	return func(s *setting) {
		s.Engine.Progress = func(model string, _, _ int64) {
			if model == "test/ends" {
				<-closed
			}
		}
		if change != nil {
			change(s)
		}
	}, g
}

// startGated starts a gated server.
func startGated(t testing.TB, change func(*setting)) (*fixture, *gate) {
	with, g := gated(change)
	f := start(t, with)
	g.f = f
	t.Cleanup(g.open) // before the server ends
	return f, g
}

// shut makes the device load test/ends, for a session of its own.
func (g *gate) shut() {
	g.f.t.Helper()
	if _, err := g.f.engine.NewSession().NewSampler("test/ends"); err != nil {
		g.f.t.Fatal(err)
	}
	eventually(g.f.t, "the device waits at the gate", func() bool { return g.f.engine.Status().Loading != nil })
}

// heap is how many bytes are in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
