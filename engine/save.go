package engine

import (
	"fmt"
	"maps"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/queue"
)

const (
	// pieceBytes is how much of a copy is fetched from the device at a time: other work runs between.
	pieceBytes = 4 << 20
	// pendingSaves is how many saves of one run may be on their way. Each holds a copy of the adapter.
	pendingSaves = 2
)

// SaveState saves the run as it is at this place in the order, under tinker://RUN/weights/NAME: weights, moments, step
// and configuration. Training goes on as soon as the copy is made on the device; the future ends when the checkpoint
// is durable. A gradient that no optim_step has used yet is not part of it.
func (r *Run) SaveState(name string, o api.SaveOptions) (*Future[api.Checkpoint], error) {
	return r.place().SaveState(name, o)
}

// SaveWeightsForSampler saves the weights alone, under tinker://RUN/sampler_weights/NAME, as SaveState does.
func (r *Run) SaveWeightsForSampler(name string, o api.SaveOptions) (*Future[api.Checkpoint], error) {
	return r.place().SaveWeightsForSampler(name, o)
}

// SaveWeightsExternal saves the weights alone, under tinker://RUN/external_weights/NAME, as SaveState does: for other programs, which get
// them as a PEFT folder.
func (r *Run) SaveWeightsExternal(name string, o api.SaveOptions) (*Future[api.Checkpoint], error) {
	return r.place().SaveWeightsExternal(name, o)
}

// SaveState is [Run.SaveState] at this place.
func (p Place) SaveState(name string, o api.SaveOptions) (*Future[api.Checkpoint], error) {
	return p.save("save_weights", api.KindState, name, o)
}

// SaveWeightsForSampler is [Run.SaveWeightsForSampler] at this place.
func (p Place) SaveWeightsForSampler(name string, o api.SaveOptions) (*Future[api.Checkpoint], error) {
	return p.save("save_weights_for_sampler", api.KindSampler, name, o)
}

// SaveWeightsExternal is [Run.SaveWeightsExternal] at this place.
func (p Place) SaveWeightsExternal(name string, o api.SaveOptions) (*Future[api.Checkpoint], error) {
	return p.save("save_weights_external", api.KindExternal, name, o)
}

func (p Place) save(op, kind, name string, o api.SaveOptions) (*Future[api.Checkpoint], error) {
	return submit(p, op, queue.Barrier, func(f *Future[api.Checkpoint], en *entry) (task, error) {
		err := p.run.e.storing()
		if err == nil {
			err = api.CheckName("name", name)
		}
		if err == nil {
			err = api.CheckMetadata(o.UserMetadata, api.MaxCheckpointMetadataBytes)
		}
		o.UserMetadata = maps.Clone(o.UserMetadata)
		s := &saving{run: p.run, entry: en, future: f, opt: o}
		s.what.Path = api.Path{Run: p.run.id, Kind: kind, Name: name}
		return s, err
	})
}

// storing says why nothing can be saved or loaded by path, or nil.
func (e *Engine) storing() error {
	if e.opt.Checkpoints == nil {
		return api.Errorf(api.Unsupported, "this engine was opened without a checkpoint store")
	}
	return nil
}

// saving is a save. On the device's goroutine it copies the adapter; the rest is done in the background.
type saving struct {
	run    *Run
	entry  *entry
	future *Future[api.Checkpoint]
	what   api.Checkpoint
	opt    api.SaveOptions
	state  *lora.State
	host   [][]byte // the tensors, when there was no device memory for a copy
}

func (s *saving) step() (status, error) {
	r, e := s.run, s.run.e
	if r.behind(pendingSaves-1, s.entry) {
		return paused, nil
	}
	moments := s.what.Path.Kind == api.KindState
	bytes := lora.StateBytes(lora.Params(r.base.model.Sites, r.lora), e.info.Act, moments)
	err := e.need("a copy of the adapter", bytes, r.base)
	if err == nil {
		s.state, err = r.adapter.Capture(moments)
	}
	switch {
	case err == nil:
		e.states[s.state] = true
		e.used += s.state.DeviceBytes()
	case apiError(err).Code == api.OutOfMemory:
		if r.behind(0, s.entry) {
			return paused, nil // the copy of an earlier save will be freed
		}
		// No memory for a copy: training has to wait until all is on the host.
		s.state = r.adapter.Live(moments)
		for _, t := range s.state.Tensors {
			data := make([]byte, 4*t.Size)
			if err := s.state.Read(t, 0, data); err != nil {
				return done, err
			}
			s.host = append(s.host, data)
		}
	default:
		return done, err
	}
	c := &s.what
	c.Owner, c.BaseModel, c.Lora = r.session.owner, r.base.info.Name, s.state.Config
	c.Version, c.Step, c.Optimizer, c.Bytes = s.state.Version, s.state.Step, moments, s.state.Bytes()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return done, errClosed
	}
	c.Plugins = slices.Clone(r.plugins)
	r.later(s.entry.name, func() {
		c, err := guard(s.entry.name, s.write)
		if err := e.onDevice("free copy", func() error { e.freeState(s.state); return nil }); err != nil {
			e.log.Debug("the copy is freed with the device", "err", err)
		}
		if err = e.ended(err); err != nil {
			e.log.Debug("operation failed", "op", s.entry.name, "err", err)
		}
		r.recordNow()
		s.future.set(c, err)
	})
	return done, nil
}

// end is called when the copy is made; the future ends later.
func (s *saving) end(err error) {
	if err != nil {
		s.future.fail(err)
	}
}

// write brings the copy into the store. A store that another process has may go away in the middle and be there again: what began
// with the one is done with the other. A store that is closed for good says so at once.
func (s *saving) write() (api.Checkpoint, error) {
	e := s.run.e
	c, committing, err := s.writeOnce(s.opt)
	if err != nil && api.CodeOf(err) == api.Closed && e.ctx.Err() == nil {
		e.log.Warn("save again: the store was gone", "path", s.what.Path.String(), "err", err)
		again := s.opt
		again.Overwrite = again.Overwrite || committing // by what the first attempt may have left
		c, _, err = s.writeOnce(again)
	}
	if err == nil {
		e.log.Info("checkpoint saved", "path", c.Path.String(), "step", c.Step, "bytes", c.Bytes, "written", c.Written)
	}
	return c, err
}

// writeOnce also says whether the checkpoint was about to exist.
func (s *saving) writeOnce(o api.SaveOptions) (c api.Checkpoint, committing bool, err error) {
	e := s.run.e
	w, err := e.opt.Checkpoints.Create(e.ctx, s.what, o)
	if err != nil {
		return c, false, err
	}
	defer w.Abort()
	for i, t := range s.state.Tensors {
		data, err := s.fetch(i)
		if err == nil {
			err = w.Tensor(e.ctx, api.TensorInfo{Name: t.Name, DType: "F32", Shape: t.Shape}, data)
		}
		if err != nil {
			return c, false, fmt.Errorf("save %v: %w", s.what.Path, err)
		}
	}
	c, err = w.Commit(e.ctx)
	return c, true, err
}

// fetch brings a tensor to the host, a piece at a time.
func (s *saving) fetch(i int) ([]byte, error) {
	if s.host != nil {
		return s.host[i], nil
	}
	t := s.state.Tensors[i]
	data := make([]byte, 4*t.Size)
	for lo := 0; lo < len(data); lo += pieceBytes {
		piece := data[lo:min(len(data), lo+pieceBytes)]
		if err := s.run.e.onDevice("fetch copy", func() error { return s.state.Read(t, lo/4, piece) }); err != nil {
			return nil, err
		}
	}
	return data, nil
}
