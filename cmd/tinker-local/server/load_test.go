package server_test

import "testing"

// TestCreateByLoad: a model begins with a checkpoint in one request; the client's numbers begin at 1, and a repeat makes nothing.
func TestCreateByLoad(t *testing.T) {
	ann := newHost(t).as(annKey)
	from := ann.model(ann.session(), 0)
	ann.train(from, 1)
	path := ann.work("save_weights", object{"model_id": from, "seq_id": 3, "path": "x"})["path"]
	want := ann.logprobs(from, 4)

	session := ann.session()
	body := object{"session_id": session, "model_seq_id": 2, "path": path, "optimizer": true, "user_metadata": object{"why": "test"}}
	first := ann.call("load_weights", body)
	if again := ann.call("load_weights", body); again["request_id"] != first["request_id"] {
		t.Errorf("the repeat got %v, wanted %v", again, first)
	}
	out := ann.wait(first)
	model := session + ":train:2"
	if out["model_id"] != model || out["path"] != path || out["type"] != "load_weights" {
		t.Fatalf("loaded: %v", out)
	}
	info := ann.call("get_info", object{"model_id": model})
	if info["lora_rank"] != 4.0 || info["model_data"].(object)["model_name"] != "small" {
		t.Errorf("the model is %v", info)
	}
	if got := ann.logprobs(model, 1); got != want {
		t.Errorf("its logprobs are %s, wanted %s", got, want)
	}
	ann.train(from, 5)
	ann.train(model, 2)
	if got, want := ann.logprobs(model, 4), ann.logprobs(from, 7); got != want {
		t.Errorf("after one more step its logprobs are %s, wanted those of the run that went on, %s", got, want)
	}
	if run := ann.do("GET", "/api/v1/training_runs/"+model, nil); run["user_metadata"].(object)["why"] != "test" {
		t.Errorf("the run is recorded as %v", run)
	}

	// Another base model with the same modules.
	ann.work("load_weights", object{"session_id": session, "model_seq_id": 3, "path": path, "optimizer": false, "base_model": "twin"})
	if info := ann.call("get_info", object{"model_id": session + ":train:3"}); info["model_name"] != "twin" {
		t.Errorf("the model is %v", info)
	}
}

// TestCreateByLoadRefuses: what cannot be loaded fails as work does, and leaves no model.
func TestCreateByLoadRefuses(t *testing.T) {
	h := newHost(t)
	ann, bob := h.as(annKey), h.as(bobKey)
	from := ann.model(ann.session(), 0)
	path := ann.work("save_weights", object{"model_id": from, "seq_id": 1, "path": "x"})["path"]
	weights := ann.work("save_weights_for_sampler", object{"model_id": from, "seq_id": 2, "path": "x"})["path"]
	session := bob.session()
	load := func(n int, more object) object {
		body := object{"session_id": session, "model_seq_id": n, "path": path, "optimizer": false}
		for name, v := range more {
			body[name] = v
		}
		return body
	}
	bob.fails("user", "there is no checkpoint", "load_weights", load(0, nil))
	bob.refused(404, "there is no model", "POST", "/api/v1/get_info", object{"model_id": session + ":train:0"})
	bob.refused(400, "weights_access_token is not a key", "POST", "/api/v1/load_weights", load(1, object{"weights_access_token": "tml-nobody-012345"}))
	bob.refused(400, "wanted \"adamw\"", "POST", "/api/v1/load_weights", load(1, object{"optimizer_config": object{"type": "dimuon", "version": 1}}))
	bob.refused(400, "wanted one of model_id and session_id", "POST", "/api/v1/load_weights", load(1, object{"session_id": ""}))
	bob.refused(404, "there is no session", "POST", "/api/v1/load_weights", load(1, object{"session_id": ann.session()}))
	bob.fails("user", "no optimizer state", "load_weights", load(1, object{"path": weights, "optimizer": true, "weights_access_token": annKey}))
	bob.fails("user", "no model \"nobody\"", "load_weights", load(2, object{"base_model": "nobody", "weights_access_token": annKey}))

	// Ann has lent her key; the model is Bob's all the same.
	bob.work("load_weights", load(3, object{"weights_access_token": annKey}))
	if info := bob.call("get_info", object{"model_id": session + ":train:3"}); info["lora_rank"] != 4.0 {
		t.Errorf("the model is %v", info)
	}
	ann.refused(404, "there is no model", "POST", "/api/v1/get_info", object{"model_id": session + ":train:3"})
}
