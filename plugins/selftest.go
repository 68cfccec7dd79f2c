package plugins

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"tinkerlocal/engine/api"
)

// Report is what is known about a module once it has been tried.
type Report struct {
	Digest      string        `json:"digest"`
	Size        int           `json:"size"` // bytes
	Meta        Meta          `json:"meta"`
	Imports     []string      `json:"imports,omitempty"`
	Functions   int           `json:"functions"`
	Pages       int           `json:"pages"`      // of 64 KiB, after the start
	StartFuel   int64         `json:"start_fuel"` // used by start and loss_describe
	CompileTime time.Duration `json:"compile_ns"`

	// Error is how far the weights are from the loss's difference quotient in one direction, as a part of the larger one. Without a
	// result it is negative.
	Error float64 `json:"gradient_error"`

	// Measured by Check only, on a batch of MeasuredElements.
	MeasuredElements int     `json:"measured_elements,omitempty"`
	NsPerElement     float64 `json:"ns_per_element,omitempty"`
	FuelPerElement   float64 `json:"fuel_per_element,omitempty"`
	PeakPages        int     `json:"peak_pages,omitempty"`

	Warnings []string `json:"warnings,omitempty"`
}

func (r *Report) warn(format string, args ...any) {
	r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
}

// maxGradientError is what passes without a warning: a loss in float32 has about 1e-4.
const maxGradientError = 1e-2

// selfTest tries a module on a small made-up batch, with its optional inputs and without. One that refuses the made-up numbers
// of the first kind is tried on the second.
func (m *Module) selfTest(ctx context.Context) error {
	m.report.Error = -1
	optional := slices.ContainsFunc(m.meta.Inputs, func(i Input) bool { return i.Optional })
	tested, err := m.selfTestOn(ctx, true)
	if err == nil && optional {
		if !tested {
			_, err = m.selfTestOn(ctx, false)
		} else {
			err = m.tryWithoutOptional(ctx)
		}
	}
	return err
}

// selfTestOn reports whether the module took the batch.
func (m *Module) selfTestOn(ctx context.Context, optional bool) (bool, error) {
	b, err := m.madeUp(4, 5, optional)
	if err != nil {
		return false, bad("no self-test can be made up: %w", err)
	}
	at := func(delta float32, direction [][]float32) (out evaluated, err error) {
		lp := make([][]float32, len(b.LogProbs))
		for i, row := range b.LogProbs {
			lp[i] = slices.Clone(row)
			for j := range row {
				if direction != nil {
					lp[i][j] += delta * direction[i][j]
				}
			}
		}
		return m.tryOut(ctx, madeUpBatch{b.Data, lp, b.Config})
	}
	base, err := at(0, nil)
	if isInput(err) {
		m.report.warn("the self-test's batch was refused, so the gradient is not checked on it: %v", err)
		return false, nil
	}
	if err != nil {
		return false, selfTestError(err)
	}
	again, err := at(0, nil)
	if err != nil {
		return false, selfTestError(err)
	}
	if !base.same(again) {
		return false, bad("self-test: two calls with the same inputs gave different results")
	}
	if err := m.checkGradient(base, b, at); err != nil {
		return false, err
	}
	m.tookOptional = optional
	return true, nil
}

func selfTestError(err error) error { return refusal(fmt.Errorf("self-test: %w", err)) }

// checkGradient compares the weights with a central difference along one direction. The direction goes where each weight points, by a random
// length, so that nothing cancels.
func (m *Module) checkGradient(base evaluated, b madeUpBatch, at func(float32, [][]float32) (evaluated, error)) error {
	rng := rand.New(rand.NewPCG(3, 4))
	direction := make([][]float32, len(base.weights))
	any := false
	for i, row := range base.weights {
		direction[i] = make([]float32, len(row))
		for j, w := range row {
			direction[i][j] = 0.5 + rng.Float32()
			if w < 0 {
				direction[i][j] *= -1
			}
			any = any || w != 0
		}
	}
	if !any {
		return bad("self-test: all weights are zero: the loss has no derivative")
	}
	const h = 1.0 / 256
	hi, err := at(h, direction)
	if err != nil {
		return selfTestError(err)
	}
	lo, err := at(-h, direction)
	if err != nil {
		return selfTestError(err)
	}
	want := 0.0
	for i, row := range base.weights {
		for j, w := range row {
			x, d := b.LogProbs[i][j], direction[i][j]
			want -= float64(w) * (float64(x+h*d) - float64(x-h*d)) // the step that float32 made of it
		}
	}
	got := hi.loss - lo.loss
	m.report.Error = math.Abs(got-want) / max(math.Abs(got), math.Abs(want))
	if m.report.Error > maxGradientError {
		m.report.warn("the weights do not fit the loss: along one direction it changes by %.6g, the weights say %.6g (a stopped gradient or a kink can be the cause)", got, want)
	}
	return nil
}

// tryWithoutOptional wants the module to do without what it calls optional.
func (m *Module) tryWithoutOptional(ctx context.Context) error {
	b, err := m.madeUp(4, 5, false)
	if err != nil {
		return err
	}
	if _, err := m.tryOut(ctx, b); isInput(err) {
		m.report.warn("without its optional inputs, it refuses the self-test's batch: %v", err)
	} else if err != nil {
		return selfTestError(fmt.Errorf("without optional inputs: %w", err))
	}
	return nil
}

// evaluated is what one evaluation gave.
type evaluated struct {
	weights [][]float32
	metrics map[string]float64
	loss    float64
}

func (e evaluated) same(o evaluated) bool {
	if !sameBits(e.weights, o.weights) || len(e.metrics) != len(o.metrics) {
		return false
	}
	for name, v := range e.metrics {
		if w, ok := o.metrics[name]; !ok || math.Float64bits(v) != math.Float64bits(w) {
			return false
		}
	}
	return true
}

func sameBits(a, b [][]float32) bool {
	return slices.EqualFunc(a, b, func(x, y []float32) bool {
		return slices.EqualFunc(x, y, func(v, w float32) bool { return math.Float32bits(v) == math.Float32bits(w) })
	})
}

// madeUpBatch is data with the log-probabilities that a model would have given.
type madeUpBatch struct {
	Data     []api.Datum
	LogProbs [][]float32
	Config   map[string]float64
}

// tryOut evaluates without asking whether the module is loaded: it is not, yet.
func (m *Module) tryOut(ctx context.Context, in madeUpBatch) (evaluated, error) {
	b, err := m.meta.prepare(in.Data, in.LogProbs, in.Config)
	if err != nil {
		return evaluated{}, err
	}
	out, err := m.evalBatch(ctx, b, evalOptions{})
	return evaluated{out.Weights, out.Metrics, out.Metrics["loss:sum"]}, err
}

// madeUp makes a batch of about that many datums, with about that many tokens each, of what the metadata declares. Log-probabilities are
// those of a model and of a slightly different one; other numbers lie between 1/4 and 1, whole ones are 1.
func (m *Module) madeUp(datums, tokens int, optional bool) (madeUpBatch, error) {
	rng := rand.New(rand.NewPCG(1, 2))
	if g := m.meta.Grouping; g != nil && g.By == "consecutive" {
		datums = max((datums+g.Size-1)/g.Size, 2) * g.Size
		tokens = max(1, min(tokens, 1<<20/datums))
	}
	b := madeUpBatch{Config: map[string]float64{}}
	for _, p := range m.meta.Params {
		if p.Default == nil {
			v := 0.0
			if p.Type == "number" {
				v = 0.1
			}
			if p.Min != nil {
				v = max(v, *p.Min)
			}
			if p.Max != nil {
				v = min(v, *p.Max)
			}
			b.Config[p.Name] = v
		}
	}
	for i := range datums {
		n := tokens + i%3
		lp := make([]float32, n)
		for j := range lp {
			lp[j] = -0.05 - 3*rng.Float32()
		}
		d := api.Datum{LossInputs: map[string]api.TensorData{"target_tokens": api.Ints(make([]int64, n))}}
		for _, in := range m.meta.Inputs {
			if in.Name != "target_tokens" && (optional || !in.Optional) {
				d.LossInputs[in.Name] = m.madeUpInput(&in, i, lp, rng)
			}
		}
		b.Data = append(b.Data, d)
		b.LogProbs = append(b.LogProbs, lp)
	}
	_, err := m.meta.prepare(b.Data, b.LogProbs, b.Config)
	return b, err
}

func (m *Module) madeUpInput(in *Input, datum int, lp []float32, rng *rand.Rand) api.TensorData {
	n, t := len(lp), api.TensorData{}
	if in.Like == "" {
		t.Shape = in.Shape
		if t.Shape == nil {
			t.Shape = []int{n}
		}
		n = 1
		for _, d := range t.Shape {
			n *= d
		}
	}
	if in.DType == "int64" {
		t.Ints = make([]int64, n)
		for j := range t.Ints {
			t.Ints[j] = 1
			if g := m.meta.Grouping; g != nil && g.Name == in.Name {
				t.Ints[j] = int64(datum / 2)
			}
		}
		return t
	}
	t.Floats = make([]float32, n)
	for j := range t.Floats {
		t.Floats[j] = 0.25 + 0.75*rng.Float32()
		if in.Like != "" && strings.Contains(in.Name, "logp") {
			t.Floats[j] = lp[j] + 0.1*(rng.Float32()-0.5)
		}
	}
	return t
}

// measure times a batch of an ordinary size, on one instance at a time.
func (m *Module) measure(ctx context.Context, r *Report) error {
	b, err := m.madeUp(64, 511, m.tookOptional)
	if err != nil {
		return err
	}
	batch, err := m.meta.prepare(b.Data, b.LogProbs, b.Config)
	if err != nil {
		return err
	}
	best := time.Duration(math.MaxInt64)
	var fuel float64
	var pages int
	for start := time.Now(); best == math.MaxInt64 || time.Since(start) < 50*time.Millisecond; {
		t := time.Now()
		out, err := m.evalBatch(ctx, batch, evalOptions{workers: 1})
		if isInput(err) {
			return nil // the self-test has said so
		}
		if err != nil {
			return refusal(fmt.Errorf("a batch of %d log-probabilities: %w", batch.elems, err))
		}
		best = min(best, time.Since(t))
		fuel, pages = out.Metrics["plugin/fuel:sum"], int(out.Metrics["plugin/pages:max"])
	}
	r.MeasuredElements, r.PeakPages = batch.elems, pages
	r.NsPerElement = float64(best.Nanoseconds()) / float64(batch.elems)
	r.FuelPerElement = fuel / float64(batch.elems)
	return nil
}
