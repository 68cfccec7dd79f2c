package sdktest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// raw speaks to a server without the SDK, which would repeat and order its requests by itself. No Python is needed.
type raw struct {
	t *testing.T
	s *server
}

type object = map[string]any

// post sends a request and gives the answer's status and body.
func (r raw) post(path string, body object) (int, object) {
	r.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		r.t.Fatal(err)
	}
	q, err := http.NewRequest(http.MethodPost, r.s.url+"/api/v1/"+path, bytes.NewReader(text))
	if err != nil {
		r.t.Fatal(err)
	}
	q.Header.Set("X-API-Key", "tml-local")
	q.Header.Set("Content-Type", "application/json")
	w, err := http.DefaultClient.Do(q)
	if err != nil {
		r.t.Fatal(err)
	}
	defer w.Body.Close()
	b, err := io.ReadAll(w.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	var out object
	if err := json.Unmarshal(b, &out); err != nil {
		r.t.Fatalf("%s: %d %s: %v", path, w.StatusCode, b, err)
	}
	return w.StatusCode, out
}

// submit starts work and gives the id under which its result is fetched.
func (r raw) submit(path string, body object) string {
	r.t.Helper()
	status, out := r.post(path, body)
	if status != http.StatusOK {
		r.t.Fatalf("%s: %d %v", path, status, out)
	}
	return out["request_id"].(string)
}

// result waits for work.
func (r raw) result(id string) object {
	r.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if status, out := r.post("retrieve_future", object{"request_id": id}); status == http.StatusOK {
			return out
		} else if status != http.StatusRequestTimeout {
			r.t.Fatalf("%s: %d %v", id, status, out)
		}
	}
	r.t.Fatalf("%s has no result after %v", id, patience)
	return nil
}

// model makes a run with a fixed seed.
func (r raw) model() string {
	r.t.Helper()
	_, session := r.post("create_session", object{"tags": []string{}, "sdk_version": "0.16.1"})
	id := r.submit("create_model", object{
		"session_id": session["session_id"], "model_seq_id": 0, "base_model": "tinker-local/tiny", "lora_config": object{"rank": 4, "seed": 1},
	})
	return r.result(id)["model_id"].(string)
}

// pass is a forward_backward of one text at a number.
func pass(model string, seq int, text string) object {
	in, out := make([]int, len(text)-1), make([]int, len(text)-1)
	for i := range in {
		in[i], out[i] = int(text[i]), int(text[i+1])
	}
	return object{"model_id": model, "seq_id": seq, "forward_backward_input": object{"loss_fn": "cross_entropy", "data": []object{{
		"model_input":    object{"chunks": []object{{"type": "encoded_text", "tokens": in}}},
		"loss_fn_inputs": object{"target_tokens": object{"dtype": "int64", "data": out}},
	}}}}
}

func step(model string, seq int) object {
	return object{"model_id": model, "seq_id": seq, "adam_params": object{"learning_rate": 0.01}}
}

// TestArrival: chunks that come out of order, twice, or not at all because they were refused, give what they give in order and once.
func TestArrival(t *testing.T) {
	r := raw{t, start(t, newFolders(t))}
	loss := func(id string) string { return fmt.Sprint(r.result(id)["metrics"]) }

	plain := r.model()
	var want []string
	for seq, text := range []string{"hello world", "another text"} {
		want = append(want, loss(r.submit("forward_backward", pass(plain, seq+1, text))))
	}
	r.result(r.submit("optim_step", step(plain, 3)))
	want = append(want, loss(r.submit("forward_backward", pass(plain, 4, "hello world"))))

	model := r.model()
	second := r.submit("forward_backward", pass(model, 2, "another text"))
	last := r.submit("forward_backward", pass(model, 4, "hello world"))
	if again := r.submit("forward_backward", pass(model, 2, "a repeat may have another body")); again != second {
		t.Errorf("a repeat has the id %s, wanted %s", again, second)
	}
	third := r.submit("optim_step", step(model, 3))
	first := r.submit("forward_backward", pass(model, 1, "hello world"))
	for range 2 { // a result may be asked for again
		got := []string{loss(first), loss(second), loss(last)}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("out of order: %q, in order: %q", got, want)
		}
	}
	if again := r.submit("optim_step", step(model, 3)); again != third {
		t.Errorf("a repeated step has the id %s, wanted %s", again, third)
	}
	if got := loss(r.submit("forward_backward", pass(model, 5, "hello world"))); got != want[2] {
		t.Errorf("after a repeated step: %s, wanted %s", got, want[2])
	}

	refused := pass(model, 6, "hello world")
	refused["forward_backward_input"].(object)["loss_fn"] = ""
	failed := r.result(r.submit("forward_backward", refused))
	if failed["category"] != "user" || failed["error"] == nil {
		t.Errorf("a request that makes no sense: %v", failed)
	}
	began := time.Now()
	if got := loss(r.submit("forward_backward", pass(model, 7, "hello world"))); got != want[2] {
		t.Errorf("after a refusal: %s, wanted %s", got, want[2])
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("a request has waited %v for one that was refused", took)
	}
}

// TestCustomLossIsOneForward: what forward_backward_custom of the SDK sends, a forward and then a backward with other weights, costs one
// forward; a forward that nothing matches costs what it always does.
func TestCustomLossIsOneForward(t *testing.T) {
	f := newFolders(t)
	r := raw{t, start(t, f)}
	model := r.model()
	products := func() float64 {
		t.Helper()
		var report struct {
			Products []struct {
				Forward, Recompute float64
			}
		}
		if err := json.Unmarshal([]byte(f.run(t, "ps", "--json")), &report); err != nil || len(report.Products) != 1 {
			t.Fatalf("%v: %+v", err, report)
		}
		return report.Products[0].Forward + report.Products[0].Recompute
	}
	last := products()
	since := func() float64 { now := products(); defer func() { last = now }(); return now - last }

	r.result(r.submit("forward_backward", pass(model, 1, "hello world")))
	one := since()
	for seq, c := range []struct {
		second   string
		forwards float64
	}{{"hello world", 1}, {"other world", 2}} {
		first := pass(model, 2*seq+2, "hello world")
		first["forward_input"] = first["forward_backward_input"]
		delete(first, "forward_backward_input")
		seen := r.result(r.submit("forward", first))
		weights := make([]float64, len(c.second)-1)
		for i := range weights {
			weights[i] = -0.5 * float64(i)
		}
		second := pass(model, 2*seq+3, c.second)
		inputs := second["forward_backward_input"].(object)["data"].([]object)[0]["loss_fn_inputs"].(object)
		inputs["weights"] = object{"dtype": "float32", "data": weights}
		again := r.result(r.submit("forward_backward", second))
		if same := fmt.Sprint(seen["loss_fn_outputs"]) == fmt.Sprint(again["loss_fn_outputs"]); same != (c.forwards == 1) {
			t.Errorf("then %q: the outputs are the same: %v", c.second, same)
		}
		// A forward alone needs a little less than one that a backward follows.
		if got := since() / one; one <= 0 || got < 0.95*c.forwards || got > c.forwards {
			t.Errorf("then %q: products of %v forwards, wanted those of %v", c.second, got, c.forwards)
		}
	}
}
