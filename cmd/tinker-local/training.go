package main

import (
	"context"
	"errors"
	"fmt"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
	"tinkerlocal/engine/sft"
)

// training is one call of the train command, from the run's beginning on.
type training struct {
	*app
	model    *opened
	flags    trainFlags
	data     *trainingData
	custom   *customLoss // nil: a built-in loss
	options  sft.Options
	from     *resumed // nil: it begins afresh
	recorder *recorder

	adapter *engine.Run
	task    sft.Task
	saver   *saver // nil: --no-save
	state   api.Checkpoint
}

// begin makes the run, or goes on with one, and the task.
func (t *training) begin(ctx context.Context, settings trainSettings) error {
	f, m := t.flags, t.model
	metadata, err := settings.metadata(t.from)
	if err != nil {
		return err
	}
	cfg := api.LoraConfig{Rank: f.rank, Seed: &f.seed, TrainAttn: !f.noAttn, TrainMLP: !f.noMLP, TrainUnembed: !f.noUnembed}
	if t.from != nil {
		t.adapter, err = m.resumeRun(ctx, t.from.state.Path, metadata)
	} else {
		t.adapter, err = m.newRun(ctx, cfg, metadata)
	}
	if err != nil {
		return err
	}
	if t.task, err = t.data.tasks(ctx, m, f.beta, t.custom, &t.options); err != nil {
		return err
	}
	if !f.noSave {
		t.saver = &saver{run: t.adapter, steps: t.options.Steps, every: f.saveEvery, keep: f.keepLast}
		if t.saver.every == 0 {
			t.saver.every = max(t.options.Steps/10, 1)
		}
		t.options.Queued = t.saver.queued
	}
	o := t.options
	if t.from != nil {
		t.say("Going on from %v, step %d of %d.", t.from.state.Path, o.Start, o.Steps)
	}
	t.say("Training rank %d LoRA on %s: %d examples, %d steps of %d, learning rate %.3g, on %s.", f.rank, f.model, t.data.train.Len(),
		o.Steps-o.Start, f.batch, o.Adam.LearningRate, m.engine.Device().Name)
	return nil
}

// run trains to the end, or until it is interrupted, and keeps what was reached.
func (t *training) run(ctx context.Context) error {
	f, rec := t.flags, t.recorder
	err := sft.Train(ctx, t.adapter, t.task, t.options, rec.report)
	noted := rec.end(f.curves)
	if errors.Is(err, context.Canceled) {
		return errors.Join(t.interrupted(), noted)
	}
	if err != nil {
		return errors.Join(err, t.unsaved(), noted)
	}
	ctx = context.WithoutCancel(ctx)
	if err := saveAdapter(ctx, t.adapter, f.out, f.model); err != nil {
		return errors.Join(err, t.unsaved(), noted)
	}
	if t.saver != nil {
		if t.state, err = t.saver.wait(ctx); err != nil {
			return errors.Join(fmt.Errorf("the adapter is in %s, but the run's state was not saved each time: %w", f.out, err), noted)
		}
	}
	if noted != nil {
		return fmt.Errorf("the adapter is in %s, but its records are not whole: %w", f.out, noted)
	}
	return t.print()
}

// interrupted keeps what an interrupted training has reached.
func (t *training) interrupted() error {
	err := t.saveInterrupted(t.adapter, t.flags.out, t.recorder.last, t.flags.model)
	if t.saver == nil {
		return err
	}
	state, failed := t.saver.interrupted(t.recorder.last.Step)
	if state.Path.Run != "" {
		err = fmt.Errorf("%w\nGo on with: tinker-local train --resume %v --out %s", err, state.Path, t.flags.out)
	}
	if failed != nil {
		err = errors.Join(err, fmt.Errorf("the run's state could not be saved: %w", failed))
	}
	return err
}

// unsaved waits for the saves of a training that failed, and says where it can go on.
func (t *training) unsaved() error {
	if t.saver == nil {
		return nil
	}
	state, err := t.saver.wait(context.Background())
	if state.Path.Run != "" {
		err = errors.Join(err, fmt.Errorf("the last saved state is %v", state.Path))
	}
	return err
}

func (t *training) print() error {
	f, d, r := t.flags, t.data, t.recorder
	first, last := r.first, r.last
	loss := "cross_entropy"
	switch {
	case t.custom != nil:
		loss = local.PluginPrefix + t.custom.Record.Name + "@sha256:" + t.custom.Record.Digest
	case d.train.Prefers():
		loss = "dpo"
	}
	if t.json {
		res := trainResult{
			Model: f.model, Adapter: f.out, Loss: loss, Data: d.report, Examples: d.train.Len(), Steps: last.Step, LearningRate: t.options.Adam.LearningRate,
			FirstLoss: first.Loss, LastLoss: last.Loss, Eval: r.marks(), Tokens: last.Tokens, TrainSeconds: last.Elapsed.Seconds(),
			TokensPerSecond: last.TokensPerSecond, Log: r.path,
		}
		if t.saver != nil {
			res.Run, res.State = t.adapter.ID(), t.state.Path.String()
		}
		if t.from != nil {
			res.Resumed = t.from.state.Path.String()
		}
		return t.printJSON(res)
	}
	t.say("%s", r.curve.Text(columns(t.out)))
	t.say("Loss %.4f → %.4f in %d steps, %.1f s (%s tokens/s). The adapter is in %s.", first.Loss, last.Loss, last.Step-t.options.Start,
		last.Elapsed.Seconds(), thousands(last.TokensPerSecond), f.out)
	if e := r.marks(); e != nil {
		t.say("Evaluation loss: best %.4f at step %d, last %.4f.", e.Best, e.BestStep, e.Last)
		if e.LastAccuracy != nil {
			t.say("Of the evaluation's pairs %.1f %% prefer the chosen answer.", 100**e.LastAccuracy)
		}
	}
	if t.saver != nil {
		t.say("Saved: %v (%s)", t.state.Path, bytesText(t.state.Bytes))
	}
	for _, path := range append([]string{r.path}, f.curves...) {
		if path != "" {
			t.say("Written: %s", path)
		}
	}
	return nil
}
