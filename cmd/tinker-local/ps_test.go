package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tinkerlocal/cmd/tinker-local/server"
)

// post sends JSON to the server of a state directory as a client of its own, and reads the answer.
func (p *program) post(state, path string, body map[string]any) (out map[string]any) {
	p.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		p.t.Fatal(err)
	}
	at, err := (&app{state: state}).served()
	if err != nil || at == nil {
		p.t.Fatal(at, err)
	}
	r, err := http.NewRequest("POST", at.URL+"/api/v1/"+path, bytes.NewReader(b))
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set("X-API-Key", "tml-local")
	r.Header.Set("Content-Type", "application/json")
	a, err := at.Client().Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer a.Body.Close()
	if err := json.NewDecoder(a.Body).Decode(&out); err != nil || a.StatusCode != 200 {
		p.t.Fatalf("%s: %s, %v, %v", path, a.Status, out, err)
	}
	return out
}

// TestPs: what a server has open is shown, in a picture and in JSON, also over TLS.
func TestPs(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	cert, key := certificate(t)
	p := serveState(t, state, "--model", tiny, "--tls-cert", cert, "--tls-key", key)
	session := p.post(state, "create_session", map[string]any{"sdk_version": "0.25.0", "display_name": "Ann's \x1b[31mtry"})["session_id"].(string)
	model := p.post(state, "create_model", map[string]any{"session_id": session, "model_seq_id": 1, "base_model": tiny, "lora_config": map[string]any{"rank": 4}, "type": "create_model"})
	p.post(state, "retrieve_future", map[string]any{"request_id": model["request_id"]})
	p.post(state, "create_sampling_session", map[string]any{"session_id": session, "sampling_session_seq_id": 0, "base_model": tiny})

	r := decode[server.Report](t, "ps", "--state", state)
	if len(r.Sessions) != 2 || len(r.Runs) != 1 || len(r.Samplers) != 1 || len(r.Bases) != 1 || r.Server.PID != p.Process.Pid || !r.Server.Ready {
		t.Errorf("ps --json: %+v", r)
	}
	code, out, stderr := cli(t.Context(), "ps", "--state", state)
	for _, want := range []string{"ready. Process ", "State directory: " + state, ", idle.", "Models\n", tiny, "Sessions\n", session, "0.25.0", "Runs\n", session + ":train:1", "Samplers\n", session + ":sample:0", "Memory: ", " connections."} {
		if code != exitOK || !strings.Contains(out, want) {
			t.Errorf("ps: exit code %d, %q, no %q in\n%s", code, stderr, want, out)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Errorf("a client's name steers the terminal: %q", out)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	code, out, stderr = cli(ctx, "ps", "--watch=50ms", "--state", state)
	if n := strings.Count(out, "ready. Process "); code != exitOK || n < 2 {
		t.Errorf("ps --watch: exit code %d, %q, %d pictures", code, stderr, n)
	}
	if code, _, stderr := cli(t.Context(), "ps", "--watch=-1s", "--state", state); code != exitUsage || !strings.Contains(stderr, "--watch is -1s, wanted more than 0") {
		t.Errorf("ps --watch=-1s: exit code %d, %q", code, stderr)
	}
	p.stop()
}

// TestPsWithoutServer: it is said plainly that there is none.
func TestPsWithoutServer(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	none := func(want string) {
		t.Helper()
		for _, args := range [][]string{{"ps"}, {"ps", "--json"}, {"ps", "--watch"}} {
			if code, stdout, stderr := cli(t.Context(), append(args, "--state", state)...); code != exitFailed || !strings.Contains(stderr, want) || stdout != "" {
				t.Errorf("%v: exit code %d, %q, %q; wanted %q", args, code, stdout, stderr, want)
			}
		}
	}
	none("no server runs for the state directory " + state + "; to start one: tinker-local serve --state " + state)
	p := serveState(t, state)
	p.Process.Kill()
	p.wait()
	none("no server runs for the state directory " + state + ", it seems: process ")
	if err := os.Remove(filepath.Join(state, servingFile)); err != nil {
		t.Fatal(err)
	}
	none("no server runs for the state directory " + state + "; to start one")
}
