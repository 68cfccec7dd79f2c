package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tinkerlocal/cmd/tinker-local/server"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// program is tinker-local as a process of its own.
type program struct {
	*exec.Cmd
	t      *testing.T
	stdout bytes.Buffer

	mu     sync.Mutex
	stderr bytes.Buffer
	lines  chan string // of stderr; closed when it ends
	ended  chan error
}

// start starts the program. It is ended with the test.
func start(t *testing.T, args ...string) *program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{Cmd: exec.Command(self, args...), t: t, lines: make(chan string, 10_000), ended: make(chan error, 1)}
	p.Env = append(os.Environ(), asProgram+"=1")
	p.Stdout = &p.stdout
	stderr, err := p.StderrPipe()
	if err == nil {
		err = p.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			p.mu.Lock()
			p.stderr.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
			p.lines <- lines.Text()
		}
		close(p.lines)
		p.ended <- p.Wait()
	}()
	t.Cleanup(func() {
		p.Process.Kill()
		<-p.ended
		p.ended <- nil
	})
	return p
}

// said is what the program has written to standard error so far.
func (p *program) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// wait waits for the program's end.
func (p *program) wait() (code int) {
	p.t.Helper()
	select {
	case err := <-p.ended:
		p.ended <- nil
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			p.t.Fatal(err)
		}
		return p.ProcessState.ExitCode()
	case <-time.After(time.Minute):
		p.t.Fatalf("%v does not end: %s", p.Args, p.said())
		return 0
	}
}

// line waits for a line with a part on standard error.
func (p *program) line(part string) string {
	p.t.Helper()
	late := time.After(time.Minute)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("%v ended without %q: %s", p.Args, part, p.said())
			}
			if strings.Contains(line, part) {
				return line
			}
		case <-late:
			p.t.Fatalf("%v did not say %q: %s", p.Args, part, p.said())
		}
	}
}

// serving starts a server on a state directory, on a port of its own, and waits until it is ready.
func serveState(t *testing.T, state string, args ...string) *program {
	t.Helper()
	p := start(t, append([]string{"serve", "--listen", "127.0.0.1:0", "--state", state}, args...)...)
	p.line("ready on ")
	return p
}

// stop ends a server as systemd does.
func (p *program) stop() {
	p.t.Helper()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if code := p.wait(); code != exitOK {
		p.t.Errorf("the server ended with %d: %s", code, p.said())
	}
}

// TestCommandsBesideServer: every command that needs the state directory does through the server what it does without.
func TestCommandsBesideServer(t *testing.T) {
	state, run, adapter := trained(t)
	for _, security := range []string{"plain", "TLS"} {
		t.Run(security, func(t *testing.T) {
			var args []string
			if security == "TLS" {
				cert, key := certificate(t)
				args = []string{"--tls-cert", cert, "--tls-key", key}
			}
			server := serveState(t, state, args...)
			if st, err := os.Stat(filepath.Join(state, servingFile)); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", servingFile, st, err)
			}
			if _, err := local.OpenState(state, true, nil); api.CodeOf(err) != api.Busy {
				t.Fatalf("the server does not have the state directory: %v", err)
			}
			beside(t, state, run, adapter)
			server.stop()
			if _, err := os.Stat(filepath.Join(state, servingFile)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left behind: %v", servingFile, err)
			}
		})
	}
	// What was done is there without the server.
	if got := decode[checkpointPage](t, "checkpoint", "list", "--state", state, "--name", "besides"); got.Total != 0 {
		t.Errorf("left: %s", pathsOf(got.Checkpoints))
	}
}

// beside does everything that a state directory is for.
func beside(t *testing.T, state, run, adapter string) {
	final := "tinker://" + run + "/weights/final"
	with := func(args ...string) []string { return append(args, "--state", state) }
	ok := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := cli(t.Context(), with(args...)...)
		if code != exitOK {
			t.Fatalf("%v: exit code %d, %q", args, code, stderr)
		}
		return stdout
	}

	if out := ok("checkpoint", "list"); !strings.Contains(out, final) {
		t.Errorf("list: %s", out)
	}
	first := decode[checkpointPage](t, with("checkpoint", "list", "--limit", "2")...)
	if second := decode[checkpointPage](t, with("checkpoint", "list", "--cursor", first.Next)...); first.Total != 3 || pathsOf(second.Checkpoints) != "weights/000002" {
		t.Errorf("pages: %+v, %+v", first, second)
	}
	info := decode[checkpointReport](t, with("checkpoint", "info", final)...)
	if info.Step != 3 || len(info.TensorList) != info.Tensors || info.Tensors == 0 {
		t.Errorf("info: %+v", info)
	}
	if r := decode[runReport](t, with("run", "info", run)...); r.UserMetadata[trainKey] == "" || len(r.Checkpoints) != 3 {
		t.Errorf("run: %+v", r)
	}
	if out := ok("run", "list"); !strings.Contains(out, run) {
		t.Errorf("runs: %s", out)
	}
	public := func(word, command string) bool {
		return decode[map[string][]api.Checkpoint](t, with("checkpoint", command, final)...)[word][0].Public
	}
	if !public("published", "publish") || public("unpublished", "unpublish") {
		t.Error("publish and unpublish")
	}
	ok("checkpoint", "set-ttl", final, "--ttl", "1h")
	ok("checkpoint", "set-ttl", final, "--never")
	if out := ok("checkpoint", "verify"); !strings.Contains(out, "Every byte is as it was saved.") {
		t.Errorf("verify: %s", out)
	}

	// Out and in again, by both formats that the store's bytes go through.
	dir := t.TempDir()
	ok("checkpoint", "export", final, "--out", filepath.Join(dir, "peft"))
	ok("checkpoint", "export", final, "--format", "archive", "--out", filepath.Join(dir, "final.tar"))
	copied := decode[importReport](t, with("checkpoint", "import", filepath.Join(dir, "final.tar"), "tinker://besides/weights/copy")...)
	if copied.SHA256 != info.SHA256 {
		t.Errorf("the archive came back as %s, wanted %s", copied.SHA256, info.SHA256)
	}
	ok("checkpoint", "import", filepath.Join(dir, "peft"), "tinker://besides/sampler_weights/peft", "--ttl", "1h")
	ok("checkpoint", "set-ttl", "tinker://besides/sampler_weights/peft", "--ttl", "1ns")
	if gone := decode[map[string]any](t, with("checkpoint", "delete", "--expired")...); len(gone["deleted"].([]any)) != 1 || gone["chunks_deleted"] == nil {
		t.Errorf("expired: %v", gone)
	}
	ok("checkpoint", "delete", "--yes", "tinker://besides/weights/copy")

	// Work of their own, with weights from the server's store.
	sample := func(args ...string) string {
		return ok(append([]string{"sample", "--prompt", "item 3:", "--temperature", "0", "--max-tokens", "8", "--logprobs"}, args...)...)
	}
	if got, want := sample("--adapter", final), sample("--model", tiny, "--adapter", adapter); got != want {
		t.Errorf("sampled %q, wanted %q", got, want)
	}
	talk := start(t, with("chat", "--adapter", final, "--temperature", "0", "--max-tokens", "4")...)
	if code := talk.wait(); code != exitOK { // its input is at its end
		t.Errorf("chat: exit code %d, %s", code, talk.said())
	}
	data := write(t, "d.jsonl", rows(8))
	var res trainResult
	if err := json.Unmarshal([]byte(ok("train", "--model", tiny, "--data", data, "--out", filepath.Join(dir, "a"), "--rank", "4", "--batch-size", "4", "--steps", "2", "--save-every", "1", "--json")), &res); err != nil {
		t.Fatal(err)
	}
	ok("train", "--resume", res.Run, "--steps", "3", "--out", filepath.Join(dir, "b"))
	got := decode[checkpointPage](t, with("checkpoint", "list", "--run", res.Run)...)
	if len(got.Checkpoints) < 3 {
		t.Errorf("trained beside the server: %s", pathsOf(got.Checkpoints))
	}
	for _, c := range decode[checkpointPage](t, with("checkpoint", "list")...).Checkpoints {
		if c.Path.Run != run {
			ok("checkpoint", "delete", "--yes", c.Path.String())
		}
	}

	// Mistakes are told as they are without a server.
	for _, c := range []struct{ args, want string }{
		{"checkpoint info " + final + "x", "there is no checkpoint " + final + "x"},
		{"checkpoint list --cursor ?", `cursor is "?", wanted one that a list has returned`},
		{"run info nobody", `there is no run "nobody"`},
		{"checkpoint import " + adapter + " " + final, "exists since"},
	} {
		if code, _, stderr := cli(t.Context(), with(strings.Fields(c.args)...)...); code != exitFailed || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: exit code %d, %q; wanted %q", c.args, code, stderr, c.want)
		}
	}

	// Plugins are files and need no server.
	ok("plugin", "list")
}

// TestServerRestarts: a training beside a server goes on when the server is killed, and saves with the next one; and when there is no next
// one, with the state directory itself.
func TestServerRestarts(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	first := serveState(t, state)
	data := write(t, "d.jsonl", rows(64))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	type result struct {
		code           int
		stdout, stderr string
	}
	done := make(chan result, 1)
	go func() {
		var r result
		r.code, r.stdout, r.stderr = cli(ctx, "train", "--state", state, "--model", tiny, "--data", data, "--out", filepath.Join(t.TempDir(), "a"),
			"--rank", "4", "--batch-size", "2", "--steps", "400", "--save-every", "5", "--keep-last", "1000", "--json")
		done <- r
	}()
	saved := func(n int) {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
			code, stdout, stderr := cli(ctx, "checkpoint", "list", "--state", state, "--json")
			var page checkpointPage
			if code == exitOK && json.Unmarshal([]byte(stdout), &page) == nil && page.Total >= n {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("no %d checkpoints: %s %s", n, stdout, stderr)
			}
		}
	}
	saved(2)
	first.Process.Kill() // -9
	first.wait()
	second := serveState(t, state)
	saved(6)
	second.stop()
	r := <-done // it has waited a while for a third one
	var res trainResult
	if err := json.Unmarshal([]byte(r.stdout), &res); err != nil {
		t.Fatalf("train: exit code %d, %s, %v", r.code, r.stderr, err)
	}
	got := decode[checkpointPage](t, "checkpoint", "list", "--state", state, "--run", res.Run, "--name", "final")
	if r.code != exitOK || len(got.Checkpoints) != 2 || got.Checkpoints[0].Step != 400 {
		t.Errorf("exit code %d, %s; saved at the end: %+v", r.code, r.stderr, got)
	}
	if damage := decode[map[string][]any](t, "checkpoint", "verify", "--state", state); len(damage["damage"]) > 0 {
		t.Errorf("damage: %v", damage)
	}
}

// TestStaleServerFile: what a server that died has left behind misleads nobody.
func TestStaleServerFile(t *testing.T) {
	state, run, _ := trained(t)
	server := serveState(t, state)
	server.Process.Kill()
	server.wait()
	name := filepath.Join(state, servingFile)
	if _, err := os.Stat(name); err != nil {
		t.Fatalf("the killed server has removed its file: %v", err)
	}
	if code, out, stderr := cli(t.Context(), "checkpoint", "list", "--state", state); code != exitOK || !strings.Contains(out, run) {
		t.Errorf("with a dead server's file: exit code %d, %q", code, stderr)
	}
	// Locked by somebody who is no server: the file is not believed.
	s, err := local.OpenState(state, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	code, _, stderr := cli(t.Context(), "checkpoint", "list", "--state", state)
	if code != exitFailed || !strings.Contains(stderr, "is in use by process") {
		t.Errorf("with a dead server's file and another owner: exit code %d, %q", code, stderr)
	}
	s.Close()
	// A file that is no JSON is of no consequence either, as long as nobody has the directory.
	if err := os.WriteFile(name, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := cli(t.Context(), "checkpoint", "list", "--state", state); code != exitOK {
		t.Errorf("with a broken file: exit code %d, %q", code, stderr)
	}
}

// TestOtherVersion: a command of another version says so, and which server it is about.
func TestOtherVersion(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	serveState(t, state)
	name := filepath.Join(state, servingFile)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var s map[string]any
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	s["protocol"], s["version"] = 999, "v9"
	if b, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := cli(t.Context(), "checkpoint", "list", "--state", state)
	for _, want := range []string{"(tinker-local v9)", `"999" and 1`, "stop the server"} {
		if code != exitFailed || !strings.Contains(stderr, want) {
			t.Errorf("exit code %d, %q; wanted %q", code, stderr, want)
		}
	}
}

// TestPluginsBesideServer: the plugin commands work on files while a server runs, and the server uses what they put there.
func TestPluginsBesideServer(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	p := serveState(t, state)
	session := p.post(state, "create_session", map[string]any{"sdk_version": "0.16.1"})["session_id"].(string)
	result := func(id any) map[string]any { return p.post(state, "retrieve_future", map[string]any{"request_id": id}) }
	model := result(p.post(state, "create_model", map[string]any{
		"session_id": session, "model_seq_id": 1, "base_model": tiny, "lora_config": map[string]any{"rank": 2}, "type": "create_model",
	})["request_id"])["model_id"]
	seq := 0
	pass := func() map[string]any {
		seq++
		datum := map[string]any{
			"model_input":    map[string]any{"chunks": []any{map[string]any{"type": "encoded_text", "tokens": []int{1, 2, 3}}}},
			"loss_fn_inputs": map[string]any{"target_tokens": map[string]any{"data": []int{2, 3, 4}, "dtype": "int64", "shape": []int{3}}},
		}
		return result(p.post(state, "forward_backward", map[string]any{
			"model_id": model, "seq_id": seq, "forward_backward_input": map[string]any{"data": []any{datum}, "loss_fn": "wasm:mine"},
		})["request_id"])
	}
	eventually := func(what string, ok func(map[string]any) bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
			out := pass()
			if ok(out) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %v", what, out)
			}
		}
	}
	unknown := func(out map[string]any) bool {
		text, _ := out["error"].(string)
		return strings.Contains(text, "mine") && out["category"] == "user"
	}
	if out := pass(); !unknown(out) {
		t.Errorf("before it is there: %v", out)
	}
	decode[local.PluginInfo](t, "plugin", "add", module(t, "logprob_variance", "x.wasm"), "--name", "mine", "--state", state)
	eventually("with the plugin", func(out map[string]any) bool {
		metrics, _ := out["metrics"].(map[string]any)
		return metrics["variance_loss:mean"] != nil
	})
	all := decode[map[string][]local.PluginInfo](t, "plugin", "list", "--state", state)["plugins"]
	if !slices.ContainsFunc(all, func(i local.PluginInfo) bool { return i.Name == "mine" && i.Source == "folder" }) {
		t.Errorf("listed: %+v", all)
	}
	decode[map[string]string](t, "plugin", "remove", "mine", "--state", state)
	eventually("without the plugin", unknown)
	p.stop()
}

// TestProgramDiesBesideServer: a command that is killed while it saves leaves nothing half, and the server forgets it.
func TestProgramDiesBesideServer(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	here := serveState(t, state)
	data := write(t, "d.jsonl", rows(64))
	p := start(t, "train", "--state", state, "--model", tiny, "--data", data, "--out", filepath.Join(t.TempDir(), "a"),
		"--rank", "64", "--batch-size", "1", "--steps", "100000", "--save-every", "1", "--keep-last", "0")
	programs := func() int { return decode[server.Report](t, "ps", "--state", state).Server.Programs }
	for end := time.Now().Add(time.Minute); len(decode[checkpointPage](t, "checkpoint", "list", "--state", state).Checkpoints) < 5; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(p.said())
		}
	}
	if n := programs(); n != 1 {
		t.Errorf("%d programs work through the store, wanted 1", n)
	}
	p.Process.Kill()
	p.wait()
	for end := time.Now().Add(time.Minute); programs() != 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the server thinks that the program lives")
		}
	}
	if damage := decode[map[string][]any](t, "checkpoint", "verify", "--state", state); len(damage["damage"]) > 0 {
		t.Errorf("damage: %v", damage)
	}
	for _, c := range decode[checkpointPage](t, "checkpoint", "list", "--state", state).Checkpoints {
		if c.Tensors == 0 {
			t.Errorf("half of a checkpoint: %+v", c)
		}
	}
	here.stop()
}
