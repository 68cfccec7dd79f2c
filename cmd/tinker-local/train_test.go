package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tinkerlocal/engine/local"
)

// trainJSON runs train with --json and returns what it reports and its metrics.
func trainJSON(t *testing.T, args ...string) (res trainResult, metrics []map[string]float64, out string) {
	t.Helper()
	out = filepath.Join(t.TempDir(), "adapter")
	code, stdout, stderr := cli(t.Context(), append([]string{"train", "--model", tiny, "--out", out, "--json", "--rank", "4", "--batch-size", "4"}, args...)...)
	if code != exitOK || stderr != "" {
		t.Fatalf("train %v: exit code %d, stderr %q", args, code, stderr)
	}
	if err := json.Unmarshal([]byte(stdout), &res); err != nil {
		t.Fatalf("train --json printed %q: %v", stdout, err)
	}
	text, err := os.ReadFile(out + ".metrics.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var m map[string]float64
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("metrics line %q: %v", line, err)
		}
		metrics = append(metrics, m)
	}
	if _, err := local.ReadAdapter(out); err != nil {
		t.Error(err)
	}
	return res, metrics, out
}

// chats is a file of conversations of two turns.
func chats(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"messages": [{"role": "user", "content": "item %d"}, {"role": "assistant", "content": "number %d"}, {"role": "user", "content": "and"}, {"role": "assistant", "content": "that is all"}]}`+"\n", i, i)
	}
	return b.String()
}

// preferences is a file of preference pairs.
func preferences(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"prompt": "item %d:", "chosen": " yes please", "rejected": " no thanks"}`+"\n", i)
	}
	return b.String()
}

// TestTrainChat: conversations are learned with a validation split; the metrics file has a line per step, and the
// curve is written as PNG and CSV.
func TestTrainChat(t *testing.T) {
	dir := t.TempDir()
	png, csv := filepath.Join(dir, "c.png"), filepath.Join(dir, "c.csv")
	res, metrics, out := trainJSON(t, "--data", write(t, "d.jsonl", chats(20)), "--steps", "12", "--val-split", "0.2", "--eval-every", "5",
		"--curve", png, "--curve", csv, "--lr", "5e-3", "--schedule", "cosine", "--warmup", "2", "--final-lr", "0")
	if res.Examples != 16 || res.Data.Validation != 4 || res.Data.Rows != 20 || res.Loss != "cross_entropy" || res.LastLoss >= res.FirstLoss/2 || res.Log != out+".metrics.jsonl" {
		t.Errorf("%+v", res)
	}
	if len(metrics) != 12 {
		t.Fatalf("%d lines of metrics", len(metrics))
	}
	for i, m := range metrics {
		eval, has := m["eval_loss"]
		if m["step"] != float64(i+1) || m["loss"] <= 0 || m["grad_norm"] <= 0 || m["seconds"] <= 0 || m["tokens_per_second"] <= 0 ||
			i > 0 && m["tokens"] <= metrics[i-1]["tokens"] || has != (i == 4 || i == 9 || i == 11) {
			t.Errorf("step %d: %v", i+1, m)
		}
		if i == 11 && (res.Eval == nil || res.Eval.Last != eval || res.Eval.Best > eval || m["learning_rate"] != 0 || m["loss"] != res.LastLoss) {
			t.Errorf("the last step is %v, reported %+v, %+v", m, res, res.Eval)
		}
	}
	if metrics[0]["learning_rate"] != 5e-3/3 || metrics[2]["learning_rate"] != 5e-3 {
		t.Errorf("learning rates %v and %v", metrics[0]["learning_rate"], metrics[2]["learning_rate"])
	}
	for path, begin := range map[string]string{png: "\x89PNG", csv: "step,loss,eval_loss"} {
		if text, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(text), begin) {
			t.Errorf("%s: %.20q, %v", path, text, err)
		}
	}
}

// TestEvalLeavesTraining: a run that is evaluated learns, bit for bit, what it learns without.
func TestEvalLeavesTraining(t *testing.T) {
	data, val := write(t, "d.jsonl", rows(8)), write(t, "v.jsonl", rows(3))
	_, _, plain := trainJSON(t, "--data", data, "--steps", "6")
	res, _, measured := trainJSON(t, "--data", data, "--steps", "6", "--val", val, "--eval-every", "2")
	if res.Eval == nil || res.Eval.Last <= 0 {
		t.Errorf("%+v", res.Eval)
	}
	a, errA := os.ReadFile(filepath.Join(plain, "adapter_model.safetensors"))
	b, errB := os.ReadFile(filepath.Join(measured, "adapter_model.safetensors"))
	if errA != nil || errB != nil || string(a) != string(b) {
		t.Errorf("the adapters differ: %v, %v", errA, errB)
	}
}

// TestTrainDPO: the loss begins at exactly ln 2 and falls; the pairs' accuracy is in the metrics.
func TestTrainDPO(t *testing.T) {
	res, metrics, _ := trainJSON(t, "--data", write(t, "d.jsonl", preferences(12)), "--steps", "8", "--lr", "2e-3", "--val-split", "0.25", "--beta", "0.2")
	if res.Loss != "dpo" || res.FirstLoss != math.Ln2 || res.LastLoss > 0.3 || res.Eval == nil || res.Eval.LastAccuracy == nil || *res.Eval.LastAccuracy != 1 {
		t.Errorf("%+v, %+v", res, res.Eval)
	}
	if metrics[0]["loss"] != math.Ln2 || metrics[0]["margin"] != 0 || metrics[7]["accuracy"] != 1 || metrics[7]["eval_accuracy"] != 1 {
		t.Errorf("first %v, last %v", metrics[0], metrics[7])
	}
}

// TestDefaultLearningRates: the cookbook's formula for examples, its preference trainer's value for pairs.
func TestDefaultLearningRates(t *testing.T) {
	res, _, _ := trainJSON(t, "--data", write(t, "d.jsonl", rows(4)), "--steps", "1")
	if want := 5e-4 * math.Pow(2000.0/128, 0.0775); math.Abs(res.LearningRate-want) > 1e-12 {
		t.Errorf("learning rate %v, wanted %v", res.LearningRate, want)
	}
	res, _, _ = trainJSON(t, "--data", write(t, "p.jsonl", preferences(4)), "--steps", "1")
	if res.LearningRate != 1e-5 {
		t.Errorf("preference pairs: learning rate %v", res.LearningRate)
	}
}

// TestSkipBad: bad rows are named and left out; one too many stops before training.
func TestSkipBad(t *testing.T) {
	data := write(t, "d.jsonl", rows(4)+"{oops\n"+rows(2)+`{"prompt": 1}`+"\n")
	out := filepath.Join(t.TempDir(), "a")
	args := []string{"train", "--model", tiny, "--data", data, "--out", out, "--steps", "1", "--rank", "1"}
	code, stdout, stderr := cli(t.Context(), append(args, "--skip-bad", "2", "--log", "none")...)
	for _, want := range []string{"skipped " + data + ":5: not a row", "skipped " + data + `:8: "prompt" is 1, wanted a string`} {
		if code != exitOK || !strings.Contains(stderr, want) {
			t.Errorf("exit code %d, stderr %q, wanted %q", code, stderr, want)
		}
	}
	if !strings.Contains(stdout, "8 rows (6 pairs), 2 bad, 0 dropped as too long, 0 truncated.") {
		t.Errorf("printed %q", stdout)
	}
	if _, err := os.Stat(out + ".metrics.jsonl"); err == nil {
		t.Error("--log none wrote a file")
	}
	code, _, stderr = cli(t.Context(), append(args, "--skip-bad", "1")...)
	if code != exitFailed || !strings.Contains(stderr, "2 of 8 rows are bad, 1 may be skipped") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}

// TestInspect: each position of the first examples is one line; no adapter is written, none is asked for.
func TestInspect(t *testing.T) {
	data := write(t, "d.jsonl", `{"prompt": "a", "completion": "é\n"}`+"\n"+`{"prompt": "x", "completion": "y"}`+"\n"+rows(1))
	code, stdout, stderr := cli(t.Context(), "train", "--model", tiny, "--data", data, "--inspect", "2")
	if code != exitOK || stderr != "" {
		t.Fatalf("exit code %d, %q", code, stderr)
	}
	_, table, _ := strings.Cut(stdout, "\nline 1")
	want := `: 4 tokens, 4 of them learned
input                          target                         weight
     97 "a"                        195 "\xc3"                 1
    195 "\xc3"                     169 "\xa9"                 1
    169 "\xa9"                      10 "\n"                   1
     10 "\n"                       256 "<|endoftext|>"        1

line 2: 2 tokens, 2 of them learned
input                          target                         weight
    120 "x"                        121 "y"                    1
    121 "y"                        256 "<|endoftext|>"        1
`
	if table != want {
		t.Errorf("printed\n%s\nwanted\n%s", table, want)
	}
	code, stdout, _ = cli(t.Context(), "train", "--model", tiny, "--data", write(t, "p.jsonl", preferences(2)), "--inspect", "1", "--json")
	var v struct{ Examples []inspected }
	if err := json.Unmarshal([]byte(stdout), &v); err != nil || code != exitOK || len(v.Examples) != 2 {
		t.Fatalf("exit code %d, %q, %v", code, stdout, err)
	}
	for i, side := range []string{"chosen", "rejected"} {
		e := v.Examples[i]
		n := 0
		for _, p := range e.At {
			n += int(p.Weight)
		}
		if e.Side != side || e.Line != 1 || len(e.At) != e.Tokens || n != e.Targets {
			t.Errorf("%+v", e)
		}
	}
}
