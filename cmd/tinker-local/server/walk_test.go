package server

import (
	"testing"
)

// TestWalk: a client trains, saves and samples, step by step.
func TestWalk(t *testing.T) {
	f := start(t, nil)
	c := f.client()
	s := c.session()
	m := c.model(s, 0)
	if m != s+":train:0" {
		t.Errorf("the model is %s of session %s", m, s)
	}
	out := c.work("forward_backward", forwardBackward(m, 1, datum(1, 8)))
	if out["metrics"].(object)["loss:sum"].(float64) <= 0 {
		t.Errorf("forward_backward: %v", out)
	}
	c.work("optim_step", optimStep(m, 2))
	saved := c.work("save_weights", object{"model_id": m, "seq_id": 3, "path": "first"})
	if saved["path"] != "tinker://"+m+"/weights/first" {
		t.Errorf("saved %v", saved)
	}
	eph := c.work("save_weights_for_sampler", object{"model_id": m, "seq_id": 4, "sampling_session_seq_id": 0})
	sampled := c.work("asample", sampleFrom(eph["sampling_session_id"].(string), 0, 4))
	if n := len(sampled["sequences"].([]any)); n != 1 {
		t.Errorf("%d sequences", n)
	}
}
