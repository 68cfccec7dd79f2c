package losses

import (
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"

	"tinkerlocal/plugins"
	"tinkerlocal/plugins/sdk"
)

// wasmTools says why this machine cannot build a new project of a language, or "".
func wasmTools(lang string) string {
	if _, err := exec.LookPath("make"); err != nil {
		return "no make on this machine"
	}
	switch lang {
	case "c":
		if out, err := exec.Command("clang++", "--print-prog-name=wasm-ld").Output(); err != nil || !filepath.IsAbs(strings.TrimSpace(string(out))) {
			return "no clang++ with wasm-ld on this machine"
		}
	case "rust":
		var minor int
		if out, err := exec.Command("cargo", "--version").Output(); err != nil {
			return "no cargo on this machine"
		} else if _, err := fmt.Sscanf(string(out), "cargo 1.%d.", &minor); err != nil || minor < 68 {
			return "the crate needs Rust 1.68, this machine has " + string(out)
		}
		out, err := exec.Command("rustc", "--print", "sysroot").Output()
		if err != nil {
			return "no rustc on this machine"
		}
		if _, err := os.Stat(filepath.Join(strings.TrimSpace(string(out)), "lib", "rustlib", "wasm32-unknown-unknown", "lib")); err != nil {
			return "rustc has no target wasm32-unknown-unknown on this machine"
		}
	}
	return ""
}

// imports are those that section 3 of the ABI allows.
var imports = []string{
	"loss_host.log", "loss_host.abort", "env.abort", "wasi_snapshot_preview1.args_get", "wasi_snapshot_preview1.args_sizes_get",
	"wasi_snapshot_preview1.environ_get", "wasi_snapshot_preview1.environ_sizes_get", "wasi_snapshot_preview1.clock_time_get",
	"wasi_snapshot_preview1.random_get", "wasi_snapshot_preview1.fd_write", "wasi_snapshot_preview1.sched_yield",
	"wasi_snapshot_preview1.poll_oneoff", "wasi_snapshot_preview1.proc_exit",
}

// samePairs runs a module that was built from an SDK's example and holds it to the bundled bradley_terry, whose loss it is.
func samePairs(t *testing.T, wasm []byte) {
	t.Helper()
	rt := wazero.NewRuntimeWithConfig(t.Context(), wazero.NewRuntimeConfigInterpreter())
	compiled, err := rt.CompileModule(t.Context(), wasm)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range compiled.ImportedFunctions() {
		if module, name, _ := f.Import(); !slices.Contains(imports, module+"."+name) {
			t.Errorf("it imports %s.%s, which the ABI does not allow", module, name)
		}
	}
	rt.Close(t.Context())
	checked := 0
	for _, g := range goldens(t) {
		if g.Loss != "bradley_terry" || g.Config["average"] != 0 {
			continue
		}
		checked++
		m := load(t, wasm)
		got, err := m.run(t, g.batch())
		if err != nil {
			t.Fatal(err)
		}
		checkValues(t, g, got)
		for name, v := range got.metrics {
			if !close6(v, g.Metrics[name]) {
				t.Errorf("%s is %v, torch has %v", name, v, g.Metrics[name])
			}
		}
		if names := slices.Sorted(maps.Keys(got.metrics)); !slices.Equal(names, []string{"accuracy:mean", "margin:mean"}) {
			t.Errorf("metrics %v", names)
		}
		checkSlope(t, m, g.batch(), got)
		checkChunks(t, m, g.batch(), got)
		for range 300 { // a used instance neither grows nor changes
			if again, err := m.run(t, g.batch()); err != nil || math.Float64bits(again.loss) != math.Float64bits(got.loss) {
				t.Fatalf("again: %v, %v", again, err)
			}
		}
		if pages := m.mod.Memory().Size() >> 16; pages > 100 {
			t.Errorf("%d pages of memory", pages)
		}
	}
	if checked == 0 {
		t.Error("no golden")
	}
}

// passes wants the host's check to find nothing wrong with a module.
func passes(t *testing.T, wasm []byte) *plugins.Report {
	t.Helper()
	h, err := plugins.Open(t.Context(), plugins.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	r, err := h.Check(t.Context(), wasm)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Warnings) > 0 || r.Error > 1e-4 || r.MeasuredElements == 0 {
		t.Errorf("check: warnings %v, gradient error %v, %d log-probabilities measured", r.Warnings, r.Error, r.MeasuredElements)
	}
	return r
}

// TestNewProjects: what `plugin new` writes builds with one command, passes the check, and computes what its formula says.
func TestNewProjects(t *testing.T) {
	for _, lang := range sdk.Languages() {
		t.Run(lang, func(t *testing.T) {
			if why := wasmTools(lang); why != "" {
				t.Skip(why)
			}
			dir := filepath.Join(t.TempDir(), "my_pairs")
			if err := sdk.New(dir, lang, "my_pairs"); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("make", "-s")
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOWORK=off")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("make: %v\n%s", err, out)
			}
			wasm, err := os.ReadFile(filepath.Join(dir, "my_pairs.wasm"))
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d bytes", len(wasm))
			if name := load(t, wasm).desc.Name; name != "my_pairs" {
				t.Errorf("it calls itself %q", name)
			}
			samePairs(t, wasm)
			passes(t, wasm)
		})
	}
}
