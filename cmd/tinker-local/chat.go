package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/chat"
	"tinkerlocal/engine/local"
)

// chatFlags are the settings of the chat command.
type chatFlags struct {
	model, adapter, system, format, thinking string
	maxTokens, topK                          int
	temperature, topP                        float64
	seed                                     int64
	given                                    func(flag string) bool
}

func chatCommand(a *app) *cobra.Command {
	var f chatFlags
	c := &cobra.Command{
		Use:   "chat --model NAME|DIR",
		Short: "Talk with a model, with or without an adapter",
		Long: "chat is a talk in the terminal that remembers what was said. The reply is printed as it is made; ctrl-C interrupts it,\n" +
			"ctrl-C or ctrl-D at the prompt ends the talk. Lines that begin with a slash are commands:\n\n" + chatHelp + "\n" +
			"Temperature, top-k and top-p that are not given are those that the model's folder suggests. Lines may also come from a pipe.",
		Example: "  tinker-local chat --model tinker-local/tiny --adapter my-adapter\n" +
			"  tinker-local chat --model Qwen/Qwen3-0.6B --models ~/models --system 'Answer in one sentence.' --thinking hide",
		RunE: func(c *cobra.Command, _ []string) error {
			f.given = c.Flags().Changed
			if err := f.check(a); err != nil {
				return usageError{c, err}
			}
			return talkWith(c.Context(), a, f)
		},
	}
	l := c.Flags()
	l.StringVar(&f.model, "model", "", "base model: ORG/NAME in the --models folder, or a folder (required, unless --adapter is a checkpoint)")
	l.StringVar(&f.adapter, "adapter", "", "PEFT adapter folder, or the path of a checkpoint: tinker://RUN/sampler_weights/NAME")
	l.StringVar(&f.system, "system", "", "system message")
	l.StringVar(&f.format, "format", "", "chat format, one of "+strings.Join(chat.Names(), ", ")+"; not given: the model's own")
	f.thinking = thinkShow
	l.Var(choiceFlag{&f.thinking, thinkModes}, "thinking", "of models that think before they answer: show or hide the thoughts, or off")
	l.IntVar(&f.maxTokens, "max-tokens", 1024, "tokens per reply; 0: up to the model's context")
	l.Float64Var(&f.temperature, "temperature", 1, "0: always the most likely token")
	l.IntVar(&f.topK, "top-k", -1, "sample among the k most likely tokens; -1: off")
	l.Float64Var(&f.topP, "top-p", 1, "sample among the most likely tokens that hold this share; 1: off")
	l.Int64Var(&f.seed, "seed", 0, "seed of the draws; not given: random")
	return c
}

func (f chatFlags) check(a *app) error {
	switch {
	case f.model == "" && !isCheckpoint(f.adapter):
		return errors.New("--model is required")
	case a.json:
		return errors.New("chat is a talk and has no --json; sample has")
	}
	if f.format != "" {
		if _, err := chat.ByName(f.format); err != nil {
			return fmt.Errorf("--format: %w", err)
		}
	}
	return sampleFlags{n: 1, maxTokens: f.maxTokens, topK: f.topK, temperature: f.temperature, topP: f.topP}.checkDraw()
}

// params are the flags', or what the model's publisher suggests.
func (f chatFlags) params(facts *local.Facts) api.SamplingParams {
	p := api.SamplingParams{MaxTokens: f.maxTokens, Temperature: f.temperature, TopK: f.topK, TopP: f.topP}
	g := facts.Generation
	if g.Temperature != nil && !f.given("temperature") {
		p.Temperature = *g.Temperature
	}
	if g.TopK != nil && *g.TopK > 0 && !f.given("top-k") {
		p.TopK = *g.TopK
	}
	if g.TopP != nil && !f.given("top-p") {
		p.TopP = *g.TopP
	}
	if f.given("seed") {
		p.Seed = &f.seed
	}
	return p
}

func talkWith(ctx context.Context, a *app, f chatFlags) error {
	model, state := f.model, ""
	if isCheckpoint(f.adapter) {
		c, err := a.checkpointInfo(ctx, f.adapter)
		if err != nil {
			return err
		}
		if state = a.state; model == "" {
			model = c.BaseModel
		}
	}
	facts, err := a.facts(model)
	if err != nil {
		return err
	}
	format, err := chatFormat(f.format, facts)
	if err != nil {
		return fmt.Errorf("--format is not given, and %w", err)
	}
	m, err := a.openModel(ctx, facts, state)
	if err != nil {
		return err
	}
	defer m.close()
	// From here on ctrl-C is for the reply: the program's own context, which the first one ends, is left behind.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	defer signal.Stop(interrupts)
	ctx, stop := signal.NotifyContext(context.WithoutCancel(ctx), syscall.SIGTERM)
	defer stop()

	t := &talk{model: m, format: format, params: f.params(facts), out: a.out, interrupts: interrupts, thinking: f.thinking}
	t.options = chat.Options{Generate: true, BOS: facts.BOS, EOS: facts.EOS}
	if err := t.begin(ctx, f.system, f.adapter); err != nil {
		return err
	}
	lines, interactive := newLineReader(a.in, a.out)
	defer lines.close()
	if interactive {
		fmt.Fprintf(a.out, "%s, chat format %s, %s. /help lists the commands, ctrl-D ends.\n", model, format.Name(), t.adapterText())
	}
	return t.run(ctx, lines)
}
