package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
	"tinkerlocal/engine/token"
)

// opened is an engine with one base model's loaded sampler, tokenizer and facts.
type opened struct {
	model     string
	engine    *engine.Engine
	session   *engine.Session
	facts     *local.Facts
	tokenizer *token.Tokenizer // the facts' own
	base      *engine.Sampler  // the bare base
	state     string           // the state directory that is open; "": none is
}

// open starts an engine and loads a base model, with a bar while it loads. Nothing is kept when it ends.
func (a *app) open(ctx context.Context, model string) (*opened, error) {
	facts, err := a.facts(model)
	if err != nil {
		return nil, err
	}
	return a.openModel(ctx, facts, "")
}

// openFor is open for an adapter, which may be a checkpoint: then the state directory is opened, too, and the model may be left
// to the checkpoint.
func (a *app) openFor(ctx context.Context, model, adapter string) (*opened, error) {
	if !isCheckpoint(adapter) {
		return a.open(ctx, model)
	}
	c, err := a.checkpointInfo(ctx, adapter)
	if err != nil {
		return nil, err
	}
	if model == "" {
		model = c.BaseModel
	}
	facts, err := a.facts(model)
	if err != nil {
		return nil, err
	}
	return a.openModel(ctx, facts, a.state)
}

// openModel is open for a model whose facts are known. state is the state directory, or "".
func (a *app) openModel(ctx context.Context, facts *local.Facts, state string) (_ *opened, err error) {
	model := facts.Name
	bar := countBar(a.err, 1, "loading "+model)
	o := a.opt
	if o.State = state; state != "" {
		s, err := a.openState(ctx, true)
		if err != nil {
			return nil, err
		}
		o.Checkpoints = a.follow(s)
	}
	o.Progress = func(_ string, done, total int64) {
		if bar.GetMax64() != total {
			bar.ChangeMax64(total)
		}
		_ = bar.Set64(done)
	}
	e, err := local.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	m := &opened{model: model, engine: e, session: e.NewSession(), facts: facts, tokenizer: facts.Tokenizer, state: state}
	f, err := m.session.NewSampler(model)
	if err != nil {
		return nil, err
	}
	if m.base, err = f.Wait(ctx); err != nil {
		return nil, err
	}
	_ = bar.Finish()
	return m, nil
}

func (m *opened) close() { m.engine.Close() }

// sampler is the bare base, or the base with an adapter: a PEFT folder or a checkpoint.
func (m *opened) sampler(ctx context.Context, adapter string) (*engine.Sampler, error) {
	var f *engine.Future[*engine.Sampler]
	var err error
	switch {
	case adapter == "":
		return m.base, nil
	case isCheckpoint(adapter):
		f, err = m.checkpointSampler(ctx, adapter)
	default:
		var w engine.Weights
		if w, err = local.ReadAdapter(adapter); err != nil {
			return nil, err
		}
		f, err = m.session.NewAdapterSampler(m.model, w)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", adapter, err)
	}
	s, err := f.Wait(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s on %s: %w", adapter, m.model, err)
	}
	return s, nil
}

// checkpointSampler is a sampler on a checkpoint's weights.
func (m *opened) checkpointSampler(ctx context.Context, path string) (*engine.Future[*engine.Sampler], error) {
	if m.state == "" {
		return nil, api.Errorf(api.BadRequest, "the state directory is not open; start with --adapter %s", path)
	}
	p, err := api.ParsePath(path)
	if err != nil {
		return nil, err
	}
	c, err := m.engine.Checkpoints().Info(ctx, p)
	if err != nil {
		return nil, err
	}
	if c.BaseModel != m.model {
		return nil, api.Errorf(api.BadRequest, "it was trained on %s, wanted one of %s", c.BaseModel, m.model)
	}
	return m.session.NewSamplerFrom(path)
}

// facts reads what a model's folder says without its weights.
func (a *app) facts(model string) (*local.Facts, error) {
	return a.models().Facts(model)
}

// newRun starts a training run.
func (m *opened) newRun(ctx context.Context, c api.LoraConfig, metadata map[string]string) (*engine.Run, error) {
	f, err := m.session.NewRun(api.CreateModelRequest{BaseModel: m.model, Lora: c, UserMetadata: metadata})
	if err != nil {
		return nil, err
	}
	return f.Wait(ctx)
}

// resumeRun starts a training run with the weights and the optimizer state of a checkpoint.
func (m *opened) resumeRun(ctx context.Context, path api.Path, metadata map[string]string) (*engine.Run, error) {
	f, err := m.session.NewRunFrom(engine.RunSource{Path: path.String(), Optimizer: true, UserMetadata: metadata})
	if err != nil {
		return nil, err
	}
	return f.Wait(ctx)
}

// saveAdapter writes a run's weights as a PEFT folder.
func saveAdapter(ctx context.Context, run *engine.Run, dir, model string) error {
	f, err := run.Weights()
	if err != nil {
		return err
	}
	w, err := f.Wait(ctx)
	if err != nil {
		return err
	}
	return local.WriteAdapter(dir, model, w)
}

// checkWritable refuses an output folder before hours of training go into it.
func checkWritable(dir string) error {
	if st, err := os.Stat(dir); err == nil {
		if !st.IsDir() {
			return api.Errorf(api.BadRequest, "--out %s is a file, wanted a folder", dir)
		}
		if _, err := os.Stat(filepath.Join(dir, "adapter_config.json")); err != nil {
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				return api.Errorf(api.BadRequest, "--out %s is a folder that holds something else than an adapter; it is left alone", dir)
			}
		}
	}
	parent := filepath.Dir(filepath.Clean(dir))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return api.Errorf(api.BadRequest, "--out %s: %w", dir, err)
	}
	probe, err := os.CreateTemp(parent, ".tinker-local-*")
	if err != nil {
		return api.Errorf(api.BadRequest, "--out %s cannot be written: %w", dir, err)
	}
	probe.Close()
	return os.Remove(probe.Name())
}

func checkRank(rank int) error {
	if rank < 1 || rank > api.MaxRank {
		return fmt.Errorf("--rank is %d, wanted 1..%d", rank, api.MaxRank)
	}
	return nil
}
