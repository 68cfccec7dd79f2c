package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/sft"
)

// trainFlags are the settings of the train command.
type trainFlags struct {
	model, data, out string
	rank             int
	lr, clip, decay  float64
	batch            int
	steps, epochs    int
	seed             int64
	noEnd            bool
	noAttn, noMLP    bool
	noUnembed        bool
}

// trainResult is what --json prints.
type trainResult struct {
	Model           string  `json:"model"`
	Adapter         string  `json:"adapter"`
	Examples        int     `json:"examples"`
	Steps           int     `json:"steps"`
	FirstLoss       float64 `json:"first_loss"`
	LastLoss        float64 `json:"last_loss"`
	Tokens          int64   `json:"tokens"`
	TrainSeconds    float64 `json:"train_seconds"`
	TokensPerSecond float64 `json:"tokens_per_second"`
}

func trainCommand(a *app) *cobra.Command {
	var f trainFlags
	c := &cobra.Command{
		Use:   "train --model NAME|DIR --data FILE.jsonl --out DIR",
		Short: "Fine-tune a LoRA adapter on prompt/completion pairs",
		Long: "train fine-tunes a LoRA adapter on a JSONL file whose rows are {\"prompt\": …, \"completion\": …} and writes it as a\n" +
			"PEFT folder. The loss is on the completion, averaged over a batch's completion tokens; the model's\n" +
			"end-of-text token is added to each completion. Ctrl-C stops after the running step and saves the adapter so far.",
		Example: "  tinker-local train --model tinker-local/tiny --data pairs.jsonl --out my-adapter\n" +
			"  tinker-local train --models ~/models --model Qwen/Qwen3-0.6B --data pairs.jsonl --out my-adapter --rank 16 --epochs 3",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.check(c); err != nil {
				return usageError{c, err}
			}
			return train(c.Context(), a, f)
		},
	}
	l := c.Flags()
	l.StringVar(&f.model, "model", "", "base model: ORG/NAME in the --models folder, or a folder (required)")
	l.StringVar(&f.data, "data", "", "training file, JSON lines (required)")
	l.StringVar(&f.out, "out", "", "folder for the adapter; an adapter that is there is replaced (required)")
	l.IntVar(&f.rank, "rank", 32, "LoRA rank")
	l.Float64Var(&f.lr, "lr", 1e-3, "peak learning rate (warm-up over 5 % of the steps, then linear decay to 10 %)")
	l.Float64Var(&f.clip, "clip", 1, "clip the gradient's global norm to this; 0: no clipping")
	l.Float64Var(&f.decay, "weight-decay", 0, "decoupled weight decay")
	l.IntVar(&f.batch, "batch-size", 16, "examples per step")
	l.IntVar(&f.steps, "steps", 0, "optimiser steps; 0: as many as --epochs needs")
	l.IntVar(&f.epochs, "epochs", 1, "passes over the data, when --steps is not given")
	l.Int64Var(&f.seed, "seed", 1, "seed of the adapter's initial weights and of the order of examples")
	l.BoolVar(&f.noEnd, "no-end-token", false, "do not add the end-of-text token to completions")
	l.BoolVar(&f.noAttn, "no-attn", false, "do not adapt the attention projections")
	l.BoolVar(&f.noMLP, "no-mlp", false, "do not adapt the MLP projections")
	l.BoolVar(&f.noUnembed, "no-unembed", false, "do not adapt the output projection")
	return c
}

// check refuses settings by the flag's name and the values it takes.
func (f trainFlags) check(c *cobra.Command) error {
	for _, r := range []struct{ name, value string }{{"--model", f.model}, {"--data", f.data}, {"--out", f.out}} {
		if r.value == "" {
			return fmt.Errorf("%s is required", r.name)
		}
	}
	switch {
	case c.Flags().Changed("steps") && c.Flags().Changed("epochs"):
		return errors.New("--steps and --epochs exclude each other")
	case f.steps < 0:
		return fmt.Errorf("--steps is %d, wanted at least 1", f.steps)
	case f.epochs < 1:
		return fmt.Errorf("--epochs is %d, wanted at least 1", f.epochs)
	case f.batch < 1:
		return fmt.Errorf("--batch-size is %d, wanted at least 1", f.batch)
	case !(f.lr > 0) || f.lr > 1:
		return fmt.Errorf("--lr is %v, wanted more than 0 and at most 1", f.lr)
	case !(f.clip >= 0):
		return fmt.Errorf("--clip is %v, wanted at least 0", f.clip)
	case !(f.decay >= 0):
		return fmt.Errorf("--weight-decay is %v, wanted at least 0", f.decay)
	case f.noAttn && f.noMLP && f.noUnembed:
		return errors.New("--no-attn, --no-mlp and --no-unembed together leave nothing to train")
	}
	return checkRank(f.rank)
}

func train(ctx context.Context, a *app, f trainFlags) error {
	rows, err := readRows(f.data)
	if err != nil {
		return err
	}
	if err := checkWritable(f.out); err != nil {
		return err
	}
	m, err := a.open(ctx, f.model)
	if err != nil {
		return err
	}
	defer m.close()
	end, maxTokens := int32(-1), m.base.Base().Spec.MaxPositions
	if !f.noEnd {
		end = m.endToken()
	}
	examples := make([]sft.Example, len(rows))
	for i, r := range rows {
		e := encode(m.tokenizer, r.prompt, r.completion, end)
		if n := len(e.Tokens) - 1; n > maxTokens {
			return api.Errorf(api.BadRequest, "%s:%d: the row has %d tokens, the context of %s is %d", f.data, r.line, n, f.model, maxTokens)
		}
		if e.Prompt == 0 && len(e.Tokens) < 2 {
			return api.Errorf(api.BadRequest, "%s:%d: one token without a prompt: nothing to predict", f.data, r.line)
		}
		examples[i] = e
	}
	steps := f.steps
	if steps == 0 {
		steps = (len(examples)*f.epochs + f.batch - 1) / f.batch
	}
	cfg := api.LoraConfig{Rank: f.rank, Seed: &f.seed, TrainAttn: !f.noAttn, TrainMLP: !f.noMLP, TrainUnembed: !f.noUnembed}
	run, err := m.newRun(ctx, cfg)
	if err != nil {
		return err
	}
	adam := api.DefaultAdam()
	adam.LearningRate, adam.GradClipNorm, adam.WeightDecay = f.lr, f.clip, f.decay
	o := sft.Options{Steps: steps, BatchSize: f.batch, Warmup: steps / 20, FinalLR: 0.1, Adam: adam, Seed: f.seed}
	a.say("Training rank %d LoRA on %s: %d examples, %d steps of %d, on %s.", f.rank, f.model, len(examples), steps, f.batch, m.engine.Device().Name)

	var first, last sft.Progress
	bar := newTrainBar(a.err, steps)
	err = sft.Train(ctx, run, examples, o, func(p sft.Progress) {
		if p.Step == 1 {
			first = p
		}
		last = p
		bar.report(p)
	})
	bar.end()
	if errors.Is(err, context.Canceled) {
		return a.saveInterrupted(run, f.out, last, f.model)
	}
	if err != nil {
		return err
	}
	if err := saveAdapter(context.WithoutCancel(ctx), run, f.out, f.model); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(trainResult{
			Model: f.model, Adapter: f.out, Examples: len(examples), Steps: last.Step, FirstLoss: first.Loss, LastLoss: last.Loss,
			Tokens: last.Tokens, TrainSeconds: last.Elapsed.Seconds(), TokensPerSecond: last.TokensPerSecond,
		})
	}
	a.say("Loss %.4f → %.4f in %d steps, %.1f s (%s tokens/s). The adapter is in %s.", first.Loss, last.Loss, last.Step,
		last.Elapsed.Seconds(), thousands(last.TokensPerSecond), f.out)
	return nil
}
