package server

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// work of one client, from session to samples: what it was answered, but for names.
func oneClient(c client, seed int) (got []any) {
	s := c.session()
	create := createModel(s, 0)
	create["lora_config"] = object{"rank": []int{1, 4, 8}[seed%3], "seed": seed}
	create["base_model"] = []string{"test/small", "test/ends"}[seed%2]
	m := c.work("create_model", create)["model_id"].(string)
	seq := 0
	var ids []string
	ask := func(route string, body object) string {
		seq++
		body["model_id"], body["seq_id"] = m, seq
		id := c.submit(route, body)
		ids = append(ids, id)
		return id
	}
	for step := range 4 {
		for i := range 1 + (seed+step)%3 {
			ask("forward_backward", forwardBackward("", 0, datum(seed+i, 10+step), datum(seed*3+i, 5)))
		}
		ask("optim_step", optimStep("", 0))
		if step%2 == 1 {
			p := c.result(ask("save_weights_for_sampler", object{"sampling_session_seq_id": step}))["sampling_session_id"].(string)
			for n := range 3 {
				draw := sampleFrom(p, n, 12)
				draw["num_samples"], draw["prompt_logprobs"] = 1+n, true
				draw["sampling_params"].(object)["seed"] = seed + n
				got = append(got, c.work("asample", draw))
			}
		}
	}
	for _, id := range ids {
		if out := c.result(id); out["sampling_session_id"] == nil {
			got = append(got, outputOf(out))
		}
	}
	return append(got, weightsOf(c.t, c.f.run(m)))
}

// TestTogether: clients that train and sample at once, on two base models and with adapters of several ranks, get what each gets alone, bit for bit.
func TestTogether(t *testing.T) {
	const clients = 8
	alone := make([][]any, clients)
	quiet := start(t, nil)
	for i := range clients {
		alone[i] = oneClient(quiet.client(), i)
	}
	f := start(t, nil)
	together := atOnce(2*clients, func(i int) []any { return oneClient(f.client(), i%clients) })
	for i, got := range together {
		for k := range got {
			if want := alone[i%clients][k]; !reflect.DeepEqual(got[k], want) {
				t.Errorf("client %d, answer %d: %.300s, alone %.300s", i, k, fmt.Sprint(got[k]), fmt.Sprint(want))
				break
			}
		}
	}
}

// TestSamplersOfEveryStep: a loop that makes a sampler at every step and closes none, on a device that has no room for all of them: each can be
// drawn from at any time, with the bits that it had at first.
func TestSamplersOfEveryStep(t *testing.T) {
	const steps = 16
	f := start(t, func(s *setting) {
		s.Engine.Limits.Memory, s.Engine.Limits.KVPositions, s.Engine.Limits.DecodeSequences, s.Engine.Limits.PrefillTokens = 245_000, 256, 4, 16
	})
	c := f.client()
	m := c.model(c.session(), 0)
	var samplers []string
	var first []object
	seq := 0
	ask := func(route string, body object) object {
		seq++
		body["model_id"], body["seq_id"] = m, seq
		return c.work(route, body)
	}
	for step := range steps {
		ask("forward_backward", forwardBackward("", 0, datum(step, 8)))
		ask("optim_step", optimStep("", 0))
		samplers = append(samplers, ask("save_weights_for_sampler", object{"sampling_session_seq_id": step})["sampling_session_id"].(string))
		first = append(first, c.work("asample", sampleFrom(samplers[step], 0, 8)))
	}
	again := atOnce(steps, func(i int) object { return c.work("asample", sampleFrom(samplers[i], 1, 8)) })
	for i := range steps {
		if !reflect.DeepEqual(again[i], first[i]) {
			t.Errorf("step %d: %v, at first %v", i, again[i], first[i])
		}
	}
	if !strings.Contains(f.log.String(), "set aside") {
		t.Error("there was room for all: the test shows nothing")
	}
}
