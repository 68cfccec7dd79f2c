package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// runCommands are the commands below run.
var runCommands = []func(*app) *cobra.Command{
	runListCommand,
	runInfoCommand,
}

func runCommand(a *app) *cobra.Command {
	return a.group(&cobra.Command{
		Use:     "run",
		Short:   "List training runs, and show one with its checkpoints",
		Example: "  tinker-local run list\n  tinker-local run info RUN",
	}, runCommands)
}

func runListCommand(a *app) *cobra.Command {
	var q api.RunQuery
	var page pageFlags
	c := &cobra.Command{
		Use:     "list",
		Short:   "List training runs, those with the latest requests first",
		Example: "  tinker-local run list --limit 10\n  tinker-local run list --base-model Qwen3-0.6B --json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := page.check(); err != nil {
				return usageError{c, err}
			}
			q.Page = page.page
			return a.withState(c.Context(), false, func(s local.State) error { return a.listRuns(c.Context(), s, q) })
		},
	}
	c.Flags().StringVar(&q.Owner, "owner", "", "only those of this owner")
	c.Flags().StringVar(&q.BaseModel, "base-model", "", "only those of this base model: ORG/NAME or NAME, upper and lower case alike")
	page.register(c)
	return c
}

func (a *app) listRuns(ctx context.Context, s local.State, q api.RunQuery) error {
	out, err := s.Runs(ctx, q)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(struct {
			Runs  []api.RunRecord `json:"training_runs"`
			Total int             `json:"total"`
			Next  string          `json:"next_cursor,omitempty"`
		}{out.Runs, out.Total, out.Next})
	}
	if out.Total == 0 {
		a.say("No runs in %s.", a.state)
		return nil
	}
	t := a.table()
	t.AppendHeader(table.Row{"run", "base model", "rank", "step", "created", "last request", "newest state", "owner"})
	t.SetColumnConfigs([]table.ColumnConfig{{Number: 3, Align: text.AlignRight}, {Number: 4, Align: text.AlignRight}})
	for _, r := range out.Runs {
		var step, name any = "", ""
		if c := r.LastCheckpoint; c != nil {
			step, name = c.Step, c.Path.Name
		}
		t.AppendRow(table.Row{r.ID, printable(r.BaseModel), r.Lora.Rank, step, timeText(r.Created), timeText(r.LastRequest), name, printable(r.Owner)})
	}
	t.Render()
	a.more(len(out.Runs), out.Total, out.Next)
	return nil
}

// runReport is what run info prints with --json.
type runReport struct {
	api.RunRecord
	Checkpoints []api.Checkpoint `json:"checkpoints"`
}

func runInfoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "info RUN",
		Short:   "Show a training run and its checkpoints",
		Example: "  tinker-local run info 0123456789abcdef:train:0",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withState(c.Context(), false, func(s local.State) error {
				r, err := s.Run(c.Context(), args[0])
				if err != nil {
					return err
				}
				all, err := s.List(c.Context(), api.CheckpointQuery{Run: r.ID})
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(runReport{r, all.Checkpoints})
				}
				a.describeRun(r, all.Checkpoints)
				return nil
			})
		},
	}
}

func (a *app) describeRun(r api.RunRecord, checkpoints []api.Checkpoint) {
	t := a.table()
	row := func(what, format string, args ...any) {
		t.AppendRow(table.Row{what, printable(fmt.Sprintf(format, args...))})
	}
	row("run", "%s", r.ID)
	row("base model", "%s", r.BaseModel)
	row("LoRA", "%s", loraText(r.Lora))
	row("created", "%s", r.Created.Local().Format(time.RFC1123))
	row("last request", "%s", r.LastRequest.Local().Format(time.RFC1123))
	row("owner", "%s", r.Owner)
	for _, key := range slices.Sorted(maps.Keys(r.UserMetadata)) {
		row(key, "%s", r.UserMetadata[key])
	}
	t.Render()
	a.say("")
	if len(checkpoints) == 0 {
		a.say("It has no checkpoints.")
		return
	}
	a.checkpointTable(checkpoints)
}
