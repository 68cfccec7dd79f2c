// Command tinker-local fine-tunes and samples LoRA adapters on this machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// commands is the command table.
var commands = []func(*app) *cobra.Command{
	quickstartCommand,
	trainCommand,
	sampleCommand,
	chatCommand,
	serveCommand,
	psCommand,
	modelCommand,
	checkpointCommand,
	runCommand,
	pluginCommand,
	doctorCommand,
	versionCommand,
}

// Exit codes. An interrupted command answers as shells expect of a program that SIGINT ended.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// errInterrupted marks work that the user stopped and that ended in good order.
var errInterrupted = errors.New("interrupted")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main with its surroundings handed in.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{in: os.Stdin, out: stdout, err: stderr}
	root := &cobra.Command{
		Use:   "tinker-local",
		Short: "Fine-tune and sample LoRA adapters on this machine",
		Long: "tinker-local fine-tunes and samples LoRA adapters on this machine: no account, no Python; no network but for model pull.\n" +
			"Start with: tinker-local quickstart",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          usageArgs(cobra.NoArgs),
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetArgs(args)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usageError{c, err} })
	a.globalFlags(root)
	for _, command := range commands {
		c := command(a)
		c.Args = usageArgs(c.Args)
		root.AddCommand(c)
	}
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errInterrupted), errors.Is(err, context.Canceled) && ctx.Err() != nil:
		fmt.Fprintln(stderr, "tinker-local:", err)
		return exitInterrupted
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "tinker-local: %v\nSee: %s --help\n", err, usage.command.CommandPath())
		return exitUsage
	}
	fmt.Fprintln(stderr, "tinker-local:", err)
	return exitFailed
}

// usageError is a mistake in the command line itself.
type usageError struct {
	command *cobra.Command
	err     error
}

func (u usageError) Error() string { return u.err.Error() }
func (u usageError) Unwrap() error { return u.err }

func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	if check == nil {
		check = cobra.NoArgs
	}
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usageError{c, err}
		}
		return nil
	}
}
