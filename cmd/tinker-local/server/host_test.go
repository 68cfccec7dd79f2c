package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"tinkerlocal/cmd/tinker-local/server"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/kernels/cpu"
	"tinkerlocal/store"
)

// host is a server over a small engine that computes, with checkpoints in memory and two owners.
type host struct {
	t      *testing.T
	url    string
	store  api.Store
	engine *engine.Engine
	server *server.Server

	mu  sync.Mutex
	now time.Time
}

// The owners' keys.
const (
	annKey = "tml-ann-0123456789"
	bobKey = "tml-bob-0123456789"
)

func newHost(t *testing.T) *host {
	t.Helper()
	return newHostOn(t, store.OpenMemory(store.Options{Interval: -1}))
}

// newHostOn is a host over a store that another one may have had before.
func newHostOn(t *testing.T, s api.Store) *host {
	t.Helper()
	keys := &server.Keys{}
	for owner, key := range map[string]string{"ann": annKey, "bob": bobKey} {
		if err := keys.Add(owner, key); err != nil {
			t.Fatal(err)
		}
	}
	return newHostWith(t, s, keys)
}

// newHostWith is a host with other keys than those of ann and bob. s nil: over a store of its own.
func newHostWith(t *testing.T, s api.Store, keys *server.Keys) *host {
	t.Helper()
	if s == nil {
		s = store.OpenMemory(store.Options{Interval: -1})
	}
	dev, err := cpu.Open(cpu.Options{Variant: "portable", Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, store: s, now: time.Now()}
	twin := enginetest.Small
	twin.Seed = 9
	seed := int64(0)
	h.engine, err = engine.Open(context.Background(), engine.Options{
		Device: dev, Models: enginetest.Models{"small": enginetest.Small, "twin": twin}, Checkpoints: shared{s},
		Seed: func() int64 { seed++; return seed },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.engine.Close() })
	h.server = server.New(server.Options{Engine: h.engine, Keys: keys, Secret: []byte("secret of the tests"), Now: h.clock})
	web := httptest.NewServer(h.server)
	h.url = web.URL
	t.Cleanup(func() {
		h.server.Close()
		web.Close()
	})
	return h
}

// shared is a store that an engine does not close.
type shared struct{ api.Store }

func (shared) Close() error { return nil }

func (h *host) clock() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

// pass lets time pass for the server.
func (h *host) pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = h.now.Add(d)
}

// client speaks to a host as one owner does.
type client struct {
	*host
	key    string
	header http.Header
}

func (h *host) as(key string) *client { return &client{host: h, key: key, header: http.Header{}} }

// object is a JSON object.
type object = map[string]any

// send sends a request and gives the answer's status and body.
func (c *client) send(method, path string, body any) (int, []byte) {
	c.t.Helper()
	var in io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			c.t.Fatal(err)
		}
		in = bytes.NewReader(text)
	}
	r, err := http.NewRequest(method, c.url+path, in)
	if err != nil {
		c.t.Fatal(err)
	}
	for name, values := range c.header {
		r.Header[name] = values
	}
	r.Header.Set("X-API-Key", c.key)
	r.Header.Set("Content-Type", "application/json")
	w, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer w.Body.Close()
	text, err := io.ReadAll(w.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return w.StatusCode, text
}

// do sends a request that succeeds.
func (c *client) do(method, path string, body any) object {
	c.t.Helper()
	status, text := c.send(method, path, body)
	var out object
	if status/100 != 2 {
		c.t.Fatalf("%s %s: %d %s", method, path, status, text)
	}
	if status != http.StatusNoContent {
		if err := json.Unmarshal(text, &out); err != nil {
			c.t.Fatalf("%s %s: %v in %s", method, path, err, text)
		}
	}
	return out
}

// call posts to one of the SDK's paths.
func (c *client) call(name string, body object) object {
	c.t.Helper()
	return c.do("POST", "/api/v1/"+name, body)
}

// refused sends a request that is refused with a status, and says that.
func (c *client) refused(status int, part, method, path string, body any) {
	c.t.Helper()
	got, text := c.send(method, path, body)
	var out struct{ Detail string }
	if err := json.Unmarshal(text, &out); err != nil || got != status || !strings.Contains(out.Detail, part) {
		c.t.Errorf("%s %s: %d %s, wanted %d with %q", method, path, got, text, status, part)
	}
}

// wait polls until a request has ended.
func (c *client) wait(future object) object {
	c.t.Helper()
	id, _ := future["request_id"].(string)
	for range 40 {
		status, text := c.send("POST", "/api/v1/retrieve_future", object{"request_id": id})
		if status == http.StatusRequestTimeout {
			continue
		}
		var out object
		if err := json.Unmarshal(text, &out); err != nil || status != http.StatusOK {
			c.t.Fatalf("%s: %d %s", id, status, text)
		}
		return out
	}
	c.t.Fatalf("%s does not end", id)
	return nil
}

// work posts a request whose result comes later, and gives that.
func (c *client) work(name string, body object) object {
	c.t.Helper()
	out := c.wait(c.call(name, body))
	if failed, ok := out["error"]; ok {
		c.t.Fatalf("%s: %v (%v)", name, failed, out["category"])
	}
	return out
}

// fails posts a request whose work fails, and says that.
func (c *client) fails(category, part, name string, body object) {
	c.t.Helper()
	out := c.wait(c.call(name, body))
	if text, _ := out["error"].(string); out["category"] != category || !strings.Contains(text, part) {
		c.t.Errorf("%s: %v, wanted a failure of category %s with %q", name, out, category, part)
	}
}

func (c *client) session() string {
	c.t.Helper()
	return c.call("create_session", object{"tags": []string{}, "sdk_version": "0.38.0"})["session_id"].(string)
}

// model makes a model, the n-th of its session, and waits for it.
func (c *client) model(session string, n int) string {
	c.t.Helper()
	return c.work("create_model", object{
		"session_id": session, "model_seq_id": n, "base_model": "small", "lora_config": object{"rank": 4, "seed": 1},
	})["model_id"].(string)
}

// train does a forward_backward and an optim_step at the numbers seq and seq+1.
func (c *client) train(model string, seq int) {
	c.t.Helper()
	c.work("forward_backward", object{"model_id": model, "seq_id": seq, "forward_backward_input": object{
		"loss_fn": "cross_entropy", "data": []object{datum()},
	}})
	c.work("optim_step", object{"model_id": model, "seq_id": seq + 1, "adam_params": object{"learning_rate": 0.01}})
}

func datum() object {
	return object{
		"model_input":    object{"chunks": []object{{"type": "encoded_text", "tokens": []int{1, 2, 3}}}},
		"loss_fn_inputs": object{"target_tokens": object{"data": []int{2, 3, 4}, "dtype": "int64"}, "weights": object{"data": []int{1, 1, 1}, "dtype": "float32"}},
	}
}

// logprobs are those of the datum under a model's weights, from a forward at the number seq.
func (c *client) logprobs(model string, seq int) string {
	c.t.Helper()
	out := c.work("forward", object{"model_id": model, "seq_id": seq, "forward_input": object{"loss_fn": "cross_entropy", "data": []object{datum()}}})
	return fmt.Sprint(out["loss_fn_outputs"])
}
