package main

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tinkerlocal/engine/local"
	"tinkerlocal/plugins/losses"
)

// module writes a bundled module to a file.
func module(t *testing.T, name, file string) string {
	t.Helper()
	return write(t, file, string(losses.Bundled()[name]))
}

// TestPlugins walks through the life of a plugin.
func TestPlugins(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	list := func() map[string]local.PluginInfo {
		out := map[string]local.PluginInfo{}
		for _, i := range decode[map[string][]local.PluginInfo](t, "plugin", "list", "--state", state)["plugins"] {
			out[i.Name] = i
		}
		return out
	}
	bundled := list()
	for _, name := range []string{"dpo", "bradley_terry", "kto", "grpo", "gspo", "logprob_variance", "topk_distillation"} {
		if i := bundled[name]; i.Source != "bundled" || i.Report.Meta.Name != name || len(i.Digest) != 64 {
			t.Errorf("%s: %+v", name, i)
		}
	}
	if _, err := os.Stat(state); err == nil {
		t.Error("a list made the state directory")
	}
	file := module(t, "dpo", "mine.wasm")
	r := decode[local.PluginReport](t, "plugin", "check", file, "--state", state)
	if r.Digest != bundled["dpo"].Digest || r.Error < 0 || r.Error > 1e-2 || r.MeasuredElements == 0 || len(r.Imports) != 0 {
		t.Errorf("check: %+v", r)
	}
	added := decode[local.PluginInfo](t, "plugin", "add", file, "--name", "mine", "--state", state)
	if i := list()["mine"]; i.Digest != added.Digest || i.Source != "folder" {
		t.Errorf("added %+v, listed %+v", added, i)
	}
	if i := decode[local.PluginInfo](t, "plugin", "info", "wasm:mine", "--state", state); i.Report.Meta.Name != "dpo" || i.Source != "folder" {
		t.Errorf("info: %+v", i)
	}
	decode[map[string]string](t, "plugin", "remove", "mine", "--state", state)
	if _, ok := list()["mine"]; ok {
		t.Error("it is there still")
	}
	if i := decode[local.PluginInfo](t, "plugin", "info", "mine@sha256:"+added.Digest, "--state", state); i.Source != "pinned" {
		t.Errorf("pinned: %+v", i)
	}
	// A file that was dropped into the folder is picked up; a bad one is named.
	for name, text := range map[string]string{"dropped": string(losses.Bundled()["kto"]), "bad": "no module"} {
		if err := os.WriteFile(filepath.Join(state, "plugins", name+".wasm"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all := list()
	if all["dropped"].Report.Meta.Name != "kto" || all["bad"].Problem == "" {
		t.Errorf("dropped: %+v, bad: %+v", all["dropped"], all["bad"])
	}
	m := decode[map[string][]local.PluginMeasurement](t, "plugin", "bench", "dpo", "--elements", "100,2000", "--state", state)["measurements"]
	if len(m) != 2 || m[1].Elements < 1500 || m[1].Seconds <= 0 || m[1].Fuel <= m[0].Fuel {
		t.Errorf("bench: %+v", m)
	}
	for _, args := range [][]string{{"list"}, {"info", "dpo"}, {"check", file}, {"bench", file, "--elements", "100"}, {"add", file}} {
		if code, stdout, stderr := cli(t.Context(), append(append([]string{"plugin"}, args...), "--state", state)...); code != exitOK || stdout == "" {
			t.Errorf("%v: exit code %d, %q", args, code, stderr)
		}
	}
}

// TestPluginFailures: what is no plugin is refused with its reason and an exit code.
func TestPluginFailures(t *testing.T) {
	state, bad := filepath.Join(t.TempDir(), "state"), write(t, "bad.wasm", "\x00asm\x01\x00\x00\x00")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"check", bad}, exitFailed, bad + ": it has no memory"},
		{[]string{"check", write(t, "x.wasm", "x")}, exitFailed, "x.wasm: not a module that is accepted"},
		{[]string{"check", filepath.Join(t.TempDir(), "none.wasm")}, exitFailed, "no such file"},
		{[]string{"check", t.TempDir()}, exitFailed, "is not a file"},
		{[]string{"add", bad}, exitFailed, bad + ": it has no memory"},
		{[]string{"add", module(t, "dpo", "d.wasm"), "--name", "../x"}, exitFailed, `plugin name "../x"`},
		{[]string{"remove", "dpo"}, exitFailed, "comes with the program"},
		{[]string{"remove", "nothing"}, exitFailed, `no plugin "nothing"`},
		{[]string{"info", "nothing"}, exitFailed, `unknown loss_fn "wasm:nothing"; plugins: wasm:bradley_terry`},
		{[]string{"info", "dpo@sha256:00"}, exitFailed, "64 digits"},
		{[]string{"bench", "dpo", "--elements", "0"}, exitUsage, "--elements is 0"},
		{[]string{"new", "x"}, exitUsage, "--lang is required"},
		{[]string{"new", "--lang", "cobol", "x"}, exitUsage, "wanted one of"},
	} {
		code, _, stderr := cli(t.Context(), append(append([]string{"plugin"}, c.args...), "--state", state)...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: exit code %d, %q; wanted %d and %q", c.args, code, stderr, c.code, c.want)
		}
	}
}

// TestTrainPlugin: the bundled dpo trains as the built-in one does, bit for bit; a run tells what it was trained with, and goes on with that, even when
// the name stands for something else meanwhile.
func TestTrainPlugin(t *testing.T) {
	dir := t.TempDir()
	state, data := filepath.Join(dir, "state"), write(t, "d.jsonl", preferences(9))
	built, mine := filepath.Join(dir, "built"), filepath.Join(dir, "mine")
	if code, _, stderr := cli(t.Context(), append(trainFor(t, state, data, built), "--no-save")...); code != exitOK {
		t.Fatal(stderr)
	}
	decode[local.PluginInfo](t, "plugin", "add", module(t, "dpo", "d.wasm"), "--name", "pairs", "--state", state)
	code, stdout, stderr := cli(t.Context(), append(trainFor(t, state, data, mine), "--loss", "wasm:pairs", "--loss-config", "beta=0.1", "--val-split", "0.2", "--eval-every", "6")...)
	if code != exitOK {
		t.Fatal(stderr)
	}
	var res trainResult
	if err := json.Unmarshal([]byte(stdout), &res); err != nil {
		t.Fatal(err)
	}
	if math.Abs(res.FirstLoss-math.Ln2) > 1e-6 || res.Eval == nil || !strings.HasPrefix(res.Loss, "wasm:dpo@sha256:") {
		t.Errorf("%+v", res)
	}
	code, stdout, stderr = cli(t.Context(), append(trainFor(t, state, data, mine), "--loss", "wasm:pairs")...)
	if code != exitOK || !bytes.Equal(weights(t, mine), weights(t, built)) {
		t.Errorf("the plugin's adapter has other bits than the built-in loss's: %s", stderr)
	}
	if err := json.Unmarshal([]byte(stdout), &res); err != nil {
		t.Fatal(err)
	}
	if got := decode[checkpointReport](t, "checkpoint", "info", res.State, "--state", state).Plugins; len(got) != 1 || got[0].Name != "dpo" || len(got[0].Digest) != 64 {
		t.Errorf("the checkpoint tells %+v", got)
	} else if _, stdout, _ := cli(t.Context(), "checkpoint", "info", res.State, "--state", state); !strings.Contains(strings.ReplaceAll(stdout, " ", ""), "trainedwithwasm:dpo@sha256:"+got[0].Digest[:8]) {
		t.Errorf("the checkpoint's text does not tell it:\n%s", stdout)
	}
	decode[local.PluginInfo](t, "plugin", "add", module(t, "bradley_terry", "b.wasm"), "--name", "pairs", "--state", state)
	half := "tinker://" + res.Run + "/weights/000010"
	if code, _, stderr := cli(t.Context(), "train", "--resume", half, "--state", state, "--out", mine); code != exitOK {
		t.Fatal(stderr)
	}
	if !bytes.Equal(weights(t, mine), weights(t, built)) {
		t.Error("resumed under a name that has moved, it went on with another loss")
	}
}

// TestTrainPluginInputs: numbers come from the rows; what rows cannot give, and what does not fit them, is refused before training.
func TestTrainPluginInputs(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	labelled := write(t, "l.jsonl", `{"prompt": "a:", "completion": " yes", "label": true}`+"\n"+`{"prompt": "b:", "completion": " no", "label": false}`+"\n")
	run := func(data string, args ...string) (int, string) {
		code, _, stderr := cli(t.Context(), append(append(trainFor(t, state, data, filepath.Join(dir, "a")), "--steps", "2"), args...)...)
		return code, stderr
	}
	for _, name := range []string{"kto", "logprob_variance"} {
		if code, stderr := run(labelled, "--loss", "wasm:"+name); code != exitOK {
			t.Error(stderr)
		}
	}
	for _, c := range []struct {
		data string
		args []string
		code int
		want string
	}{
		{rows(3), []string{"--loss", "wasm:kto"}, exitFailed, `"label" is missing, a number that the loss needs`},
		{`{"prompt": "a:", "completion": " b", "label": "x"}`, []string{"--loss", "wasm:kto"}, exitFailed, `"label" is "x", wanted a number`},
		{`{"prompt": "a:", "completion": " b", "label": 0.5}`, []string{"--loss", "wasm:kto"}, exitFailed, "label is 0.5, wanted a whole number"},
		{rows(4), []string{"--loss", "wasm:dpo"}, exitFailed, "the loss dpo compares pairs"},
		{rows(3), []string{"--loss", "wasm:gspo"}, exitFailed, "it wants the input logprobs, which rows do not give"},
		{rows(3), []string{"--loss", "wasm:none"}, exitFailed, `unknown loss_fn "wasm:none"`},
		{rows(3), []string{"--loss", "wasm:none.wasm"}, exitFailed, "no such file"},
		{preferences(3), []string{"--loss", "wasm:dpo", "--loss-config", "gamma=1"}, exitFailed, "gamma"},
		{preferences(3), []string{"--loss", "wasm:dpo", "--loss-config", "beta"}, exitUsage, `--loss-config is "beta", wanted NAME=NUMBER`},
		{preferences(3), []string{"--loss", "wasm:dpo", "--beta", "1"}, exitUsage, "--beta is for dpo"},
		{preferences(3), []string{"--loss-config", "beta=1"}, exitUsage, "--loss-config is for plugins"},
	} {
		if code, stderr := run(write(t, "d.jsonl", c.data), c.args...); code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: exit code %d, %q; wanted %d and %q", c.args, code, stderr, c.code, c.want)
		}
	}
}

// TestNewPlugin: a project is written for each language, and never over something else.
func TestNewPlugin(t *testing.T) {
	for _, lang := range local.PluginLanguages() {
		dir := filepath.Join(t.TempDir(), "p")
		if code, stdout, stderr := cli(t.Context(), "plugin", "new", "--lang", lang, "--dir", dir, "my_loss"); code != exitOK || !strings.Contains(stdout, "README.md") {
			t.Errorf("%s: exit code %d, %q", lang, code, stderr)
		}
		if _, err := os.Stat(filepath.Join(dir, "README.md")); err != nil {
			t.Error(err)
		}
		if code, _, _ := cli(t.Context(), "plugin", "new", "--lang", lang, "--dir", dir, "my_loss"); code != exitFailed {
			t.Errorf("%s: a second project went over the first", lang)
		}
	}
}
