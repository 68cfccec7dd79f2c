package plugins

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
)

// version is the cross-entropy of another version: other bytes, same answers.
func version(v string) []byte {
	g := crossEntropy()
	g.meta = strings.Replace(g.meta, "1.0.0", v, 1)
	return g.build()
}

// pluginOf is what a loss's record says.
func pluginOf(t *testing.T, l loss.Loss, err error) api.PluginRecord {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return l.(loss.Plugin).Plugin()
}

func evalOnce(t *testing.T, l loss.Loss) {
	t.Helper()
	in := loss.Input{
		Data:     []api.Datum{{LossInputs: map[string]api.TensorData{"target_tokens": api.Ints([]int64{1, 2}), "weights": api.Floats([]float32{1, 2})}}},
		LogProbs: [][]float32{{-1, -2}},
	}
	if err := loss.Check(l, in.Data, in.Config); err != nil {
		t.Fatal(err)
	}
	out, err := l.Eval(context.Background(), in)
	if err != nil || out.Metrics["loss:sum"] != 5 {
		t.Fatalf("%v, %v", out.Metrics, err)
	}
}

func putFile(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o666); err != nil {
		t.Fatal(err)
	}
}

// TestRegistryFolder follows a folder: names move when a file has passed, digests stay.
func TestRegistryFolder(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	h := openHost(t, Options{})
	putFile(t, dir, "ce.wasm", version("1"))
	putFile(t, dir, "broken.wasm", []byte("nothing"))
	putFile(t, dir, "bad name.wasm", version("1"))
	putFile(t, dir, "notes.txt", nil)
	if err := os.Mkdir(filepath.Join(dir, "folder.wasm"), 0o777); err != nil {
		t.Fatal(err)
	}
	r := must(NewRegistry(ctx, h, RegistryOptions{Dir: dir, Bundled: map[string][]byte{"bundled": dpo().build(), "ce": version("0")}}))

	problems := map[string]string{}
	for _, i := range r.List() {
		if i.Problem != "" {
			problems[i.Name] = i.Problem
		}
	}
	for name, want := range map[string]string{"broken": "does not begin like", "bad name": "the name of a plugin", "folder": "is not a file"} {
		if !strings.Contains(problems[name], want) {
			t.Errorf("%s: %q, wanted %q", name, problems[name], want)
		}
	}
	if len(problems) != 3 {
		t.Errorf("problems: %v", problems)
	}

	first, err := r.Loss("wasm:ce")
	one := pluginOf(t, first, err)
	if one.Version != "1" || one.Digest != Digest(version("1")) || one.ABI != "1.0" || one.Name != "ce" {
		t.Errorf("record %+v", one)
	}
	evalOnce(t, first)

	putFile(t, dir, "ce.wasm", version("2.0"))
	if err := r.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	second, err := r.Loss("wasm:ce")
	if two := pluginOf(t, second, err); two.Version != "2.0" {
		t.Errorf("after the change: %+v", two)
	}
	evalOnce(t, first) // it keeps its module
	evalOnce(t, second)
	old, err := r.Loss("wasm:ce@sha256:" + one.Digest)
	if got := pluginOf(t, old, err); !got.Equal(one) {
		t.Errorf("pinned: %+v", got)
	}

	putFile(t, dir, "ce.wasm", []byte("\x00asm\x01\x00\x00\x00 half a file"))
	if err := r.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	still, err := r.Loss("wasm:ce")
	if got := pluginOf(t, still, err); got.Version != "2.0" {
		t.Errorf("a broken file moved the name: %+v", got)
	}

	if err := os.Remove(filepath.Join(dir, "ce.wasm")); err != nil {
		t.Fatal(err)
	}
	if err := r.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	zero, err := r.Loss("wasm:ce")
	if got := pluginOf(t, zero, err); got.Version != "0" {
		t.Errorf("without the file, the bundled one is wanted: %+v", got)
	}
	evalOnce(t, second)

	// Another process later: the digest is found on disk.
	again := must(NewRegistry(ctx, openHost(t, Options{}), RegistryOptions{Dir: dir}))
	old, err = again.Loss("wasm:ce@sha256:" + one.Digest)
	if got := pluginOf(t, old, err); !got.Equal(one) {
		t.Errorf("pinned, from disk: %+v", got)
	}
	evalOnce(t, old)
	for name, want := range map[string]string{
		"wasm:ce":                                   `unknown loss_fn "wasm:ce"; plugins: none`,
		"wasm:other@sha256:" + one.Digest:           "no module with these bytes is known under this name",
		"wasm:ce@sha256:" + strings.Repeat("0", 64): "no module with these bytes",
		"wasm:../ce@sha256:" + one.Digest:           "no module with these bytes",
		"wasm:ce@sha256:12":                         "wanted wasm:NAME or wasm:NAME@sha256:",
		"hinge":                                     `unknown loss_fn "hinge", wanted one of cispo, cross_entropy, dro, importance_sampling, ppo; plugins: none`,
	} {
		if _, err := again.Loss(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, wanted %q", name, err, want)
		}
	}
	if _, err := again.Loss("ppo"); err != nil {
		t.Error(err)
	}

	damaged := filepath.Join(dir, keptDir, "ce@"+one.Digest+extension)
	if err := os.WriteFile(damaged, version("3"), 0o666); err != nil {
		t.Fatal(err)
	}
	fresh := must(NewRegistry(ctx, openHost(t, Options{}), RegistryOptions{Dir: dir}))
	if l, err := fresh.Loss("wasm:ce@sha256:" + one.Digest); err == nil {
		t.Errorf("a kept file with other bytes was taken: %+v", l.(loss.Plugin).Plugin())
	}
}

// TestRegistryAdd: adding and removing write the folder whole.
func TestRegistryAdd(t *testing.T) {
	ctx := context.Background()
	for _, dir := range []string{"", t.TempDir()} {
		h := openHost(t, Options{})
		r := must(NewRegistry(ctx, h, RegistryOptions{Dir: dir, Bundled: map[string][]byte{"ce": version("0")}}))
		if _, err := r.Add(ctx, "mine", []byte("nothing")); err == nil {
			t.Error("nothing was added")
		}
		if _, err := r.Add(ctx, "../mine", version("1")); err == nil || !strings.Contains(err.Error(), "wanted letters") {
			t.Error(err)
		}
		info := must(r.Add(ctx, "mine", version("1")))
		if info.Digest != Digest(version("1")) || info.Report.Meta.Version != "1" {
			t.Errorf("%+v", info)
		}
		l, err := r.Loss("wasm:mine")
		pluginOf(t, l, err)
		evalOnce(t, l)
		if dir != "" {
			b, err := os.ReadFile(filepath.Join(dir, "mine.wasm"))
			if err != nil || Digest(b) != info.Digest {
				t.Error(err)
			}
			if err := r.Refresh(ctx); err != nil {
				t.Error(err)
			}
			left, _ := filepath.Glob(filepath.Join(dir, ".new-*"))
			if len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		}
		if err := r.Remove("mine"); err != nil {
			t.Error(err)
		}
		if err := r.Remove("mine"); api.CodeOf(err) != api.NotFound {
			t.Errorf("removed twice: %v", err)
		}
		if err := r.Remove("ce"); err == nil || !strings.Contains(err.Error(), "comes with the program") {
			t.Error(err)
		}
		if _, err := r.Loss("wasm:mine"); api.CodeOf(err) != api.NotFound {
			t.Errorf("after removal: %v", err)
		}
		l, err = r.Loss("wasm:mine@sha256:" + info.Digest)
		pluginOf(t, l, err)
		evalOnce(t, l)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		evalOnce(t, l) // it was handed out
		if _, err := r.Loss("wasm:mine@sha256:" + info.Digest); err == nil {
			t.Error("a closed registry gave a loss")
		}
	}
}

// TestRegistryLimit: old modules go when there are too many, if their bytes are on disk; losses that were handed out keep theirs.
func TestRegistryLimit(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	h := openHost(t, Options{Limits: Limits{Modules: 2}})
	r := must(NewRegistry(ctx, h, RegistryOptions{Dir: dir}))
	must(r.Add(ctx, "a", version("1")))
	must(r.Add(ctx, "a", version("2")))
	l, err := r.Loss("wasm:a@sha256:" + Digest(version("1")))
	pluginOf(t, l, err)
	if _, err := r.Add(ctx, "a", version("3")); api.CodeOf(err) != api.Busy {
		t.Errorf("the first module is in use: %v", err)
	}
	evalOnce(t, l)
	l = nil
	for range 50 { // the loss's cleanup gives its module back
		runtime.GC()
		time.Sleep(time.Millisecond)
		if _, err = r.Add(ctx, "a", version("3")); err == nil {
			break
		}
	}
	if err != nil {
		t.Errorf("the first module is not in use any more: %v", err)
	}
}

// TestWatch sees a new file without being asked.
func TestWatch(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir := t.TempDir()
	r := must(NewRegistry(ctx, openHost(t, Options{}), RegistryOptions{Dir: dir}))
	ended := make(chan struct{})
	go func() { r.Watch(ctx, time.Millisecond); close(ended) }()
	putFile(t, dir, "new.wasm", version("1"))
	for i := 0; ; i++ {
		if l, err := r.Loss("wasm:new"); err == nil {
			evalOnce(t, l)
			break
		}
		if i > 2000 {
			t.Fatal("the file was not seen")
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-ended
}

// TestModuleLife: the same bytes are one module, which lives as long as somebody has it.
func TestModuleLife(t *testing.T) {
	ctx := context.Background()
	h := openHost(t, Options{})
	type loaded struct {
		m   *Module
		err error
	}
	all := make(chan loaded, 8)
	for range cap(all) {
		go func() {
			m, err := h.Load(ctx, version("1"))
			all <- loaded{m, err}
		}()
	}
	var m *Module
	for range cap(all) {
		x := <-all
		if x.err != nil || m != nil && x.m != m {
			t.Fatalf("%p, %p, %v", x.m, m, x.err)
		}
		m = x.m
	}
	for range cap(all) - 1 {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	evalOnce(t, m.Loss())
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Loss().Eval(ctx, ordinary(t, m)); api.CodeOf(err) != api.Closed {
		t.Errorf("after the last Close: %v", err)
	}
	if n := load(t, h, version("1")); n == m {
		t.Error("an unloaded module came back")
	}
	big := load(t, h, version("5"))
	in := ordinary(t, big)
	started, ended := make(chan struct{}), make(chan error)
	go func() {
		close(started)
		_, err := big.eval(ctx, in, evalOptions{elements: 100}) // many chunks
		ended <- err
	}()
	<-started
	time.Sleep(time.Millisecond)
	big.Close()
	if err := <-ended; err != nil && api.CodeOf(err) != api.Closed {
		t.Errorf("unloaded while a batch is evaluated: %v", err)
	}
	quit, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := h.Load(quit, version("9")); api.CodeOf(err) != api.Cancelled {
		t.Errorf("a cancelled load: %v", err)
	}
}

// TestHostClose waits for calls that run, and refuses what comes later.
func TestHostClose(t *testing.T) {
	ctx := context.Background()
	h := must(Open(ctx, Options{Limits: Limits{Calls: 1}}))
	m := load(t, h, crossEntropy().build())
	in := ordinary(t, m)
	ended := make(chan error, 8)
	for range cap(ended) {
		go func() {
			_, err := m.Loss().Eval(ctx, in)
			ended <- err
		}()
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	for range cap(ended) {
		if err := <-ended; err != nil && api.CodeOf(err) != api.Closed {
			t.Error(err)
		}
	}
	if _, err := h.Load(ctx, version("1")); api.CodeOf(err) != api.Closed {
		t.Errorf("load: %v", err)
	}
	if _, err := h.Check(ctx, version("1")); api.CodeOf(err) != api.Closed {
		t.Errorf("check: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}
