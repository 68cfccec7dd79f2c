package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

type body = map[string]any

// survivor is a client that trains while its server is killed now and then.
type survivor struct {
	t       *testing.T
	url     string
	session string
	models  int      // that it has made
	model   string   // the latest
	seq     int      // of the model's last request
	saved   []string // paths of which it was told that they are saved
	lost    int      // times that it has lost its model
}

// errLost is what the survivor learns when its server was killed: an error of the connection, or one that the server words for people.
type errLost struct{ why string }

func (e errLost) Error() string { return e.why }

// call asks once.
func (c *survivor) call(method, path string, in body) (status int, out body, err error) {
	b, err := json.Marshal(in)
	if err != nil {
		c.t.Fatal(err)
	}
	r, err := http.NewRequest(method, c.url+"/api/v1/"+path, bytes.NewReader(b))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("X-API-Key", "tml-local")
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil, err
	}
	_ = json.Unmarshal(text, &out)
	return resp.StatusCode, out, nil
}

// post asks until somebody answers. What a client of a killed server may be told is an errLost; everything else fails the test.
func (c *survivor) post(path string, in body) (body, error) {
	for {
		status, out, err := c.call("POST", path, in)
		switch {
		case err != nil: // nobody listens, or the connection broke: the SDK asks again, too
			time.Sleep(20 * time.Millisecond)
		case status == 408, status == 503:
		case status == 200 && out["error"] == nil:
			return out, nil
		case status == 200 && out["category"] == "server" && strings.Contains(out["error"].(string), "started anew"):
			return nil, errLost{out["error"].(string)}
		case status == 404 && strings.Contains(fmt.Sprint(out["detail"]), "is not open any more"):
			return nil, errLost{out["detail"].(string)}
		default:
			c.t.Fatalf("%s is answered with %d %v", path, status, out)
		}
	}
}

// work asks for an operation of the model and waits for its result.
func (c *survivor) work(path string, in body) (body, error) {
	c.seq++
	in["model_id"], in["seq_id"] = c.model, c.seq
	accepted, err := c.post(path, in)
	if err != nil {
		return nil, err
	}
	return c.post("retrieve_future", body{"request_id": accepted["request_id"]})
}

// begin makes a model, with the state of the last checkpoint if there is one.
func (c *survivor) begin() {
	for {
		c.model, c.seq = "", 0
		accepted, err := c.post("create_model", body{
			"session_id": c.session, "model_seq_id": c.models, "base_model": tiny, "lora_config": body{"rank": 4, "seed": 3},
		})
		c.models++
		var made body
		if err == nil {
			made, err = c.post("retrieve_future", body{"request_id": accepted["request_id"]})
		}
		if err == nil {
			c.model = made["model_id"].(string)
			if len(c.saved) > 0 {
				_, err = c.work("load_weights", body{"path": c.saved[len(c.saved)-1], "optimizer": true})
			}
		}
		if err == nil {
			return
		}
	}
}

// step trains on the step-th batch, and saves. The checkpoint's name has the step.
func (c *survivor) step(step int) error {
	ids := make([]int, 17)
	for i := range ids {
		ids[i] = 5 + (step*7+i*i)%50
	}
	if _, err := c.work("forward_backward", body{"forward_backward_input": body{"loss_fn": "cross_entropy", "data": []body{{
		"model_input":    body{"chunks": []body{{"type": "encoded_text", "tokens": ids[:16]}}},
		"loss_fn_inputs": body{"target_tokens": body{"data": ids[1:], "dtype": "int64", "shape": []int{16}}},
	}}}}); err != nil {
		return err
	}
	if _, err := c.work("optim_step", body{"adam_params": body{"learning_rate": 0.01}}); err != nil {
		return err
	}
	out, err := c.work("save_weights", body{"path": fmt.Sprintf("step-%d", step)})
	if err == nil {
		c.saved = append(c.saved, out["path"].(string))
	}
	return err
}

// train takes steps until so many have been taken and saved.
func (c *survivor) train(steps int) {
	c.begin()
	for len(c.saved) < steps {
		if err := c.step(len(c.saved)); err != nil {
			c.lost++
			c.begin()
		}
	}
}

// forward is what the model makes of a text.
func (c *survivor) forward() any {
	c.t.Helper()
	ids := []int{7, 9, 11, 13, 15, 17}
	out, err := c.work("forward", body{"forward_input": body{"loss_fn": "cross_entropy", "data": []body{{
		"model_input":    body{"chunks": []body{{"type": "encoded_text", "tokens": ids[:5]}}},
		"loss_fn_inputs": body{"target_tokens": body{"data": ids[1:], "dtype": "int64", "shape": []int{5}}},
	}}}})
	if err != nil {
		c.t.Fatal(err)
	}
	return out["loss_fn_outputs"]
}

// TestKilledServer: a server is killed, again and again, while a client trains. Whatever the client was told is saved, is there; with it the client
// goes on, and ends with the bits of a training that nobody disturbed.
func TestKilledServer(t *testing.T) {
	const steps, kills = 12, 4
	state := filepath.Join(t.TempDir(), "state")
	serve := func(state string) (*program, string) {
		p := start(t, "serve", "--listen", "127.0.0.1:0", "--state", state, "--device", "cpu:portable")
		_, url, _ := strings.Cut(p.line("ready on "), "ready on ")
		return p, url
	}
	_, calm := serve(filepath.Join(t.TempDir(), "calm"))
	reference := &survivor{t: t, url: calm}
	reference.session = reference.must("create_session", body{})["session_id"].(string)
	reference.train(steps)
	want := reference.forward()

	victim, url := serve(state)
	at := strings.TrimPrefix(url, "http://")
	c := &survivor{t: t, url: url}
	c.session = c.must("create_session", body{})["session_id"].(string)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.train(steps)
	}()
	rng := rand.New(rand.NewPCG(8, 8))
	killed := 0
	for running := true; running && killed < kills; {
		select {
		case <-done:
			running = false
		case <-time.After(time.Duration(100+rng.IntN(500)) * time.Millisecond):
			if err := victim.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			<-victim.ended
			victim.ended <- nil
			killed++
			victim = start(t, "serve", "--listen", at, "--state", state, "--device", "cpu:portable")
			victim.line("ready on ")
		}
	}
	<-done
	t.Logf("killed %d times; the client lost its model %d times", killed, c.lost)
	if killed < 2 || c.lost == 0 {
		t.Errorf("the server was killed %d times and the client has lost its model %d times: the test shows little", killed, c.lost)
	}
	if got := c.forward(); !reflect.DeepEqual(got, want) {
		t.Errorf("the model gives %v, one that nobody disturbed %v", got, want)
	}
	status, list, err := c.call("GET", "checkpoints", nil)
	if err != nil || status != 200 {
		t.Fatal(status, list, err)
	}
	var there []string
	for _, k := range list["checkpoints"].([]any) {
		there = append(there, k.(body)["tinker_path"].(string))
	}
	for _, path := range c.saved {
		if !slices.Contains(there, path) {
			t.Errorf("%s is lost; there are %v", path, there)
		}
	}
	victim.stop()
	if code, _, stderr := cli(t.Context(), "checkpoint", "verify", "--state", state); code != exitOK {
		t.Errorf("checkpoint verify: %d %s", code, stderr)
	}
}

func (c *survivor) must(path string, in body) body {
	c.t.Helper()
	out, err := c.post(path, in)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}
