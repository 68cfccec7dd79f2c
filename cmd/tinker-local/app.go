package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tinkerlocal/engine/local"
)

// app is what every command shares: the streams and the persistent flags.
type app struct {
	in       io.Reader
	out, err io.Writer
	opt      local.Options
	state    string // the state directory, for those commands that need it
	json     bool
}

func (a *app) globalFlags(root *cobra.Command) {
	f := root.PersistentFlags()
	a.opt.Device, a.opt.DType = "auto", "auto"
	a.opt.HubCache = local.DefaultHubCache(os.Getenv)
	f.StringVar(&a.opt.Models, "models", local.DefaultModels(os.Getenv), "folder that holds ORG/NAME model folders; $"+local.ModelsVariable+" sets another default")
	f.StringVar(&a.state, "state", local.DefaultState(os.Getenv), "state directory, which holds checkpoints and runs; $"+local.StateVariable+" sets another default")
	f.Var(deviceFlag{&a.opt.Device}, "device", "where to compute: auto, cpu, cpu:VARIANT (of its kernels: avx2, portable), cuda or cuda:N")
	f.Var(choiceFlag{&a.opt.DType, []string{"auto", "float32", "bfloat16"}}, "dtype", "how base weights are kept: auto (as in the files), float32 or bfloat16")
	f.BoolVar(&a.json, "json", false, "print one JSON object on standard output instead of text")
}

// group makes c a command that does nothing but hold others.
func (a *app) group(c *cobra.Command, subs []func(*app) *cobra.Command) *cobra.Command {
	c.Args = cobra.NoArgs
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	for _, sub := range subs {
		s := sub(a)
		s.Args = usageArgs(s.Args)
		c.AddCommand(s)
	}
	return c
}

// models finds base models where the flags say.
func (a *app) models() local.Models {
	return local.Models{Dir: a.opt.Models, HubCache: a.opt.HubCache, Paths: a.opt.Paths}
}

// printJSON writes v as one JSON object.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// say writes a line of text output, unless the output is JSON.
func (a *app) say(format string, args ...any) {
	if !a.json {
		fmt.Fprintf(a.out, format+"\n", args...)
	}
}

// terminal reports whether w is a terminal: progress is for people only.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

// choiceFlag takes one of a few words.
type choiceFlag struct {
	value   *string
	choices []string
}

func (c choiceFlag) String() string { return deref(c.value) }
func (c choiceFlag) Type() string   { return "string" }
func (c choiceFlag) Set(s string) error {
	if !slices.Contains(c.choices, s) {
		return fmt.Errorf("wanted one of %s", strings.Join(c.choices, ", "))
	}
	*c.value = s
	return nil
}

// deviceFlag takes auto, cpu, cpu:VARIANT, cuda or cuda:N. Whether there is such a variant is known when the device is opened.
type deviceFlag struct{ value *string }

func (d deviceFlag) String() string { return deref(d.value) }
func (d deviceFlag) Type() string   { return "string" }
func (d deviceFlag) Set(s string) error {
	kind, which, more := strings.Cut(s, ":")
	_, err := strconv.ParseUint(which, 10, 8)
	known := kind == "cuda" || kind == "cpu" || kind == "auto"
	if !known || more && (kind == "auto" || kind == "cuda" && err != nil || which == "") {
		return fmt.Errorf("wanted auto, cpu, cpu:VARIANT, cuda or cuda:N")
	}
	*d.value = s
	return nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
