package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tinkerlocal/engine/local"
)

// modelsFolder holds one model that can be used, one whose family is unknown and one that is broken, with a name that would colour a terminal.
func modelsFolder(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for name, edit := range map[string]func(string) string{
		"Org/good":             func(s string) string { return s },
		"Org/unknown":          func(s string) string { return strings.Replace(s, `"qwen3"`, `"gpt9"`, 1) },
		"Org/red\x1b[31mmodel": func(string) string { return "{" },
	} {
		dir := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Skip("no folder can have this name here:", err)
		}
		for _, file := range []string{"config.json", "model.safetensors"} {
			b, err := os.ReadFile(filepath.Join("..", "..", "engine", "model", "testdata", "qwen3-tied", file))
			if err != nil {
				t.Fatal(err)
			}
			if file == "config.json" {
				b = []byte(edit(string(b)))
			}
			if err := os.WriteFile(filepath.Join(dir, file), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

// TestModelList: every model has a row; what cannot be used has its reason, and does not fail the list.
func TestModelList(t *testing.T) {
	root := modelsFolder(t)
	code, out, stderr := cli(t.Context(), "model", "list", "--models", root)
	if code != exitOK {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	for _, want := range []string{
		"name ", "parameters", "training", "context", "on disk", tiny, "829K", "Org/good", "Dense", "Base", "F32",
		"These cannot be used:", `Org/unknown: config.json: model_type is "gpt9"; this build knows:`, "config.json:",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Errorf("a control character came through: %q", out)
	}
	code, out, _ = cli(t.Context(), "model", "list", "--models", root, "--json")
	var list struct{ Models []local.Info }
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != exitOK || len(list.Models) != 4 {
		t.Fatalf("exit code %d, %v, %s", code, err, out)
	}
	for _, i := range list.Models {
		if (i.Problem == "") != (i.Name == "Org/good" || i.Name == tiny) {
			t.Errorf("%+v", i)
		}
	}
	code, _, stderr = cli(t.Context(), "model", "list", "--models", filepath.Join(root, "nothing"))
	if code != exitFailed || !strings.Contains(stderr, "--models: stat ") {
		t.Errorf("a folder that is not there: exit code %d, %q", code, stderr)
	}
}

// TestModelInfo: sizes, adapter and memory, as text and as JSON; a model that cannot be used is shown, and the command fails.
func TestModelInfo(t *testing.T) {
	code, out, stderr := cli(t.Context(), "model", "info", tiny)
	if code != exitOK {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	for _, want := range []string{"829K (828,800)", "layers", "vocabulary", "tied embeddings", "attention 3,584, feed-forward 6,144, unembedding 448", "325,632",
		"to sample", "2 x layers x positions", "to train", "it fits", "free memory"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	code, out, _ = cli(t.Context(), "model", "info", tiny, "--json")
	var r modelReport
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitOK || r.Name != tiny || r.Memory == nil || r.Memory.Train <= r.Memory.Weights || r.LoraRank32 != 325632 {
		t.Errorf("exit code %d, %v, %s", code, err, out)
	}
	root := modelsFolder(t)
	for _, c := range []struct {
		args      []string
		code      int
		out, fail string
	}{
		{[]string{"info", "Org/good"}, exitOK, "Org/good", ""},
		{[]string{"info", "Org/unknown"}, exitFailed, "gpt9", "Org/unknown cannot be used: config.json: model_type is"},
		{[]string{"info", "Org/unknown", "--json"}, exitFailed, `"problem": "config.json: model_type is`, "cannot be used"},
		{[]string{"info", "Org/nothing"}, exitFailed, "", `model "Org/nothing": no such folder with a config.json, and it is not in`},
		{[]string{"info", tiny, "--device", "cuda"}, exitFailed, "", "no CUDA device"},
		{[]string{"info"}, exitUsage, "", "accepts 1 arg(s), received 0"},
		{[]string{"list", "x"}, exitUsage, "", `unknown command "x" for "tinker-local model list"`},
		{[]string{"nonsense"}, exitUsage, "", `unknown command "nonsense" for "tinker-local model"`},
		{[]string{}, exitOK, "model [command]", ""},
	} {
		code, out, stderr := cli(t.Context(), append(append([]string{"model"}, c.args...), "--models", root)...)
		if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(stderr, c.fail) {
			t.Errorf("%v: exit code %d, %q, %q; wanted %d, %q, %q", c.args, code, out, stderr, c.code, c.out, c.fail)
		}
	}
}
