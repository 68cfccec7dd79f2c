package local_test

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
	"tinkerlocal/plugins"
)

// dropped is a state directory's plugins folder, in which other programs put files.
type dropped struct{ dir string }

// put replaces NAME.wasm as a careful program does: whole or not at all.
func (d dropped) put(t *testing.T, name string, b []byte) {
	t.Helper()
	tmp := filepath.Join(d.dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(d.dir, name+".wasm")); err != nil {
		t.Fatal(err)
	}
}

// pair is a chosen and a rejected answer with what dpo wants. cross_entropy and the twins know nothing of ref_logprobs.
func pair() (data []api.Datum) {
	for i := range 2 {
		data = append(data, with(sequence(i, 6), "ref_logprobs", api.Floats(make([]float32, 6))))
	}
	return data
}

// TestPluginNames: modules are found by name and by digest while an engine runs, whatever happens to their files.
func TestPluginNames(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	state := t.TempDir()
	open := func() *engine.Engine {
		e, err := local.Open(t.Context(), local.Options{Device: "cpu", State: state})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
		return e
	}
	e := open()
	r := newRun(t, e, local.TinyModel, 2, 1)
	input := func(name string, data []api.Datum) api.ForwardBackwardInput {
		return api.ForwardBackwardInput{Data: data, LossFn: name}
	}
	loss := func(name string, data []api.Datum) (float64, error) {
		out, err := outcome(r.ForwardBackward(input(name, data)))
		return out.Metrics["loss:sum"], err
	}
	// soon asks again until the folder has been looked at.
	soon := func(name string, data []api.Datum, want func(v float64, err error) bool) {
		t.Helper()
		var v float64
		var err error
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			if v, err = loss(name, data); want(v, err) {
				return
			}
		}
		t.Fatalf("%s: still %v, %v", name, v, err)
	}
	ok := func(_ float64, err error) bool { return err == nil }

	plain, pairs := sequences(3), pair()
	if _, err := loss("wasm:mine", plain); api.CodeOf(err) != api.NotFound || !strings.Contains(err.Error(), "wasm:dpo") {
		t.Errorf("a plugin that is not there: %v", err)
	}
	folder := dropped{local.PluginsDir(state)}
	ce, err := os.ReadFile(twin("cross_entropy"))
	if err != nil {
		t.Fatal(err)
	}
	dpo, err := os.ReadFile(filepath.Join("..", "..", "plugins", "losses", "dpo.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	pinnedCE, pinnedDPO := "wasm:mine@sha256:"+plugins.Digest(ce), "wasm:mine@sha256:"+plugins.Digest(dpo)

	// A file appears.
	folder.put(t, "mine", ce)
	soon("wasm:mine", plain, ok)
	want, err := loss("cross_entropy", plain)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"wasm:mine", pinnedCE} {
		if got, err := loss(name, plain); got != want || err != nil {
			t.Errorf("%s: loss %v, %v; cross_entropy has %v", name, got, err, want)
		}
	}
	if out, err := outcome(r.Forward(input(pinnedCE, plain))); out.Metrics["loss:sum"] != want || err != nil {
		t.Errorf("a forward has loss %v, %v; wanted %v", out.Metrics["loss:sum"], err, want)
	}
	if _, err := loss(pinnedDPO, pairs); api.CodeOf(err) != api.NotFound {
		t.Errorf("a digest that was never there: %v", err)
	}

	// Half of another module, as a copy leaves it that is cut off: the name keeps what it had.
	folder.put(t, "mine", dpo[:len(dpo)/2])
	time.Sleep(1200 * time.Millisecond) // the folder is looked at each second
	for range 3 {
		if got, err := loss("wasm:mine", plain); got != want || err != nil {
			t.Errorf("with a broken file: loss %v, %v; wanted %v", got, err, want)
		}
	}

	// The whole of it. What was submitted before has the module that it named; the digest of the first one stays usable.
	queued, err := r.ForwardBackward(input("wasm:mine", plain))
	if err != nil {
		t.Fatal(err)
	}
	folder.put(t, "mine", dpo)
	soon("wasm:mine", pairs, ok)
	if got := done(t, queued, nil).Metrics["loss:sum"]; got != want {
		t.Errorf("what was submitted before has loss %v, wanted %v", got, want)
	}
	config := input(pinnedDPO, pairs)
	config.LossConfig = map[string]float64{"beta": 0}
	f, err := r.ForwardBackward(config)
	if got := done(t, f, err).Metrics["loss:sum"]; math.Abs(got-math.Ln2) > 1e-12 {
		t.Errorf("dpo with beta 0 has loss %v, wanted ln 2", got)
	}
	config.LossConfig = map[string]float64{"gamma": 0}
	if _, err := r.ForwardBackward(config); api.CodeOf(err) != api.BadRequest || !strings.Contains(err.Error(), "gamma") {
		t.Errorf("a parameter that dpo does not have: %v", err)
	}
	if got, err := loss(pinnedCE, plain); got != want || err != nil {
		t.Errorf("the replaced module by its digest: loss %v, %v; wanted %v", got, err, want)
	}

	// No file: the name goes, the digests stay.
	if err := os.Remove(filepath.Join(folder.dir, "mine.wasm")); err != nil {
		t.Fatal(err)
	}
	soon("wasm:mine", pairs, func(_ float64, err error) bool { return api.CodeOf(err) == api.NotFound })
	check := func(when string) {
		t.Helper()
		if got, err := loss(pinnedCE, plain); got != want || err != nil {
			t.Errorf("%s: %s has loss %v, %v; wanted %v", when, pinnedCE, got, err, want)
		}
		if _, err := loss(pinnedDPO, pairs); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if _, err := loss("wasm:mine", plain); api.CodeOf(err) != api.NotFound {
			t.Errorf("%s: wasm:mine answers %v", when, err)
		}
	}
	check("after removal")

	// The run tells what it was trained with.
	var digests []string
	for _, rec := range r.Info().Plugins {
		digests = append(digests, rec.Digest)
	}
	if !slices.Contains(digests, plugins.Digest(ce)) || !slices.Contains(digests, plugins.Digest(dpo)) {
		t.Errorf("the run was trained with %v", r.Info().Plugins)
	}

	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open()
	r = newRun(t, e, local.TinyModel, 2, 1)
	check("in another engine")
}

// TestPluginForward: a forward with a plugin gives the loss of a forward_backward, leaves no gradient, and is not what the run was trained with.
func TestPluginForward(t *testing.T) {
	p := openPlugins(t)
	for _, scope := range []string{"datum", "batch"} {
		t.Run(scope, func(t *testing.T) {
			e := openEngine(t, func(o *engine.Options) { o.Limits.MicroBatchTokens = 20 })
			r := newRun(t, e, "small", 4, 1)
			plugin := use(t, p, filepath.Join("testdata", "mischief_"+scope+".wasm"))
			f, err := r.ForwardCustom(sequences(5), plugin, nil)
			only := done(t, f, err)
			o, err := r.OptimStep(api.AdamParams{Eps: 1})
			if n := done(t, o, err).Metrics["grad_norm"]; n != 0 || len(r.Info().Plugins) != 0 {
				t.Errorf("a forward left a gradient of norm %v, and plugins %v", n, r.Info().Plugins)
			}
			f, err = r.ForwardBackwardCustom(sequences(5), plugin, nil)
			both := done(t, f, err)
			if only.Metrics["loss:sum"] != both.Metrics["loss:sum"] || !sameRows(logProbs(only), logProbs(both)) {
				t.Errorf("a forward has loss %v, a forward_backward %v", only.Metrics["loss:sum"], both.Metrics["loss:sum"])
			}
			if len(r.Info().Plugins) != 1 {
				t.Errorf("trained with %v", r.Info().Plugins)
			}
			if told := both.Metrics["mischief/told:max"]; told != 0 {
				t.Errorf("in a forward_backward the module is told that no weights are wanted")
			}
			if told := only.Metrics["mischief/told:max"]; told != 1 {
				t.Errorf("in a forward the module is not told that no weights are wanted: %v", told)
			}
		})
	}
}
