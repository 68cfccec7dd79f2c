package server

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// step is one request of a run, as a client sends it and as the Go API says it.
type step struct {
	route   string
	body    func(model string, seq int) any
	do      func(t testing.TB, r *engine.Run) any // in order; nil: the request is refused
	refused string                                // part of the error
}

// apiDatum is datum for the Go API.
func apiDatum(seed, n int) api.Datum {
	seq := tokens(seed, n+1)
	targets := make([]int64, n)
	for i := range targets {
		targets[i] = int64(seq[i+1])
	}
	return api.Datum{ModelInput: api.FromInts(seq[:n]), LossInputs: map[string]api.TensorData{"target_tokens": api.Ints(targets), "weights": api.Floats(ones(n))}}
}

// protoForwardBackward is the body that the SDK sends.
func protoForwardBackward(model string, seq int, forwardOnly bool, data ...api.Datum) raw {
	message := func(b []byte, n protowire.Number, m []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), m)
	}
	number := func(b []byte, n protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
	}
	out := message(nil, 1, []byte(model))
	out = number(out, 2, uint64(seq))
	for _, d := range data {
		var ids, datum []byte
		for _, id := range d.ModelInput.Chunks[0].Tokens {
			ids = binary.LittleEndian.AppendUint32(ids, uint32(id))
		}
		datum = message(datum, 1, message(nil, 1, message(nil, 1, ids)))
		for name, t := range d.LossInputs {
			var values []byte
			dtype := uint64(1)
			for _, v := range t.Floats {
				values = binary.LittleEndian.AppendUint32(values, math.Float32bits(v))
			}
			for _, v := range t.Ints {
				values, dtype = binary.LittleEndian.AppendUint64(values, uint64(v)), 2
			}
			datum = message(datum, 2, message(message(nil, 1, []byte(name)), 2, number(message(nil, 1, values), 3, dtype)))
		}
		out = message(out, 3, datum)
	}
	out = message(out, 4, []byte("cross_entropy"))
	if forwardOnly {
		out = number(out, 6, 1)
	}
	return raw{kind: "application/x-protobuf", body: out}
}

func must[T any](t testing.TB, f *engine.Future[T], err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	v, err := f.Wait(background)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// outputOf is a result as numbers that can be compared, from the Go API or from JSON.
func outputOf(v any) []float32 {
	switch v := v.(type) {
	case api.ForwardBackwardOutput:
		var all []float32
		for _, o := range v.LossFnOutputs {
			all = append(all, o["logprobs"].Floats...)
		}
		return append(all, float32(v.Metrics["loss:sum"]))
	case api.OptimStepOutput:
		return []float32{float32(v.Metrics["grad_norm"])}
	case object:
		var all []float32
		if outputs, ok := v["loss_fn_outputs"].([]any); ok {
			for _, o := range outputs {
				for _, x := range o.(object)["logprobs"].(object)["data"].([]any) {
					all = append(all, float32(x.(float64)))
				}
			}
			return append(all, float32(v["metrics"].(object)["loss:sum"].(float64)))
		}
		if m, ok := v["metrics"].(object); ok {
			return []float32{float32(m["grad_norm"].(float64))}
		}
	}
	return nil
}

func weightsOf(t testing.TB, r *engine.Run) []float32 {
	t.Helper()
	f, err := r.Weights()
	var all []float32
	for _, x := range must(t, f, err).Tensors {
		all = append(all, x.Values...)
	}
	return all
}

// script makes requests out of a seed: chunks, steps, saves, and requests that are refused in every way in which their number is known.
func script(rng *rand.Rand, n int) []step {
	out := make([]step, 0, n)
	for i := range n {
		seed, length := rng.IntN(100), 1+rng.IntN(12)
		more := rng.IntN(3) // datums beside the first
		data, objects := []api.Datum{}, []object{}
		for k := range more + 1 {
			data, objects = append(data, apiDatum(seed+k, length+k)), append(objects, datum(seed+k, length+k))
		}
		pass := func(t testing.TB, r *engine.Run) any {
			f, err := r.ForwardBackward(api.ForwardBackwardInput{Data: data, LossFn: "cross_entropy"})
			return must(t, f, err)
		}
		switch rng.IntN(12) {
		case 0, 1, 2:
			out = append(out, step{"forward_backward", func(m string, seq int) any { return protoForwardBackward(m, seq, false, data...) }, pass, ""})
		case 3, 4:
			out = append(out, step{"forward_backward", func(m string, seq int) any { return forwardBackward(m, seq, objects...) }, pass, ""})
		case 5:
			out = append(out, step{"forward_backward", func(m string, seq int) any { return protoForwardBackward(m, seq, true, data...) }, func(t testing.TB, r *engine.Run) any {
				f, err := r.Forward(api.ForwardBackwardInput{Data: data, LossFn: "cross_entropy"})
				return must(t, f, err)
			}, ""})
		case 6, 7:
			out = append(out, step{"optim_step", func(m string, seq int) any { return optimStep(m, seq) }, func(t testing.TB, r *engine.Run) any {
				p := api.DefaultAdam()
				p.LearningRate = 0.01
				f, err := r.OptimStep(p)
				return must(t, f, err)
			}, ""})
		case 8:
			name := fmt.Sprintf("at-%d", i)
			out = append(out, step{"save_weights", func(m string, seq int) any { return object{"model_id": m, "seq_id": seq, "path": name} }, func(t testing.TB, r *engine.Run) any {
				f, err := r.SaveState(name, api.SaveOptions{})
				must(t, f, err)
				return nil
			}, ""})
		case 9:
			out = append(out, step{"save_weights_for_sampler", func(m string, seq int) any {
				return object{"model_id": m, "seq_id": seq, "sampling_session_seq_id": rand.Int64N(1 << 40)} // drawn anew for each repeat
			}, func(t testing.TB, r *engine.Run) any {
				f, err := r.SaveForSampler()
				must(t, f, err)
				return nil
			}, ""})
		default:
			out = append(out, refusals[rng.IntN(len(refusals))])
		}
	}
	return out
}

// refusals are requests whose number is used up though nothing is done.
var refusals = []step{
	{"optim_step", func(m string, seq int) any {
		return object{"model_id": m, "seq_id": seq, "adam_params": object{"beta1": 7}}
	}, nil, "beta1 is 7"},
	{"optim_step", func(m string, seq int) any {
		return object{"adam_params": object{"beta1": "fast"}, "model_id": m, "seq_id": seq}
	}, nil, "optim_step: adam_params.beta1"},
	{"forward_backward", func(m string, seq int) any {
		b := forwardBackward(m, seq, datum(1, 3))
		b["forward_backward_input"].(object)["loss_fn"] = "nonsense"
		return b
	}, nil, "nonsense"},
	{"forward_backward", func(m string, seq int) any {
		return protoForwardBackward(m, seq, false, api.Datum{ModelInput: api.FromInts([]int32{1000}), LossInputs: apiDatum(1, 1).LossInputs})
	}, nil, "1000"},
	// The tokens are no array of 32-bit numbers.
	{"forward_backward", func(m string, seq int) any {
		b := protoForwardBackward(m, seq, false)
		b.body = protowire.AppendBytes(protowire.AppendTag(b.body, 3, protowire.BytesType), []byte{10, 5, 10, 3, 10, 1, 9})
		return b
	}, nil, "datum 0"},
	// The end is missing.
	{"forward_backward", func(m string, seq int) any {
		b := protoForwardBackward(m, seq, false, apiDatum(1, 4))
		b.body = b.body[:len(b.body)-5]
		return b
	}, nil, "no protobuf at byte"},
	{"forward_backward", func(m string, seq int) any {
		return raw{kind: "application/json", body: fmt.Appendf(nil, `{"forward_backward_input": {"data": [{"model_input": {"chunks": [{"tokens": [1.5]}]}}], "loss_fn": "cross_entropy"}, "model_id": %q, "seq_id": %d}`, m, seq)}
	}, nil, "tokens"},
	{"save_weights", func(m string, seq int) any {
		return object{"model_id": m, "seq_id": seq, "path": "../../etc/passwd"}
	}, nil, "path"},
	{"save_weights_for_sampler", func(m string, seq int) any { return object{"model_id": m, "seq_id": seq} }, nil, "wanted one of path and sampling_session_seq_id"},
	{"load_weights", func(m string, seq int) any {
		return object{"model_id": m, "seq_id": seq, "path": "tinker://nobody/weights/nothing", "optimizer": false, "weights_access_token": "tml-"}
	}, nil, ""},
	{"load_weights", func(m string, seq int) any {
		return object{"model_id": m, "seq_id": seq, "path": "http://example.com"}
	}, nil, "tinker://"},
}

// TestArrival: requests that come in any order, from several connections at once, some of them more than once and some of them refused,
// give the results, the weights and the checkpoints of the same requests made one after another through the Go API, bit for bit.
func TestArrival(t *testing.T) {
	seeds := 60
	if testing.Short() {
		seeds = 10
	}
	f := start(t, nil)
	c := f.client()
	session := c.session()
	reference := f.engine.NewSession()
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(uint64(seed), 8))
		steps := script(rng, 3+rng.IntN(20))
		model := c.model(session, seed)

		lora := api.DefaultLora()
		fixed := int64(7)
		lora.Rank, lora.Seed = 4, &fixed
		made, err := reference.NewRun(api.CreateModelRequest{BaseModel: "test/small", Lora: lora})
		run := must(t, made, err)
		want := make([]any, len(steps))
		for i, s := range steps {
			if s.do != nil {
				want[i] = s.do(t, run)
			}
		}

		var arrivals []int
		for i := range steps {
			for range 1 + max(0, rng.IntN(4)-1) {
				arrivals = append(arrivals, i)
			}
		}
		rng.Shuffle(len(arrivals), func(i, j int) { arrivals[i], arrivals[j] = arrivals[j], arrivals[i] })
		ids := make([]string, len(steps))
		var mu sync.Mutex
		var senders sync.WaitGroup
		queue := make(chan int, len(arrivals))
		for _, i := range arrivals {
			queue <- i
		}
		close(queue)
		for range 1 + rng.IntN(6) {
			senders.Go(func() {
				for i := range queue {
					id := c.submit(steps[i].route, steps[i].body(model, i+1))
					mu.Lock()
					if ids[i] != "" && ids[i] != id {
						t.Errorf("seed %d: request %d was given the ids %s and %s", seed, i+1, ids[i], id)
					}
					ids[i] = id
					mu.Unlock()
				}
			})
		}
		senders.Wait()
		if t.Failed() {
			t.FailNow()
		}
		for _, i := range rng.Perm(len(steps)) {
			got := c.result(ids[i])
			if steps[i].do == nil {
				if text, _ := got["error"].(string); got["category"] != "user" || !strings.Contains(text, steps[i].refused) {
					t.Errorf("seed %d: request %d, %s, is answered with %v, wanted %q", seed, i+1, steps[i].route, got, steps[i].refused)
				}
				continue
			}
			if got["error"] != nil || !slices.Equal(outputOf(got), outputOf(want[i])) {
				t.Errorf("seed %d: request %d, %s: %v, wanted %v", seed, i+1, steps[i].route, got, want[i])
			}
			if again := c.result(ids[i]); !reflect.DeepEqual(again, got) {
				t.Errorf("seed %d: request %d is answered with %v, then with %v", seed, i+1, got, again)
			}
		}
		served := f.run(model)
		if !slices.Equal(weightsOf(t, served), weightsOf(t, run)) {
			t.Errorf("seed %d: the weights differ", seed)
		}
		if a, b := served.Info(), run.Info(); a.Version != b.Version || a.Step != b.Step {
			t.Errorf("seed %d: version %d, step %d; wanted %d and %d", seed, a.Version, a.Step, b.Version, b.Step)
		}
		c.work("unload_model", object{"model_id": model})
		run.Close()
		if t.Failed() {
			t.Fatalf("the script of seed %d: %v", seed, routesOf(steps))
		}
	}
}

func routesOf(steps []step) (out []string) {
	for _, s := range steps {
		out = append(out, s.route)
	}
	return out
}

// TestLostNumber: a number that never comes, because its request could not be read at all, holds the others up for a while; what comes for it later is refused,
// and clients are told that nothing is wrong with theirs.
func TestLostNumber(t *testing.T) {
	f := start(t, func(s *setting) {
		s.Engine.Limits.GapWait = 300 * time.Millisecond
		s.Server.Limits.PollWait = 50 * time.Millisecond
	})
	c := f.client()
	m := c.model(c.session(), 0)
	for _, body := range []string{"", "{", `{"model_id": 5, "seq_id": 1}`, "\xff", `[]`, `null`} {
		if a := c.do("POST", "/api/v1/optim_step", raw{kind: "application/json", body: []byte(body)}); a.status != 400 || a.json()["detail"] == "" {
			t.Errorf("%q: %v", body, a)
		}
	}
	id := c.submit("forward_backward", forwardBackward(m, 2, datum(1, 4)))
	if a := c.poll(id); a.status != 408 || a.json()["queue_state"] != "active" || a.json()["queue_state_reason"] != "an earlier request of the run has not arrived" {
		t.Errorf("while a number is missing: %v", a)
	}
	if out := c.result(id); out["error"] != nil {
		t.Errorf("after the wait: %v", out)
	}
	late := c.result(c.submit("optim_step", optimStep(m, 1)))
	if text, _ := late["error"].(string); late["category"] != "user" || !strings.Contains(text, "sequence number 1 has passed") {
		t.Errorf("a late number: %v", late)
	}
	c.work("optim_step", optimStep(m, 3))
}
