package server_test

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// share saves weights of a kind at the number seq, for the n-th sampling session.
func (c *client) share(model string, seq, n int, kind string) string {
	c.t.Helper()
	return c.work("save_weights_for_sampler", object{"model_id": model, "seq_id": seq, "sampling_session_seq_id": n, "kind": kind})["sampling_session_id"].(string)
}

// scores are the prompt's log-probabilities under a sampler's weights.
func (c *client) scores(sampler string, seq int) string {
	c.t.Helper()
	return fmt.Sprint(c.work("asample", prompt(sampler, seq, object{"prompt_logprobs": true}))["prompt_logprobs"])
}

// TestInflight: sampling sessions that share a run's weights have those of the latest save of their kind, all of them; snapshots
// and other runs keep their own.
func TestInflight(t *testing.T) {
	h := newHost(t)
	ann := h.as(annKey)
	session := ann.session()
	model, other := ann.model(session, 0), ann.model(session, 1)
	snapshot, first := ann.share(model, 1, 0, "snapshot"), ann.share(model, 2, 1, "inflight")
	before := ann.scores(snapshot, 0)
	if got := ann.scores(first, 0); got != before {
		t.Errorf("the first save gives %s, wanted %s", got, before)
	}
	ann.train(model, 3)
	if got := ann.scores(first, 1); got != before {
		t.Errorf("training has changed what was saved")
	}
	stranger := ann.share(other, 1, 5, "inflight")
	second, after := ann.share(model, 5, 2, "inflight"), ann.scores(ann.share(model, 6, 3, "snapshot"), 0)
	if after == before {
		t.Fatal("training has changed nothing")
	}
	for i, sampler := range []string{first, second} {
		if got := ann.scores(sampler, 7); got != after {
			t.Errorf("session %d gives %s, wanted those of the latest save, %s", i, got, after)
		}
	}
	if ann.scores(snapshot, 1) != before || ann.scores(stranger, 0) != before {
		t.Error("a snapshot, or another run, has taken the weights")
	}
	ann.refused(400, "kind", "POST", "/api/v1/save_weights_for_sampler", object{"kind": "inflight"})
	ann.fails("user", `kind is "moving"`, "save_weights_for_sampler", object{"model_id": model, "seq_id": 7, "sampling_session_seq_id": 9, "kind": "moving"})
	ann.fails("user", "wanted a sampling session", "save_weights_for_sampler", object{"model_id": model, "seq_id": 8, "path": "x", "kind": "inflight"})
}

// TestInflightWhileSampling: samples and saves at the same time; every sample is from one of the saves, and none is lost to a change of weights.
func TestInflightWhileSampling(t *testing.T) {
	h := newHost(t)
	ann := h.as(annKey)
	model := ann.model(ann.session(), 0)
	sampler := ann.share(model, 1, 0, "inflight")
	var work sync.WaitGroup
	for worker := range 4 {
		work.Go(func() {
			for i := range 25 {
				if ann.wait(ann.call("asample", prompt(sampler, worker*100+i, nil)))["error"] != nil {
					t.Error("a sample has failed")
				}
			}
		})
	}
	for n := range 10 {
		ann.share(model, n+2, n+1, "inflight")
	}
	work.Wait()
	// Of eleven copies of the weights one is left.
	open := 0
	for range 500 {
		if open = h.engine.Status().Bases[0].Samplers; open == 1 {
			return
		}
		time.Sleep(10 * time.Millisecond) // they are freed between other work
	}
	t.Errorf("%d samplers are open, wanted 1", open)
}
