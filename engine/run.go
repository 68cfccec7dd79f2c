package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/loss"
	"tinkerlocal/engine/queue"
)

// Run is one training run: an adapter on a base model and the queue of its operations. Its methods
// check their input, queue the operation and return its future at once; operations run in the order of the calls.
type Run struct {
	e        *Engine
	session  *Session
	id       string
	ctx      context.Context // ends with the run or the engine
	stop     context.CancelFunc
	order    int
	base     *base
	adapter  *lora.Adapter // the device's goroutine only
	lora     api.LoraConfig
	metadata map[string]string
	bytes    int64
	guesses  guesses    // see guess.go
	back     background // what is written and read for the run; see save.go

	// guarded by e.mu
	line    *queue.Line[*entry]
	current *entry // started and not ended; changed by the device's goroutine only
	closed  bool
	freed   bool
	version int64
	step    int64
	plugins []api.PluginRecord

	forwards atomic.Bool // it was asked for forwards that may keep something; any goroutine

	asked    time.Time // when the last operation was
	recorded time.Time // asked, as the store has it or will have it soon
}

// RunInfo describes a run.
type RunInfo struct {
	ID           string
	BaseModel    string
	Lora         api.LoraConfig // with the seed that was used
	Params       int            // trainable parameters
	UserMetadata map[string]string
	Version      int64              // of the weights: +1 at every optim_step and load that has finished
	Step         int64              // optimiser steps since the start or the last load
	Queued       int                // operations that wait
	Plugins      []api.PluginRecord // custom losses that its weights were trained with
}

// Weights are an adapter's factors on the host.
type Weights struct {
	Lora    api.LoraConfig
	Scale   float64 // of B*A*x: alpha/rank
	Version int64   // of the run they were read from; a load ignores it
	Tensors []lora.Tensor
}

// status says how far a task is.
type status uint8

const (
	more   status = iota // call step again
	paused               // call step again when the entry is resumed
	done
)

// task is an operation's work on the device. Both methods are called on the device's goroutine, except
// that end may be called anywhere for a task that has not started.
type task interface {
	step() (status, error)
	end(err error) // settles the future, with the result when err is nil, and frees what the task holds
}

// entry is one operation in a run's queue.
type entry struct {
	name    string
	seq     int64
	kind    queue.Kind
	task    task  // nil once it has ended
	future  any   // *Future[T]
	refused error // instead of a future: the request was rejected
	paused  bool  // guarded by e.mu
	starved bool  // it waits for tapes of others to be released; guarded by e.mu
}

func (en *entry) end(err error) {
	if t := en.task; t != nil {
		en.task = nil // its input can go; the future stays
		t.end(err)
	}
}

// ready reports whether a step of the run can be taken. e.mu is held.
func (r *Run) ready(now time.Time) bool {
	if r.current != nil {
		return !r.current.paused && (r.closed || !r.current.starved || r.e.tapes == 0)
	}
	return r.line.Ready(now)
}

// begin starts the next operation if none is under way. e.mu is held and ready was true.
func (r *Run) begin(now time.Time) {
	if r.current != nil {
		r.current.starved = false
		return
	}
	seq, en, ok := r.line.Next(now)
	if ok {
		en.seq = seq
		r.current = en
	}
}

// drain takes all operations off the run. e.mu is held.
func (r *Run) drain() []*entry {
	out := r.line.Drain()
	if r.current != nil {
		r.line.Done(r.current.seq)
		out = append(out, r.current)
		r.current = nil
	}
	return out
}

// ID is the run's name, unique in this engine: Tinker's model_id.
func (r *Run) ID() string { return r.id }

// Base describes the base model.
func (r *Run) Base() BaseInfo { return r.base.info }

// Info describes the run as it is now.
func (r *Run) Info() RunInfo {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	return RunInfo{
		ID: r.id, BaseModel: r.base.info.Name, Lora: r.lora, Params: lora.Params(r.base.model.Sites, r.lora),
		UserMetadata: r.metadata, Version: r.version, Step: r.step, Queued: r.line.Len(),
		Plugins: slices.Clone(r.plugins),
	}
}

// maxPlugins bounds what a run remembers: one that changes its losses' configuration at every step would grow for ever.
const maxPlugins = 64

// trainedWith remembers a custom loss, the first time.
func (r *Run) trainedWith(l loss.Loss, config map[string]float64) {
	p, ok := l.(loss.Plugin)
	if !ok {
		return
	}
	rec := p.Plugin()
	rec.Config = maps.Clone(config)
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	if len(r.plugins) < maxPlugins && !slices.ContainsFunc(r.plugins, rec.Equal) {
		r.plugins = append(r.plugins, rec)
	}
}

// Close drops what is queued, ends a pass under way at its next micro-batch and a loss that is being evaluated, and then frees the adapter. Saves
// that have started are finished. Samplers made from the run live on. It does not block; closing twice does nothing.
func (r *Run) Close() {
	e := r.e
	e.mu.Lock()
	if r.closed {
		e.mu.Unlock()
		return
	}
	r.closed = true
	e.runs--
	delete(r.session.runs, r)
	r.record()
	r.stop()
	dropped := r.line.Drain()
	if r.current == nil {
		e.post(job{name: "close run", do: func() { e.freeRun(r) }})
	}
	e.mu.Unlock()
	e.signal()
	for _, en := range dropped {
		en.end(errRunClosed)
	}
}

// newRun makes a run on the device's goroutine. Its first operation has the number first.
func (e *Engine) newRun(s *Session, id string, req api.CreateModelRequest, seed, first int64) (_ *Run, err error) {
	b, err := e.acquire(req.BaseModel)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.unuse()
		}
	}()
	n := lora.Params(b.model.Sites, req.Lora)
	bytes := lora.Bytes(n, e.info.Act)
	if err := e.need(fmt.Sprintf("an adapter of rank %d (%d parameters) with its gradients and moments", req.Lora.Rank, n), bytes, b); err != nil {
		return nil, err
	}
	a, err := lora.New(e.dev, b.model.Sites, req.Lora, seed)
	if err != nil {
		return nil, err
	}
	r := &Run{
		e: e, session: s, id: id, base: b, adapter: a, lora: a.Config, metadata: req.UserMetadata,
		bytes: bytes, guesses: guesses{want: firstGuesses}, line: queue.NewLine[*entry](e.lim.queue(first)),
	}
	r.ctx, r.stop = context.WithCancel(e.ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.closed {
		r.stop()
		a.Free()
		return nil, errSessionClosed
	}
	e.used += bytes
	e.opened++
	r.order = e.opened
	e.turns.Add(r)
	s.runs[r] = true
	r.touch()
	e.log.Info("run open", "run", id, "model", b.info.Name, "rank", req.Lora.Rank, "params", n)
	return r, nil
}

// freeRun frees a run's adapter on the device's goroutine.
func (e *Engine) freeRun(r *Run) {
	e.mu.Lock()
	freed := r.freed
	if !r.closed {
		e.runs--
	}
	r.freed, r.closed = true, true
	e.turns.Remove(r)
	e.mu.Unlock()
	if freed {
		return
	}
	r.stop()
	e.endHelds(r, errRunClosed)
	r.adapter.Free()
	e.used -= r.bytes
	r.base.unuse()
	e.log.Info("run closed", "run", r.id)
}

// ForwardBackward computes the loss of a batch and adds its gradient to the run's: the whole, or on an
// error nothing. The data may not be changed until the future has ended. With a loss per datum, as the built-in ones are, it
// shares its micro-batches with other runs on the base; no bit of a result depends on that.
func (r *Run) ForwardBackward(in api.ForwardBackwardInput) (*Future[api.ForwardBackwardOutput], error) {
	return r.place().ForwardBackward(in)
}

// ForwardBackwardCustom is ForwardBackward with a loss of the caller's, for example a [loss.Func]: one forward, one backward. It is
// evaluated once for the whole batch, on a goroutine of its own, under a deadline (unless it is a loss.PerDatum); a panic fails this
// operation alone.
func (r *Run) ForwardBackwardCustom(data []api.Datum, l loss.Loss, config map[string]float64) (*Future[api.ForwardBackwardOutput], error) {
	return r.place().ForwardBackwardCustom(data, l, config)
}

// Hold runs a batch forward and keeps what a backward needs, for a caller that computes the loss itself: see [Held]. The
// data may not be changed until the future has ended.
func (r *Run) Hold(data []api.Datum) (*Future[*Held], error) { return r.place().Hold(data) }

// Forward computes log-probabilities and loss of a batch. It never touches the gradient.
//
// A forward of cross_entropy may be the first half of a client's custom loss. So it keeps its activations, while
// nobody else wants the memory, for a later ForwardBackward of the run with the same sequences and targets, whatever its
// loss and weights, which then runs only its backward, to the same bits: see Limits.KeptForwards for when it does, and what it costs.
func (r *Run) Forward(in api.ForwardBackwardInput) (*Future[api.ForwardBackwardOutput], error) {
	return r.place().Forward(in)
}

// ForwardCustom is Forward with a loss of the caller's. The loss is told that nothing will be differentiated: see loss.Input.ValueOnly.
func (r *Run) ForwardCustom(data []api.Datum, l loss.Loss, config map[string]float64) (*Future[api.ForwardBackwardOutput], error) {
	return r.place().ForwardCustom(data, l, config)
}

// OptimStep applies the gradient accumulated so far and clears it.
func (r *Run) OptimStep(p api.AdamParams) (*Future[api.OptimStepOutput], error) {
	return r.place().OptimStep(p)
}

// SaveForSampler makes a sampler on a copy of the weights as they are at this place in the order. Later training does not change it.
func (r *Run) SaveForSampler() (*Future[*Sampler], error) { return r.place().SaveForSampler() }

// Weights reads the adapter's weights as they are at this place in the order.
func (r *Run) Weights() (*Future[Weights], error) { return r.place().Weights() }

// Load replaces the adapter's weights; moments start afresh and the gradient is dropped. w must have the
// run's rank and modules, and may not be changed until the future has ended.
func (r *Run) Load(w Weights) (*Future[struct{}], error) { return r.place().Load(w) }

// At gives the run's operations at a sequence number, for callers that number their requests from 1 on and may send
// them in any order. A number that is used already answers with the operation that has it; what the
// repeat asks for is not compared. A rejected request uses its number up. A missing number holds up those behind it for
// Limits.GapWait, and comes too late after that. At 0, an operation is placed behind all others, as the run's own methods do.
func (r *Run) At(seq int64) Place { return Place{run: r, seq: seq, numbered: seq != 0} }

func (r *Run) place() Place { return Place{run: r} }
