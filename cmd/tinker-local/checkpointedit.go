package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// eachPath does something to each checkpoint that is named, and prints what became of it. The first error ends it.
func (a *app) eachPath(ctx context.Context, args []string, what string, do func(s local.State, p api.Path) error) error {
	paths, err := parsePaths(args)
	if err != nil {
		return err
	}
	return a.withState(ctx, false, func(s local.State) error {
		done := []api.Checkpoint{}
		for _, p := range paths {
			c, err := s.Info(ctx, p)
			if err == nil {
				err = do(s, c.Path)
			}
			if err != nil {
				return err
			}
			a.say("%s %s", what, c.Path)
			if now, err := s.Info(ctx, c.Path); err == nil {
				c = now
			}
			done = append(done, c)
		}
		if a.json {
			return a.printJSON(map[string]any{what: done})
		}
		return nil
	})
}

func checkpointPublishCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "publish PATH …",
		Short:   "Let everybody read checkpoints",
		Long:    "publish lets every owner of this state directory read checkpoints. The run's record and its metadata stay private.",
		Example: "  tinker-local checkpoint publish tinker://RUN/sampler_weights/final",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.eachPath(c.Context(), args, "published", func(s local.State, p api.Path) error { return s.Publish(c.Context(), p) })
		},
	}
}

func checkpointUnpublishCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "unpublish PATH …",
		Short:   "Let the owner alone read checkpoints",
		Example: "  tinker-local checkpoint unpublish tinker://RUN/sampler_weights/final",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.eachPath(c.Context(), args, "unpublished", func(s local.State, p api.Path) error { return s.Unpublish(c.Context(), p) })
		},
	}
}

func checkpointTTLCommand(a *app) *cobra.Command {
	var ttl time.Duration
	var never bool
	c := &cobra.Command{
		Use:   "set-ttl PATH … (--ttl DURATION | --never)",
		Short: "Let checkpoints expire, or keep them",
		Long: "set-ttl lets checkpoints expire a while from now, or never. An expired checkpoint cannot be read any more; its space is given\n" +
			"back later.",
		Example: "  tinker-local checkpoint set-ttl tinker://RUN/weights/000100 --ttl 168h\n" +
			"  tinker-local checkpoint set-ttl tinker://RUN/weights/final --never",
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			switch given := c.Flags().Changed("ttl"); {
			case given == never:
				return usageError{c, errors.New("wanted either --ttl or --never")}
			case given && ttl <= 0:
				return usageError{c, fmt.Errorf("--ttl is %v, wanted more than 0", ttl)}
			case never:
				return a.eachPath(c.Context(), args, "kept", func(s local.State, p api.Path) error { return s.ClearTTL(c.Context(), p) })
			}
			return a.eachPath(c.Context(), args, "expiring", func(s local.State, p api.Path) error { return s.SetTTL(c.Context(), p, ttl) })
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", 0, "how long from now, such as 90m or 168h")
	c.Flags().BoolVar(&never, "never", false, "the checkpoints do not expire")
	return c
}

func checkpointDeleteCommand(a *app) *cobra.Command {
	var yes, expired bool
	c := &cobra.Command{
		Use:   "delete PATH …",
		Short: "Delete checkpoints and give their space back",
		Long: "delete removes checkpoints for ever, and then what no other checkpoint needs from the disk. It asks first, unless --yes is given.\n" +
			"With --expired it removes those that have expired, which nobody can read any more.",
		Example: "  tinker-local checkpoint delete tinker://RUN/weights/000100 --yes\n  tinker-local checkpoint delete --expired",
		Args:    cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if (len(args) == 0) != expired {
				return usageError{c, errors.New("wanted the paths of checkpoints, or --expired")}
			}
			if expired {
				return a.withState(c.Context(), false, func(s local.State) error { return a.deleteExpired(c.Context(), s) })
			}
			return a.deleteCheckpoints(c.Context(), args, yes)
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&expired, "expired", false, "delete the checkpoints that have expired")
	return c
}

func (a *app) deleteCheckpoints(ctx context.Context, args []string, yes bool) error {
	paths, err := parsePaths(args)
	if err != nil {
		return err
	}
	return a.withState(ctx, false, func(s local.State) error {
		var all []api.Checkpoint // found first, so that a mistyped path deletes nothing
		for _, p := range paths {
			c, err := s.Info(ctx, p)
			if err != nil {
				return err
			}
			all = append(all, c)
		}
		if !yes {
			if err := a.confirm("Delete %s for ever?", count(len(all), "checkpoint")); err != nil {
				return err
			}
		}
		for _, c := range all {
			if err := s.Delete(ctx, c.Path); err != nil {
				return err
			}
			a.say("deleted %s", c.Path)
		}
		return a.collect(ctx, s, map[string]any{"deleted": all})
	})
}

func (a *app) deleteExpired(ctx context.Context, s local.State) error {
	gone, err := s.DeleteExpired(ctx)
	if err != nil {
		return err
	}
	if gone == nil {
		gone = []api.Path{}
	}
	a.say("deleted %s", count(len(gone), "expired checkpoint"))
	return a.collect(ctx, s, map[string]any{"deleted": gone})
}

// collect gives the space of what was deleted back: the store does so in its own time, but this program ends at once.
func (a *app) collect(ctx context.Context, s local.State, report map[string]any) error {
	out, err := s.Collect(ctx)
	if err != nil {
		return err
	}
	if a.json {
		report["chunks_deleted"] = out.Deleted
		return a.printJSON(report)
	}
	return nil
}

// confirm asks on the terminal.
func (a *app) confirm(format string, args ...any) error {
	f, ok := a.in.(interface{ Fd() uintptr })
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return api.Errorf(api.BadRequest, "nobody can be asked here: give --yes")
	}
	fmt.Fprintf(a.err, format+" [y/N] ", args...)
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return api.Errorf(api.Cancelled, "nothing was done")
	}
	return nil
}

// count is a number of things: 1 checkpoint, 2 checkpoints.
func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func checkpointVerifyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "verify [PATH …]",
		Short: "Read checkpoints and compare every byte with its checksum",
		Long: "verify reads checkpoints from the disk and compares every chunk with its checksum; without paths, everything in the state directory.\n" +
			"What is damaged is named by checkpoint, tensor and chunk. The exit code is 0 when nothing is.",
		Example: "  tinker-local checkpoint verify\n  tinker-local checkpoint verify tinker://RUN/weights/final --json",
		Args:    cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			paths, err := parsePaths(args)
			if err != nil {
				return err
			}
			return a.withState(c.Context(), false, func(s local.State) error { return a.verify(c.Context(), s, paths) })
		},
	}
}

func (a *app) verify(ctx context.Context, s local.State, paths []api.Path) error {
	if len(paths) == 0 {
		all, err := s.List(ctx, api.CheckpointQuery{})
		if err != nil {
			return err
		}
		a.say("%s.", count(all.Total, "checkpoint"))
	}
	damage, err := s.Verify(ctx, paths...)
	if err != nil {
		return err
	}
	if a.json {
		list := make([]any, 0, len(damage))
		for _, d := range damage {
			list = append(list, d)
		}
		if err := a.printJSON(map[string]any{"damage": list}); err != nil {
			return err
		}
	}
	for _, d := range damage {
		a.say("damaged: %s", printable(d.Msg))
	}
	if len(damage) > 0 {
		return api.Errorf(api.DataLoss, "%d damaged", len(damage))
	}
	a.say("Every byte is as it was saved.")
	return nil
}
