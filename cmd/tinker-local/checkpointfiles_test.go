package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
)

// TestExportImport: what leaves the store in any format answers as the checkpoint does; what comes back is what left.
func TestExportImport(t *testing.T) {
	state, run, adapter := trained(t)
	dir := t.TempDir()
	final := "tinker://" + run + "/weights/final"
	answer := func(args ...string) string {
		code, stdout, stderr := cli(t.Context(), append([]string{"sample", "--state", state, "--prompt", "item 3:", "--temperature", "0", "--max-tokens", "6"}, args...)...)
		if code != exitOK {
			t.Fatalf("%v: %s", args, stderr)
		}
		return stdout
	}
	want := answer("--adapter", final)
	export := func(path, format, out string, args ...string) exportReport {
		return decode[exportReport](t, append([]string{"checkpoint", "export", path, "--format", format, "--out", filepath.Join(dir, out), "--state", state}, args...)...)
	}
	size := func(out string) (n int64) {
		err := filepath.Walk(filepath.Join(dir, out), func(_ string, st os.FileInfo, err error) error {
			if err == nil && st.Mode().IsRegular() {
				n += st.Size()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, c := range []struct {
		format, out string
		args        []string
		note        string
	}{
		{"peft", "peft", nil, ""},
		{"peft", "bare", []string{"--unembed", "drop"}, "left out"},
		{"peft", "whole", []string{"--unembed", "merge"}, "output projection"},
		{"merged", "merged", []string{"--dtype", "float32"}, "lm_head.weight"},
		{"gguf", "a.gguf", []string{"--unembed", "drop"}, "left out"},
		{"gguf", "own.gguf", []string{"--own-head"}, ""},
		{"archive", "state.tar", nil, ""},
		{"archive", "weights.tar", []string{"--weights-only"}, "moments"},
	} {
		plan := export(final, c.format, c.out, append([]string{"--dry-run"}, c.args...)...)
		if _, err := os.Stat(filepath.Join(dir, c.out)); err == nil || plan.Written {
			t.Errorf("%s: a dry run wrote", c.out)
		}
		got := export(final, c.format, c.out, c.args...)
		if !got.Written || got.Bytes != plan.Bytes || got.Bytes != size(c.out) {
			t.Errorf("%s: %d bytes planned, %d told, %d there", c.out, plan.Bytes, got.Bytes, size(c.out))
		}
		if notes := strings.Join(got.Notes, "\n"); !strings.Contains(notes, c.note) {
			t.Errorf("%s: notes %q, wanted %q among them", c.out, notes, c.note)
		}
	}
	if got := answer("--model", tiny, "--adapter", filepath.Join(dir, "peft")); got != want {
		t.Errorf("the PEFT folder answers %q, wanted %q", got, want)
	}
	if got := answer("--model", filepath.Join(dir, "merged")); got != want {
		t.Errorf("the merged model answers %q, wanted %q", got, want)
	}

	other := filepath.Join(dir, "other")
	bring := func(from, path string, args ...string) api.Checkpoint {
		return decode[importReport](t, append([]string{"checkpoint", "import", from, path, "--state", other}, args...)...).Checkpoint
	}
	was := decode[checkpointReport](t, "checkpoint", "info", final, "--state", state)
	if c := bring(filepath.Join(dir, "state.tar"), "tinker://moved/weights/final"); c.SHA256 != was.SHA256 || c.Step != was.Step || !c.Optimizer || c.BaseModel != tiny {
		t.Errorf("the archive came back as %+v, wanted %+v", c, was.Checkpoint)
	}
	if code, _, stderr := cli(t.Context(), "train", "--resume", "moved", "--steps", "5", "--state", other, "--out", filepath.Join(dir, "on")); code != exitOK {
		t.Errorf("the run that has moved does not go on: %s", stderr)
	}
	sampler := decode[checkpointReport](t, "checkpoint", "info", "tinker://"+run+"/sampler_weights/final", "--state", state)
	for i, from := range []string{filepath.Join(dir, "peft"), adapter, filepath.Join(dir, "weights.tar"), filepath.Join(dir, "state.tar")} {
		name := "tinker://moved/sampler_weights/" + string(rune('a'+i))
		if c := bring(from, name, "--base-model", tiny); c.SHA256 != sampler.SHA256 || c.Optimizer {
			t.Errorf("%s came back as %+v, wanted %+v", from, c, sampler.Checkpoint)
		}
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"export", final}, exitUsage, "--out is required"},
		{[]string{"export", final, "--format", "onnx", "--out", "x"}, exitUsage, "wanted one of archive, peft, merged, gguf"},
		{[]string{"export", final + "x", "--out", filepath.Join(dir, "x")}, exitFailed, "there is no checkpoint"},
		{[]string{"export", final, "--out", filepath.Join(dir, "other")}, exitFailed, "is not part of an adapter"},
		{[]string{"export", final, "--format", "archive", "--out", filepath.Join(dir, "state.tar")}, exitFailed, "it is there already"},
		{[]string{"export", final, "--format", "gguf", "--out", filepath.Join(dir, "x.gguf")}, exitFailed, "--unembed drop; or --own-head"},
		{[]string{"export", final, "--format", "merged", "--unembed", "merge", "--out", filepath.Join(dir, "x")}, exitFailed, "in the format peft only"},
		{[]string{"export", final, "--format", "merged", "--base-model", "No/Where", "--out", filepath.Join(dir, "x")}, exitFailed, `model "No/Where"`},
		{[]string{"import", dir, "tinker://r/weights/x"}, exitFailed, "adapter_config.json"},
		{[]string{"import", filepath.Join(dir, "none"), "tinker://r/weights/x"}, exitFailed, "no such file"},
		{[]string{"import", filepath.Join(dir, "a.gguf"), "tinker://r/weights/x"}, exitFailed, "a.gguf"},
		{[]string{"import", adapter, "tinker://r/x"}, exitUsage, "has no kind, wanted tinker://r/sampler_weights/x"},
		{[]string{"import", adapter, "tinker://r/weights/x", "--ttl", "-1s"}, exitUsage, "--ttl is -1s"},
	} {
		code, _, stderr := cli(t.Context(), append(append([]string{"checkpoint"}, c.args...), "--state", state)...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: exit code %d, %q; wanted %d and %q", c.args, code, stderr, c.code, c.want)
		}
	}
	if code, _, stderr := cli(t.Context(), "checkpoint", "import", adapter, "tinker://moved/weights/final", "--state", other); code != exitFailed || !strings.Contains(stderr, "overwrite") {
		t.Errorf("a name that is taken: exit code %d, %q", code, stderr)
	}
}
