package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// trainFor is a training of 12 steps in its own state directory.
func trainFor(t *testing.T, state, data, out string) []string {
	t.Helper()
	return []string{"train", "--state", state, "--model", tiny, "--data", data, "--out", out, "--rank", "4", "--batch-size", "4",
		"--steps", "12", "--save-every", "5", "--json"}
}

// weights are the bytes of an adapter's tensors.
func weights(t *testing.T, out string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(out, "adapter_model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// lines are how many lines a file has; 0 when it is not there.
func lines(path string) int {
	b, _ := os.ReadFile(path)
	return bytes.Count(b, []byte("\n"))
}

// TestResume: a training that was interrupted and goes on ends with the bits, and the records, of one that never stopped; from an earlier
// state, too, and with preference pairs.
func TestResume(t *testing.T) {
	for _, c := range []struct{ name, rows string }{{"pairs", rows(9)}, {"preferences", preferences(9)}} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			data, state := write(t, "d.jsonl", c.rows), filepath.Join(dir, "state")
			whole, part := filepath.Join(dir, "whole"), filepath.Join(dir, "part")
			if code, _, stderr := cli(t.Context(), trainFor(t, filepath.Join(dir, "other"), data, whole)...); code != exitOK {
				t.Fatal(stderr)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				for lines(part+".metrics.jsonl") < 7 && ctx.Err() == nil {
					time.Sleep(time.Millisecond)
				}
				cancel()
			}()
			code, _, stderr := cli(ctx, trainFor(t, state, data, part)...)
			if code != exitInterrupted || !strings.Contains(stderr, "Go on with: tinker-local train --resume tinker://") {
				t.Fatalf("interrupted: exit code %d, %q", code, stderr)
			}
			if bytes.Equal(weights(t, part), weights(t, whole)) {
				t.Fatal("the interrupted training was not interrupted")
			}
			_, path, _ := strings.Cut(stderr, "--resume ")
			path, _, _ = strings.Cut(path, " ")
			run, _, _ := strings.Cut(strings.TrimPrefix(path, "tinker://"), "/")

			for _, from := range []string{"newest", path, run, "tinker://" + run + "/weights/000005"} {
				code, stdout, stderr := cli(t.Context(), "train", "--state", state, "--resume", from, "--out", part, "--json")
				if code != exitOK {
					t.Fatalf("resume %s: %s", from, stderr)
				}
				var res trainResult
				if err := json.Unmarshal([]byte(stdout), &res); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(weights(t, part), weights(t, whole)) {
					t.Errorf("resume %s: the adapter has other bits than one that never stopped", from)
				}
				if res.Steps != 12 || !strings.HasPrefix(res.Resumed, "tinker://"+run+"/weights/0000") || res.Run == run || !strings.HasSuffix(res.State, "/weights/final") {
					t.Errorf("resume %s: %+v", from, res)
				}
				if n := lines(part + ".metrics.jsonl"); n != 12 {
					t.Errorf("resume %s: the metrics have %d lines, wanted 12", from, n)
				}
			}
			// The newest run is one that went on, and is over.
			code, _, stderr = cli(t.Context(), "train", "--state", state, "--resume", "newest", "--out", part)
			if code != exitFailed || !strings.Contains(stderr, "is at step 12 of 12: the training is over; give more --steps") {
				t.Errorf("a training that is over: exit code %d, %q", code, stderr)
			}
			code, stdout, stderr := cli(t.Context(), "train", "--state", state, "--resume", "newest", "--out", part, "--steps", "14", "--json")
			if code != exitOK || !strings.Contains(stdout, `"steps": 14`) {
				t.Errorf("two steps more: exit code %d, %q, %q", code, stdout, stderr)
			}
		})
	}
}

// TestResumeRefused: what would not be the same training is refused by name.
func TestResumeRefused(t *testing.T) {
	dir := t.TempDir()
	data, state, out := write(t, "d.jsonl", rows(9)), filepath.Join(dir, "state"), filepath.Join(dir, "a")
	code, stdout, stderr := cli(t.Context(), trainFor(t, state, data, out)...)
	if code != exitOK {
		t.Fatal(stderr)
	}
	var res trainResult
	if err := json.Unmarshal([]byte(stdout), &res); err != nil {
		t.Fatal(err)
	}
	at := "tinker://" + res.Run + "/weights/000010"
	moved := write(t, "moved.jsonl", rows(9))
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{at, "--lr", "0.1", "--seed", "4"}, exitUsage, "--resume: --lr, --seed: not with --resume"},
		{[]string{at, "--val", data}, exitUsage, "--val: the run began without"},
		{[]string{at, "--no-save"}, exitUsage, "--no-save and --resume exclude each other"},
		{[]string{at, "--data", write(t, "x.jsonl", rows(8))}, exitFailed, "is not the file that the run began with: its SHA-256 is"},
		{[]string{at, "--data", filepath.Join(dir, "none")}, exitFailed, "--data: open " + filepath.Join(dir, "none")},
		{[]string{"tinker://" + res.Run + "/sampler_weights/final"}, exitFailed, "has weights only, no optimizer state to go on with"},
		{[]string{"tinker://" + res.Run + "/weights/000009"}, exitFailed, "there is no checkpoint"},
		{[]string{"tinker://x"}, exitFailed, "has 1 parts after tinker://"},
		{[]string{"nobody"}, exitFailed, `there is no run "nobody"`},
	} {
		code, _, stderr := cli(t.Context(), append([]string{"train", "--state", state, "--out", out, "--resume"}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: exit code %d, %q; wanted %d and %q", c.args, code, stderr, c.code, c.want)
		}
	}
	empty := filepath.Join(dir, "empty")
	if code, _, stderr := cli(t.Context(), "train", "--state", empty, "--out", out, "--resume", "newest"); code != exitFailed || !strings.Contains(stderr, "no run of train has a saved state") {
		t.Errorf("nothing to resume: exit code %d, %q", code, stderr)
	}
	if _, err := os.Stat(empty); err == nil {
		t.Error("a state directory was made for nothing")
	}
	// The same file under another name is the same file.
	if code, _, stderr := cli(t.Context(), "train", "--state", state, "--out", out, "--resume", at, "--data", moved); code != exitOK {
		t.Errorf("a file that has moved: exit code %d, %q", code, stderr)
	}
}

// TestNoSave: without a state directory a training leaves none behind.
func TestNoSave(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	args := trainFor(t, state, write(t, "d.jsonl", rows(3)), filepath.Join(dir, "a"))
	if code, _, stderr := cli(t.Context(), append(args, "--no-save", "--steps", "1")...); code != exitOK {
		t.Fatal(stderr)
	}
	if _, err := os.Stat(state); err == nil {
		t.Error("--no-save made a state directory")
	}
	code, _, stderr := cli(t.Context(), append(args, "--state", "")...)
	if code != exitFailed || !strings.Contains(stderr, "name one with --state, or give --no-save") {
		t.Errorf("no state directory: exit code %d, %q", code, stderr)
	}
}
