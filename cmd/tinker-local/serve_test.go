package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestServeRefusals: what cannot be served is said before anything is loaded, and leaves nothing behind.
func TestServeRefusals(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := write(t, "file", "x")
	open := write(t, "keys", "ann tml-0123456789abcdef\n") // mode 0644
	bad := write(t, "bad-keys", "ann tml-short\n")
	if err := os.Chmod(bad, 0o600); err != nil {
		t.Fatal(err)
	}
	cert, key := certificate(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--listen", taken.Addr().String()}, "--listen " + taken.Addr().String() + ": "},
		{[]string{"--listen", taken.Addr().String()}, "address already in use; port 0 takes a free one"},
		{[]string{"--listen", "8000"}, "--listen 8000: address 8000: missing port in address; wanted HOST:PORT"},
		{[]string{"--listen", "::1:8000"}, "wanted HOST:PORT, such as 127.0.0.1:8000 or [::1]:8000"},
		{[]string{"--listen", "127.0.0.1:x"}, "--listen 127.0.0.1:x: "},
		{[]string{"--listen", "0.0.0.0:0"}, "--listen 0.0.0.0:0 can be reached from other machines: a --key-file is needed"},
		{[]string{"--listen", ":0"}, "a --key-file is needed"},
		{[]string{"--key-file", "/no/such/file"}, "--key-file: open /no/such/file"},
		{[]string{"--key-file", open}, "can be read by others (mode 0644), wanted 0600"},
		{[]string{"--key-file", bad}, "line 1: the key of ann is not one"},
		{[]string{"--tls-cert", cert}, "--tls-cert and --tls-key belong together"},
		{[]string{"--tls-cert", key, "--tls-key", cert}, "--tls-cert " + key},
		{[]string{"--public-url", "example.org"}, `--public-url is "example.org", wanted http://HOST`},
		{[]string{"--state", filepath.Join(file, "state")}, "open state directory " + filepath.Join(file, "state")},
		{[]string{"--state", filepath.Dir(file)}, "holds \"file\" and no store"},
		{[]string{"--model", "nobody/knows"}, "--model nobody/knows: "},
		{[]string{"--log-level", "loud"}, `"--log-level" flag: wanted one of debug, info, warn, error`},
	} {
		state := filepath.Join(t.TempDir(), "state")
		args := append([]string{"serve", "--listen", "127.0.0.1:0", "--state", state}, c.args...)
		code, stdout, stderr := cli(t.Context(), args...)
		if code == exitOK || !strings.Contains(stderr, c.want) || stdout != "" || strings.Contains(stderr, "base loaded") {
			t.Errorf("serve %v: exit code %d, %q, %q; wanted %q", c.args, code, stdout, stderr, c.want)
		}
		if strings.Contains(stderr, "tml-0") || strings.Contains(stderr, "tml-short") {
			t.Errorf("serve %v tells a key: %q", c.args, stderr)
		}
		if _, err := os.Stat(filepath.Join(state, servingFile)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("serve %v left %s behind", c.args, servingFile)
		}
	}
	for _, name := range []string{"HOME", "XDG_DATA_HOME", "TINKER_LOCAL_STATE"} {
		t.Setenv(name, "")
	}
	if code, _, stderr := cli(t.Context(), "serve", "--listen", "127.0.0.1:0"); code != exitFailed || !strings.Contains(stderr, `set $TINKER_LOCAL_STATE, or give --state DIR; --state "" keeps checkpoints in memory`) {
		t.Errorf("without a home folder: exit code %d, %q", code, stderr)
	}
}

// TestTwoServers: a state directory has one server; a second one is told where the first is.
func TestTwoServers(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	first := serveState(t, state)
	at, err := (&app{state: state}).served()
	if err != nil || at == nil {
		t.Fatal(at, err)
	}
	code, _, stderr := cli(t.Context(), "serve", "--state", state, "--listen", strings.TrimPrefix(at.URL, "http://"))
	want := fmt.Sprintf("state directory %s is served already: by process %d at %s", state, first.Process.Pid, at.URL)
	if code != exitFailed || !strings.Contains(stderr, want) {
		t.Errorf("exit code %d, %q; wanted %q", code, stderr, want)
	}
	if code, _, stderr := cli(t.Context(), "ps", "--state", state); code != exitOK {
		t.Errorf("the first has suffered: %q", stderr)
	}
	// As soon as it has ended, another one can begin: it waits for the last moments.
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	serveState(t, state).stop()
	if code := first.wait(); code != exitOK {
		t.Errorf("the first ended with %d: %s", code, first.said())
	}
}

// TestServeJSON: programs that start the server learn where it is; its file is for its user alone, and all of it is gone afterwards.
func TestServeJSON(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	p := serveState(t, state, "--json", "--log-format", "json", "--log-level", "debug")
	at, err := (&app{state: state}).served()
	if err != nil || at == nil {
		t.Fatal(at, err)
	}
	p.post(state, "create_session", map[string]any{"sdk_version": "0.25.0"})
	p.stop()
	var out serveReport
	if err := json.Unmarshal(p.stdout.Bytes(), &out); err != nil || out != (serveReport{at.URL, p.Process.Pid, state, at.Version, true}) {
		t.Errorf("serve --json printed %q, wanted %+v (%v)", p.stdout.String(), at, err)
	}
	for line := range strings.Lines(p.said()) {
		var v map[string]any
		if plain := strings.HasPrefix(line, "tinker-local: ready") || strings.HasPrefix(line, "For the official SDK"); !plain && json.Unmarshal([]byte(line), &v) != nil {
			t.Errorf("not JSON: %q", line)
		}
	}
	for _, word := range []string{at.Key, "badger", "Badger"} {
		if strings.Contains(p.said(), word) {
			t.Errorf("the log has %q:\n%s", word, p.said())
		}
	}
	if !strings.Contains(p.said(), `"path":"/api/v1/create_session","status":200`) {
		t.Errorf("the log of level debug has no request:\n%s", p.said())
	}
}

// TestServeStopsWhileLoading: a server that is stopped before it is ready ends in good order.
func TestServeStopsWhileLoading(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	p := start(t, "serve", "--listen", "127.0.0.1:0", "--state", state, "--model", tiny)
	p.line("engine open")
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(); code != exitOK {
		t.Errorf("exit code %d: %s", code, p.said())
	}
	if _, err := os.Stat(filepath.Join(state, servingFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left behind", servingFile)
	}
	if code, _, stderr := cli(t.Context(), "checkpoint", "list", "--state", state); code != exitOK {
		t.Error(stderr)
	}
}

// TestServeAddresses: clients and commands reach the server however its address is written.
func TestServeAddresses(t *testing.T) {
	keys := write(t, "keys", "ann tml-0123456789abcdef\n")
	if err := os.Chmod(keys, 0o600); err != nil {
		t.Fatal(err)
	}
	for listen, host := range map[string]string{"[::1]:0": "[::1]", "localhost:0": "", "[::]:0": "127.0.0.1", "0.0.0.0:0": "127.0.0.1"} {
		if probe, err := net.Listen("tcp", listen); err != nil {
			t.Logf("%s: skipped: %v", listen, err)
			continue
		} else {
			probe.Close()
		}
		state := filepath.Join(t.TempDir(), "state")
		p := serveState(t, state, "--listen", listen, "--key-file", keys)
		at, err := (&app{state: state}).served()
		if err != nil || at == nil || !strings.HasPrefix(at.URL, "http://"+host) {
			t.Errorf("%s: %+v, %v", listen, at, err)
			continue
		}
		if code, out, stderr := cli(t.Context(), "checkpoint", "list", "--state", state); code != exitOK || !strings.Contains(out, "No checkpoints") {
			t.Errorf("%s: exit code %d, %q", listen, code, stderr)
		}
		a, err := (&http.Client{Timeout: 10 * time.Second}).Get(at.URL + "/readyz")
		if err != nil || a.StatusCode != 200 {
			t.Errorf("%s: %v, %v", listen, a, err)
		}
		p.stop()
	}
}

// TestServeInMemory: who wants no state directory gets none, and is told.
func TestServeInMemory(t *testing.T) {
	p := serveState(t, "")
	if !strings.Contains(p.said(), "no state directory: checkpoints end with the server") {
		t.Errorf("it was not told: %s", p.said())
	}
	p.stop()
}

// TestServeNoPaths: a client cannot have a folder of the server's disk opened, or learn whether it is there; one that the operator names, it can.
func TestServeNoPaths(t *testing.T) {
	folder := func(name string) string {
		dir, err := filepath.Abs(filepath.Join("..", "..", "engine", "model", "testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	named, other := folder("qwen2"), folder("llama")
	state := filepath.Join(t.TempDir(), "state")
	p := serveState(t, state, "--model", named)
	session := p.post(state, "create_session", map[string]any{"sdk_version": "0.25.0"})["session_id"]
	n := 0
	create := func(model string) string {
		n++
		out := p.post(state, "create_model", map[string]any{"session_id": session, "model_seq_id": n, "base_model": model, "lora_config": map[string]any{"rank": 2}, "type": "create_model"})
		text, err := json.Marshal(p.post(state, "retrieve_future", map[string]any{"request_id": out["request_id"]}))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if out := create(named); !strings.Contains(out, `"model_id"`) {
		t.Errorf("the operator's: %s", out)
	}
	there, missing := create(other), create("/no/such/folder")
	if want := `there is no model \"` + other; !strings.Contains(there, want) {
		t.Errorf("a folder that is there: %s", there)
	}
	if strings.ReplaceAll(there, other, "X") != strings.ReplaceAll(missing, "/no/such/folder", "X") {
		t.Errorf("the answers tell whether a folder is there: %s and %s", there, missing)
	}
}
