package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/chat"
	"tinkerlocal/engine/local"
	"tinkerlocal/engine/sft"
	"tinkerlocal/engine/sft/data"
	"tinkerlocal/engine/sft/record"
)

// dpoRate is the default learning rate of preference pairs: that of the official cookbook's preference trainer.
const dpoRate = 1e-5

// trainFlags are the settings of the train command.
type trainFlags struct {
	model, data, out string
	rows             rowFlags
	val              string
	valSplit         float64
	evalEvery        int
	loss             string
	lossConfig       []string
	otherLoss        bool
	beta             float64
	rank             int
	lr, finalLR      float64
	schedule         string
	warmup           int
	clip, decay      float64
	batch            int
	steps, epochs    int
	seed             int64
	noAttn, noMLP    bool
	noUnembed        bool
	log              string
	curves           []string
	inspect          int
	saveEvery        int
	keepLast         int
	noSave           bool
	resume           string
	given            func(flag string) bool // whether the command line has a flag
}

// trainResult is what --json prints.
type trainResult struct {
	Model           string     `json:"model"`
	Adapter         string     `json:"adapter"`
	Run             string     `json:"run,omitempty"`          // that has checkpoints
	State           string     `json:"checkpoint,omitempty"`   // path of the last state
	Resumed         string     `json:"resumed_from,omitempty"` // path of the state that it went on from
	Loss            string     `json:"loss"`
	Data            dataReport `json:"data"`
	Examples        int        `json:"examples"`
	Steps           int        `json:"steps"`
	LearningRate    float64    `json:"learning_rate"`
	FirstLoss       float64    `json:"first_loss"`
	LastLoss        float64    `json:"last_loss"`
	Eval            *evalMarks `json:"eval,omitempty"`
	Tokens          int64      `json:"tokens"`
	TrainSeconds    float64    `json:"train_seconds"`
	TokensPerSecond float64    `json:"tokens_per_second"`
	Log             string     `json:"log,omitempty"`
}

func trainCommand(a *app) *cobra.Command {
	var f trainFlags
	c := &cobra.Command{
		Use:   "train --model NAME|DIR --data FILE.jsonl --out DIR",
		Short: "Fine-tune a LoRA adapter on prompts with completions, conversations or preference pairs",
		Long: "train fine-tunes a LoRA adapter on a file of JSON lines and writes it as a PEFT folder. A row is one of\n" +
			"  {\"prompt\": TEXT, \"completion\": TEXT}                 the loss is on the completion and the end-of-text token\n" +
			"  {\"messages\": [{\"role\": …, \"content\": …}, …]}         the loss is on the assistant's turns; \"tools\" may stand beside it\n" +
			"  {\"prompt\": …, \"chosen\": …, \"rejected\": …}            preference pairs, as text or messages: trained with DPO\n" +
			"Every row is checked before training starts; bad ones are named by file, line and reason. The file is read again\n" +
			"during training and never held in memory.\n\n" +
			"The state of the run (adapter, moments, step) is saved in the state directory every --save-every steps, at the end, and\n" +
			"when ctrl-C stops the training behind the running step. --resume goes on from there with the settings that the run began\n" +
			"with, and gives the bits of a run that never stopped. It takes a run, the path of a state, or newest; only --out, --log,\n" +
			"--curve, --steps or --epochs, and --data or --val for a file that has moved, may stand beside it.\n\n" +
			"With --loss wasm:… the loss is a plugin (see plugin list). It gets target_tokens and weights (1 on learned tokens); if it asks for\n" +
			"them, the base model's log-probabilities as ref_logprobs, and numbers from the row's fields of the same name (true is 1).\n" +
			"Of preference pairs it sees the chosen answer, then the rejected one.\n\n" +
			"Without --lr the learning rate is the official cookbook's: 5e-4 · (2000/hidden size)^p, with p 0.781 for Llama and\n" +
			"0.0775 for Qwen and all others; for preference pairs it is 1e-5.",
		Example: "  tinker-local train --model tinker-local/tiny --data pairs.jsonl --out my-adapter\n" +
			"  tinker-local train --model Qwen/Qwen3-0.6B --data chats.jsonl --inspect 2\n" +
			"  tinker-local train --model Qwen/Qwen3-0.6B --data chats.jsonl --val-split 0.05 --eval-every 20 --epochs 3 --curve loss.png --out my-adapter\n" +
			"  tinker-local train --model Qwen/Qwen3-0.6B --data preferences.jsonl --beta 0.1 --out my-adapter\n" +
			"  tinker-local train --resume newest --out my-adapter",
		RunE: func(c *cobra.Command, _ []string) error {
			f.given = c.Flags().Changed
			var from *resumed
			if f.resume != "" {
				var err error
				if from, err = a.findResumed(c.Context(), f.resume); err == nil {
					err = from.apply(c)
				}
				if err != nil {
					return fmt.Errorf("--resume: %w", err)
				}
			}
			if err := f.check(); err != nil {
				return usageError{c, err}
			}
			return train(c.Context(), a, c, f, from)
		},
	}
	l := c.Flags()
	l.StringVar(&f.model, "model", "", "base model: ORG/NAME in the --models folder, or a folder (required)")
	l.StringVar(&f.data, "data", "", "training file, JSON lines (required)")
	l.StringVar(&f.out, "out", "", "folder for the adapter; an adapter that is there is replaced (required, except with --inspect)")
	f.rows.register(c)
	l.StringVar(&f.val, "val", "", "file to evaluate on, of the same kind as --data")
	l.Float64Var(&f.valSplit, "val-split", 0, "share of the rows of --data to evaluate on instead of training on them")
	l.IntVar(&f.evalEvery, "eval-every", 0, "steps between evaluations; 0: a tenth of the steps")
	f.loss = "auto"
	l.Var(lossFlag{&f.loss}, "loss", "auto (dpo for preference pairs), cross_entropy, dpo, or a plugin: wasm:NAME or wasm:FILE.wasm")
	l.StringArrayVar(&f.lossConfig, "loss-config", nil, "NAME=NUMBER, a parameter of a plugin (may be given several times)")
	l.BoolVar(&f.otherLoss, "other-loss", false, "with --resume: go on although the plugin is not the one that the run began with")
	l.Float64Var(&f.beta, "beta", 0.1, "dpo: how much a preference weighs against staying near the base model")
	l.IntVar(&f.rank, "rank", 32, "LoRA rank")
	l.Float64Var(&f.lr, "lr", 0, "peak learning rate; not given: by the model's size, see above")
	f.schedule = string(sft.Linear)
	l.Var(choiceFlag{&f.schedule, sft.Schedules}, "schedule", "course of the learning rate after the warm-up: "+strings.Join(sft.Schedules, ", "))
	l.IntVar(&f.warmup, "warmup", -1, "steps over which the learning rate rises; -1: 5 % of the steps")
	l.Float64Var(&f.finalLR, "final-lr", 0.1, "share of the peak that the learning rate has at the last step")
	l.Float64Var(&f.clip, "clip", 1, "clip the gradient's global norm to this; 0: no clipping")
	l.Float64Var(&f.decay, "weight-decay", 0, "decoupled weight decay")
	l.IntVar(&f.batch, "batch-size", 16, "examples per step")
	l.IntVar(&f.steps, "steps", 0, "optimiser steps; 0: as many as --epochs needs")
	l.IntVar(&f.epochs, "epochs", 1, "passes over the data, when --steps is not given")
	l.Int64Var(&f.seed, "seed", 1, "seed of the adapter's initial weights, of the order of examples and of --val-split")
	l.BoolVar(&f.noAttn, "no-attn", false, "do not adapt the attention projections")
	l.BoolVar(&f.noMLP, "no-mlp", false, "do not adapt the MLP projections")
	l.BoolVar(&f.noUnembed, "no-unembed", false, "do not adapt the output projection")
	l.StringVar(&f.log, "log", "", "file of one JSON line per step; default: --out with .metrics.jsonl behind it; none: no file")
	l.StringArrayVar(&f.curves, "curve", nil, "write the loss curve to this .png or .csv file (may be given several times)")
	l.IntVar(&f.saveEvery, "save-every", 0, "steps between saves of the state; 0: a tenth of the steps")
	l.IntVar(&f.keepLast, "keep-last", 2, "saved states of the run that are kept, the newest; 0: all")
	l.BoolVar(&f.noSave, "no-save", false, "save no state: the run cannot be resumed, and the state directory is not used")
	l.StringVar(&f.resume, "resume", "", "go on with a run from its newest saved state, from the state with this path, or with the newest run")
	l.IntVar(&f.inspect, "inspect", 0, "print this many examples as columns of input token, target and weight, and stop; loads no weights")
	return c
}

// check refuses settings by the flag's name and the values it takes.
func (f trainFlags) check() error {
	for _, r := range []struct{ name, value string }{{"--model", f.model}, {"--data", f.data}, {"--out", f.out}} {
		if r.value == "" && (r.name != "--out" || f.inspect == 0) {
			return fmt.Errorf("%s is required", r.name)
		}
	}
	switch {
	case f.given("steps") && f.given("epochs"):
		return errors.New("--steps and --epochs exclude each other")
	case f.val != "" && f.given("val-split"):
		return errors.New("--val and --val-split exclude each other")
	case f.given("val-split") && !(f.valSplit > 0 && f.valSplit < 1):
		return fmt.Errorf("--val-split is %v, wanted more than 0 and less than 1", f.valSplit)
	case f.evalEvery < 0:
		return fmt.Errorf("--eval-every is %d, wanted at least 0", f.evalEvery)
	case f.given("eval-every") && f.val == "" && f.valSplit == 0:
		return errors.New("--eval-every needs --val or --val-split")
	case f.given("loss-config") && !f.isPlugin():
		return errors.New("--loss-config is for plugins: --loss wasm:…")
	case f.given("beta") && f.isPlugin():
		return errors.New("--beta is for dpo; a plugin has --loss-config")
	case !(f.beta > 0) || math.IsInf(f.beta, 1):
		return fmt.Errorf("--beta is %v, wanted more than 0", f.beta)
	case f.steps < 0:
		return fmt.Errorf("--steps is %d, wanted at least 1", f.steps)
	case f.epochs < 1:
		return fmt.Errorf("--epochs is %d, wanted at least 1", f.epochs)
	case f.batch < 1:
		return fmt.Errorf("--batch-size is %d, wanted at least 1", f.batch)
	case f.given("lr") && (!(f.lr > 0) || f.lr > 1):
		return fmt.Errorf("--lr is %v, wanted more than 0 and at most 1", f.lr)
	case f.warmup < -1:
		return fmt.Errorf("--warmup is %d, wanted -1 (5 %% of the steps) or at least 0", f.warmup)
	case !(f.finalLR >= 0 && f.finalLR <= 1):
		return fmt.Errorf("--final-lr is %v, wanted 0 to 1", f.finalLR)
	case !(f.clip >= 0):
		return fmt.Errorf("--clip is %v, wanted at least 0", f.clip)
	case !(f.decay >= 0):
		return fmt.Errorf("--weight-decay is %v, wanted at least 0", f.decay)
	case f.noAttn && f.noMLP && f.noUnembed:
		return errors.New("--no-attn, --no-mlp and --no-unembed together leave nothing to train")
	case f.saveEvery < 0:
		return fmt.Errorf("--save-every is %d, wanted at least 0", f.saveEvery)
	case f.keepLast < 0:
		return fmt.Errorf("--keep-last is %d, wanted at least 0", f.keepLast)
	case f.noSave && f.resume != "":
		return errors.New("--no-save and --resume exclude each other")
	case f.inspect < 0:
		return fmt.Errorf("--inspect is %d, wanted at least 0", f.inspect)
	}
	for _, path := range f.curves {
		if err := record.CheckFile(path); err != nil {
			return fmt.Errorf("--curve %w", err)
		}
	}
	if err := f.rows.check(); err != nil {
		return err
	}
	if _, err := f.config(); err != nil {
		return err
	}
	return checkRank(f.rank)
}

func train(ctx context.Context, a *app, c *cobra.Command, f trainFlags, from *resumed) error {
	facts, err := a.facts(f.model)
	if err != nil {
		return err
	}
	if f.inspect == 0 {
		if err := checkWritable(f.out); err != nil {
			return err
		}
	}
	custom, err := a.openLoss(ctx, f, from)
	if err != nil {
		return err
	}
	defer custom.close()
	d, err := a.openData(f, facts, custom)
	if err != nil {
		return err
	}
	defer d.close()
	if f.inspect > 0 {
		return a.printExamples(d.train, facts.Tokenizer, f.inspect)
	}
	o := f.options(d, facts)
	if from != nil {
		if err := from.compare(o); err != nil {
			return fmt.Errorf("--resume: %w", err)
		}
		o.Start = int(from.state.Step)
	}
	settings, err := f.settings(c, o)
	if err != nil {
		return err
	}
	if custom != nil {
		settings.Plugin = &custom.Record
	}
	state := a.state
	switch {
	case f.noSave:
		state = ""
	case state == "":
		return api.Errorf(api.BadRequest, "no state directory is named and no home folder is known: name one with --state, or give --no-save")
	}
	rec, err := a.newRecorder(f.log, f.out, o)
	if err != nil {
		return err
	}
	m, err := a.openModel(ctx, facts, state)
	if api.CodeOf(err) == api.Busy && state != "" {
		err = fmt.Errorf("%w; or give --no-save", err)
	}
	if err != nil {
		return errors.Join(err, rec.discard())
	}
	defer m.close()
	t := &training{app: a, model: m, flags: f, data: d, custom: custom, options: o, from: from, recorder: rec}
	if err := t.begin(ctx, settings); err != nil {
		return errors.Join(err, rec.discard())
	}
	return t.run(ctx)
}

// options puts the settings of the loop together.
func (f trainFlags) options(d *trainingData, facts *local.Facts) sft.Options {
	n := d.train.Len()
	steps := f.steps
	if steps == 0 {
		steps = max((n*f.epochs+f.batch-1)/f.batch, 1)
	}
	adam := api.DefaultAdam()
	adam.LearningRate, adam.GradClipNorm, adam.WeightDecay = f.lr, f.clip, f.decay
	switch {
	case f.given("lr"):
	case d.train.Prefers():
		adam.LearningRate = dpoRate
	default:
		adam.LearningRate = sft.DefaultRate(facts.Spec.Hidden, f.model, facts.Spec.Family)
	}
	o := sft.Options{Steps: steps, BatchSize: f.batch, Warmup: f.warmup, Schedule: sft.Schedule(f.schedule), FinalLR: f.finalLR, Adam: adam, Seed: f.seed}
	if f.warmup < 0 {
		o.Warmup = steps / 20
	}
	if d.val != nil {
		if o.EvalEvery = f.evalEvery; o.EvalEvery == 0 {
			o.EvalEvery = max(steps/10, 1)
		}
	}
	return o
}

// rowFlags say how rows are read.
type rowFlags struct {
	format, renderer, trainOn, tooLong string
	maxLength, skipBad                 int
	noEnd                              bool
}

func (r *rowFlags) register(c *cobra.Command) {
	l := c.Flags()
	r.format, r.trainOn, r.tooLong = string(data.Auto), "all", string(data.Refuse)
	l.Var(choiceFlag{&r.format, data.Kinds}, "format", "kind of rows: "+strings.Join(data.Kinds, ", ")+"; auto: by each row's fields")
	l.StringVar(&r.renderer, "renderer", "", "chat format of conversations, one of "+strings.Join(chat.Names(), ", ")+"; not given: the model's own")
	l.Var(choiceFlag{&r.trainOn, []string{"all", "last"}}, "train-on", "turns of the assistant that are learned: all or last")
	l.IntVar(&r.maxLength, "max-length", 0, "tokens that an example may have; 0: the model's context")
	l.Var(choiceFlag{&r.tooLong, data.TooLongs}, "too-long", "what becomes of longer examples: error, drop, or truncate (cut the end off, the end token too)")
	l.IntVar(&r.skipBad, "skip-bad", 0, "how many bad rows may be left out")
	l.BoolVar(&r.noEnd, "no-end-token", false, "do not add the end-of-text token to completions")
}

func (r rowFlags) check() error {
	switch {
	case r.maxLength < 0:
		return fmt.Errorf("--max-length is %d, wanted at least 0", r.maxLength)
	case r.skipBad < 0:
		return fmt.Errorf("--skip-bad is %d, wanted at least 0", r.skipBad)
	}
	if r.renderer != "" {
		if _, err := chat.ByName(r.renderer); err != nil {
			return fmt.Errorf("--renderer: %w", err)
		}
	}
	return nil
}
