package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// TestCopyWeights: a copy is the caller's, survives the original, is made once however often it is asked for, and needs a right to read.
func TestCopyWeights(t *testing.T) {
	h := newHost(t)
	ann, bob := h.as(annKey), h.as(bobKey)
	model := ann.model(ann.session(), 0)
	ann.train(model, 1)
	path := ann.work("save_weights", object{"model_id": model, "seq_id": 3, "path": "here", "user_metadata": object{"why": "test"}})["path"].(string)
	body := object{"source_path": path, "destination_project_id": "p"}

	ann.header.Set("X-Idempotency-Key", "one")
	copied := ann.do("POST", "/api/v1/copy_weights", body)["tinker_path"].(string)
	if copied == path || !strings.HasSuffix(copied, ":train:0/weights/here") {
		t.Fatalf("copied to %s", copied)
	}
	if again := ann.do("POST", "/api/v1/copy_weights", body)["tinker_path"]; again != copied {
		t.Errorf("a repeat has copied to %v, wanted %s", again, copied)
	}
	ann.header.Set("X-Idempotency-Key", "two")
	if other := ann.do("POST", "/api/v1/copy_weights", body)["tinker_path"]; other == copied {
		t.Errorf("another copy is at %v, too", other)
	}
	run := strings.Split(copied, "/")[2]
	if rec := ann.do("GET", "/api/v1/training_runs/"+run, nil); rec["user_metadata"].(object)["copied_from"] != path || rec["last_checkpoint"] == nil {
		t.Errorf("the copy's run is %v", rec)
	}

	page := ann.do("GET", "/api/v1/training_runs?project_id=p", nil)["training_runs"].([]any)
	if len(page) != 2 {
		t.Errorf("the project has the runs %v, wanted both copies", page)
	}
	ann.header.Del("X-Idempotency-Key")
	own := strings.Split(model, ":")[0]
	ann.model(own, 1)
	ann.refused(400, "is there already", "POST", "/api/v1/copy_weights", object{"source_path": path, "session_id": own, "model_seq_id": 1})
	// Many at once are one.
	ann.header.Set("X-Idempotency-Key", "three")
	var work sync.WaitGroup
	var mu sync.Mutex
	paths := map[any]bool{}
	for range 8 {
		work.Go(func() {
			status, text := ann.send("POST", "/api/v1/copy_weights", body)
			mu.Lock()
			paths[fmt.Sprint(status, " ", string(text))] = true
			mu.Unlock()
		})
	}
	work.Wait()
	if len(paths) != 1 {
		t.Errorf("repeats at the same time got %v", paths)
	}

	for _, c := range []struct {
		body   object
		status int
		want   string
	}{
		{body, http.StatusNotFound, "there is no checkpoint"},
		{object{"source_path": path, "weights_access_token": "tml-nobody-01234"}, http.StatusBadRequest, "weights_access_token"},
		{object{"source_path": "tinker://x/weights/../y"}, http.StatusBadRequest, "path"},
		{object{"source_path": path, "ttl_seconds": 0}, http.StatusBadRequest, "ttl_seconds is 0"},
		{object{"source_path": path, "session_id": "nobody", "model_seq_id": 1}, http.StatusNotFound, ""},
	} {
		if status, text := bob.send("POST", "/api/v1/copy_weights", c.body); status != c.status || !strings.Contains(string(text), c.want) {
			t.Errorf("%v: %d %s, wanted %d with %q", c.body, status, text, c.status, c.want)
		}
	}

	session := bob.session()
	lent := object{"source_path": path, "session_id": session, "model_seq_id": 4, "ttl_seconds": 3600, "weights_access_token": annKey}
	if got, want := bob.do("POST", "/api/v1/copy_weights", lent)["tinker_path"], "tinker://"+session+":train:4/weights/here"; got != want {
		t.Errorf("into a session: %v, wanted %s", got, want)
	}
	ann.do("DELETE", "/api/v1/training_runs/"+model+"/checkpoints/weights/here", nil)
	loaded := bob.model(session, 5)
	bob.work("load_weights", object{"model_id": loaded, "seq_id": 1, "path": "tinker://" + session + ":train:4/weights/here", "optimizer": true})
	k := bob.do("GET", "/api/v1/training_runs/"+session+":train:4/checkpoints", nil)["checkpoints"].([]any)[0].(object)
	if k["expires_at"] == nil || k["public"] != false || k["user_metadata"].(object)["why"] != "test" {
		t.Errorf("the copy is %v, wanted one that expires and is private", k)
	}
}
