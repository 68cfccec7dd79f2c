package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// modelCommands are the commands below model.
var modelCommands = []func(*app) *cobra.Command{
	modelListCommand,
	modelInfoCommand,
	pullCommand,
}

func modelCommand(a *app) *cobra.Command {
	return a.group(&cobra.Command{
		Use:     "model",
		Short:   "List and download base models; what they are and need",
		Example: "  tinker-local model list --models ~/models\n  tinker-local model info tinker-local/tiny\n  tinker-local model pull Qwen/Qwen3-0.6B",
	}, modelCommands)
}

func modelListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the base models that can be named, and folders that cannot be used",
		Long: "list names the embedded model, the models in the --models folder, and those that other programs have downloaded into the\n" +
			"Hugging Face cache ($HF_HUB_CACHE, $HF_HOME), with what their configurations and the headers of their weight files\n" +
			"say; no weight is read. A model that cannot be used is listed with the reason.",
		Example: "  tinker-local model list --models ~/models\n  tinker-local model list --json",
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("models") && a.opt.Models != "" {
				if _, err := os.Stat(a.opt.Models); err != nil {
					return api.Errorf(api.NotFound, "--models: %w", err)
				}
			}
			all := a.models().Catalog()
			if a.json {
				return a.printJSON(map[string]any{"models": all})
			}
			t := a.table()
			t.AppendHeader(table.Row{"name", "parameters", "kind", "training", "context", "dtype", "on disk", "source"})
			t.SetColumnConfigs([]table.ColumnConfig{
				{Number: 2, Align: text.AlignRight}, {Number: 5, Align: text.AlignRight}, {Number: 7, Align: text.AlignRight},
			})
			var refused []string
			for _, i := range all {
				t.AppendRow(table.Row{printable(i.Name), countText(i.Params), i.Kind, i.Training, numberText(i.Context), i.DType, sizeText(i.DiskBytes), i.Source})
				if i.Problem != "" {
					refused = append(refused, refusal(i.Name, i.Problem))
				}
			}
			t.Render()
			a.sayRefused(refused)
			return nil
		},
	}
}

// modelReport is what model info prints with --json.
type modelReport struct {
	local.Info
	Device string       `json:"device,omitempty"`
	Memory *local.Needs `json:"memory,omitempty"` // of a model that can be used
}

func modelInfoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "info NAME",
		Short: "Show what a base model is, and the memory it needs on this machine",
		Long: "info shows a model's sizes, the parameters of a LoRA adapter on it, and the memory that sampling and training take.\n" +
			"Nothing is loaded. The exit code is 0 when the model can be used, whether it fits or not.",
		Example: "  tinker-local model info tinker-local/tiny\n  tinker-local model info Qwen/Qwen3-0.6B --models ~/models --dtype float32 --json",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.inspect(args[0])
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(r)
			} else {
				a.printReport(r)
			}
			if err == nil && r.Problem != "" {
				err = fmt.Errorf("%s cannot be used: %s", r.Name, r.Problem)
			}
			return err
		},
	}
}

func (a *app) inspect(name string) (r modelReport, err error) {
	if r.Info, err = a.models().Describe(name); err != nil || r.Problem != "" {
		return r, err
	}
	dev, err := local.OpenDevice(a.opt.Device)
	if err != nil {
		return r, err
	}
	r.Device = dev.Info().Name
	n, err := r.Needs(dev.Info(), a.opt.DType)
	r.Memory = &n
	return r, errors.Join(err, dev.Close())
}

func (a *app) printReport(r modelReport) {
	t := a.table()
	row := func(what, format string, args ...any) {
		t.AppendRow(table.Row{what, printable(fmt.Sprintf(format, args...))})
	}
	yes := map[bool]string{true: "yes", false: "no"}
	row("name", "%s", r.Name)
	if r.Source != "" {
		row("source", "%s", strings.TrimSpace(string(r.Source)+" "+r.Dir))
	}
	row("family", "%s", r.Family)
	row("parameters", "%s (%s)", countText(r.Params), numberText(int(r.Params)))
	row("kind", "%s", r.Kind)
	row("training", "%s", r.Training)
	context := numberText(r.Context) + " positions"
	if r.Window > 0 {
		context += ", the length of its sliding window"
	}
	row("context", "%s", context)
	row("dtype", "%s", r.DType)
	row("on disk", "%s", sizeText(r.DiskBytes))
	t.AppendSeparator()
	row("layers", "%d", r.Layers)
	row("hidden size", "%d", r.Hidden)
	row("attention heads", "%d", r.Heads)
	row("key/value heads", "%d", r.KVHeads)
	row("head size", "%d", r.HeadDim)
	row("feed-forward", "%d", r.FFN)
	if r.Experts > 0 {
		row("experts", "%d of %d features, %d per token", r.Experts, r.ExpertFFN, r.TopK)
	}
	row("vocabulary", "%d", r.Vocab)
	row("tied embeddings", "%s", yes[r.Tied])
	if r.Memory == nil {
		t.Render()
		return
	}
	t.AppendSeparator()
	row("LoRA per rank", "attention %s, feed-forward %s, unembedding %s", numberText(r.LoraAttn), numberText(r.LoraMLP), numberText(r.LoraHead))
	row("LoRA at rank 32", "%s", numberText(r.LoraRank32))
	t.AppendSeparator()
	fits := func(f *bool) string {
		if f == nil {
			return ""
		}
		return map[bool]string{true: "; it fits", false: "; it does not fit"}[*f]
	}
	m, kv, batch := r.Memory, min(local.NeedContext, r.Context), min(local.NeedBatch, r.Context)
	row("to sample", "%s%s\nweights %s\nkeys and values of %d positions %s = 2 x layers x positions x key/value heads x head size x bytes",
		sizeText(m.Sample), fits(m.FitsSample), sizeText(m.Weights), kv, sizeText(m.KV))
	row("to train", "%s%s\nweights %s\nadapter of rank 32 %s = 5 x parameters x bytes (weights, two gradient sums, two moments)\nactivations of %d tokens %s",
		sizeText(m.Train), fits(m.FitsTrain), sizeText(m.Weights), sizeText(m.Adapter), batch, sizeText(m.Batch))
	free := "unknown"
	if m.Free > 0 {
		free = sizeText(m.Free) + ", of which an eighth is left to others"
	}
	row("free memory", "%s", free)
	row("device", "%s", r.Device)
	t.Render()
}

// sayRefused ends a list with what stands in it and cannot be used.
func (a *app) sayRefused(refusals []string) {
	if len(refusals) > 0 {
		a.say("\nThese cannot be used:\n%s", strings.Join(refusals, "\n"))
	}
}

func refusal(name, problem string) string { return "  " + printable(name) + ": " + printable(problem) }

// table is a table without borders, so that other programs can cut it.
func (a *app) table() table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(a.out)
	t.SuppressTrailingSpaces()
	t.SetStyle(table.StyleDefault)
	t.Style().Options = table.OptionsNoBordersAndSeparators
	t.Style().Format.Header = text.FormatDefault
	return t
}

// printable keeps a name or message from a file from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == '\n' {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// countText is a number of parameters as models are called: 8.03B, 596M.
func countText(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e3, "K"}} {
		if n >= u.size {
			return fmt.Sprintf("%.3g%s", float64(n)/float64(u.size), u.name)
		}
	}
	return numberText(int(n))
}

// sizeText is bytesText, or nothing for what is not known.
func sizeText(n int64) string {
	if n == 0 {
		return ""
	}
	return bytesText(n)
}

// numberText groups digits by three; what is not known is empty.
func numberText(n int) string {
	if n == 0 {
		return ""
	}
	var groups []string
	for ; n >= 1000; n /= 1000 {
		groups = append(groups, fmt.Sprintf("%03d", n%1000))
	}
	groups = append(groups, fmt.Sprint(n))
	slices.Reverse(groups)
	return strings.Join(groups, ",")
}
