package engine

import (
	"context"
	"maps"
	"math"
	"strings"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
	"tinkerlocal/engine/model"
)

// pass is a forward or a forward_backward, run in micro-batches. A datum's bits do not depend on which
// micro-batch it is in, so each one is cut just before it runs, as large as the limits and the free memory allow.
//
// A loss whose weights for a datum depend on that datum alone (loss.PerDatum) is evaluated as the
// micro-batches pass: one forward, one backward, no tape outlives its step. Any other loss sees the
// whole batch at once: the tapes of all micro-batches are kept until then if memory allows, else the
// forward is run again for the backward. It is evaluated on a goroutine of its own while the
// device serves others.
type pass struct {
	run      *Run
	entry    *entry
	future   *Future[api.ForwardBackwardOutput]
	data     []api.Datum
	items    []model.Item
	loss     loss.Loss
	config   map[string]float64
	backward bool
	perDatum bool

	next     int // datums whose log-probabilities are known
	back     int // datums whose gradient is in the adapter's op gradient
	keep     bool
	tapes    []heldTape
	logProbs [][]float32
	weights  [][]float32
	loads    [][]int // tokens of each expert of each layer, over all micro-batches; nil without experts
	out      loss.Output
	result   chan evaluation // of a loss off the device's goroutine; nil before it was started
	known    bool            // out is there
}

type heldTape struct {
	tape   *model.Tape
	lo, hi int
	bytes  int64
}

type evaluation struct {
	out loss.Output
	err error
}

func newPass(r *Run, in api.ForwardBackwardInput, l loss.Loss, backward bool, f *Future[api.ForwardBackwardOutput], en *entry) (task, error) {
	if l == nil {
		var err error
		if l, err = r.e.opt.Losses.Loss(in.LossFn); err != nil {
			return nil, err
		}
	}
	items, err := r.items(in.Data)
	if err != nil {
		return nil, err
	}
	if err := loss.Check(l, in.Data, in.LossConfig); err != nil {
		return nil, err
	}
	p := &pass{
		run: r, entry: en, future: f, data: in.Data, items: items, loss: l, config: in.LossConfig, backward: backward,
		logProbs: make([][]float32, len(items)), weights: make([][]float32, len(items)),
	}
	_, p.perDatum = l.(loss.PerDatum)
	return p, nil
}

func (p *pass) step() (status, error) {
	switch {
	case p.next == 0:
		if err := p.begin(); err != nil {
			return done, err
		}
		fallthrough
	case p.next < len(p.items):
		return p.forward()
	case !p.known:
		return p.evaluate()
	case p.backward && p.back < len(p.items):
		return p.backwardStep()
	}
	return p.finish()
}

// begin puts the run's adapter to the data and clears the op gradient.
func (p *pass) begin() error {
	for i := range p.items {
		p.items[i].Adapter = p.run.adapter.Weights
	}
	if !p.backward {
		return nil
	}
	p.keep = p.perDatum || p.fitsKept()
	return p.run.adapter.BeginOp()
}

// fitsKept reports whether the tapes of all micro-batches fit side by side.
func (p *pass) fitsKept() bool {
	room, total := p.run.e.room(p.run.base), int64(0)
	for lo := 0; lo < len(p.items); {
		hi, bytes := p.cut(lo, math.MaxInt64, true)
		if total += bytes; total > room {
			return false
		}
		lo = hi
	}
	return true
}

// cut ends the micro-batch that begins at datum lo: as many datums as the token limit and room bytes
// allow, at least one.
func (p *pass) cut(lo int, room int64, keep bool) (hi int, bytes int64) {
	tokens, targets := 0, 0
	for hi = lo; hi < len(p.items); hi++ {
		it := p.items[hi]
		tokens += len(it.Tokens)
		targets = max(targets, len(it.Targets)/len(it.Tokens))
		b := p.run.base.model.TrainBytes(tokens, targets, p.run.lora.Rank, keep, 0)
		if hi > lo && (tokens > p.run.e.lim.MicroBatchTokens || b > room) {
			break
		}
		bytes = b
	}
	return hi, bytes
}

// batch runs the forward of the next micro-batch from datum lo on. ok is false when it has to wait for
// tapes that other operations hold.
func (p *pass) batch(lo int, keep bool) (_ heldTape, ok bool, err error) {
	e := p.run.e
	room := e.room(p.run.base)
	hi, bytes := p.cut(lo, room, keep)
	if bytes > room && e.freeIdle() {
		room = e.room(p.run.base)
		hi, bytes = p.cut(lo, room, keep)
	}
	if bytes > room {
		if e.tapes > len(p.tapes) {
			e.mu.Lock()
			p.entry.starved = true
			e.mu.Unlock()
			return heldTape{}, false, nil
		}
		return heldTape{}, false, api.Errorf(api.OutOfMemory, "%s: datum %d with %d tokens needs %d bytes of device memory, %d are free",
			p.entry.name, lo, len(p.items[lo].Tokens), bytes, room)
	}
	tape, err := p.run.base.model.Forward(p.items[lo:hi], keep)
	if err != nil {
		return heldTape{}, false, err
	}
	e.used += bytes
	e.tapes++
	return heldTape{tape, lo, hi, bytes}, true, nil
}

func (p *pass) release(h heldTape) {
	h.tape.Release()
	p.run.e.used -= h.bytes
	p.run.e.tapes--
}

// forward runs one micro-batch forward, and with a per-datum loss backward too.
func (p *pass) forward() (status, error) {
	h, ok, err := p.batch(p.next, p.keep)
	if err != nil && len(p.tapes) > 0 && apiError(err).Code == api.OutOfMemory {
		p.dropTapes() // the memory went elsewhere: run these again later
		p.keep = false
		return more, nil
	}
	if err != nil {
		return more, err
	}
	if !ok {
		// Two operations that hold tapes must not wait for each other: this one gives its own up.
		if len(p.tapes) > 0 {
			p.dropTapes()
			p.keep = false
		}
		return more, nil
	}
	held := false
	defer func() {
		if !held {
			p.release(h)
		}
	}()
	lp, err := h.tape.LogProbs()
	if err != nil {
		return more, err
	}
	if p.backward {
		if err := p.countLoads(h.tape, h.hi-h.lo); err != nil {
			return more, err
		}
	}
	copy(p.logProbs[h.lo:h.hi], lp)
	switch {
	case p.perDatum && p.backward:
		out, err := p.eval(p.run.e.ctx, h.lo, h.hi)
		if err != nil {
			return more, err
		}
		copy(p.weights[h.lo:h.hi], out.Weights)
		if err := p.differentiate(h); err != nil {
			return more, err
		}
		if h.lo == 0 && h.hi == len(p.items) {
			p.out, p.known = out, true
		}
	case p.keep:
		p.tapes = append(p.tapes, h)
		held = true
	}
	p.next = h.hi
	return more, nil
}

// countLoads adds a micro-batch's tokens per expert: the statistics are those of the whole operation, however it was cut.
func (p *pass) countLoads(t *model.Tape, n int) error {
	loads, err := t.ExpertLoads(0, n)
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

// differentiate adds a micro-batch's gradient to the op gradient. Weights that are all zero add nothing.
func (p *pass) differentiate(h heldTape) error {
	p.back = h.hi
	for _, w := range p.weights[h.lo:h.hi] {
		for _, v := range w {
			if v != 0 {
				return h.tape.Backward(p.weights[h.lo:h.hi])
			}
		}
	}
	return nil
}

// evaluate gives the loss the whole batch. A per-datum loss did its part before: this time it makes the metrics of the
// whole, so that they do not depend on how the batch was cut.
func (p *pass) evaluate() (status, error) {
	e := p.run.e
	if p.perDatum {
		out, err := p.eval(e.ctx, 0, len(p.items))
		p.out, p.known = out, true
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
		ctx, cancel := context.WithTimeout(e.ctx, e.lim.LossTime)
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
	out, err := p.loss.Eval(ctx, loss.Input{Data: p.data[lo:hi], LogProbs: p.logProbs[lo:hi], Config: p.config})
	if err != nil {
		return out, err
	}
	if len(out.Weights) != hi-lo {
		return out, api.Errorf(api.BadRequest, "the loss returned weights for %d datums, the batch has %d", len(out.Weights), hi-lo)
	}
	for i, w := range out.Weights {
		if len(w) != len(p.logProbs[lo+i]) {
			return out, api.Errorf(api.BadRequest, "datum %d: the loss returned %d weights for %d log-probabilities", lo+i, len(w), len(p.logProbs[lo+i]))
		}
		for j, v := range w {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				return out, api.Errorf(api.BadRequest, "datum %d: the loss returned weight %d = %v, wanted a finite number", lo+i, j, v)
			}
		}
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

// backwardStep differentiates one micro-batch of a loss that has seen the whole batch.
func (p *pass) backwardStep() (status, error) {
	var h heldTape
	if len(p.tapes) > 0 {
		h, p.tapes = p.tapes[0], p.tapes[1:]
	} else {
		var ok bool
		var err error
		if h, ok, err = p.batch(p.back, true); err != nil || !ok {
			return more, err
		}
	}
	defer p.release(h)
	return more, p.differentiate(h)
}

func (p *pass) finish() (status, error) {
	if p.backward {
		return done, p.run.adapter.CommitOp()
	}
	return done, nil
}

func (p *pass) dropTapes() {
	for _, h := range p.tapes {
		p.release(h)
	}
	p.tapes = nil
}

func (p *pass) end(err error) {
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
		t := api.Floats(lp)
		if dims := p.data[i].LossInputs["target_tokens"].Dims(); len(dims) > 1 {
			t.Shape = dims
		}
		out.LossFnOutputs[i] = map[string]api.TensorData{"logprobs": t}
	}
	p.future.set(out, nil)
}
