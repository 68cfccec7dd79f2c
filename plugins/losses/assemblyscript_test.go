package losses

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
	"tinkerlocal/engine/sft"
	"tinkerlocal/plugins"
)

const scripts = "../sdk/assemblyscript"

// builtScript is the module that build.sh made of the example, with its own record of what it was made of.
func builtScript(t *testing.T) (wasm []byte, record string) {
	t.Helper()
	wasm, err := os.ReadFile(scripts + "/testdata/pairs.wasm")
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile(scripts + "/testdata/SHA256SUMS")
	if err != nil {
		t.Fatal(err)
	}
	return wasm, string(sums)
}

// TestAssemblyScriptRecord: the module is of the sources that are here.
func TestAssemblyScriptRecord(t *testing.T) {
	_, record := builtScript(t)
	for _, path := range []string{"loss.ts", "tinker-loss.ts", "testdata/pairs.wasm"} {
		b, err := os.ReadFile(filepath.Join(scripts, path))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		if line := hex.EncodeToString(sum[:]) + "  " + filepath.Base(path) + "\n"; !strings.Contains(record, line) {
			t.Errorf("SHA256SUMS lacks the line %s(build.sh writes it)", line)
		}
	}
}

// TestAssemblyScript: the module passes the host's check, and gives what the same loss gives in Go and in torch.
func TestAssemblyScript(t *testing.T) {
	wasm, _ := builtScript(t)
	samePairs(t, wasm)
	if r := passes(t, wasm); !slices.Equal(r.Imports, []string{"env.abort"}) {
		t.Errorf("imports %v", r.Imports)
	}

	h, err := plugins.Open(t.Context(), plugins.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	m, err := h.Load(t.Context(), wasm)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()

	// Against a reference of zero, dpo is this loss. The batch is large enough to be cut.
	in := loss.Input{Config: map[string]float64{"beta": 0.25}}
	for i := range 300 {
		n := 1 + 7*i%500
		lp, w := make([]float32, n), make([]float32, n)
		for j := range lp {
			lp[j] = -0.01 - float32((i*31+j*17)%97)/800
			w[j] = float32((i + j) % 3 / 2)
		}
		in.LogProbs = append(in.LogProbs, lp)
		in.Data = append(in.Data, api.Datum{LossInputs: map[string]api.TensorData{"target_tokens": api.Ints(make([]int64, n)), "weights": api.Floats(w)}})
	}
	got, err := m.Loss().Eval(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	want, err := sft.DPO{Beta: 0.25, Reference: make([]float64, len(in.Data))}.Eval(t.Context(), loss.Input{Data: in.Data, LogProbs: in.LogProbs})
	if err != nil {
		t.Fatal(err)
	}
	if got.Metrics["plugin/calls:sum"] < 2 {
		t.Error("the batch was not cut")
	}
	if g, w := got.Metrics["loss:sum"], want.Metrics["loss:sum"]; math.Abs(g-w) > 1e-12*w {
		t.Errorf("loss %v, in Go %v", g, w)
	}
	for i, row := range want.Weights {
		for j, w := range row {
			if g := got.Weights[i][j]; math.Abs(float64(g-w)) > 1e-6*math.Abs(float64(w)) {
				t.Fatalf("datum %d: weight %d is %v, in Go %v", i, j, g, w)
			}
		}
	}
}

// TestAssemblyScriptBuilds builds the example where asc is at hand: in PATH, or named by $ASC. The version of the record makes the same bytes.
func TestAssemblyScriptBuilds(t *testing.T) {
	asc := os.Getenv("ASC")
	if asc == "" {
		asc = "asc"
	} else if !filepath.IsAbs(asc) {
		asc = filepath.Join("..", "..", asc) // as seen from where go test was called
	}
	version, err := exec.Command(asc, "--version").Output()
	if err != nil {
		t.Skipf("no asc on this machine (npm install assemblyscript, then ASC=node_modules/.bin/asc): %v", err)
	}
	dir := t.TempDir()
	cmd := exec.Command("bash", scripts+"/build.sh", dir)
	cmd.Env = append(os.Environ(), "ASC="+asc)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("build.sh: %v", err)
	}
	wasm, err := os.ReadFile(filepath.Join(dir, "pairs.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	samePairs(t, wasm)
	have, record := builtScript(t)
	name := strings.TrimPrefix(strings.TrimSpace(string(version)), "Version ")
	if !strings.HasPrefix(record, "# asc "+name+",") {
		t.Logf("asc %s is not the version of the record: the bytes are not compared", name)
	} else if !bytes.Equal(wasm, have) || string(out) != record {
		t.Errorf("build.sh makes another module, or says\n%swanted\n%s", out, record)
	}
}
