package server_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestFinishSession: a finished session is closed for good, its runs with it, and the first reason stays.
func TestFinishSession(t *testing.T) {
	h := newHost(t)
	ann, bob := h.as(annKey), h.as(bobKey)
	session := ann.session()
	model := ann.model(session, 0)
	finish := "/api/v1/sessions/" + session + "/finish"
	bob.refused(404, "there is no session", "POST", finish, object{"reason": object{"type": "success"}})
	ann.refused(400, `reason.type is "bored"`, "POST", finish, object{"reason": object{"type": "bored"}})
	ann.do("POST", finish, object{"reason": object{"type": "errored"}, "detail": "no luck"})
	ann.do("POST", finish, object{"reason": object{"type": "success"}})
	ann.refused(410, "was finished by its client (errored)", "POST", "/api/v1/session_heartbeat", object{"session_id": session})
	ann.refused(410, "was finished", "POST", "/api/v1/create_model", object{
		"session_id": session, "model_seq_id": 1, "base_model": "small", "lora_config": object{"rank": 4},
	})
	ann.refused(404, "is not open any more", "POST", "/api/v1/optim_step", object{"model_id": model, "seq_id": 1, "adam_params": object{}})
	found := ann.call("sessions/search", object{"session_id": session})["sessions"].([]any)[0].(object)
	status := found["status"].(object)
	if status["type"] != "client_finished" || status["reason"].(object)["type"] != "errored" || status["detail"] != "no luck" {
		t.Errorf("found: %v", found)
	}
	if info := ann.do("GET", "/api/v1/sessions/"+session, nil); fmt.Sprint(info["training_run_ids"]) != "["+model+"]" {
		t.Errorf("the session is %v", info)
	}
}

// search gives the display names of what a search finds, and the cursor behind it.
func (c *client) search(body object) (string, any) {
	c.t.Helper()
	out := c.call("sessions/search", body)
	var names []string
	for _, s := range out["sessions"].([]any) {
		name, _ := s.(object)["display_name"].(string)
		names = append(names, name)
	}
	return strings.Join(names, ","), out["next_cursor"]
}

// TestSearchSessions: every filter, pages, and nobody else's sessions.
func TestSearchSessions(t *testing.T) {
	h := newHost(t)
	ann, bob := h.as(annKey), h.as(bobKey)
	ids := map[string]string{}
	for i, name := range []string{"Nightly run one", "nightly two", "other"} {
		body := object{"tags": []string{}, "sdk_version": "0.38.0", "display_name": name, "user_metadata": object{"n": fmt.Sprint(i), "of": "three"}}
		if i == 1 {
			body["project_id"] = "proj"
		}
		ids[name] = ann.call("create_session", body)["session_id"].(string)
		h.pass(time.Second)
	}
	bob.call("create_session", object{"tags": []string{}, "display_name": "nightly of bob"})
	ann.do("POST", "/api/v1/sessions/"+ids["other"]+"/finish", object{"reason": object{"type": "success"}})
	model := ann.model(ids["nightly two"], 0)
	ann.work("save_weights", object{"model_id": model, "seq_id": 1, "path": "x"})

	for _, c := range []struct {
		query object
		want  string
	}{
		{object{}, "other,nightly two,Nightly run one"},
		{object{"display_name": "NIGHT run"}, "Nightly run one"},
		{object{"display_name": "nightly"}, "nightly two,Nightly run one"},
		{object{"display_name": "two", "session_id": ids["other"]}, "other,nightly two"},
		{object{"session_id": ids["other"]}, "other"},
		{object{"session_id": "none"}, ""},
		{object{"user_metadata": object{"n": "0", "of": "three"}}, "Nightly run one"},
		{object{"user_metadata": object{"n": "0", "of": "four"}}, ""},
		{object{"project_ids": []string{"proj", "other"}}, "nightly two"},
		{object{"project_ids": []string{}}, ""},
		{object{"statuses": []object{{"type": "active"}}}, "nightly two,Nightly run one"},
		{object{"statuses": []object{{"type": "client_finished"}}}, "other"},
		{object{"statuses": []object{{"type": "client_finished", "reasons": []string{"errored"}}, {"type": "failed"}, {"type": "cancelled"}}}, ""},
		{object{"owner": object{"type": "accessible"}, "display_name": "bob"}, ""},
		{object{"owner": object{"type": "user", "owner_urns": []string{"urn:tinker-local:user:bob"}}}, ""},
		{object{"owner": object{"type": "user", "owner_urns": []string{"urn:tinker-local:user:ann"}}, "limit": 200}, "other,nightly two,Nightly run one"},
	} {
		if got, next := ann.search(c.query); got != c.want || next != nil {
			t.Errorf("%v found %q (next %v), wanted %q", c.query, got, next, c.want)
		}
	}
	first, next := ann.search(object{"limit": 2})
	second, end := ann.search(object{"limit": 2, "cursor": next})
	if first != "other,nightly two" || second != "Nightly run one" || end != nil {
		t.Errorf("pages %q and %q, then %v", first, second, end)
	}
	for part, bad := range map[string]object{
		"limit is 201":                {"limit": 201},
		"limit is 0":                  {"limit": 0},
		`owner.type is "all"`:         {"owner": object{"type": "all"}},
		`statuses has the type "bad"`: {"statuses": []object{{"type": "bad"}}},
	} {
		ann.refused(400, part, "POST", "/api/v1/sessions/search", bad)
	}
	two := ann.call("sessions/search", object{"session_id": ids["nightly two"]})["sessions"].([]any)[0].(object)
	if two["checkpoints_count"] != 1.0 || two["checkpoint_storage_bytes"].(float64) <= 0 || two["project_id"] != "proj" || two["owner"] != "urn:tinker-local:user:ann" {
		t.Errorf("found: %v", two)
	}
}

// TestSessionsOfEarlierServers: sessions that left runs are listed by a server that was started anew, with the runs.
func TestSessionsOfEarlierServers(t *testing.T) {
	was := newHost(t)
	old := was.as(annKey).session()
	model := was.as(annKey).model(old, 0)
	was.as(annKey).session() // one that leaves nothing
	was.engine.Close()

	h := newHostOn(t, was.store)
	ann := h.as(annKey)
	h.pass(time.Second)
	now := ann.session()
	if got := fmt.Sprint(ann.do("GET", "/api/v1/sessions", nil)["sessions"]); got != "["+now+" "+old+"]" {
		t.Errorf("listed %s, wanted %s and %s", got, now, old)
	}
	if info := ann.do("GET", "/api/v1/sessions/"+old, nil); fmt.Sprint(info["training_run_ids"]) != "["+model+"]" || fmt.Sprint(info["sampler_ids"]) != "[]" {
		t.Errorf("the old session is %v", info)
	}
	found := ann.call("sessions/search", object{"session_id": old})["sessions"].([]any)[0].(object)
	if _, known := found["status"]; known {
		t.Errorf("found: %v, wanted no status", found)
	}
	bob := h.as(bobKey)
	if got := fmt.Sprint(bob.do("GET", "/api/v1/sessions?access_scope=accessible", nil)["sessions"]); got != "[]" {
		t.Errorf("bob sees %s", got)
	}
	bob.refused(404, "there is no session", "GET", "/api/v1/sessions/"+old, nil)
}

// TestStorageUsage: checkpoints are counted by project, and runs are listed by it.
func TestStorageUsage(t *testing.T) {
	h := newHost(t)
	ann := h.as(annKey)
	if got := ann.do("GET", "/api/v1/billing/usage/checkpoints/current", nil); fmt.Sprint(got["data"]) != "[]" {
		t.Errorf("without checkpoints: %v", got)
	}
	one, two := ann.session(), ann.session()
	ann.do("PUT", "/api/v1/sessions/"+two+"/project", object{"project_id": "proj"})
	models := []string{ann.model(one, 0), ann.model(two, 0)}
	for i, model := range models {
		for n := range i + 1 {
			ann.work("save_weights", object{"model_id": model, "seq_id": n + 1, "path": fmt.Sprint("x", n)})
		}
	}
	data := ann.do("GET", "/api/v1/billing/usage/checkpoints/current", nil)["data"].([]any)
	if len(data) != 2 || data[0].(object)["checkpoint_count"] != 1.0 || data[1].(object)["checkpoint_count"] != 2.0 || data[1].(object)["project_id"] != "proj" {
		t.Fatalf("used: %v", data)
	}
	if u := data[0].(object); u["size_bytes"].(float64) <= 0 || u["size_gigabytes"].(float64)*1e9 != u["size_bytes"] {
		t.Errorf("used: %v", u)
	}
	only := ann.do("GET", "/api/v1/billing/usage/checkpoints/current?project_id=proj", nil)["data"].([]any)
	if len(only) != 1 || only[0].(object)["project_id"] != "proj" {
		t.Errorf("of the project: %v", only)
	}
	page := ann.do("GET", "/api/v1/training_runs?project_id=proj", nil)
	if runs := page["training_runs"].([]any); len(runs) != 1 || runs[0].(object)["training_run_id"] != models[1] || page["cursor"].(object)["total_count"] != 1.0 {
		t.Errorf("runs of the project: %v", page)
	}
	if data := h.as(bobKey).do("GET", "/api/v1/billing/usage/checkpoints/current", nil)["data"].([]any); len(data) != 0 {
		t.Errorf("bob's: %v", data)
	}
}
