package server_test

import (
	"testing"

	"tinkerlocal/engine/model"
)

// TestClientLossOneForward: what clients send for a loss of their own, forwards and then weighted forward_backwards, in two chunks of which the second
// comes first, runs each sequence forward once and backward once; a second backward of the same chunk runs it forward again.
func TestClientLossOneForward(t *testing.T) {
	h := newHost(t)
	ann := h.as(annKey)
	m := ann.model(ann.session(), 0)
	work := func() model.Work { return h.engine.Counters()["small"].Total() }
	chunk := func(token int, weights ...float64) object {
		return object{"loss_fn": "cross_entropy", "data": []object{{
			"model_input": object{"chunks": []object{{"type": "encoded_text", "tokens": []int{1, 2, token}}}},
			"loss_fn_inputs": object{
				"target_tokens": object{"data": []int{2, token, 4}, "dtype": "int64"}, "weights": object{"data": weights, "dtype": "float32"},
			},
		}}}
	}
	send := func(name, field string, seq int, input object) object {
		return ann.call(name, object{"model_id": m, "seq_id": seq, field: input})
	}
	before := work()
	ann.wait(send("forward", "forward_input", 1, chunk(9, 0, 0, 0)))
	one := work().Sub(before)
	if one.Forward == 0 || one.Backward != 0 {
		t.Fatalf("a forward computed %+v", one)
	}
	before = work()
	second := send("forward", "forward_input", 3, chunk(5, 0, 0, 0))
	for _, f := range []object{send("forward", "forward_input", 2, chunk(7, 0, 0, 0)), second} {
		if out := ann.wait(f); out["error"] != nil {
			t.Fatal(out)
		}
	}
	second = send("forward_backward", "forward_backward_input", 5, chunk(5, 0.5, -2, 1))
	for _, f := range []object{send("forward_backward", "forward_backward_input", 4, chunk(7, 1, 0.25, -1)), second} {
		if out := ann.wait(f); out["error"] != nil {
			t.Fatal(out)
		}
	}
	both := work().Sub(before)
	if both.Forward != 2*one.Forward || both.Backward == 0 {
		t.Errorf("two chunks computed %+v, a forward of one takes %d", both, one.Forward)
	}
	before = work()
	ann.wait(send("forward_backward", "forward_backward_input", 6, chunk(7, 1, 1, 1)))
	if again := work().Sub(before); again.Forward != one.Forward {
		t.Errorf("a second backward computed %+v, a forward takes %d", again, one.Forward)
	}
}
