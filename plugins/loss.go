package plugins

import (
	"context"
	"errors"
	"math"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
)

// Loss is the module as a loss, a [loss.Checker] and a [loss.Plugin]. It may be used until the module is closed. It is never a
// [loss.PerDatum], whatever its scope: the engine evaluates those where all other runs wait for them, and a module may take its time.
func (m *Module) Loss() loss.Plugin { return moduleLoss{m: m} }

// moduleLoss keeps what holds the module open.
type moduleLoss struct {
	m    *Module
	held *handle
}

func (l moduleLoss) Plugin() api.PluginRecord { return l.m.Record() }

// Check refuses data and configuration that do not fit the metadata or the limits.
func (l moduleLoss) Check(data []api.Datum, config map[string]float64) error {
	defer runtime.KeepAlive(l.held)
	release, err := l.m.hold()
	if err != nil {
		return err
	}
	defer release()
	b, err := l.m.meta.prepare(data, nil, config)
	if err != nil {
		return l.m.named(err)
	}
	for _, c := range l.m.meta.cut(b, chunkElements) {
		p, err := l.m.meta.plan(b, &c)
		if err != nil {
			return l.m.named(err)
		}
		if p.total > l.m.host.lim.RequestBytes {
			return l.m.named(bad("the request has %d bytes, the limit is %d: give it less at a time", p.total, l.m.host.lim.RequestBytes))
		}
	}
	return nil
}

func (l moduleLoss) Eval(ctx context.Context, in loss.Input) (loss.Output, error) {
	defer runtime.KeepAlive(l.held)
	return l.m.eval(ctx, in, evalOptions{})
}

// evalOptions are for tests.
type evalOptions struct {
	workers  int // 0: as many as there are places
	elements int // of a chunk; 0: chunkElements
}

// eval checks the batch, runs its chunks, and puts their results together in order.
func (m *Module) eval(ctx context.Context, in loss.Input, o evalOptions) (loss.Output, error) {
	release, err := m.hold()
	if err != nil {
		return loss.Output{}, err
	}
	defer release()
	b, err := m.meta.input(in)
	if err != nil {
		return loss.Output{}, m.named(err)
	}
	b.evaluate = in.ValueOnly
	out, err := m.evalBatch(ctx, b, o)
	if err != nil {
		return loss.Output{}, m.named(err)
	}
	return out, nil
}

func (m *Module) evalBatch(ctx context.Context, b *batch, o evalOptions) (loss.Output, error) {
	if o.elements == 0 {
		o.elements = chunkElements
	}
	if o.workers == 0 {
		o.workers = cap(m.host.running)
	}
	chunks := m.meta.cut(b, o.elements)
	var weights [][]float32
	if !b.evaluate {
		weights = make([][]float32, len(b.data)) // set by run
	}
	results, err := m.runAll(ctx, b, chunks, weights, o.workers)
	if err != nil {
		return loss.Output{}, err
	}
	return loss.Output{Weights: weights, Metrics: m.merge(chunks, results)}, nil
}

// runAll runs the chunks on several instances. The error is that of the first chunk that fails, whatever the order in which they ran.
func (m *Module) runAll(ctx context.Context, b *batch, chunks []chunk, weights [][]float32, workers int) ([]result, error) {
	results, errs := make([]result, len(chunks)), make([]error, len(chunks))
	var next, failed atomic.Int64
	failed.Store(math.MaxInt64)
	work := func() {
		for {
			i := next.Add(1) - 1
			if i >= int64(len(chunks)) || i > failed.Load() {
				return
			}
			c := &chunks[i]
			var part [][]float32
			if weights != nil {
				part = weights[c.lo:c.hi]
			}
			if results[i], errs[i] = m.runOne(ctx, b, c, part); errs[i] == nil {
				continue
			}
			for f := failed.Load(); i < f && !failed.CompareAndSwap(f, i); f = failed.Load() {
			}
		}
	}
	var wg sync.WaitGroup
	for range min(workers, len(chunks)) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	if i := failed.Load(); i < int64(len(chunks)) {
		return nil, errs[i]
	}
	return results, nil
}

// runOne waits for a place and runs a chunk.
func (m *Module) runOne(ctx context.Context, b *batch, c *chunk, weights [][]float32) (result, error) {
	lane := m.host.running
	if b.elems <= chunkElements {
		lane = m.host.quick
	}
	leave, err := m.host.place(ctx, lane)
	if err != nil {
		return result{}, err
	}
	defer leave()
	r, err := m.run(ctx, b, c, weights)
	if err != nil && isInput(err) && c.lo > 0 {
		err = bad("%w (counted from datum %d of the batch on)", err, c.lo)
	}
	return r, err
}

// merge adds the chunks' numbers up in their order. A metric that is not finite in one of them is dropped.
func (m *Module) merge(chunks []chunk, results []result) map[string]float64 {
	out := map[string]float64{}
	count := map[string]float64{} // datums behind a mean
	var total float64
	var fuel int64
	pages := 0
	for i, r := range results {
		total += r.loss
		fuel += r.fuel
		pages = max(pages, r.pages)
		n := float64(chunks[i].hi - chunks[i].lo)
		if len(results) == 1 {
			n = 1 // the mean stays as it is
		}
		for _, x := range r.metrics {
			old, known := out[x.name]
			v := x.value
			switch _, how, _ := strings.Cut(x.name, ":"); {
			case how == "mean":
				v = old + v*n
				count[x.name] += n
			case how == "sum":
				v += old
			case known && how == "min":
				v = min(old, v)
			case known && how == "max":
				v = max(old, v)
			}
			out[x.name] = v
		}
	}
	for name, v := range out {
		if n, mean := count[name]; mean {
			v /= n
			out[name] = v
		}
		if math.IsNaN(v) || math.IsInf(v, 0) {
			delete(out, name)
			m.host.log.Warn("a plugin's metric is dropped: it is not finite", "plugin", m.String(), "metric", name)
		}
	}
	out["loss:sum"] = total
	out["plugin/fuel:sum"] = float64(fuel)
	out["plugin/calls:sum"] = float64(len(results))
	out["plugin/pages:max"] = float64(pages)
	return out
}

// isInput reports whether an error is the caller's, not the plugin's.
func isInput(err error) bool {
	var e *api.Error
	return errors.As(err, &e) && e.Code == api.BadRequest
}
