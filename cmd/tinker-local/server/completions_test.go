package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// sampler opens a sampling session on the bare base model.
func (c *client) sampler(session string, n int) string {
	c.t.Helper()
	return c.call("create_sampling_session", object{"session_id": session, "sampling_session_seq_id": n, "base_model": "small"})["sampling_session_id"].(string)
}

func prompt(sampler string, seq int, more object) object {
	body := object{
		"sampling_session_id": sampler, "seq_id": seq, "prompt": object{"chunks": []object{{"type": "encoded_text", "tokens": []int{1, 2, 3}}}},
		"sampling_params": object{"max_tokens": 2, "seed": 1},
	}
	for name, v := range more {
		body[name] = v
	}
	return body
}

// ended polls once: requests as ID or !ID when they failed, and the new cursor.
func (c *client) ended(sampler string, clone, cursor int, more object) (string, int) {
	c.t.Helper()
	body := object{"target": object{"type": "sampling_session", "sampling_session_id": sampler, "cloned_sampler_id": clone}, "prev_cursor": cursor}
	for name, v := range more {
		body[name] = v
	}
	out := c.call("retrieve_futures", body)
	var ids []string
	for _, v := range out["completions"].([]any) {
		id := strings.TrimPrefix(v.(object)["request_id"].(string), sampler+":")
		if v.(object)["state"] == "failed" {
			id = "!" + id
		}
		ids = append(ids, id)
	}
	return strings.Join(ids, " "), int(out["cursor"].(float64))
}

// TestRetrieveFutures: a client is told once of each of its samples that has ended, failed ones, too; of others' it is not.
func TestRetrieveFutures(t *testing.T) {
	h := newHost(t)
	ann := h.as(annKey)
	session := ann.session()
	sampler, other := ann.sampler(session, 0), ann.sampler(session, 1)
	now := object{"timeout": 0}
	if got, cursor := ann.ended(sampler, 0, 0, now); got != "" || cursor != 0 {
		t.Errorf("before anything was asked for: %q, %d", got, cursor)
	}
	ann.call("asample", prompt(other, 0, nil))
	ann.call("asample", prompt(sampler, 3_000_000_000, nil))
	ann.call("asample", prompt(sampler, 0, nil))
	got, cursor := ann.ended(sampler, 0, 0, nil)
	if got != "0" || cursor < 1 {
		t.Fatalf("the first sample: %q, %d", got, cursor)
	}
	if again, same := ann.ended(sampler, 0, 0, nil); again != got || same != cursor {
		t.Errorf("an answer that was lost comes as %q, %d", again, same)
	}
	// A request that cannot be done fails, and that is an end.
	ann.call("asample", prompt(sampler, 1, object{"num_samples": 1_000_000}))
	got, cursor = ann.ended(sampler, 0, cursor, nil)
	if got != "!1" {
		t.Errorf("the second sample: %q", got)
	}
	if got, _ := ann.ended(sampler, 0, cursor, now); got != "" {
		t.Errorf("told again: %q", got)
	}
	if got, _ := ann.ended(sampler, 3, 0, nil); got != "3000000000" {
		t.Errorf("the other client's: %q", got)
	}

	// Of those that ended before anybody asked, and failed ones, a new watch tells, too; of those that were fetched it does not.
	ann.call("asample", prompt(other, 1, object{"num_samples": 1_000_000}))
	ann.wait(ann.call("asample", prompt(other, 2, nil)))
	seen := map[string]bool{}
	for cursor := 0; len(seen) < 2; {
		var got string
		got, cursor = ann.ended(other, 0, cursor, nil)
		for _, id := range strings.Fields(got) {
			seen[id] = true
		}
	}
	if !seen["0"] || !seen["!1"] {
		t.Errorf("of the other session: %v", seen)
	}

	// What the client says it has is forgotten.
	ann.ended(sampler, 0, cursor, object{"timeout": 0, "retrieved_request_ids": []string{sampler + ":0", other + ":0", "nonsense"}})
	if status, text := ann.send("POST", "/api/v1/retrieve_future", object{"request_id": sampler + ":0"}); status != http.StatusGone {
		t.Errorf("a result that was fetched: %d %s", status, text)
	}
	ann.wait(object{"request_id": other + ":0"}) // of another session than the one that was said

	target := object{"type": "sampling_session", "sampling_session_id": sampler}
	bob := h.as(bobKey)
	bob.refused(404, "there is no sampling session", "POST", "/api/v1/retrieve_futures", object{"target": target})
	ann.refused(400, "prev_cursor is -1", "POST", "/api/v1/retrieve_futures", object{"target": target, "prev_cursor": -1})
	ann.refused(400, "timeout is -1", "POST", "/api/v1/retrieve_futures", object{"target": target, "timeout": -1})
	ann.refused(400, `target.type is "run"`, "POST", "/api/v1/retrieve_futures", object{"target": object{"type": "run", "sampling_session_id": sampler}})
}

// TestRetrieveFuturesWaits: a poll that has nothing to tell waits for the next end. Samples that are waited for so are not given up.
func TestRetrieveFuturesWaits(t *testing.T) {
	h := newHost(t)
	ann := h.as(annKey)
	sampler := ann.sampler(ann.session(), 0)
	told := make(chan string)
	go func() {
		got, _ := ann.ended(sampler, 0, 0, nil)
		told <- got
	}()
	time.Sleep(20 * time.Millisecond) // most likely the poll is there first; in the other order it has to be right as well
	ann.call("asample", prompt(sampler, 7, nil))
	if got := <-told; got != "7" {
		t.Errorf("told %q", got)
	}
	// Numbers go on where an earlier server was.
	if _, cursor := ann.ended(sampler, 5, 1234, object{"timeout": 0}); cursor != 1234 {
		t.Errorf("the cursor is %d, wanted 1234", cursor)
	}
	ann.call("asample", prompt(sampler, 5_000_000_000, nil))
	if got, cursor := ann.ended(sampler, 5, 1234, nil); got != "5000000000" || cursor != 1235 {
		t.Errorf("told %q, %d", got, cursor)
	}
}

// TestJoinSamplingSession: every client of a session has its own number.
func TestJoinSamplingSession(t *testing.T) {
	h := newHost(t)
	ann := h.as(annKey)
	sampler := ann.sampler(ann.session(), 0)
	var got []any
	for range 3 {
		got = append(got, ann.call("join_sampling_session", object{"sampling_session_id": sampler})["client_counter"])
	}
	if fmt.Sprint(got) != "[1 2 3]" {
		t.Errorf("the numbers are %v", got)
	}
	h.as(bobKey).refused(404, "there is no sampling session", "POST", "/api/v1/join_sampling_session", object{"sampling_session_id": sampler})
}

// TestCreateCustomLoss: a graph of operations is refused, with what to do instead.
func TestCreateCustomLoss(t *testing.T) {
	ann := newHost(t).as(annKey)
	if on, there := ann.call("client/config", object{"sdk_version": "0.38.0"})["custom_loss_server_side"]; there {
		t.Errorf("clients are told custom_loss_server_side %v", on)
	}
	ann.fails("user", "custom loss \"mine\": graphs of torch operations are not run by this server", "create_custom_loss", object{
		"session_id": ann.session(), "custom_loss_seq_id": 0, "name": "mine", "inputs": []object{}, "graph": object{"format": 1, "nodes": []object{}},
	})
}
