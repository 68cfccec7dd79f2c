package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/queue"
)

// LoadState replaces the run's weights by those of a checkpoint, at this place in the order: moments and step start
// afresh, and the gradient is dropped. The checkpoint may be of either kind and of another run, if the run's owner may read it.
// It needs the run's rank and modules.
func (r *Run) LoadState(path string) (*Future[api.Checkpoint], error) {
	return r.place().LoadState(path)
}

// LoadStateWithOptimizer is LoadState with moments and step: the run goes on as the saved one did, bit for bit.
func (r *Run) LoadStateWithOptimizer(path string) (*Future[api.Checkpoint], error) {
	return r.place().LoadStateWithOptimizer(path)
}

// LoadState is [Run.LoadState] at this place.
func (p Place) LoadState(path string) (*Future[api.Checkpoint], error) {
	return p.LoadStateAs(p.run.session.owner, path, false)
}

// LoadStateWithOptimizer is [Run.LoadStateWithOptimizer] at this place.
func (p Place) LoadStateWithOptimizer(path string) (*Future[api.Checkpoint], error) {
	return p.LoadStateAs(p.run.session.owner, path, true)
}

// LoadStateAs is LoadState, or LoadStateWithOptimizer, of a checkpoint that reader may read: somebody who lent the run's
// owner the right to.
func (p Place) LoadStateAs(reader, path string, optimizer bool) (*Future[api.Checkpoint], error) {
	return submit(p, "load_weights", queue.Barrier, func(f *Future[api.Checkpoint], en *entry) (task, error) {
		err := p.run.e.storing()
		at, bad := api.ParsePath(path)
		if err == nil {
			err = bad
		}
		return &loading{run: p.run, entry: en, future: f, reader: reader, path: at, optimizer: optimizer}, err
	})
}

// loading is a load. The checkpoint is read in the background, then put on the device.
type loading struct {
	run       *Run
	entry     *entry
	future    *Future[api.Checkpoint]
	reader    string // who must be allowed to read it
	path      api.Path
	optimizer bool
	result    chan loaded // nil: reading has not begun
	c         api.Checkpoint
}

type loaded struct {
	c       api.Checkpoint
	w, m, v []lora.Tensor
	err     error
}

func (l *loading) step() (status, error) {
	r, e := l.run, l.run.e
	if r.behind(0, l.entry) { // saves before it come first; then its own reading
		return paused, nil
	}
	if l.result == nil {
		l.result = make(chan loaded, 1)
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.closed {
			return done, errClosed
		}
		r.later(l.entry.name, func() {
			x := loaded{err: api.Errorf(api.Internal, "load %v: reading ended early", l.path)}
			defer func() { l.result <- x }()
			x = e.read(e.ctx, l.reader, l.path, l.optimizer, r.accepts)
		})
		return more, nil
	}
	x := <-l.result // it is there: the background is done
	if x.err != nil {
		return done, e.ended(x.err)
	}
	l.c = x.c
	if x.c.BaseModel != r.base.info.Name {
		e.log.Warn("the checkpoint is of another base model", "path", x.c.Path.String(), "base", x.c.BaseModel, "run", r.id, "run_base", r.base.info.Name)
	}
	var err error
	before := r.adapter.Version
	if l.optimizer {
		err = r.adapter.Restore(x.w, x.m, x.v, x.c.Step)
	} else {
		err = r.adapter.Load(x.w, api.LoraAlpha/float64(r.lora.Rank))
	}
	r.changed(before)
	e.mu.Lock()
	r.plugins = slices.Clone(x.c.Plugins)
	e.mu.Unlock()
	if err != nil {
		return done, fmt.Errorf("load %v: %w", x.c.Path, err)
	}
	return done, nil
}

func (l *loading) end(err error) { l.future.set(l.c, err) }

// checkpoint finds a checkpoint that who may read. To others it does not exist.
func (e *Engine) checkpoint(ctx context.Context, who string, p api.Path) (api.Checkpoint, error) {
	c, err := e.opt.Checkpoints.Info(ctx, p)
	if err == nil && !c.ReadableBy(who) {
		return api.Checkpoint{}, api.Errorf(api.NotFound, "there is no checkpoint %v", p)
	}
	return c, err
}

// read reads a checkpoint's weights, and its moments if optimizer is set.
func (e *Engine) read(ctx context.Context, who string, p api.Path, optimizer bool, accepts func(api.LoraConfig) error) (out loaded) {
	c, err := e.checkpoint(ctx, who, p)
	if err == nil && optimizer && !c.Optimizer {
		err = api.Errorf(api.BadRequest, "checkpoint %v has weights only, no optimizer state: load it without", c.Path)
	}
	if err == nil {
		err = accepts(c.Lora)
	}
	if err != nil {
		return loaded{err: err}
	}
	r, err := e.opt.Checkpoints.Open(ctx, c.Path)
	if err != nil {
		return loaded{err: err}
	}
	defer func() { out.err = errors.Join(out.err, r.Close()) }()
	out.c = r.Checkpoint()
	var wanted []api.TensorInfo
	for _, t := range r.Tensors() {
		if optimizer || !strings.HasPrefix(t.Name, lora.MomentM) && !strings.HasPrefix(t.Name, lora.MomentV) {
			wanted = append(wanted, t)
		}
	}
	values, err := readAll(ctx, r, wanted)
	if err != nil {
		return loaded{err: err}
	}
	for i, t := range wanted {
		dst, name := &out.w, t.Name
		for prefix, list := range map[string]*[]lora.Tensor{lora.MomentM: &out.m, lora.MomentV: &out.v} {
			if rest, ok := strings.CutPrefix(t.Name, prefix); ok {
				dst, name = list, rest
			}
		}
		*dst = append(*dst, lora.Tensor{Name: name, Shape: t.Shape, Values: values[i]})
	}
	return out
}

// readAll reads tensors on all processors: most are too small for the store to part them.
func readAll(ctx context.Context, r api.CheckpointReader, ts []api.TensorInfo) ([][]float32, error) {
	values, errs := make([][]float32, len(ts)), make([]error, len(ts))
	var next, failed atomic.Int64
	var work sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(ts)) {
		work.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(ts)) && failed.Load() == 0; i = next.Add(1) - 1 {
				if values[i], errs[i] = readFloats(ctx, r, ts[i]); errs[i] != nil {
					failed.Store(1)
				}
			}
		})
	}
	work.Wait()
	return values, errors.Join(errs...)
}

func readFloats(ctx context.Context, r api.CheckpointReader, t api.TensorInfo) ([]float32, error) {
	if t.DType != "F32" {
		return nil, api.Errorf(api.Unsupported, "checkpoint %v: tensor %s has the dtype %s, wanted F32", r.Checkpoint().Path, t.Name, t.DType)
	}
	n := 1
	for _, d := range t.Shape {
		n *= d
	}
	data := make([]byte, 4*n)
	if err := r.Read(ctx, t.Name, data); err != nil {
		return nil, err
	}
	values := make([]float32, n)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
	}
	return values, nil
}

// anyLora accepts every configuration.
func anyLora(api.LoraConfig) error { return nil }

// ended is err, said plainly when it came about because the engine was closed.
func (e *Engine) ended(err error) error {
	if err != nil && e.ctx.Err() != nil && errors.Is(err, e.ctx.Err()) {
		return errClosed
	}
	return err
}

// NewSamplerFrom opens a sampler on a checkpoint's base model with the checkpoint's weights. It does not block.
func (s *Session) NewSamplerFrom(path string) (*Future[*Sampler], error) {
	c, err := s.source(s.owner, path)
	if err != nil {
		return nil, err
	}
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	return after(s, func() {}, func(ctx context.Context) (*Sampler, error) {
		x := s.e.read(ctx, s.owner, c.Path, false, anyLora)
		if x.err != nil {
			return nil, x.err
		}
		made, err := s.NewAdapterSampler(x.c.BaseModel, Weights{
			Lora: x.c.Lora, Scale: api.LoraAlpha / float64(x.c.Lora.Rank), Version: x.c.Version, Tensors: x.w,
		})
		if err != nil {
			return nil, err
		}
		return made.Wait(ctx)
	})
}

// source finds the checkpoint that something is to be made from, which reader may read.
func (s *Session) source(reader, path string) (api.Checkpoint, error) {
	if err := s.e.storing(); err != nil {
		return api.Checkpoint{}, err
	}
	p, err := api.ParsePath(path)
	if err != nil {
		return api.Checkpoint{}, err
	}
	return s.e.checkpoint(s.e.ctx, reader, p)
}

// after does something on a goroutine and returns the future of its result. Its ctx ends with the session. e.mu is held.
func after[T any](s *Session, cancel func(), do func(ctx context.Context) (T, error)) (*Future[T], error) {
	e, f := s.e, newFuture[T]()
	f.drop = cancel
	if err := e.usable(); err != nil {
		return nil, err
	}
	if s.closed {
		return nil, errSessionClosed
	}
	e.evals.Go(func() {
		v, err := guard("load", func() (T, error) { return do(s.ctx) })
		if err = e.ended(err); err != nil && e.ctx.Err() == nil && errors.Is(err, s.ctx.Err()) {
			err = errSessionClosed
		}
		f.set(v, err)
	})
	return f, nil
}
