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
}

// open starts an engine and loads a base model, with a bar while it loads.
func (a *app) open(ctx context.Context, model string) (*opened, error) {
	facts, err := a.facts(model)
	if err != nil {
		return nil, err
	}
	return a.openModel(ctx, facts)
}

// openModel is open for a model whose facts are known.
func (a *app) openModel(ctx context.Context, facts *local.Facts) (_ *opened, err error) {
	model := facts.Name
	bar := countBar(a.err, 1, "loading "+model)
	o := a.opt
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
	m := &opened{model: model, engine: e, session: e.NewSession(), facts: facts, tokenizer: facts.Tokenizer}
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

// sampler is the bare base, or the base with a PEFT adapter folder.
func (m *opened) sampler(ctx context.Context, adapter string) (*engine.Sampler, error) {
	if adapter == "" {
		return m.base, nil
	}
	w, err := local.ReadAdapter(adapter)
	if err != nil {
		return nil, err
	}
	f, err := m.session.NewAdapterSampler(m.model, w)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", adapter, err)
	}
	s, err := f.Wait(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s on %s: %w", adapter, m.model, err)
	}
	return s, nil
}

// facts reads what a model's folder says without its weights.
func (a *app) facts(model string) (*local.Facts, error) {
	return a.models().Facts(model)
}

// newRun starts a training run.
func (m *opened) newRun(ctx context.Context, c api.LoraConfig) (*engine.Run, error) {
	f, err := m.session.NewRun(api.CreateModelRequest{BaseModel: m.model, Lora: c})
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
