package engine

import (
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/loss"
	"tinkerlocal/engine/queue"
)

// Place is a place in the order of a run's operations. Its methods are those of [Run].
type Place struct {
	run      *Run
	seq      int64
	numbered bool
}

// submit queues an operation at p. build checks the input and makes the task for the future that it is given.
func submit[T any](p Place, name string, kind queue.Kind, build func(f *Future[T], en *entry) (task, error)) (*Future[T], error) {
	r, e := p.run, p.run.e
	if p.numbered {
		e.mu.Lock()
		first, ok := r.line.Find(p.seq)
		e.mu.Unlock()
		if ok {
			return repeated[T](p, name, first)
		}
	}
	f := newFuture[T]()
	en := &entry{name: name, kind: kind, future: f}
	t, refused := build(f, en)
	en.task = t
	e.mu.Lock()
	defer e.mu.Unlock()
	if refused != nil {
		refused = apiError(refused)
		en.task, en.future, en.refused = nil, nil, refused
		if p.numbered {
			r.line.Refuse(p.seq, en)
			e.signal()
		}
		return nil, refused
	}
	if err := e.usable(); err != nil {
		return nil, err
	}
	if r.closed {
		return nil, errRunClosed
	}
	if p.numbered {
		first, fresh, err := r.line.At(p.seq, kind, en)
		if err != nil {
			return nil, err
		}
		if !fresh {
			return repeated[T](p, name, first)
		}
	} else {
		seq, err := r.line.Add(kind, en)
		if err != nil {
			return nil, err
		}
		p.seq = seq
	}
	f.drop = func() { r.cancel(p.seq, en) }
	f.state = func() State { return r.state(en) }
	r.touch()
	e.signal()
	return f, nil
}

// Awaited reports whether all that waits in the run waits for an operation at p, which has not come yet. Whoever refuses it for
// want of room should know that what waits needs it in order to go.
func (p Place) Awaited() bool {
	if !p.numbered {
		return false
	}
	p.run.e.mu.Lock()
	defer p.run.e.mu.Unlock()
	return p.run.line.Awaits(p.seq)
}

// Refuse uses the place up for a request that the door could not read, so that nothing waits for it. Repeats of its number get
// why. It does nothing at a number that is used already, or without one.
func (p Place) Refuse(why error) {
	if !p.numbered {
		return
	}
	p.run.e.mu.Lock()
	defer p.run.e.mu.Unlock()
	p.run.line.Refuse(p.seq, &entry{name: "refused request", refused: apiError(why)})
	p.run.e.signal()
}

// repeated answers a number that is used already.
func repeated[T any](p Place, name string, first *entry) (*Future[T], error) {
	if first.refused != nil {
		return nil, first.refused
	}
	f, ok := first.future.(*Future[T])
	if !ok {
		return nil, api.Errorf(api.BadRequest, "sequence number %d was a %s, now it is a %s", p.seq, first.name, name)
	}
	return f, nil
}

// state tells how far an operation that has not ended is.
func (r *Run) state(en *entry) State {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	_, gap := r.line.Wake()
	switch {
	case r.current == en && en.starved:
		return Starved
	case r.current == en:
		return Running
	case gap:
		return Gap
	}
	return Queued
}

// cancel drops an operation that waits.
func (r *Run) cancel(seq int64, en *entry) {
	r.e.mu.Lock()
	dropped := r.line.Cancel(seq)
	r.e.mu.Unlock()
	if dropped {
		en.end(api.Errorf(api.Cancelled, "%s: cancelled", en.name))
		r.e.signal()
	}
}

// ForwardBackward is [Run.ForwardBackward] at this place.
func (p Place) ForwardBackward(in api.ForwardBackwardInput) (*Future[api.ForwardBackwardOutput], error) {
	return p.pass("forward_backward", in, nil, true)
}

// ForwardBackwardCustom is [Run.ForwardBackwardCustom] at this place.
func (p Place) ForwardBackwardCustom(data []api.Datum, l loss.Loss, config map[string]float64) (*Future[api.ForwardBackwardOutput], error) {
	return p.pass("forward_backward", api.ForwardBackwardInput{Data: data, LossConfig: config}, l, true)
}

// Forward is [Run.Forward] at this place.
func (p Place) Forward(in api.ForwardBackwardInput) (*Future[api.ForwardBackwardOutput], error) {
	return p.pass("forward", in, nil, false)
}

// ForwardCustom is [Run.ForwardCustom] at this place.
func (p Place) ForwardCustom(data []api.Datum, l loss.Loss, config map[string]float64) (*Future[api.ForwardBackwardOutput], error) {
	return p.pass("forward", api.ForwardBackwardInput{Data: data, LossConfig: config}, l, false)
}

func (p Place) pass(name string, in api.ForwardBackwardInput, l loss.Loss, backward bool) (*Future[api.ForwardBackwardOutput], error) {
	return submit(p, name, queue.Pass, func(f *Future[api.ForwardBackwardOutput], en *entry) (task, error) {
		return newPass(p.run, in, l, backward, f, en)
	})
}

// OptimStep is [Run.OptimStep] at this place.
func (p Place) OptimStep(a api.AdamParams) (*Future[api.OptimStepOutput], error) {
	return submitBarrier(p, "optim_step", lora.CheckAdam(a), func() (api.OptimStepOutput, error) {
		norm, err := p.run.adapter.OptimStep(a)
		return api.OptimStepOutput{Metrics: map[string]float64{"grad_norm": norm}}, err
	})
}

// SaveForSampler is [Run.SaveForSampler] at this place.
func (p Place) SaveForSampler() (*Future[*Sampler], error) {
	return submitBarrier(p, "save_weights_for_sampler", nil, func() (*Sampler, error) { return p.run.e.snapshot(p.run) })
}

// Weights is [Run.Weights] at this place.
func (p Place) Weights() (*Future[Weights], error) {
	return submitBarrier(p, "save_weights", nil, func() (Weights, error) {
		a := p.run.adapter
		ts, err := a.Weights.Tensors()
		return Weights{Lora: a.Config, Scale: api.LoraAlpha / float64(a.Config.Rank), Version: a.Version, Tensors: ts}, err
	})
}

// Load is [Run.Load] at this place.
func (p Place) Load(w Weights) (*Future[struct{}], error) {
	return submitBarrier(p, "load_weights", p.run.accepts(w.Lora), func() (struct{}, error) {
		return struct{}{}, p.run.adapter.Load(w.Tensors, w.Scale)
	})
}

// accepts says whether weights with configuration c belong on the run's adapter.
func (r *Run) accepts(c api.LoraConfig) error {
	have, want := c, r.lora
	have.Seed, want.Seed = nil, nil
	if have != want {
		return api.Errorf(api.BadRequest, "load_weights: the weights have rank %d, train_attn %t, train_mlp %t, train_unembed %t; the run has rank %d, %t, %t, %t",
			have.Rank, have.TrainAttn, have.TrainMLP, have.TrainUnembed, want.Rank, want.TrainAttn, want.TrainMLP, want.TrainUnembed)
	}
	return nil
}

// barrier is an operation that is done in one step.
type barrier[T any] struct {
	run    *Run
	future *Future[T]
	do     func() (T, error)
	value  T
}

func submitBarrier[T any](p Place, name string, check error, do func() (T, error)) (*Future[T], error) {
	return submit(p, name, queue.Barrier, func(f *Future[T], _ *entry) (task, error) {
		return &barrier[T]{run: p.run, future: f, do: do}, check
	})
}

func (b *barrier[T]) step() (_ status, err error) {
	r := b.run
	before := r.adapter.Version
	b.value, err = b.do()
	r.changed(before)
	return done, err
}

func (b *barrier[T]) end(err error) { b.future.set(b.value, err) }
