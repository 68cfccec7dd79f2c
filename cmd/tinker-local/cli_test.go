package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine/local"
)

// cli runs the program in this process.
func cli(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	code = run(ctx, args, &out, &errOut)
	return code, out.String(), errOut.String()
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// rows is a small training file.
func rows(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "{\"prompt\": \"item %d:\", \"completion\": \" number %d\"}\n", i, i)
	}
	return b.String()
}

const tiny = "tinker-local/tiny"

// TestBadArguments: every mistake is answered with the flag's name and what it takes, and exit code 2.
func TestBadArguments(t *testing.T) {
	data := write(t, "d.jsonl", rows(2))
	ok := func(args ...string) []string {
		return append([]string{"train", "--model", tiny, "--data", data, "--out", filepath.Join(t.TempDir(), "a")}, args...)
	}
	sampleOK := func(args ...string) []string {
		return append([]string{"sample", "--model", tiny, "--prompt", "x"}, args...)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"nonsense"}, `unknown command "nonsense"`},
		{[]string{"quickstart", "extra"}, `unknown command "extra"`},
		{[]string{"doctor", "--dtype", "int4"}, `"--dtype" flag: wanted one of auto, float32, bfloat16`},
		{[]string{"doctor", "--device", "tpu"}, `"--device" flag: wanted auto, cpu, cpu:VARIANT, cuda or cuda:N`},
		{[]string{"doctor", "--device", "cuda:x"}, `"--device" flag: wanted auto, cpu, cpu:VARIANT, cuda or cuda:N`},
		{[]string{"doctor", "--what"}, "unknown flag: --what"},
		{[]string{"train"}, "--model is required"},
		{[]string{"train", "--model", tiny}, "--data is required"},
		{[]string{"train", "--model", tiny, "--data", data}, "--out is required"},
		{ok("--rank", "0"), "--rank is 0, wanted 1..512"},
		{ok("--rank", "100000"), "--rank is 100000, wanted 1..512"},
		{ok("--rank", "many"), `invalid argument "many" for "--rank" flag`},
		{ok("--lr", "-1"), "--lr is -1, wanted more than 0 and at most 1"},
		{ok("--lr", "NaN"), "--lr is NaN, wanted more than 0 and at most 1"},
		{ok("--clip", "-1"), "--clip is -1, wanted at least 0"},
		{ok("--weight-decay", "-1"), "--weight-decay is -1, wanted at least 0"},
		{ok("--batch-size", "0"), "--batch-size is 0, wanted at least 1"},
		{ok("--steps", "-3"), "--steps is -3, wanted at least 1"},
		{ok("--epochs", "0"), "--epochs is 0, wanted at least 1"},
		{ok("--steps", "3", "--epochs", "2"), "--steps and --epochs exclude each other"},
		{ok("--no-attn", "--no-mlp", "--no-unembed"), "leave nothing to train"},
		{ok("--lr", "0"), "--lr is 0, wanted more than 0 and at most 1"},
		{ok("--schedule", "steps"), `"--schedule" flag: wanted one of linear, cosine, constant`},
		{ok("--warmup", "-2"), "--warmup is -2, wanted -1 (5 % of the steps) or at least 0"},
		{ok("--final-lr", "2"), "--final-lr is 2, wanted 0 to 1"},
		{ok("--format", "csv"), `"--format" flag: wanted one of auto, pairs, chat, preference`},
		{ok("--renderer", "x"), `--renderer: chat format "x": no such format, want one of qwen3`},
		{ok("--train-on", "first"), `"--train-on" flag: wanted one of all, last`},
		{ok("--too-long", "x"), `"--too-long" flag: wanted one of error, drop, truncate`},
		{ok("--max-length", "-1"), "--max-length is -1, wanted at least 0"},
		{ok("--skip-bad", "-1"), "--skip-bad is -1, wanted at least 0"},
		{ok("--val", data, "--val-split", "0.1"), "--val and --val-split exclude each other"},
		{ok("--val-split", "0"), "--val-split is 0, wanted more than 0 and less than 1"},
		{ok("--val-split", "1"), "--val-split is 1, wanted more than 0 and less than 1"},
		{ok("--eval-every", "2"), "--eval-every needs --val or --val-split"},
		{ok("--val", data, "--eval-every", "-1"), "--eval-every is -1, wanted at least 0"},
		{ok("--loss", "ppo"), `"--loss" flag: wanted one of auto, cross_entropy, dpo`},
		{ok("--beta", "0"), "--beta is 0, wanted more than 0"},
		{ok("--curve", "x.pdf"), "--curve x.pdf: wanted a name that ends in .png or .csv"},
		{ok("--inspect", "-1"), "--inspect is -1, wanted at least 0"},
		{[]string{"sample"}, "--model is required"},
		{[]string{"sample", "--model", tiny}, "--prompt is required"},
		{sampleOK("-n", "0"), "--num-samples is 0, wanted at least 1"},
		{sampleOK("--max-tokens", "-1"), "--max-tokens is -1, wanted at least 0"},
		{sampleOK("--temperature", "-1"), "--temperature is -1, wanted at least 0"},
		{sampleOK("--temperature", "NaN"), "--temperature is NaN, wanted at least 0"},
		{sampleOK("--top-k", "0"), "--top-k is 0, wanted -1 (off) or at least 1"},
		{sampleOK("--top-p", "0"), "--top-p is 0, wanted more than 0 and at most 1"},
		{sampleOK("--top-logprobs", "-1"), "--top-logprobs is -1, wanted at least 0"},
		{sampleOK("--stop", ""), "--stop is empty, wanted some text"},
	} {
		code, _, stderr := cli(t.Context(), c.args...)
		if code != exitUsage || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: exit code %d, stderr %q; wanted %d and %q", c.args, code, stderr, exitUsage, c.want)
		}
	}
}

// TestFailures: what goes wrong with files and models is said with the file, the place and what was wanted.
func TestFailures(t *testing.T) {
	good := write(t, "good.jsonl", rows(3))
	file := write(t, "file", "x")
	other := filepath.Dir(write(t, "important.txt", "x"))
	long := write(t, "long.jsonl", `{"prompt": "`+strings.Repeat("a", 3000)+`", "completion": "b"}`)
	train := func(data string, more ...string) []string {
		return append([]string{"train", "--model", tiny, "--data", data, "--out", filepath.Join(t.TempDir(), "a")}, more...)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{train("/no/such/file"), "--data: open /no/such/file"},
		{train(write(t, "empty.jsonl", "\n\n")), "empty.jsonl: no rows"},
		{train(write(t, "bad.jsonl", rows(2)+"{oops\n")), "bad.jsonl:3: not a row"},
		{train(write(t, "key.jsonl", `{"prompt": "a", "completions": "b"}`)), `key.jsonl:1: "completion" is missing; the row's fields are completions, prompt`},
		{train(write(t, "missing.jsonl", `{"prompt": "a"}`)), `missing.jsonl:1: "completion" is missing`},
		{train(write(t, "nothing.jsonl", `{"prompt": "a", "completion": ""}`)), `nothing.jsonl:1: "completion" is empty`},
		{train(write(t, "two.jsonl", `{"prompt": "a", "completion": "b"} {"prompt": "a", "completion": "b"}`)), "two.jsonl:1: more than one JSON value"},
		{train(long), "long.jsonl:1: the row has 3001 tokens, the context of tinker-local/tiny is 2048"},
		{train(long, "--max-length", "100"), "long.jsonl:1: the row has 3001 tokens, --max-length is 100"},
		{train(t.TempDir()), "is not a regular file"},
		{train(good, "--loss", "dpo"), "--loss dpo: "},
		{train(good, "--val", "/no/such/file"), "--val: open /no/such/file"},
		{train(good, "--log", "/no/such/folder/file"), "--log: open /no/such/folder/file"},
		{[]string{"train", "--model", tiny, "--data", good, "--out", file}, "is a file, wanted a folder"},
		{[]string{"train", "--model", tiny, "--data", good, "--out", other}, "holds something else than an adapter"},
		{[]string{"train", "--model", tiny, "--data", good, "--out", "/proc/x/adapter"}, "--out /proc/x/adapter"},
		{[]string{"sample", "--model", "Qwen/Nothing", "--prompt", "x"}, `model "Qwen/Nothing": no such folder with a config.json, and it is not in `},
		{[]string{"sample", "--models", t.TempDir(), "--model", "Qwen/Nothing", "--prompt", "x"}, `; known: tinker-local/tiny; download it with: tinker-local model pull Qwen/Nothing`},
		{[]string{"sample", "--model", tiny, "--prompt", strings.Repeat("a", 3000)}, "2048"},
		{[]string{"sample", "--model", tiny, "--prompt", "x", "--adapter", other}, "adapter_config.json"},
		{[]string{"sample", "--model", tiny, "--prompt", ""}, "empty"},
		{[]string{"doctor", "--device", "cuda"}, "no CUDA device"},
	} {
		code, stdout, stderr := cli(t.Context(), c.args...)
		if code != exitFailed || !strings.Contains(stdout+stderr, c.want) {
			t.Errorf("%v: exit code %d, output %q; wanted %d and %q", c.args, code, stdout+stderr, exitFailed, c.want)
		}
	}
}

// TestTrainAndSample: an adapter is trained, written as a PEFT folder, and changes what is sampled.
func TestTrainAndSample(t *testing.T) {
	data := write(t, "d.jsonl", strings.Repeat(`{"prompt": "say:", "completion": " xyzzy"}`+"\n", 8))
	out := filepath.Join(t.TempDir(), "sub", "adapter")
	code, stdout, stderr := cli(t.Context(), "train", "--model", tiny, "--data", data, "--out", out, "--steps", "20",
		"--batch-size", "4", "--rank", "8", "--lr", "1e-2", "--json")
	if code != exitOK || stderr != "" {
		t.Fatalf("train: exit code %d, stderr %q", code, stderr)
	}
	var res trainResult
	if err := json.Unmarshal([]byte(stdout), &res); err != nil {
		t.Fatalf("train --json printed %q: %v", stdout, err)
	}
	if res.Steps != 20 || res.LastLoss >= res.FirstLoss/10 || res.TokensPerSecond <= 0 {
		t.Errorf("train reported %+v", res)
	}
	w, err := local.ReadAdapter(out)
	if err != nil {
		t.Fatal(err)
	}
	if w.Lora.Rank != 8 || w.Scale != 4 || !w.Lora.TrainUnembed {
		t.Errorf("the adapter has configuration %+v and scale %v", w.Lora, w.Scale)
	}
	prompt := []string{"sample", "--model", tiny, "--prompt", "say:", "--temperature", "0", "--max-tokens", "16"}
	_, base, _ := cli(t.Context(), prompt...)
	code, tuned, stderr := cli(t.Context(), append(prompt, "--adapter", out)...)
	if code != exitOK || tuned != " xyzzy\n" || base == tuned {
		t.Errorf("sample: exit code %d, %q; base %q, with the adapter %q", code, stderr, base, tuned)
	}
	_, stdout, _ = cli(t.Context(), append(prompt, "--adapter", out, "--json", "--logprobs", "-n", "2")...)
	var list struct{ Samples []sampled }
	if err := json.Unmarshal([]byte(stdout), &list); err != nil || len(list.Samples) != 2 {
		t.Fatalf("sample --json printed %q: %v", stdout, err)
	}
	for _, s := range list.Samples {
		if s.StopReason != "stop" || len(s.LogProbs) != len(s.Tokens) || len(s.RawLogProbs) != len(s.Tokens) {
			t.Errorf("sample %+v: wanted it stopped by the end token, with a logprob per token", s)
		}
	}
}

// TestSeedRepeats: the same seed draws the same text, another seed another.
func TestSeedRepeats(t *testing.T) {
	draw := func(seed string) string {
		_, out, _ := cli(t.Context(), "sample", "--model", tiny, "--prompt", "the ", "--seed", seed, "--max-tokens", "40", "-n", "2")
		return out
	}
	if a, b, c := draw("1"), draw("1"), draw("2"); a != b || a == c {
		t.Errorf("seed 1 gave %q and %q, seed 2 %q", a, b, c)
	}
}

// TestInterruptSavesAdapter: ctrl-C in the middle of training leaves a whole adapter and says where.
func TestInterruptSavesAdapter(t *testing.T) {
	data := write(t, "d.jsonl", rows(16))
	out := filepath.Join(t.TempDir(), "adapter")
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	time.AfterFunc(1500*time.Millisecond, cancel)
	code, _, stderr := cli(ctx, "train", "--model", tiny, "--data", data, "--out", out, "--steps", "1000000", "--batch-size", "2", "--rank", "2")
	if code != exitInterrupted || !strings.Contains(stderr, "interrupted after step ") || !strings.Contains(stderr, "the adapter so far is in "+out) {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	if _, err := local.ReadAdapter(out); err != nil {
		t.Errorf("the interrupted run's adapter: %v", err)
	}
}

func TestVersionDoctorHelp(t *testing.T) {
	code, out, _ := cli(t.Context(), "doctor", "--json")
	var report struct {
		Usable   bool
		Findings []finding
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != exitOK || !report.Usable || len(report.Findings) < 5 {
		t.Errorf("doctor --json: exit code %d, %q, %v", code, out, err)
	}
	code, out, _ = cli(t.Context(), "version")
	if code != exitOK || !strings.HasPrefix(out, "tinker-local ") {
		t.Errorf("version: exit code %d, %q", code, out)
	}
	for _, command := range []string{"quickstart", "train", "sample", "model", "doctor", "version"} {
		code, out, _ = cli(t.Context(), command, "--help")
		for _, want := range []string{"Examples:", "--models", "--device", "--dtype", "--json"} {
			if code != exitOK || !strings.Contains(out, want) {
				t.Errorf("%s --help: exit code %d, no %q in %q", command, code, want, out)
			}
		}
	}
}
