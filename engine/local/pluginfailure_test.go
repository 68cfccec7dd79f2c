package local_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// TestPluginFails: a module that fails in a forward_backward, in whatever way, fails that operation alone. No gradient of it is applied,
// the run goes on, and another run that trains at the same time, in shared batches where the losses allow it, has the bits that it has alone.
func TestPluginFails(t *testing.T) {
	const steps = 4
	good, more := sequences(5), []api.Datum{sequence(11, 9), sequence(12, 4)}
	open := func() *engine.Engine {
		return openEngine(t, func(o *engine.Options) { o.Limits.MicroBatchTokens = 30 })
	}
	neighbour := func(e *engine.Engine) (*engine.Run, []*engine.Future[api.OptimStepOutput]) {
		var fs []*engine.Future[api.OptimStepOutput]
		r := newRun(t, e, "small", 3, 2)
		for i := range steps {
			if _, err := r.ForwardBackward(crossEntropy([]api.Datum{sequence(20+i, 12), sequence(30+i, 7)})); err != nil {
				t.Fatal(err)
			}
			f, err := r.OptimStep(api.AdamParams{LearningRate: 0.01, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8})
			if err != nil {
				t.Fatal(err)
			}
			fs = append(fs, f)
		}
		return r, fs
	}
	// What both runs have when nothing fails.
	alone := open()
	clean := newRun(t, alone, "small", 4, 1)
	f, err := clean.ForwardBackward(crossEntropy(good))
	done(t, f, err)
	first := optimStep(t, clean)
	f, err = clean.ForwardBackward(crossEntropy(more))
	done(t, f, err)
	second := optimStep(t, clean)
	other, fs := neighbour(alone)
	for _, f := range fs {
		done(t, f, nil)
	}
	undisturbed := optimStep(t, other)
	alone.Close()

	for _, scope := range []string{"datum", "batch"} {
		plugin := mischief(t, scope, 2e6)
		for _, c := range []struct {
			name string
			mark int64
			code api.Code
			want string // in the error, after the module's name
		}{
			{"trap", markTrap, api.Internal, "unreachable"},
			{"fuel", markSpin, api.Internal, "fuel"},
			{"NaN weight", markNaNWeight, api.Internal, "NaN"},
			{"NaN loss", markNaNLoss, api.Internal, "NaN"},
			{"status 1", markUser, api.BadRequest, "the mark is wrong"},
			{"status 2", markNumerical, api.Internal, "no number is right"},
			{"recursion", markRecurse, api.Internal, "nested too deeply"},
		} {
			t.Run(scope+" "+c.name, func(t *testing.T) {
				e := open()
				defer e.Close()
				r := newRun(t, e, "small", 4, 1)
				bad := append(sequences(5), marked(sequence(6, 8), c.mark)) // the last micro-batch: others have been differentiated
				fail := func() *engine.Future[api.ForwardBackwardOutput] {
					f, err := r.ForwardBackwardCustom(bad, plugin, nil)
					if err != nil {
						t.Fatal(err)
					}
					return f
				}
				failed := []*engine.Future[api.ForwardBackwardOutput]{fail()}
				other, fs := neighbour(e)
				f, err := r.ForwardBackward(crossEntropy(good))
				if err != nil {
					t.Fatal(err)
				}
				failed = append(failed, fail())
				if got := optimStep(t, r); !slices.Equal(got, first) {
					t.Error("the adapter after a failure is not the one without it")
				}
				done(t, f, nil)
				failed = append(failed, fail())
				f, err = r.ForwardBackwardCustom(more, plugin, nil)
				done(t, f, err)
				if got := optimStep(t, r); !slices.Equal(got, second) {
					t.Error("the run that went on has another adapter than the one without failures")
				}
				for _, f := range failed {
					_, err := outcome(f, nil)
					if api.CodeOf(err) != c.code || !strings.Contains(err.Error(), "plugin mischief 1.0.0 (") || !strings.Contains(err.Error(), c.want) {
						t.Errorf("got %v (%s), wanted %q (%s)", err, api.CodeOf(err), c.want, c.code)
					}
				}
				for _, f := range fs {
					done(t, f, nil)
				}
				if !slices.Equal(optimStep(t, other), undisturbed) {
					t.Error("the other run has another adapter than alone")
				}
			})
		}
	}
}

// TestPluginSpins: while modules burn fuel that would last for hours, in a forward_backward and in a forward, another run trains and makes a sampler: the device is
// free. Then Close ends them.
func TestPluginSpins(t *testing.T) {
	for _, scope := range []string{"batch", "datum"} {
		t.Run(scope, func(t *testing.T) {
			plugin := mischief(t, scope, 1<<60)
			e := openEngine(t, nil)
			a, b := newRun(t, e, "small", 4, 1), newRun(t, e, "small", 4, 2)
			c := newRun(t, e, "small", 4, 3)
			bad := []api.Datum{marked(sequence(1, 9), markSpin)}
			backward, err := a.ForwardBackwardCustom(bad, plugin, nil)
			if err != nil {
				t.Fatal(err)
			}
			forward, err := c.ForwardCustom(bad, plugin, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				f, err := b.ForwardBackward(crossEntropy([]api.Datum{sequence(i, 12)}))
				done(t, f, err)
				optimStep(t, b)
			}
			s, err := b.SaveForSampler()
			done(t, s, err)
			for _, f := range []*engine.Future[api.ForwardBackwardOutput]{backward, forward} {
				select {
				case <-f.Done():
					_, err := outcome(f, nil)
					t.Errorf("a spinning call has ended before the other run's steps: %v", err)
				default:
				}
			}
			e.Close()
			for _, f := range []*engine.Future[api.ForwardBackwardOutput]{backward, forward} {
				if _, err := outcome(f, nil); api.CodeOf(err) != api.Closed {
					t.Errorf("at the end: %v, wanted it closed", err)
				}
			}
		})
	}
}

// TestMischiefBuilds: the modules in testdata are what build.sh makes, where its compiler is at hand.
func TestMischiefBuilds(t *testing.T) {
	const compiler = "Debian clang version 14.0.6"
	out, err := exec.Command("clang-14", "--version").Output()
	if first, _, _ := strings.Cut(string(out), "\n"); err != nil || first != compiler {
		t.Skipf("no %s on this machine", compiler)
	}
	if out, err := exec.Command("clang-14", "--print-prog-name=wasm-ld").Output(); err != nil || !filepath.IsAbs(strings.TrimSpace(string(out))) {
		t.Skip("no wasm-ld on this machine")
	}
	folder := t.TempDir()
	if out, err := exec.Command("bash", filepath.Join("testdata", "build.sh"), folder).CombinedOutput(); err != nil {
		t.Fatalf("build.sh: %v\n%s", err, out)
	}
	for _, name := range []string{"mischief_datum.wasm", "mischief_batch.wasm"} {
		have, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		made, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(have, made) {
			t.Errorf("%s is not what build.sh makes", name)
		}
	}
}
