package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// pluginCommands are the commands below plugin.
var pluginCommands = []func(*app) *cobra.Command{
	pluginListCommand,
	pluginInfoCommand,
	pluginAddCommand,
	pluginRemoveCommand,
	pluginCheckCommand,
	pluginNewCommand,
	pluginBenchCommand,
}

func pluginCommand(a *app) *cobra.Command {
	return a.group(&cobra.Command{
		Use:   "plugin",
		Short: "Custom losses as WASM modules: list, add, check, measure, begin a new one",
		Long: "plugin looks after losses that are WASM modules. Some come with the program; others are NAME.wasm files in the plugins folder of the\n" +
			"state directory (--state). Wherever a loss is named, wasm:NAME is the current module of that name and\n" +
			"wasm:NAME@sha256:DIGEST exactly the one with these bytes. A module sees log-probabilities, the inputs that it asks for and its\n" +
			"parameters, and nothing else: no files, no network, no clock; its time and memory are bounded.",
		Example: "  tinker-local plugin list\n  tinker-local plugin new --lang c myloss\n  tinker-local plugin check myloss/myloss.wasm\n  tinker-local plugin add myloss/myloss.wasm",
	}, pluginCommands)
}

// withPlugins calls do with the plugins of the state directory.
func (a *app) withPlugins(ctx context.Context, make bool, do func(p *local.Plugins) error) error {
	p, err := local.OpenPlugins(ctx, a.state, make, nil)
	if err != nil {
		return err
	}
	return errors.Join(do(p), p.Close())
}

func pluginListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the plugins, and files that cannot be used",
		Example: "  tinker-local plugin list --json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withPlugins(c.Context(), false, func(p *local.Plugins) error {
				all, err := p.Describe(c.Context())
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(map[string]any{"plugins": all})
				}
				t := a.table()
				t.AppendHeader(table.Row{"name", "version", "source", "sum over", "digest", "what it is"})
				var refused []string
				for _, i := range all {
					if i.Problem != "" {
						refused = append(refused, refusal(i.Name, i.Problem))
						continue
					}
					m := i.Report.Meta
					t.AppendRow(table.Row{i.Name, printable(m.Version), i.Source, m.Scope, i.Digest[:12], printable(headline(m.Summary))})
				}
				t.Render()
				a.sayRefused(refused)
				return nil
			})
		},
	}
}

func pluginInfoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "info NAME",
		Short:   "Show what a plugin computes, wants and returns",
		Example: "  tinker-local plugin info dpo",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withPlugins(c.Context(), false, func(p *local.Plugins) error {
				i, err := p.Find(c.Context(), strings.TrimPrefix(args[0], local.PluginPrefix))
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(i)
				}
				a.printPlugin(i.Name, i.Source, i.Report)
				return nil
			})
		},
	}
}

func pluginAddCommand(a *app) *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:   "add FILE.wasm",
		Short: "Check a module and put it into the plugins folder",
		Long: "add checks a module as check does and, if it passes, puts it into the plugins folder of the state directory. A plugin of the same\n" +
			"name is replaced; its digest can still be asked for. A program that runs picks the new one up by itself.",
		Example: "  tinker-local plugin add myloss/myloss.wasm",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if a.state == "" {
				return api.Errorf(api.BadRequest, "no state directory is named and no home folder is known: name one with --state")
			}
			return a.withPlugins(c.Context(), true, func(p *local.Plugins) error {
				i, err := p.AddFile(c.Context(), args[0], name)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(i)
				}
				a.printPlugin(i.Name, i.Source, i.Report)
				a.say("\nAdded. Use it as %s%s, or pinned as %s%s@sha256:%s.", local.PluginPrefix, i.Name, local.PluginPrefix, i.Name, i.Digest)
				return nil
			})
		},
	}
	c.Flags().StringVar(&name, "name", "", "name to give it; not given: what the module calls itself")
	return c
}

func pluginRemoveCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "remove NAME",
		Short:   "Take a plugin out of the plugins folder",
		Long:    "remove takes a plugin out of the plugins folder. Its digest can still be asked for, so that runs that used it can go on.",
		Example: "  tinker-local plugin remove myloss",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withPlugins(c.Context(), false, func(p *local.Plugins) error {
				if err := p.Remove(args[0]); err != nil {
					return err
				}
				if a.json {
					return a.printJSON(map[string]string{"removed": args[0]})
				}
				a.say("removed %s", args[0])
				return nil
			})
		},
	}
}

func pluginCheckCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE.wasm",
		Short: "Validate a module, try it, and show what it is",
		Long: "check does what loading a plugin does: it validates the module, runs it twice on a small made-up batch (the bits must agree),\n" +
			"and compares its weights with difference quotients of its loss. It prints inputs, parameters, metrics, imports and speed. The exit\n" +
			"code is not 0 when the module is refused.",
		Example: "  tinker-local plugin check myloss/myloss.wasm",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withPlugins(c.Context(), false, func(p *local.Plugins) error {
				r, err := p.CheckFile(c.Context(), args[0])
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(r)
				}
				a.printPlugin(r.Meta.Name, args[0], *r)
				return nil
			})
		},
	}
}

// printPlugin prints what is known of a module.
func (a *app) printPlugin(name, source string, r local.PluginReport) {
	t := a.table()
	wide := max(columns(a.out)-16, 40)
	t.SetColumnConfigs([]table.ColumnConfig{{Number: 2, WidthMax: wide, WidthMaxEnforcer: text.WrapSoft}})
	row := func(what, format string, args ...any) {
		t.AppendRow(table.Row{what, printable(fmt.Sprintf(format, args...))})
	}
	m := r.Meta
	row("name", "%s", name)
	row("source", "%s", source)
	if m.Name != name {
		row("calls itself", "%s", m.Name)
	}
	row("version", "%s", m.Version)
	if m.Summary != "" {
		row("what it is", "%s", m.Summary)
	}
	if m.License != "" {
		row("licence", "%s", m.License)
	}
	scope := map[string]string{"datum": "single datums", "group": "groups of datums", "batch": "the whole batch"}[string(m.Scope)]
	if g := m.Grouping; g != nil && g.By == "consecutive" {
		scope += fmt.Sprintf(", %d one after the other", g.Size)
	} else if g != nil {
		scope += ", told by the input " + g.Name
	}
	row("sum over", "%s", scope)
	for i, x := range m.Inputs {
		row(first(i, "inputs"), "%s", inputText(x))
	}
	for i, x := range m.Params {
		row(first(i, "parameters"), "%s", paramText(x))
	}
	if len(m.Metrics) > 0 {
		row("metrics", "%s", strings.Join(m.Metrics, ", "))
	}
	t.AppendSeparator()
	row("SHA-256", "%s", r.Digest)
	row("size", "%s, %s, %s of memory", bytesText(int64(r.Size)), count(r.Functions, "function"), bytesText(int64(r.Pages)<<16))
	imports := "none"
	if len(r.Imports) > 0 {
		imports = strings.Join(r.Imports, ", ")
	}
	row("imports", "%s", imports)
	switch {
	case r.Error < 0:
		row("gradient", "not checked")
	default:
		row("gradient", "agrees with difference quotients of the loss to %.1e", r.Error)
	}
	if r.MeasuredElements > 0 {
		row("speed", "%.2f ns and %.1f units of fuel per log-probability, on %s of them", r.NsPerElement, r.FuelPerElement, numberText(r.MeasuredElements))
	}
	for i, w := range r.Warnings {
		row(first(i, "warnings"), "%s", w)
	}
	t.Render()
}

// first is the label of the first row of several.
func first(i int, label string) string {
	if i > 0 {
		return ""
	}
	return label
}

// headline is the beginning of a summary, as far as it fits beside a name in a list.
func headline(s string) string {
	if at := strings.IndexAny(s, ".,:;("); at > 0 {
		s = s[:at]
	}
	return strings.TrimSpace(s)
}

func inputText(x local.PluginInput) string {
	shape := "one or two dimensions"
	switch {
	case x.Like != "":
		shape = "as the targets"
	case x.Shape != nil:
		shape = fmt.Sprint(x.Shape)
	}
	s := fmt.Sprintf("%s: %s, %s", x.Name, x.DType, shape)
	if x.Optional {
		s += ", optional"
	}
	if x.Summary != "" {
		s += "; " + x.Summary
	}
	return s
}

func paramText(x local.PluginParam) string {
	s := x.Name
	switch {
	case x.Type == "enum":
		s += " (" + strings.Join(x.Values, ", ") + ")"
	case x.Type == "bool":
		s += " (0 or 1)"
	}
	if x.Default != nil {
		s += fmt.Sprintf(", default %g", *x.Default)
	} else {
		s += ", required"
	}
	if x.Min != nil {
		s += fmt.Sprintf(", from %g", *x.Min)
	}
	if x.Max != nil {
		s += fmt.Sprintf(", to %g", *x.Max)
	}
	if x.Summary != "" {
		s += "; " + x.Summary
	}
	return s
}

func pluginNewCommand(a *app) *cobra.Command {
	var lang, dir string
	c := &cobra.Command{
		Use:   "new --lang c|rust|go NAME",
		Short: "Begin a new plugin: a folder that builds with one command",
		Long: "new writes a project with a loss that works, the guest SDK beside it, and a README that says how to build it. What it builds passes\n" +
			"plugin check.",
		Example: "  tinker-local plugin new --lang c myloss && make -C myloss",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if lang == "" {
				return usageError{c, fmt.Errorf("--lang is required: one of %s", strings.Join(local.PluginLanguages(), ", "))}
			}
			if dir == "" {
				dir = args[0]
			}
			if err := local.NewPlugin(dir, lang, args[0]); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]string{"dir": dir, "lang": lang, "name": args[0]})
			}
			a.say("The project is in %s; see %s.", dir, filepath.Join(dir, "README.md"))
			return nil
		},
	}
	c.Flags().Var(choiceFlag{&lang, local.PluginLanguages()}, "lang", "language: "+strings.Join(local.PluginLanguages(), ", "))
	c.Flags().StringVar(&dir, "dir", "", "folder to make; not given: NAME")
	return c
}

func pluginBenchCommand(a *app) *cobra.Command {
	sizes := []int{1000, 100_000, 1_000_000}
	c := &cobra.Command{
		Use:   "bench FILE.wasm|NAME",
		Short: "Measure a plugin on made-up batches",
		Long: "bench calls a plugin on made-up batches of several sizes, in datums of 500 log-probabilities, and prints the median time of a call with\n" +
			"all copies, and the fuel. Several instances run at a time where the loss is a sum over datums or groups.",
		Example: "  tinker-local plugin bench dpo\n  tinker-local plugin bench myloss/myloss.wasm --elements 200000",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			for _, n := range sizes {
				if n < 1 || n > 20_000_000 {
					return usageError{c, fmt.Errorf("--elements is %d, wanted 1 to 20000000", n)}
				}
			}
			return a.withPlugins(c.Context(), false, func(p *local.Plugins) error {
				all, err := p.Measure(c.Context(), args[0], sizes)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(map[string]any{"measurements": all})
				}
				t := a.table()
				t.AppendHeader(table.Row{"log-probabilities", "milliseconds", "ns each", "fuel each"})
				for _, m := range all {
					t.AppendRow(table.Row{numberText(m.Elements), fmt.Sprintf("%.3f", m.Seconds*1e3), fmt.Sprintf("%.2f", m.Seconds*1e9/float64(m.Elements)), fmt.Sprintf("%.1f", m.Fuel/float64(m.Elements))})
				}
				t.Render()
				return nil
			})
		},
	}
	c.Flags().IntSliceVar(&sizes, "elements", sizes, "sizes of the batches")
	return c
}
