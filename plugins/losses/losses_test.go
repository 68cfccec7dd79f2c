package losses

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
)

// twins are modules that only tests use: the built-in losses of the same names.
var twins = []string{"cross_entropy", "importance_sampling", "ppo"}

func all(t testing.TB) map[string][]byte {
	t.Helper()
	out := Bundled()
	for _, name := range twins {
		wasm, err := os.ReadFile(filepath.Join("testdata", name+".wasm"))
		if err != nil {
			t.Fatal(err)
		}
		out[name] = wasm
	}
	return out
}

// golden is one evaluation by torch autograd: see testdata/make_goldens.py.
type golden struct {
	Loss    string
	Config  map[string]float64
	Value   float64
	Metrics map[string]float64
	Weights [][]float64
	Data    []struct {
		Dims     [2]int
		Logprobs []float32
		Floats   map[string][]float32
		Ints     map[string][]int64
	}
}

func goldens(t testing.TB) []golden {
	t.Helper()
	raw, err := os.ReadFile("testdata/goldens.json")
	if err != nil {
		t.Fatal(err)
	}
	var out []golden
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func (g golden) batch() batch {
	b := batch{config: g.Config}
	for _, d := range g.Data {
		x := datum{dims: d.Dims, logprobs: d.Logprobs, inputs: map[string]tensor{}}
		for name, v := range d.Floats {
			x.inputs[name] = tensor{floats: v}
		}
		for name, v := range d.Ints {
			x.inputs[name] = tensor{ints: v}
		}
		b.data = append(b.data, x)
	}
	return b
}

// checkValues holds a loss and its weights against torch's.
func checkValues(t *testing.T, g golden, got answer) {
	t.Helper()
	if !close6(got.loss, g.Value) {
		t.Errorf("loss %v, torch has %v", got.loss, g.Value)
	}
	for d := range g.Weights {
		for j, want := range g.Weights[d] {
			if !close6(float64(got.weights[d][j]), want) {
				t.Errorf("datum %d weight %d is %v, torch has %v", d, j, got.weights[d][j], want)
			}
		}
	}
}

func close6(got, want float64) bool {
	return math.Abs(got-want) <= 1e-6*math.Abs(want)+1e-12
}

func TestGoldens(t *testing.T) {
	wasm, seen := all(t), map[string]bool{}
	for i, g := range goldens(t) {
		t.Run(fmt.Sprint(i, " ", g.Loss), func(t *testing.T) {
			seen[g.Loss] = true
			m := load(t, wasm[g.Loss])
			got, err := m.run(t, g.batch())
			if err != nil {
				t.Fatal(err)
			}
			checkValues(t, g, got)
			if have, want := slices.Sorted(maps.Keys(got.metrics)), slices.Sorted(maps.Keys(g.Metrics)); !slices.Equal(have, want) {
				t.Errorf("metrics %v, wanted %v", have, want)
			}
			for name, want := range g.Metrics {
				if !close6(got.metrics[name], want) {
					t.Errorf("%s is %v, torch has %v", name, got.metrics[name], want)
				}
			}
		})
	}
	for name := range Bundled() {
		if !seen[name] {
			t.Errorf("%s has no golden", name)
		}
	}
}

// TestContract: what a host relies on, for every module and golden batch.
func TestContract(t *testing.T) {
	wasm := all(t)
	for i, g := range append(goldens(t), twinCases()...) {
		t.Run(fmt.Sprint(i, " ", g.Loss), func(t *testing.T) {
			m, b := load(t, wasm[g.Loss]), g.batch()
			first, err := m.run(t, b)
			if err != nil {
				t.Fatal(err)
			}
			again, err := m.run(t, b) // in the used instance
			if err != nil || !reflect.DeepEqual(first, again) {
				t.Errorf("a second call gives %v, %v; the first gave %v", again, err, first)
			}
			absent := b
			absent.absent = true
			if got, err := load(t, wasm[g.Loss]).run(t, absent); err != nil || !reflect.DeepEqual(first, got) {
				t.Errorf("with columns that no datum has: %v, %v; without: %v", got, err, first)
			}
			quick := b
			quick.evaluate = true
			if got, err := m.run(t, quick); err != nil || got.loss != first.loss || !maps.Equal(got.metrics, first.metrics) {
				t.Errorf("evaluation only: %v, %v; wanted %v", got, err, first)
			}
			checkSlope(t, m, b, first)
			checkChunks(t, m, b, first)
		})
	}
}

// checkSlope compares difference quotients along random directions with the weights. Two of eight must agree: a step over a kink of
// clipping spoils some. Where grpo has no sampler's log-probabilities, the policy's own are held in their place.
func checkSlope(t *testing.T, m *module, b batch, at answer) {
	t.Helper()
	rng := rand.New(rand.NewPCG(7, uint64(len(b.data))))
	const step = 1.0 / 512
	best := []float64{}
	if m.desc.Name == "grpo" {
		b.data = slices.Clone(b.data)
		for i, d := range b.data {
			if _, ok := d.inputs["logprobs"]; !ok {
				b.data[i].inputs = maps.Clone(d.inputs)
				b.data[i].inputs["logprobs"] = tensor{floats: d.logprobs}
			}
		}
	}
	for range 8 {
		var moved [2]batch
		want, size := 0.0, 0.0
		for side := range moved {
			moved[side] = b
			moved[side].data = slices.Clone(b.data)
		}
		for i, d := range b.data {
			up, down := slices.Clone(d.logprobs), slices.Clone(d.logprobs)
			for j := range d.logprobs {
				v := float32(rng.IntN(3)-1) * step
				up[j] += v
				down[j] -= v
				half := (float64(up[j]) - float64(down[j])) / 2
				want -= half * float64(at.weights[i][j])
				size += math.Abs(half * float64(at.weights[i][j]))
			}
			moved[0].data[i].logprobs, moved[1].data[i].logprobs = up, down
		}
		hi, err := m.run(t, moved[0])
		if err != nil {
			t.Fatal(err)
		}
		lo, err := m.run(t, moved[1])
		if err != nil {
			t.Fatal(err)
		}
		if size == 0 {
			continue
		}
		best = append(best, math.Abs((hi.loss-lo.loss)/2-want)/size)
	}
	slices.Sort(best)
	if len(best) < 2 || best[1] > 1e-4 {
		t.Errorf("difference quotients and weights differ by %v of the slope", best)
	}
}

// checkChunks cuts the batch at every datum or group border: the sum of the parts must be the whole.
func checkChunks(t *testing.T, m *module, b batch, whole answer) {
	t.Helper()
	var parts []batch
	switch m.desc.Scope {
	case "batch":
		return
	case "datum":
		for _, d := range b.data {
			parts = append(parts, batch{data: []datum{d}})
		}
	case "group":
		of, n := m.groups(b.data)
		parts = make([]batch, n)
		for i, d := range b.data {
			parts[of[i]].data = append(parts[of[i]].data, d)
		}
	default:
		t.Fatalf("scope %q", m.desc.Scope)
	}
	loss, weights, sums, counts := 0.0, map[*float32][]float32{}, map[string]float64{}, map[string]float64{}
	for _, p := range parts {
		p.config, p.whole = b.config, b.data
		a, err := m.run(t, p)
		if err != nil {
			t.Fatal(err)
		}
		loss += a.loss
		for i, d := range p.data {
			weights[&d.logprobs[0]] = a.weights[i]
		}
		for name, v := range a.metrics {
			sums[name] += v * float64(len(p.data))
			counts[name] += float64(len(p.data))
		}
	}
	if !close6(loss, whole.loss) {
		t.Errorf("chunks add up to %v, the whole is %v", loss, whole.loss)
	}
	for i, d := range b.data {
		if !slices.Equal(weights[&d.logprobs[0]], whole.weights[i]) {
			t.Errorf("datum %d: weights %v in chunks, %v in the whole", i, weights[&d.logprobs[0]], whole.weights[i])
		}
	}
	for name, v := range whole.metrics {
		if !strings.HasSuffix(name, ":mean") {
			t.Errorf("metric %s: this test knows means only", name)
		}
		if counts[name] == float64(len(b.data)) && !close6(sums[name]/counts[name], v) {
			t.Errorf("%s is %v in chunks, %v in the whole", name, sums[name]/counts[name], v)
		}
	}
}

var metricName = regexp.MustCompile(`^[A-Za-z0-9_./-]+:(sum|mean|min|max)$`)

// TestModules: small, without imports, described as the ABI wants.
func TestModules(t *testing.T) {
	for name, wasm := range all(t) {
		m := load(t, wasm)
		if len(wasm) > 16<<10 {
			t.Errorf("%s has %d bytes, wanted a few kilobytes", name, len(wasm))
		}
		rt := wazero.NewRuntime(t.Context())
		compiled, err := rt.CompileModule(t.Context(), wasm)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(compiled.ImportedFunctions()); n != 0 {
			t.Errorf("%s imports %d functions", name, n)
		}
		exports := slices.Sorted(maps.Keys(compiled.ExportedFunctions()))
		if want := []string{"loss_abi_version", "loss_alloc", "loss_call", "loss_describe"}; !slices.Equal(exports, want) {
			t.Errorf("%s exports %v, wanted %v", name, exports, want)
		}
		rt.Close(t.Context())
		if v := m.call(t, "loss_abi_version"); v != 0x10000 {
			t.Errorf("%s: version %#x", name, v)
		}
		d := m.desc
		if d.Name != name || d.Version == "" || d.Summary == "" || d.License != "Apache-2.0" {
			t.Errorf("%s describes itself as %+v", name, d)
		}
		for _, p := range d.Params {
			if p.Default == nil || p.Type == "enum" != (len(p.Values) > 0) {
				t.Errorf("%s: parameter %+v", name, p)
			}
		}
		for _, metric := range d.Metrics {
			if !metricName.MatchString(metric) {
				t.Errorf("%s: metric %q", name, metric)
			}
		}
		// Impossible sizes are refused, not trapped.
		if p := m.call(t, "loss_alloc", 0xFFFFFFF0); p != 0 {
			t.Errorf("%s: loss_alloc of 4 GiB gave %d", name, p)
		}
		if p := m.call(t, "loss_alloc", 300<<20); p != 0 {
			t.Errorf("%s: loss_alloc beyond the memory limit gave %d", name, p)
		}
	}
}

// TestRefused: what the host cannot check before a call is refused with the datum's number and the reason.
func TestRefused(t *testing.T) {
	wasm := all(t)
	for _, c := range []struct {
		loss string
		edit func(*batch)
		want string
	}{
		{"grpo", func(b *batch) {
			b.config = map[string]float64{"beta": 1}
			for i := range b.data {
				if i != 2 {
					b.data[i].inputs["ref_logprobs"] = tensor{floats: b.data[i].logprobs}
				}
			}
		}, "status 1: datum 2: ref_logprobs is missing, beta is not 0"},
		{"grpo", func(b *batch) { b.config = map[string]float64{"clip_low_threshold": 2} }, "status 1: clip_low_threshold is above"},
		{"gspo", func(b *batch) { b.config = map[string]float64{"clip_low_threshold": 2} }, "status 1: clip_low_threshold is above"},
		{"kto", func(b *batch) { b.data[1].inputs["label"] = tensor{ints: []int64{2}} }, "status 1: datum 1: label is none of"},
		{"kto", func(b *batch) {
			for i := range b.data {
				b.data[i].inputs["label"] = tensor{ints: []int64{-1}}
			}
		}, "status 1: no datum has label"},
		{"logprob_variance", func(b *batch) {
			b.data = b.data[:1]
			b.data[0].logprobs = b.data[0].logprobs[:1]
			b.data[0].dims = [2]int{1, 1}
		}, "status 1: variance of less than two"},
		{"ppo", func(b *batch) { b.config = map[string]float64{"clip_low_threshold": 2} }, "status 1: datum 0: clip thresholds are not"},
		{"ppo", func(b *batch) { b.data[0].dims = [2]int{1, len(b.data[0].logprobs)} }, "status 1: datum 0: ppo wants one target"},
	} {
		cases := append(goldens(t), twinCases()...)
		b := cases[slices.IndexFunc(cases, func(g golden) bool { return g.Loss == c.loss })].batch()
		c.edit(&b)
		if _, err := load(t, wasm[c.loss]).run(t, b); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: got %v, wanted %q", c.loss, err, c.want)
		}
	}
	m := load(t, wasm["dpo"])
	if status := m.call(t, "loss_call", m.call(t, "loss_alloc", 128), 128); status != 3 {
		t.Errorf("a request without head: status %d", status)
	}
}

// TestEmpty: datums without tokens, a group of them too, change nothing but means over datums, and no number becomes infinite or NaN.
func TestEmpty(t *testing.T) {
	wasm := all(t)
	for i, g := range append(goldens(t), twinCases()...) {
		b := g.batch()
		for k := range 2 {
			d := b.data[k]
			inputs := map[string]tensor{}
			for name, x := range d.inputs {
				if len(x.floats) == len(d.logprobs) {
					x.floats = nil
				}
				if name == "group" {
					x.ints = []int64{77}
				}
				inputs[name] = x
			}
			b.data = append(b.data, datum{dims: [2]int{0, d.dims[1]}, inputs: inputs})
		}
		a, err := load(t, wasm[g.Loss]).run(t, b)
		if err != nil {
			t.Errorf("%d %s: %v", i, g.Loss, err)
		}
		for name, v := range a.metrics {
			if v-v != 0 {
				t.Errorf("%d %s: %s is %v", i, g.Loss, name, v)
			}
		}
		nonzero := 0
		for d := range a.weights {
			for j, w := range a.weights[d] {
				if w-w != 0 || w == 0 && g.Weights[d][j] != 0 {
					t.Errorf("%d %s: datum %d weight %d is %v", i, g.Loss, d, j, w)
				}
				if w != 0 {
					nonzero++
				}
			}
		}
		if a.loss-a.loss != 0 || nonzero == 0 {
			t.Errorf("%d %s: loss %v, %d weights", i, g.Loss, a.loss, nonzero)
		}
	}
}

// TestMasked: a token of weight 0 may have an infinite log-probability.
func TestMasked(t *testing.T) {
	wasm := all(t)
	inf := float32(math.Inf(-1))
	for _, g := range goldens(t) {
		b := g.batch()
		changed := 0
		for i, d := range b.data {
			w, ok := d.inputs["weights"]
			if !ok {
				continue
			}
			for j := range w.floats {
				if w.floats[j] == 0 {
					b.data[i].logprobs[j] = inf
					for _, name := range []string{"ref_logprobs", "logprobs", "teacher_logprobs"} {
						if x, ok := d.inputs[name]; ok {
							x.floats[j] = inf
						}
					}
					changed++
				}
			}
		}
		if changed == 0 {
			continue
		}
		got, err := load(t, wasm[g.Loss]).run(t, b)
		if err != nil || !close6(got.loss, g.Value) {
			t.Errorf("%s: %v, %v with infinities behind the mask, %v without", g.Loss, got.loss, err, g.Value)
		}
		for d := range got.weights {
			for j, w := range got.weights[d] {
				if !close6(float64(w), g.Weights[d][j]) {
					t.Errorf("%s: datum %d weight %d is %v, wanted %v", g.Loss, d, j, w, g.Weights[d][j])
				}
			}
		}
	}
}
