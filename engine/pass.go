package engine

import (
	"context"
	"maps"
	"math"
	"slices"
	"strings"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
	"tinkerlocal/engine/model"
)

// pass is a forward, a forward_backward or a hold, run in micro-batches. A datum's bits do not depend on which
// micro-batch it is in, so each one is cut just before it runs, as large as the limits and the free memory allow.
//
// A loss whose weights for a datum depend on that datum alone (loss.PerDatum) is evaluated as the
// micro-batches pass: one forward, one backward, no tape outlives its step. Any other loss sees the
// whole batch at once: the tapes of all micro-batches are kept until then, or the forward is run again for the
// backward (see planKept). It is evaluated on a goroutine of its own while the device serves others. A hold ends when its
// log-probabilities are known and leaves the pass to its [Held], whose backward goes on with it.
type pass struct {
	run      *Run
	entry    *entry
	future   *Future[api.ForwardBackwardOutput]
	data     []api.Datum
	shapes   [][]int // of each datum's targets; nil where there is one for each position
	items    []model.Item
	loss     loss.Loss
	config   map[string]float64
	backward bool
	perDatum bool
	hold     func(*pass, error) // instead of a future
	alone    bool               // it shares no batch: one that it shared has failed
	digest   *digest            // of a forward that may keep its activations, and of a backward that may take them

	next      int // datums whose log-probabilities are known
	back      int // datums whose gradient is in the adapter's op gradient
	keep      bool
	recompute int // with keep: layers of which only the input is kept
	tapes     []packed
	logProbs  [][]float32
	weights   [][]float32
	loads     [][]int // tokens of each expert of each layer, over all micro-batches; nil without experts
	out       loss.Output
	result    chan evaluation // of a loss off the device's goroutine; nil before it was started
	known     bool            // out is there
}

type evaluation struct {
	out loss.Output
	err error
}

func newPass(r *Run, in api.ForwardBackwardInput, l loss.Loss, backward bool, f *Future[api.ForwardBackwardOutput], en *entry) (task, error) {
	plain := l == nil && in.LossFn == loss.CrossEntropy && !backward && r.e.guessing()
	if l == nil {
		var err error
		if l, err = r.e.opt.Losses.Loss(in.LossFn); err != nil {
			return nil, err
		}
	}
	p, err := newItems(r, in.Data, en)
	if err != nil {
		return nil, err
	}
	if err := loss.Check(l, in.Data, in.LossConfig); err != nil {
		return nil, err
	}
	p.future, p.data, p.loss, p.config, p.backward = f, in.Data, l, in.LossConfig, backward
	_, p.perDatum = l.(loss.PerDatum)
	if plain && r.e.guessing() {
		r.forwards.Store(true)
	}
	if plain || backward && r.forwards.Load() {
		d := digestOf(p.items, p.shapes)
		p.digest = &d
	}
	return p, nil
}

// newItems makes a pass with checked data and no loss yet.
func newItems(r *Run, data []api.Datum, en *entry) (*pass, error) {
	items, err := r.items(data)
	if err != nil {
		return nil, err
	}
	p := &pass{
		run: r, entry: en, items: items, shapes: make([][]int, len(items)),
		logProbs: make([][]float32, len(items)), weights: make([][]float32, len(items)),
	}
	for i, d := range data {
		if dims := d.LossInputs["target_tokens"].Dims(); len(dims) > 1 {
			p.shapes[i] = slices.Clone(dims)
		}
	}
	return p, nil
}

func (p *pass) step() (status, error) {
	switch {
	case p.next == 0:
		if err := p.begin(false); err != nil {
			return done, err
		}
		if p.next > 0 {
			return more, nil // the forward was there already
		}
		fallthrough
	case p.next < len(p.items):
		return p.forward()
	case p.hold != nil:
		return done, nil
	case !p.known:
		return p.evaluate()
	case p.backward && p.back < len(p.items):
		return p.backwardStep()
	}
	return p.finish()
}

// begin puts the run's adapter to the data and clears the op gradient. shared says that the first micro-batch is shared.
func (p *pass) begin(shared bool) error {
	for i := range p.items {
		p.items[i].Adapter = p.run.adapter.Weights
	}
	switch {
	case p.hold != nil:
		p.recompute, p.keep = p.planKept()
		return p.run.roomToHold()
	case !p.backward:
		if !shared {
			p.guess()
		}
		return nil
	}
	if p.digest != nil {
		if err := p.take(); err != nil {
			return err
		}
	}
	switch {
	case p.next > 0:
		p.keep = true
	case p.perDatum:
		p.keep = true
	default:
		p.recompute, p.keep = p.planKept()
	}
	return p.run.adapter.BeginOp()
}

// restart forgets what has been computed.
func (p *pass) restart() {
	p.dropTapes()
	p.next, p.back, p.loads, p.out, p.known = 0, 0, nil, loss.Output{}, false
}

// forward runs one micro-batch forward, and with a per-datum loss backward too.
func (p *pass) forward() (status, error) {
	if p.keep && p.digest != nil && !p.backward {
		pl, ok := p.keptOn()
		if ok {
			return more, p.run.e.runParts([]part{{p, p.next, pl.hi}}, pl)
		}
		p.dropTapes()
		p.keep = false
	}
	pl, err := p.plan(p.next, p.keep)
	if len(p.tapes) > 0 && (pl.wait || err != nil && apiError(err).Code == api.OutOfMemory) {
		// The memory went elsewhere. Two operations that hold tapes must not wait for each other: this one gives its own
		// up and runs these again later.
		p.dropTapes()
		p.keep = false
		return more, nil
	}
	if err != nil || pl.wait {
		return more, err
	}
	parts := []part{{p, p.next, pl.hi}}
	if p.mixes() && pl.recompute == 0 {
		parts = p.run.e.join(parts, &pl)
	}
	return more, p.run.e.runParts(parts, pl)
}

// countLoads adds the tokens per expert of items [lo, hi) of a micro-batch: the statistics are those of the whole
// operation, however it was cut.
func (p *pass) countLoads(t *model.Tape, lo, hi int) error {
	loads, err := t.ExpertLoads(lo, hi)
	if err != nil || p.loads == nil {
		p.loads = loads
		return err
	}
	for i, layer := range loads {
		for e, n := range layer {
			p.loads[i][e] += n
		}
	}
	return nil
}

// metrics are the loss's, and for a mixture of experts the router's.
func (p *pass) metrics() map[string]float64 {
	router := model.RouterMetrics(p.loads)
	if router == nil {
		return p.out.Metrics
	}
	maps.Copy(router, p.out.Metrics)
	return router
}

// evaluate gives the loss the whole batch. A per-datum loss did its part before: this time it makes the metrics of the
// whole, so that they do not depend on how the batch was cut.
func (p *pass) evaluate() (status, error) {
	e := p.run.e
	if p.perDatum {
		out, err := p.eval(e.ctx, 0, len(p.items))
		p.out, p.known = out, true
		if p.back < len(p.items) {
			copy(p.weights, out.Weights) // of a forward that was there already
		}
		return more, err
	}
	if p.result != nil {
		r := <-p.result // it is there: the entry was resumed
		p.out, p.known = r.out, true
		copy(p.weights, r.out.Weights)
		return more, r.err
	}
	p.result = make(chan evaluation, 1)
	e.mu.Lock()
	p.entry.paused = true
	e.mu.Unlock()
	e.evals.Go(func() {
		ctx, cancel := context.WithTimeout(p.run.ctx, e.lim.LossTime)
		defer cancel()
		out, err := guard("loss", func() (loss.Output, error) { return p.eval(ctx, 0, len(p.items)) })
		p.result <- evaluation{out, err}
		e.mu.Lock()
		p.entry.paused = false
		e.mu.Unlock()
		e.signal()
	})
	return paused, nil
}

// eval runs the loss on datums [lo, hi) and checks its answer.
func (p *pass) eval(ctx context.Context, lo, hi int) (loss.Output, error) {
	in := loss.Input{Data: p.data[lo:hi], LogProbs: p.logProbs[lo:hi], Config: p.config, ValueOnly: !p.backward}
	out, err := p.loss.Eval(ctx, in)
	if err != nil {
		return out, err
	}
	if in.ValueOnly {
		out.Weights = nil
	} else if err := checkWeights("the loss returned", out.Weights, p.logProbs[lo:hi], lo); err != nil {
		return out, err
	}
	for name := range out.Metrics {
		if strings.Count(name, ":") != 1 {
			return out, api.Errorf(api.BadRequest, "the loss returned metric %q, wanted a name that ends in one reduction, like loss:sum", name)
		}
	}
	if _, ok := out.Metrics["loss:sum"]; !ok {
		return out, api.Errorf(api.BadRequest, "the loss returned no metric loss:sum")
	}
	return out, nil
}

// checkWeights wants one finite weight for each log-probability of the datums from first on.
func checkWeights(who string, weights, logProbs [][]float32, first int) error {
	if len(weights) != len(logProbs) {
		return api.Errorf(api.BadRequest, "%s weights for %d datums, the batch has %d", who, len(weights), len(logProbs))
	}
	for i, w := range weights {
		if len(w) != len(logProbs[i]) {
			return api.Errorf(api.BadRequest, "datum %d: %s %d weights for %d log-probabilities", first+i, who, len(w), len(logProbs[i]))
		}
		for j, v := range w {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				return api.Errorf(api.BadRequest, "datum %d: %s weight %d = %v, wanted a finite number", first+i, who, j, v)
			}
		}
	}
	return nil
}

// backwardStep differentiates one micro-batch of a loss that has seen the whole batch.
func (p *pass) backwardStep() (status, error) {
	var h packed
	if len(p.tapes) > 0 {
		h, p.tapes = p.tapes[0], p.tapes[1:]
	} else {
		pl, err := p.plan(p.back, true)
		if err != nil || pl.wait {
			return more, err
		}
		if h, err = p.run.e.pack([]part{{p, p.back, pl.hi}}, pl); err != nil {
			return more, err
		}
	}
	defer h.release()
	c := h.parts[0]
	p.back = c.hi
	return more, h.differentiate(p.weights[c.lo:c.hi])
}

func (p *pass) finish() (status, error) {
	if !p.backward {
		return done, nil
	}
	err := p.run.adapter.CommitOp()
	if err == nil {
		p.run.trainedWith(p.loss, p.config)
	}
	return done, err
}

// bytes is the device memory of the pass's tapes.
func (p *pass) bytes() (n int64) {
	for _, h := range p.tapes {
		n += h.bytes
	}
	return n
}

func (p *pass) dropTapes() {
	for _, h := range p.tapes {
		h.release()
	}
	p.tapes = nil
}

func (p *pass) end(err error) {
	if p.hold != nil {
		p.hold(p, err)
		return
	}
	if p.digest != nil && !p.backward && err == nil {
		p.run.guesses.note(*p.digest, p.run.e.lim.KeptForwards)
		if p.keep {
			p.run.e.newGuess(p)
		}
	}
	p.dropTapes()
	if err != nil {
		p.future.fail(err)
		return
	}
	out := api.ForwardBackwardOutput{
		LossFnOutputType: "ArrayRecord",
		LossFnOutputs:    make([]map[string]api.TensorData, len(p.items)),
		Metrics:          p.metrics(),
	}
	for i, lp := range p.logProbs {
		out.LossFnOutputs[i] = map[string]api.TensorData{"logprobs": {Floats: lp, Shape: p.shapes[i]}}
	}
	p.future.set(out, nil)
}
