package server

import (
	"reflect"
	"sync"
	"testing"
)

// atOnce does something in several goroutines and gives what each got.
func atOnce[T any](n int, do func(i int) T) []T {
	out := make([]T, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { out[i] = do(i) })
	}
	all.Wait()
	return out
}

func same[T any](t *testing.T, what string, got []T) T {
	t.Helper()
	for _, g := range got[1:] {
		if !reflect.DeepEqual(g, got[0]) {
			t.Errorf("%s: %v and %v", what, got[0], g)
		}
	}
	return got[0]
}

// TestRepeats: whatever a client sends again, at once or later, is the same request.
func TestRepeats(t *testing.T) {
	f := start(t, nil)
	c := f.client()
	s := c.session()
	const n = 8

	id := same(t, "create_model", atOnce(n, func(int) string { return c.submit("create_model", createModel(s, 3)) }))
	m := same(t, "create_model", atOnce(n, func(int) any { return c.result(id)["model_id"] })).(string)
	if again := c.submit("create_model", createModel(s, 3)); again != id {
		t.Errorf("create_model later: %s, wanted %s", again, id)
	}
	if runs := f.engine.Status().Runs; len(runs) != 1 || runs[0].ID != m {
		t.Errorf("the runs are %v", runs)
	}

	p := same(t, "create_sampling_session", atOnce(n, func(int) string { return c.baseSampler(s, 0) }))
	// Without a seed two samples would differ.
	draw := sampleFrom(p, 5, 20)
	delete(draw["sampling_params"].(object), "seed")
	ids := same(t, "asample", atOnce(n, func(int) any { return c.post("asample", draw)["sample_sequence_ids"] }))
	if len(ids.([]any)) != 1 {
		t.Errorf("sequence ids %v", ids)
	}
	id = same(t, "asample", atOnce(n, func(int) string { return c.submit("asample", draw) }))
	first := c.result(id)
	if again := c.result(c.submit("asample", draw)); !reflect.DeepEqual(first, again) {
		t.Errorf("sampled %v, and later %v", first, again)
	}
	draw["seq_id"] = 6
	if other := c.work("asample", draw); reflect.DeepEqual(first, other) {
		t.Error("two samples with seeds of the server's are the same")
	}

	// The client draws another number for the sampling session each time.
	id = same(t, "save_weights_for_sampler", atOnce(n, func(i int) string {
		return c.submit("save_weights_for_sampler", object{"model_id": m, "seq_id": 1, "sampling_session_seq_id": 100 + i})
	}))
	bound := c.result(id)["sampling_session_id"].(string)
	c.work("asample", sampleFrom(bound, 0, 3))
	if again := c.work("save_weights_for_sampler", object{"model_id": m, "seq_id": 1, "sampling_session_seq_id": 777}); again["sampling_session_id"] != bound {
		t.Errorf("the repeat is bound to %v, the first to %s", again, bound)
	}
	if st := f.engine.Status(); len(st.Sessions) != 1 || st.Sessions[0].Samplers != 2 {
		t.Errorf("the sessions are %+v", st.Sessions)
	}
	// A number that is taken is refused, and uses up the request's.
	out := c.result(c.submit("save_weights_for_sampler", object{"model_id": m, "seq_id": 2, "sampling_session_seq_id": 0}))
	if out["category"] != "user" {
		t.Errorf("a sampling session that is there already: %v", out)
	}
	c.work("optim_step", optimStep(m, 3))

	// Unloading twice is unloading once.
	id = same(t, "unload_model", atOnce(n, func(int) string {
		a := c.do("POST", "/api/v1/unload_model", object{"model_id": m})
		id, _ := a.json()["request_id"].(string)
		return id
	}))
	if out := c.result(id); out["model_id"] != m {
		t.Error(out)
	}
	if a := c.do("POST", "/api/v1/forward_backward", forwardBackward(m, 4, datum(1, 3))); a.status != 404 {
		t.Errorf("a model that was unloaded: %v", a)
	}
}
