package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// trained is a state directory with one run of three steps, and its id.
func trained(t *testing.T) (state, run, adapter string) {
	t.Helper()
	dir := t.TempDir()
	state, adapter = filepath.Join(dir, "state"), filepath.Join(dir, "adapter")
	code, stdout, stderr := cli(t.Context(), "train", "--state", state, "--model", tiny, "--data", write(t, "d.jsonl", rows(8)), "--out", adapter,
		"--rank", "4", "--batch-size", "4", "--steps", "3", "--save-every", "1", "--keep-last", "2", "--json")
	if code != exitOK {
		t.Fatal(stderr)
	}
	var res trainResult
	if err := json.Unmarshal([]byte(stdout), &res); err != nil {
		t.Fatal(err)
	}
	return state, res.Run, adapter
}

// decode runs a command with --json and reads what it prints.
func decode[T any](t *testing.T, args ...string) (v T) {
	t.Helper()
	code, stdout, stderr := cli(t.Context(), append(args, "--json")...)
	if code != exitOK {
		t.Fatalf("%v: exit code %d, %q", args, code, stderr)
	}
	if err := json.Unmarshal([]byte(stdout), &v); err != nil {
		t.Fatalf("%v printed %q: %v", args, stdout, err)
	}
	return v
}

type checkpointPage struct {
	Checkpoints []api.Checkpoint
	Total       int
	Next        string `json:"next_cursor"`
}

func pathsOf(list []api.Checkpoint) string {
	var names []string
	for _, c := range list {
		names = append(names, c.Path.ID())
	}
	return strings.Join(names, " ")
}

// TestCheckpoints walks through what a checkpoint goes through.
func TestCheckpoints(t *testing.T) {
	state, run, _ := trained(t)
	final := "tinker://" + run + "/weights/final"
	list := func(args ...string) checkpointPage {
		return decode[checkpointPage](t, append([]string{"checkpoint", "list", "--state", state}, args...)...)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "sampler_weights/final weights/final weights/000002"},
		{[]string{"--kind", "state"}, "weights/final weights/000002"},
		{[]string{"--kind", "sampler"}, "sampler_weights/final"},
		{[]string{"--name", "FIN", "--kind", "state"}, "weights/final"},
		{[]string{"--base-model", "TINY"}, "sampler_weights/final weights/final weights/000002"},
		{[]string{"--run", "x"}, ""},
		{[]string{"--owner", "somebody"}, ""},
	} {
		if got := list(c.args...); pathsOf(got.Checkpoints) != c.want || got.Total != len(got.Checkpoints) {
			t.Errorf("list %v: %s of %d, wanted %s", c.args, pathsOf(got.Checkpoints), got.Total, c.want)
		}
	}
	first := list("--limit", "2")
	if second := list("--cursor", first.Next); pathsOf(first.Checkpoints) != "sampler_weights/final weights/final" || pathsOf(second.Checkpoints) != "weights/000002" || second.Next != "" {
		t.Errorf("two parts: %+v and %+v", first, second)
	}

	info := decode[checkpointReport](t, "checkpoint", "info", final, "--state", state)
	if info.Step != 3 || !info.Optimizer || info.Owner != "local" || info.Public || info.Lora.Rank != 4 || len(info.TensorList) != info.Tensors || len(info.SHA256) != 64 || info.Stored == 0 {
		t.Errorf("info: %+v", info)
	}
	runs := decode[struct {
		Runs []api.RunRecord `json:"training_runs"`
	}](t, "run", "list", "--state", state)
	if len(runs.Runs) != 1 || runs.Runs[0].ID != run || runs.Runs[0].LastCheckpoint.Path.Name != "final" {
		t.Errorf("runs: %+v", runs)
	}
	if r := decode[runReport](t, "run", "info", run, "--state", state); r.UserMetadata[trainKey] == "" || len(r.Checkpoints) != 3 {
		t.Errorf("run info: %+v", r)
	}

	edit := func(word string, args ...string) api.Checkpoint {
		out := decode[map[string][]api.Checkpoint](t, append([]string{"checkpoint", args[0], final, "--state", state}, args[1:]...)...)
		if len(out[word]) != 1 {
			t.Fatalf("%v: %+v", args, out)
		}
		return out[word][0]
	}
	if !edit("published", "publish").Public || edit("unpublished", "unpublish").Public {
		t.Error("publish and unpublish")
	}
	if c := edit("expiring", "set-ttl", "--ttl", "1h"); c.Expires.Sub(c.Created).Hours() < 0.9 {
		t.Errorf("expires at %v", c.Expires)
	}
	if !edit("kept", "set-ttl", "--never").Expires.IsZero() {
		t.Error("it expires still")
	}
	if got := decode[map[string][]any](t, "checkpoint", "verify", "--state", state); len(got["damage"]) != 0 {
		t.Errorf("damage: %v", got)
	}
	gone := decode[map[string]any](t, "checkpoint", "delete", "--yes", "tinker://"+run+"/weights/000002", "--state", state)
	if n, _ := gone["chunks_deleted"].(float64); n < 1 {
		t.Errorf("delete gave nothing back: %v", gone)
	}
	edit("expiring", "set-ttl", "--ttl", "1ns")
	if got := list(); pathsOf(got.Checkpoints) != "sampler_weights/final" {
		t.Errorf("left: %s", pathsOf(got.Checkpoints))
	}
	decode[map[string]any](t, "checkpoint", "delete", "--expired", "--state", state)
	for _, args := range [][]string{{"checkpoint", "list"}, {"run", "list"}, {"run", "info", run}, {"checkpoint", "info", "tinker://" + run + "/sampler_weights/final", "--tensors"}, {"checkpoint", "verify"}} {
		code, stdout, stderr := cli(t.Context(), append(args, "--state", state)...)
		if code != exitOK || !strings.Contains(stdout, run) && args[1] != "verify" {
			t.Errorf("%v: exit code %d, %q, %q", args, code, stdout, stderr)
		}
	}
}

// TestCheckpointFailures: mistakes are answered with what was wanted, and change nothing.
func TestCheckpointFailures(t *testing.T) {
	state, run, _ := trained(t)
	final := "tinker://" + run + "/weights/final"
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"list", "--limit", "-1"}, exitUsage, "--limit is -1, wanted at least 0"},
		{[]string{"list", "--cursor", "?"}, exitFailed, `cursor is "?", wanted one that a list has returned`},
		{[]string{"info"}, exitUsage, "accepts 1 arg(s), received 0"},
		{[]string{"info", "final"}, exitFailed, `path "final": wanted tinker://RUN/weights/NAME`},
		{[]string{"info", final + "x"}, exitFailed, "there is no checkpoint " + final + "x"},
		{[]string{"publish", final, final + "x"}, exitFailed, "there is no checkpoint"},
		{[]string{"set-ttl", final}, exitUsage, "wanted either --ttl or --never"},
		{[]string{"set-ttl", final, "--ttl", "-1s"}, exitUsage, "--ttl is -1s, wanted more than 0"},
		{[]string{"delete"}, exitUsage, "wanted the paths of checkpoints, or --expired"},
		{[]string{"delete", final}, exitFailed, "nobody can be asked here: give --yes"},
		{[]string{"delete", "--yes", final, final + "x"}, exitFailed, "there is no checkpoint"},
		{[]string{"verify", final + "x"}, exitFailed, "there is no checkpoint"},
	} {
		code, _, stderr := cli(t.Context(), append(append([]string{"checkpoint"}, c.args...), "--state", state)...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: exit code %d, %q; wanted %d and %q", c.args, code, stderr, c.code, c.want)
		}
	}
	if code, _, stderr := cli(t.Context(), "checkpoint", "info", final, "--state", state); code != exitOK {
		t.Error(stderr)
	}
	// Damage is found, named, and told by the exit code.
	logs, err := filepath.Glob(filepath.Join(state, "*.vlog"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	b, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := 1 << 16; i < len(b); i += 1 << 16 {
		b[i] ^= 1
	}
	if err := os.WriteFile(logs[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := cli(t.Context(), "checkpoint", "verify", "--state", state)
	if code != exitFailed || !strings.Contains(stdout, "damaged: checkpoint tinker://"+run) || !strings.Contains(stderr, " damaged") {
		t.Errorf("verify of a damaged store: exit code %d, %q, %q", code, stdout, stderr)
	}
	// One process at a time.
	s, err := local.OpenState(state, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if code, _, stderr := cli(t.Context(), "checkpoint", "list", "--state", state); code != exitFailed || !strings.Contains(stderr, "is in use by process") {
		t.Errorf("a state directory in use: exit code %d, %q", code, stderr)
	}
}

// TestSampleCheckpoint: a checkpoint answers as the adapter that was written beside it.
func TestSampleCheckpoint(t *testing.T) {
	state, run, adapter := trained(t)
	sample := func(args ...string) (string, string) {
		_, stdout, stderr := cli(t.Context(), append([]string{"sample", "--state", state, "--prompt", "item 3:", "--temperature", "0", "--logprobs", "--max-tokens", "8"}, args...)...)
		return stdout, stderr
	}
	want, stderr := sample("--model", tiny, "--adapter", adapter)
	if want == "" {
		t.Fatal(stderr)
	}
	for _, kind := range []string{"sampler_weights", "weights"} {
		if got, stderr := sample("--adapter", "tinker://"+run+"/"+kind+"/final"); got != want {
			t.Errorf("%s: %q, wanted %q (%s)", kind, got, want, stderr)
		}
	}
	bare, _ := sample("--model", tiny)
	if bare == want {
		t.Error("the adapter changes nothing")
	}
	if _, stderr := sample("--adapter", "tinker://"+run+"/weights/x"); !strings.Contains(stderr, "there is no checkpoint") {
		t.Errorf("no such checkpoint: %q", stderr)
	}
}
