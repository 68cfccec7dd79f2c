package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
	"tinkerlocal/engine/sft"
	"tinkerlocal/engine/token"
)

// The quick-start's recipe. The numbers were chosen on the embedded model (engine/local/tiny/README.md).
const (
	quickPairs     = 1000
	quickHeldout   = 250
	quickWords     = 5 // phrases of 1 to 5 words
	quickSteps     = 100
	quickBatch     = 16
	quickRank      = 32
	quickLR        = 3e-3
	quickMaxTokens = 128
)

// quickResult is what --json prints.
type quickResult struct {
	BaseExactMatch  float64 `json:"base_exact_match"`
	TunedExactMatch float64 `json:"tuned_exact_match"`
	Heldout         int     `json:"heldout"`
	TrainSeconds    float64 `json:"train_seconds"`
	TokensPerSecond float64 `json:"tokens_per_second"`
	Adapter         string  `json:"adapter"`
	Device          string  `json:"device"`
}

func quickstartCommand(a *app) *cobra.Command {
	var out string
	var seed int64
	c := &cobra.Command{
		Use:   "quickstart",
		Short: "Teach the embedded model Pig Latin and see it work",
		Long: "quickstart takes the small base model inside this program, shows that it cannot translate English to\n" +
			"Pig Latin, fine-tunes a LoRA adapter on 1,000 examples, and measures it on held-out phrases of 1 to 5 words,\n" +
			"none of whose words the model has ever seen. The adapter is saved as a PEFT folder.",
		Example: "  tinker-local quickstart\n  tinker-local quickstart --json\n  tinker-local quickstart --out my-adapter --seed 7",
		RunE: func(c *cobra.Command, _ []string) error {
			return quickstart(c.Context(), a, out, seed)
		},
	}
	c.Flags().StringVar(&out, "out", "quickstart-adapter", "folder for the adapter; an adapter that is there is replaced")
	c.Flags().Int64Var(&seed, "seed", 1, "seed of the adapter, of the data and of their order")
	return c
}

func quickstart(ctx context.Context, a *app, out string, seed int64) error {
	if err := checkWritable(out); err != nil {
		return err
	}
	m, err := a.open(ctx, local.TinyModel)
	if err != nil {
		return err
	}
	defer m.close()
	train, heldout := quickData(seed)
	a.say("Base model %s on %s: %s parameters.", local.TinyModel, m.engine.Device().Name, thousands(float64(m.base.Base().Params)))
	a.say("Task: English to Pig Latin, %d training pairs, %d held-out phrases of 1 to %d words.\n", len(train), len(heldout), quickWords)
	res := quickResult{Heldout: len(heldout), Adapter: out, Device: m.engine.Device().Name}

	before, err := translate(ctx, a, "base model", m.base, m.tokenizer, heldout)
	if err != nil {
		return err
	}
	res.BaseExactMatch = exactMatch(heldout, before)
	a.say("Before: %.1f %% of the held-out phrases are right.", 100*res.BaseExactMatch)
	a.showExamples(heldout, before)

	cfg := api.DefaultLora()
	cfg.Rank, cfg.Seed = quickRank, &seed
	run, err := m.newRun(ctx, cfg, nil)
	if err != nil {
		return err
	}
	examples := make(sft.Examples, len(train))
	for i, p := range train {
		prompt := m.tokenizer.Encode(p.prompt(), true)
		examples[i] = sft.Completion(slices.Concat(prompt, m.tokenizer.Encode(p.completion(), false)), len(prompt))
	}
	adam := api.DefaultAdam()
	adam.LearningRate, adam.GradClipNorm = quickLR, 1
	o := sft.Options{Steps: quickSteps, BatchSize: quickBatch, Warmup: 10, FinalLR: 0.1, Adam: adam, Seed: seed}
	rec, err := a.newRecorder("", out, o)
	if err != nil {
		return err
	}
	err = sft.Train(ctx, run, sft.Supervised{Source: examples}, o, rec.report)
	noted, last := rec.end(nil), rec.last
	if errors.Is(err, context.Canceled) {
		return errors.Join(a.saveInterrupted(run, out, last, local.TinyModel), noted)
	}
	if err := errors.Join(err, noted); err != nil {
		return err
	}
	res.TrainSeconds, res.TokensPerSecond = last.Elapsed.Seconds(), last.TokensPerSecond
	a.say("Trained rank %d LoRA for %d steps in %.1f s (%s tokens/s), loss %.4f.\n", quickRank, last.Step, res.TrainSeconds,
		thousands(res.TokensPerSecond), last.Loss)

	if err := saveAdapter(context.WithoutCancel(ctx), run, out, local.TinyModel); err != nil {
		return err
	}
	snapshot, err := run.SaveForSampler()
	if err != nil {
		return err
	}
	tuned, err := snapshot.Wait(ctx)
	if err != nil {
		return err
	}
	after, err := translate(ctx, a, "fine-tuned model", tuned, m.tokenizer, heldout)
	if err != nil {
		return err
	}
	res.TunedExactMatch = exactMatch(heldout, after)
	if a.json {
		return a.printJSON(res)
	}
	a.say("After: %.1f %% of the held-out phrases are right.", 100*res.TunedExactMatch)
	a.showExamples(heldout, after)
	a.say("The adapter is in %s (a PEFT folder), the loss of each step in %s. Next:", out, rec.path)
	a.say("  %s sample --model %s --adapter %s --prompt $'English: hello world\\nPig Latin:' --stop $'\\n' --temperature 0", os.Args[0], local.TinyModel, out)
	a.say("  %s train --model %s --data FILE.jsonl --out my-adapter     # rows of {\"prompt\": …, \"completion\": …}", os.Args[0], local.TinyModel)
	return nil
}

// quickData builds the two sets. Training phrases are made of training words, held-out phrases of held-out words.
func quickData(seed int64) (train, heldout []pair) {
	trainWords, heldoutWords := local.Words()
	train = phrases(trainWords, quickPairs, quickWords, rand.New(rand.NewPCG(uint64(seed), 1)))
	heldout = phrases(heldoutWords, quickHeldout, quickWords, rand.New(rand.NewPCG(uint64(seed), 2)))
	return train, heldout
}

// translate answers every prompt greedily, all at once.
func translate(ctx context.Context, a *app, what string, s *engine.Sampler, t *token.Tokenizer, pairs []pair) ([]string, error) {
	params := api.DefaultSampling()
	params.Temperature, params.MaxTokens, params.Stop = 0, quickMaxTokens, []string{"\n"}
	futures := make([]*engine.Future[api.SampleOutput], len(pairs))
	for i, p := range pairs {
		f, err := s.Sample(ctx, api.SampleRequest{Prompt: api.FromInts(t.Encode(p.prompt(), true)), Params: params, NumSamples: 1})
		if err != nil {
			return nil, err
		}
		futures[i] = f
	}
	bar := countBar(a.err, int64(len(pairs)), "testing the "+what)
	defer bar.Close()
	out := make([]string, len(pairs))
	for i, f := range futures {
		r, err := f.Wait(ctx)
		if err != nil {
			return nil, err
		}
		out[i] = t.Decode(r.Sequences[0].Tokens, true)
		_ = bar.Add(1)
	}
	return out, nil
}

func exactMatch(pairs []pair, answers []string) float64 {
	n := 0
	for i, p := range pairs {
		if answers[i] == p.completion() {
			n++
		}
	}
	return float64(n) / float64(len(pairs))
}

// showExamples prints the first phrase of each length.
func (a *app) showExamples(pairs []pair, answers []string) {
	for n := 1; n <= quickWords; n++ {
		for i, p := range pairs {
			if len(strings.Fields(p.English)) == n {
				mark := "wrong"
				if answers[i] == p.completion() {
					mark = "right"
				}
				a.say("  %-5s  %s → %s", mark, p.English, oneLine(answers[i], 72))
				break
			}
		}
	}
	a.say("")
}

// oneLine makes s fit one line of output.
func oneLine(s string, limit int) string {
	s = strings.TrimSpace(s)
	s = strings.Map(func(r rune) rune {
		if r < ' ' {
			return '␤'
		}
		return r
	}, s)
	if r := []rune(s); len(r) > limit {
		s = string(r[:limit-1]) + "…"
	}
	return s
}

// saveInterrupted keeps what an interrupted training has reached.
func (a *app) saveInterrupted(run *engine.Run, out string, last sft.Progress, model string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := saveAdapter(ctx, run, out, model); err != nil {
		return fmt.Errorf("%w after step %d of %d, and the adapter could not be saved: %w", errInterrupted, last.Step, last.Steps, err)
	}
	return fmt.Errorf("%w after step %d of %d; the adapter so far is in %s", errInterrupted, last.Step, last.Steps, out)
}
