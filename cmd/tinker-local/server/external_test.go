package server_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine/hf"
)

// get fetches a link without any credentials.
func get(t *testing.T, url string) (int, []byte) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	if r.StatusCode == http.StatusOK && r.ContentLength != int64(len(b)) {
		t.Errorf("%s has %d bytes, announced %d", url, len(b), r.ContentLength)
	}
	return r.StatusCode, b
}

// TestExternalWeights: weights for other programs are saved, listed, fetched file by file with links that need no key, and deleted.
func TestExternalWeights(t *testing.T) {
	h := newHost(t)
	ann, bob := h.as(annKey), h.as(bobKey)
	model := ann.model(ann.session(), 0)
	ann.train(model, 1)
	body := object{"model_id": model, "seq_id": 3, "path": "out", "ttl_seconds": 3600}
	saved := ann.work("save_weights_external", body)
	path := "tinker://" + model + "/external_weights/out"
	if saved["path"] != path || saved["size_bytes"].(float64) <= 0 || saved["type"] != "save_weights_external" {
		t.Fatalf("saved: %v", saved)
	}
	list := ann.do("GET", "/api/v1/training_runs/"+model+"/checkpoints", nil)["checkpoints"].([]any)
	if k := list[0].(object); len(list) != 1 || k["checkpoint_type"] != "external" || k["checkpoint_id"] != "external_weights/out" || k["expires_at"] == nil {
		t.Fatalf("listed: %v", list)
	}

	at := "/api/v1/training_runs/" + model + "/checkpoints/external_weights/out"
	links := ann.do("GET", at+"/external_weights_urls", nil)
	urls := links["urls"].(object)
	dir := t.TempDir()
	var names []string
	for name, url := range urls {
		status, text := get(t, url.(string))
		if status != http.StatusOK {
			t.Fatalf("%s: %d %s", url, status, text)
		}
		names = append(names, name)
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "adapter_config.json adapter_model.safetensors checkpoint_complete" {
		t.Errorf("the files are %s", got)
	}
	if a, err := hf.ReadAdapter(dir); err != nil || a.Rank != 4 || a.BaseModel != "small" || len(a.Tensors) == 0 {
		t.Errorf("the folder is read as %+v (%v)", a, err)
	}

	link := urls["adapter_model.safetensors"].(string)
	for what, bad := range map[string]string{
		"another file":      strings.Replace(link, "adapter_model.safetensors", "adapter_config.json", 1),
		"another name":      strings.Replace(link, "/out/", "/other/", 1),
		"the archive":       strings.Replace(link, "/adapter_model.safetensors", "", 1),
		"another signature": strings.Replace(link, "signature=", "signature=0", 1),
		"another end":       strings.Replace(link, "expires=", "expires=1", 1),
	} {
		if status, text := get(t, bad); status != http.StatusForbidden {
			t.Errorf("%s: %d %s", what, status, text)
		}
	}
	bob.refused(404, "there is no checkpoint", "GET", at+"/external_weights_urls", nil)
	h.pass(16 * time.Minute)
	if status, text := get(t, link); status != http.StatusForbidden || !strings.Contains(string(text), "the link has ended") {
		t.Errorf("after its time: %d %s", status, text)
	}

	ann.do("PUT", at+"/ttl", object{"ttl_seconds": 7200})
	again := ann.do("GET", at+"/external_weights_urls", nil)["urls"].(object)["adapter_config.json"].(string)
	status, text := get(t, again)
	var config struct{ R int }
	if err := json.Unmarshal(text, &config); err != nil || status != 200 || config.R != 4 {
		t.Errorf("a new link gives %d %s", status, text)
	}
	ann.do("DELETE", at, nil)
	if status, _ := get(t, again); status != http.StatusNotFound {
		t.Errorf("after the checkpoint was deleted: %d", status)
	}
}

// TestExternalWeightsOldClients: clients that do not know the kind are not shown it; they would fail on the whole list.
func TestExternalWeightsOldClients(t *testing.T) {
	h := newHost(t)
	ann := h.as(annKey)
	model := ann.model(ann.session(), 0)
	for i, call := range []string{"save_weights", "save_weights_external", "save_weights_for_sampler", "save_weights_external"} {
		ann.work(call, object{"model_id": model, "seq_id": i + 1, "path": string(rune('a' + i))})
	}
	for _, c := range []struct{ version, path, want string }{
		{"0.38.0", "/api/v1/checkpoints", "external_weights/d sampler_weights/c external_weights/b weights/a of 4"},
		{"0.38.0", "/api/v1/checkpoints?limit=1&offset=1", "sampler_weights/c of 4"},
		{"0.25.0", "/api/v1/checkpoints", "sampler_weights/c weights/a of 2"},
		{"0.25.0", "/api/v1/checkpoints?limit=1&offset=1", "weights/a of 2"},
		{"0.16.1", "/api/v1/training_runs/" + model + "/checkpoints", "sampler_weights/c weights/a"},
	} {
		ann.header.Set("X-Stainless-Package-Version", c.version)
		out := ann.do("GET", c.path, nil)
		var ids []string
		for _, k := range out["checkpoints"].([]any) {
			ids = append(ids, k.(object)["checkpoint_id"].(string))
		}
		if cursor, ok := out["cursor"].(object); ok {
			ids = append(ids, fmt.Sprintf("of %v", cursor["total_count"]))
		}
		if got := strings.Join(ids, " "); got != c.want {
			t.Errorf("%s %s: %s, wanted %s", c.version, c.path, got, c.want)
		}
	}
}

// TestExternalWeightsRefuses: what cannot be saved fails as work does, and only this kind has files.
func TestExternalWeightsRefuses(t *testing.T) {
	ann := newHost(t).as(annKey)
	model := ann.model(ann.session(), 0)
	ann.fails("user", "files are not encrypted here", "save_weights_external", object{
		"model_id": model, "seq_id": 1, "path": "a", "age_encryption_recipients": []string{"age1xyz"},
	})
	ann.fails("user", "path is missing or empty", "save_weights_external", object{"model_id": model, "seq_id": 2})
	ann.work("save_weights", object{"model_id": model, "seq_id": 3, "path": "a"})
	ann.refused(400, "wanted external_weights", "GET", "/api/v1/training_runs/"+model+"/checkpoints/weights/a/external_weights_urls", nil)
	ann.refused(404, "there is no checkpoint", "GET", "/api/v1/training_runs/"+model+"/checkpoints/external_weights/a/external_weights_urls", nil)
}
