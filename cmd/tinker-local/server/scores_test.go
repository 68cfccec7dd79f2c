package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"testing"

	"tinkerlocal/cmd/tinker-local/server/wire"
)

// TestSampleScores: what the newest clients can ask for beside a sample is asked of the engine, and its result is sent whole.
func TestSampleScores(t *testing.T) {
	h := newHost(t)
	ann := h.as(annKey)
	session := ann.session()
	sampler := ann.call("create_sampling_session", object{"session_id": session, "sampling_session_seq_id": 0, "base_model": "small"})["sampling_session_id"]
	base, err := h.engine.NewSession().NewSampler("small")
	if err != nil {
		t.Fatal(err)
	}
	direct, err := base.Wait(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	dense := object{"data": []int{-1, 5, 6, 7, 8, -1}, "dtype": "int64", "shape": []int{3, 2}}
	sparse := object{"data": []int{5, 60}, "dtype": "int64", "shape": []int{3, 900}, "sparse_crow_indices": []int{0, 0, 1, 2}, "sparse_col_indices": []int{899, 0}}
	for i, more := range []object{
		{},
		{"target_prompt_logprobs": dense, "prompt_alt_tokens_k": 3, "topk_sample_logprobs": 4},
		{"target_prompt_logprobs": sparse},
		{"prompt_logprobs": true, "prompt_logprobs_last_n": 2, "topk_prompt_logprobs": 2},
	} {
		body := object{
			"sampling_session_id": sampler, "seq_id": i, "num_samples": 2, "prompt": object{"chunks": []object{{"type": "encoded_text", "tokens": []int{1, 2, 3, 4}}}},
			"sampling_params": object{"max_tokens": 5, "seed": 7, "temperature": 0.8},
		}
		for name, v := range more {
			body[name] = v
		}
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		var r wire.SampleRequest
		if err := wire.DecodeRequest(text, &r); err != nil {
			t.Fatal(err)
		}
		f, err := direct.Sample(context.Background(), r.API())
		if err != nil {
			t.Fatal(err)
		}
		out, err := f.Wait(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		want, err := wire.EncodeSampleOutput(out, r.Targets)
		if err != nil {
			t.Fatal(err)
		}
		future := ann.call("asample", body)
		if ids := future["sample_sequence_ids"].([]any); len(ids) != 2 || ids[0] == ids[1] {
			t.Errorf("%v: the samples are %v", more, ids)
		}
		ann.header.Set("Accept", wire.Protobuf)
		status, got := ann.send("POST", "/api/v1/retrieve_future", object{"request_id": future["request_id"]})
		ann.header.Del("Accept")
		if status != http.StatusOK || !bytes.Equal(got, want) {
			t.Errorf("%v: %d with %d bytes, wanted the %d of the engine's result", more, status, len(got), len(want))
		}
		if i == 1 && (len(out.TargetPromptLogProbs) != 3 || len(out.PromptAltTokens) != 3 || len(out.Sequences[0].TopKLogProbs) != 5) {
			t.Errorf("the engine gave %+v", out)
		}
	}
	body := object{
		"sampling_session_id": sampler, "seq_id": 9, "prompt": object{"chunks": []object{{"type": "encoded_text", "tokens": []int{1, 2}}}},
		"sampling_params": object{"max_tokens": 1}, "prompt_logprobs": true, "prompt_logprobs_last_n": 2,
	}
	ann.fails("user", "prompt_logprobs_last_n is 2, wanted 1..1", "asample", body)
	body["seq_id"], body["record_stability_info"] = 10, true
	ann.refused(400, "record_stability_info is not supported", "POST", "/api/v1/asample", body)
}
