package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// sampleFlags are the settings of the sample command.
type sampleFlags struct {
	model, adapter, prompt string
	n, maxTokens, topK     int
	temperature, topP      float64
	stop                   []string
	seed                   int64
	logprobs               bool
	promptLogprobs         bool
	topLogprobs            int
}

// sampled is one sequence as --json prints it.
type sampled struct {
	Text        string    `json:"text"`
	Tokens      []int32   `json:"tokens"`
	StopReason  string    `json:"stop_reason"`
	LogProbs    []float32 `json:"logprobs,omitempty"`
	RawLogProbs []float32 `json:"raw_logprobs,omitempty"`
}

func sampleCommand(a *app) *cobra.Command {
	var f sampleFlags
	c := &cobra.Command{
		Use:   "sample --model NAME|DIR --prompt TEXT",
		Short: "Sample text from a base model, with or without an adapter",
		Long: "sample continues a prompt and prints the text as it is made; several continuations, or any with log-probabilities, are printed\n" +
			"when they are complete. Temperature 0 always takes the most likely token.",
		Example: "  tinker-local sample --model tinker-local/tiny --prompt 'reverse: stone'\n" +
			"  tinker-local sample --model Qwen/Qwen3-0.6B --models ~/models --adapter my-adapter --prompt 'Once' -n 3 --temperature 0.8 --logprobs\n" +
			"  tinker-local sample --model tinker-local/tiny --prompt 'reverse: stone' --max-tokens 1 --top-logprobs 3\n" +
			"  tinker-local sample --adapter tinker://RUN/sampler_weights/final --prompt 'Once'",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.check(c); err != nil {
				return usageError{c, err}
			}
			var seed *int64
			if c.Flags().Changed("seed") {
				seed = &f.seed
			}
			return sampleText(c.Context(), a, f, seed)
		},
	}
	l := c.Flags()
	l.StringVar(&f.model, "model", "", "base model: ORG/NAME in the --models folder, or a folder (required, unless --adapter is a checkpoint)")
	l.StringVar(&f.adapter, "adapter", "", "PEFT adapter folder, or the path of a checkpoint: tinker://RUN/sampler_weights/NAME")
	l.StringVar(&f.prompt, "prompt", "", "text to continue (required)")
	l.IntVarP(&f.n, "num-samples", "n", 1, "how many continuations")
	l.IntVar(&f.maxTokens, "max-tokens", 128, "tokens per continuation; 0: up to the model's context")
	l.Float64Var(&f.temperature, "temperature", 1, "0: always the most likely token")
	l.IntVar(&f.topK, "top-k", -1, "sample among the k most likely tokens; -1: off")
	l.Float64Var(&f.topP, "top-p", 1, "sample among the most likely tokens that hold this share; 1: off")
	l.StringArrayVar(&f.stop, "stop", nil, "end a continuation at this text (may be given several times)")
	l.Int64Var(&f.seed, "seed", 0, "seed of the draws; not given: random")
	l.BoolVar(&f.logprobs, "logprobs", false, "print each token's log-probability")
	l.BoolVar(&f.promptLogprobs, "prompt-logprobs", false, "print the log-probability of each token of the prompt")
	l.IntVar(&f.topLogprobs, "top-logprobs", 0, "and the k most likely tokens in its place; 0: none")
	return c
}

func (f sampleFlags) check(c *cobra.Command) error {
	switch {
	case f.model == "" && !isCheckpoint(f.adapter):
		return errors.New("--model is required")
	case !c.Flags().Changed("prompt"):
		return errors.New("--prompt is required")
	case f.topLogprobs < 0:
		return fmt.Errorf("--top-logprobs is %d, wanted at least 0", f.topLogprobs)
	}
	for _, s := range f.stop {
		if s == "" {
			return errors.New("--stop is empty, wanted some text")
		}
	}
	return f.checkDraw()
}

// checkDraw checks the settings that chat has, too.
func (f sampleFlags) checkDraw() error {
	switch {
	case f.n < 1:
		return fmt.Errorf("--num-samples is %d, wanted at least 1", f.n)
	case f.maxTokens < 0:
		return fmt.Errorf("--max-tokens is %d, wanted at least 0", f.maxTokens)
	case !(f.temperature >= 0):
		return fmt.Errorf("--temperature is %v, wanted at least 0", f.temperature)
	case f.topK < -1 || f.topK == 0:
		return fmt.Errorf("--top-k is %d, wanted -1 (off) or at least 1", f.topK)
	case !(f.topP > 0 && f.topP <= 1):
		return fmt.Errorf("--top-p is %v, wanted more than 0 and at most 1", f.topP)
	}
	return nil
}

func sampleText(ctx context.Context, a *app, f sampleFlags, seed *int64) error {
	m, err := a.openFor(ctx, f.model, f.adapter)
	if err != nil {
		return err
	}
	defer m.close()
	s, err := m.sampler(ctx, f.adapter)
	if err != nil {
		return err
	}
	prompt := m.tokenizer.Encode(f.prompt, true)
	request := api.SampleRequest{
		Prompt: api.FromInts(prompt), NumSamples: f.n, PromptLogProbs: f.promptLogprobs, TopKPromptLogProbs: f.topLogprobs,
		Params: api.SamplingParams{
			MaxTokens: f.maxTokens, Seed: seed, Stop: f.stop,
			Temperature: f.temperature, TopK: f.topK, TopP: f.topP,
		},
	}
	if f.n == 1 && !a.json && !f.logprobs && !f.promptLogprobs && f.topLogprobs == 0 {
		return a.streamSample(ctx, m, s, request)
	}
	future, err := s.Sample(ctx, request)
	if err != nil {
		return err
	}
	out, err := future.Wait(ctx)
	if err != nil {
		return err
	}
	return a.printSamples(m, prompt, out, f.logprobs)
}

// streamSample prints one continuation as it is made.
func (a *app) streamSample(ctx context.Context, m *opened, s *engine.Sampler, r api.SampleRequest) error {
	stream, err := s.Stream(ctx, r)
	if err != nil {
		return err
	}
	text := newLiveText(a.out, m.tokenizer)
	for {
		t, err := stream.Next(ctx)
		switch {
		case err == nil:
			text.push(t.ID)
		case errors.Is(err, io.EOF):
			return text.end()
		default:
			return errors.Join(err, text.end())
		}
	}
}

func (a *app) printSamples(m *opened, prompt []int32, out api.SampleOutput, logprobs bool) error {
	scores := scorePrompt(m.tokenizer, prompt, out)
	list := make([]sampled, len(out.Sequences))
	for i, q := range out.Sequences {
		list[i] = sampled{Text: m.tokenizer.Decode(q.Tokens, true), Tokens: q.Tokens, StopReason: q.StopReason}
		if logprobs {
			list[i].LogProbs, list[i].RawLogProbs = q.LogProbs, q.RawLogProbs
		}
	}
	if a.json {
		v := map[string]any{"samples": list}
		if scores != nil {
			v["prompt"] = scores
		}
		return a.printJSON(v)
	}
	for _, s := range scores {
		a.say("%s", s)
	}
	for i, s := range list {
		if len(list) > 1 || scores != nil {
			a.say("--- sample %d (%s)", i+1, s.StopReason)
		}
		a.say("%s", strings.TrimRight(s.Text, "\n"))
		for j, id := range s.Tokens {
			if logprobs {
				a.say("%8d  %10.6f  %q", id, s.LogProbs[j], m.tokenizer.Decode([]int32{id}, false))
			}
		}
	}
	return nil
}
