package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// checkpointCommands are the commands below checkpoint.
var checkpointCommands = []func(*app) *cobra.Command{
	checkpointListCommand,
	checkpointInfoCommand,
	checkpointPublishCommand,
	checkpointUnpublishCommand,
	checkpointTTLCommand,
	checkpointDeleteCommand,
	checkpointExportCommand,
	checkpointImportCommand,
	checkpointVerifyCommand,
}

func checkpointCommand(a *app) *cobra.Command {
	return a.group(&cobra.Command{
		Use:   "checkpoint",
		Short: "Look after saved weights: list, publish, expire, delete, verify, export, import",
		Long: "checkpoint looks after the checkpoints in the state directory (--state). Their paths are tinker://RUN/weights/NAME for training\n" +
			"states, which hold the optimizer's moments, and tinker://RUN/sampler_weights/NAME for adapters alone. One program at a time has\n" +
			"the state directory open; while that is a server, commands work through it. Whoever may read the directory may do all of this,\n" +
			"whoever owns a checkpoint.",
		Example: "  tinker-local checkpoint list\n  tinker-local checkpoint info tinker://RUN/weights/final\n  tinker-local checkpoint verify",
	}, checkpointCommands)
}

// kinds are the words of --kind.
var kinds = map[string]string{"all": "", "state": api.KindState, "sampler": api.KindSampler, "external": api.KindExternal}

// pageFlags ask for part of a list.
type pageFlags struct{ page api.Page }

func (f *pageFlags) register(c *cobra.Command) {
	c.Flags().IntVar(&f.page.Limit, "limit", 0, "entries to print; 0: all")
	c.Flags().StringVar(&f.page.Cursor, "cursor", "", "go on behind an earlier part of the list, which named this cursor")
}

func (f pageFlags) check() error {
	if f.page.Limit < 0 {
		return fmt.Errorf("--limit is %d, wanted at least 0", f.page.Limit)
	}
	return nil
}

// more says how to go on with a list.
func (a *app) more(shown, total int, next string) {
	if next != "" {
		a.say("\n%d of %d; the next: --cursor %s", shown, total, next)
	}
}

func checkpointListCommand(a *app) *cobra.Command {
	var q api.CheckpointQuery
	var page pageFlags
	kind := "all"
	c := &cobra.Command{
		Use:   "list",
		Short: "List checkpoints, the newest first",
		Long: "list prints the checkpoints in the state directory. SIZE is that of the tensors; STORED is what they take compressed, parts that\n" +
			"checkpoints share counted for each of them.",
		Example: "  tinker-local checkpoint list --kind state --limit 10\n  tinker-local checkpoint list --base-model Qwen3-0.6B --name final --json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := page.check(); err != nil {
				return usageError{c, err}
			}
			q.Kind, q.Page = kinds[kind], page.page
			return a.withState(c.Context(), false, func(s local.State) error { return a.listCheckpoints(c.Context(), s, q) })
		},
	}
	f := c.Flags()
	f.StringVar(&q.Run, "run", "", "only those of this run")
	f.StringVar(&q.Owner, "owner", "", "only those of this owner")
	f.StringVar(&q.BaseModel, "base-model", "", "only those of this base model: ORG/NAME or NAME, upper and lower case alike")
	f.StringVar(&q.Name, "name", "", "only those with this in their name, upper and lower case alike")
	f.Var(choiceFlag{&kind, []string{"all", "state", "sampler", "external"}}, "kind", "all, state (with the optimizer), sampler (weights only) or external (weights for other programs)")
	page.register(c)
	return c
}

func (a *app) listCheckpoints(ctx context.Context, s local.State, q api.CheckpointQuery) error {
	out, err := s.List(ctx, q)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(struct {
			Checkpoints []api.Checkpoint `json:"checkpoints"`
			Total       int              `json:"total"`
			Next        string           `json:"next_cursor,omitempty"`
		}{out.Checkpoints, out.Total, out.Next})
	}
	if out.Total == 0 {
		a.say("No checkpoints in %s.", a.state)
		return nil
	}
	a.checkpointTable(out.Checkpoints)
	a.more(len(out.Checkpoints), out.Total, out.Next)
	return nil
}

func (a *app) checkpointTable(list []api.Checkpoint) {
	t := a.table()
	t.AppendHeader(table.Row{"path", "base model", "rank", "step", "size", "stored", "saved", "expires", "readers"})
	t.SetColumnConfigs([]table.ColumnConfig{
		{Number: 3, Align: text.AlignRight}, {Number: 4, Align: text.AlignRight}, {Number: 5, Align: text.AlignRight}, {Number: 6, Align: text.AlignRight},
	})
	for _, c := range list {
		t.AppendRow(table.Row{c.Path, printable(c.BaseModel), c.Lora.Rank, c.Step, bytesText(c.Bytes), bytesText(c.Stored), timeText(c.Created), timeText(c.Expires), readers(c)})
	}
	t.Render()
}

// readers says who may read a checkpoint.
func readers(c api.Checkpoint) string {
	if c.Public {
		return "everybody"
	}
	return printable(c.Owner)
}

// checkpointReport is what checkpoint info prints with --json.
type checkpointReport struct {
	api.Checkpoint
	TensorList []api.TensorInfo `json:"tensor_list"`
}

func checkpointInfoCommand(a *app) *cobra.Command {
	var tensors bool
	c := &cobra.Command{
		Use:   "info PATH",
		Short: "Show what a checkpoint is and holds",
		Example: "  tinker-local checkpoint info tinker://RUN/weights/final\n" +
			"  tinker-local checkpoint info tinker://RUN/sampler_weights/final --tensors",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := api.ParsePath(args[0])
			if err != nil {
				return err
			}
			return a.withState(c.Context(), false, func(s local.State) error {
				r, err := s.Open(c.Context(), p)
				if err != nil {
					return err
				}
				defer r.Close()
				if a.json {
					return a.printJSON(checkpointReport{r.Checkpoint(), r.Tensors()})
				}
				a.describeCheckpoint(r, tensors)
				return nil
			})
		},
	}
	c.Flags().BoolVar(&tensors, "tensors", false, "list the tensors, too")
	return c
}

func (a *app) describeCheckpoint(r api.CheckpointReader, tensors bool) {
	c := r.Checkpoint()
	t := a.table()
	row := func(what, format string, args ...any) {
		t.AppendRow(table.Row{what, printable(fmt.Sprintf(format, args...))})
	}
	row("path", "%s", c.Path)
	if c.Optimizer {
		row("holds", "weights and optimizer state: training can go on")
	} else {
		row("holds", "weights")
	}
	row("base model", "%s", c.BaseModel)
	row("LoRA", "%s", loraText(c.Lora))
	row("step", "%d", c.Step)
	for i, x := range c.Plugins {
		row(first(i, "trained with"), "%s", recordText(x))
	}
	row("saved", "%s", c.Created.Local().Format(time.RFC1123))
	if !c.Expires.IsZero() {
		row("expires", "%s", c.Expires.Local().Format(time.RFC1123))
	}
	row("owner", "%s", c.Owner)
	row("readers", "%s", readers(c))
	row("tensors", "%d, %s", c.Tensors, bytesText(c.Bytes))
	row("stored", "%s compressed, of which %s were new when it was saved", bytesText(c.Stored), bytesText(c.Written))
	row("SHA-256", "%s", c.SHA256)
	t.Render()
	if !tensors {
		return
	}
	a.say("")
	t = a.table()
	t.AppendHeader(table.Row{"tensor", "dtype", "shape"})
	for _, x := range r.Tensors() {
		t.AppendRow(table.Row{printable(x.Name), x.DType, fmt.Sprint(x.Shape)})
	}
	t.Render()
}

// recordText is a plugin that weights were trained with, for people.
func recordText(r api.PluginRecord) string {
	text := local.PluginPrefix + r.Name + "@sha256:" + r.Digest + ", version " + r.Version
	for _, name := range slices.Sorted(maps.Keys(r.Config)) {
		text += fmt.Sprintf(", %s %v", name, r.Config[name])
	}
	return text
}

// loraText is a LoRA configuration for people.
func loraText(c api.LoraConfig) string {
	var parts []string
	for _, p := range []struct {
		name string
		on   bool
	}{{"attention", c.TrainAttn}, {"MLP", c.TrainMLP}, {"unembedding", c.TrainUnembed}} {
		if p.on {
			parts = append(parts, p.name)
		}
	}
	s := fmt.Sprintf("rank %d on %s", c.Rank, strings.Join(parts, ", "))
	if c.Seed != nil {
		s += fmt.Sprintf(", seed %d", *c.Seed)
	}
	return s
}
