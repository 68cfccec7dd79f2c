package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
	"tinkerlocal/engine/sft"
	"tinkerlocal/engine/sft/data"
)

// builtinLosses are the words of --loss that are not plugins.
var builtinLosses = []string{"auto", "cross_entropy", "dpo"}

// lossFlag takes one of builtinLosses, wasm:NAME or wasm:FILE.
type lossFlag struct{ value *string }

func (l lossFlag) String() string { return deref(l.value) }
func (l lossFlag) Type() string   { return "string" }
func (l lossFlag) Set(s string) error {
	if rest, ok := strings.CutPrefix(s, local.PluginPrefix); ok && rest != "" {
		*l.value = s
		return nil
	}
	if err := (choiceFlag{l.value, builtinLosses}).Set(s); err != nil {
		return fmt.Errorf("%w, or wasm: and the name or file of a plugin", err)
	}
	return nil
}

// isPlugin says whether the loss is a plugin.
func (f *trainFlags) isPlugin() bool { return strings.HasPrefix(f.loss, local.PluginPrefix) }

// config reads --loss-config.
func (f *trainFlags) config() (map[string]float64, error) {
	out := map[string]float64{}
	for _, kv := range f.lossConfig {
		k, v, ok := strings.Cut(kv, "=")
		n, err := strconv.ParseFloat(v, 64)
		if !ok || err != nil || k == "" {
			return nil, fmt.Errorf("--loss-config is %q, wanted NAME=NUMBER", kv)
		}
		if _, twice := out[k]; twice {
			return nil, fmt.Errorf("--loss-config: %s is given twice", k)
		}
		out[k] = n
	}
	return out, nil
}

// customLoss is a plugin that a run is trained with, and what it wants of the rows.
type customLoss struct {
	*local.LossPlugin
	config    map[string]float64
	numbers   []sft.Number // of each row
	reference bool         // it reads ref_logprobs
	plugins   *local.Plugins
}

// openLoss loads the plugin that --loss names, or returns nil.
func (a *app) openLoss(ctx context.Context, f trainFlags, from *resumed) (_ *customLoss, err error) {
	if !f.isPlugin() {
		return nil, nil
	}
	p, err := local.OpenPlugins(ctx, a.state, false, nil)
	if err != nil {
		return nil, err
	}
	l := &customLoss{plugins: p}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if l.config, err = f.config(); err != nil {
		return nil, err
	}
	if l.LossPlugin, err = p.Use(ctx, f.loss); err != nil {
		return nil, fmt.Errorf("--loss %s: %w", f.loss, err)
	}
	if from != nil && from.settings.Plugin != nil && from.settings.Plugin.Digest != l.Record.Digest && !f.otherLoss {
		was := from.settings.Plugin
		if l.LossPlugin, err = p.Use(ctx, was.Name+"@sha256:"+was.Digest); err != nil {
			return nil, api.Errorf(api.BadRequest, "--loss %s has other bytes than the run began with (%s %s, SHA-256 %.12s…), and those are not to be found: give --other-loss to go on with it",
				f.loss, was.Name, was.Version, was.Digest)
		}
	}
	if err := l.wants(); err != nil {
		return nil, fmt.Errorf("--loss %s: %w", f.loss, err)
	}
	return l, nil
}

// wants finds out where the loss's inputs come from.
func (l *customLoss) wants() error {
	for _, x := range l.Meta.Inputs {
		number := len(x.Shape) == 1 && x.Shape[0] == 1
		switch {
		case x.Name == "target_tokens" || x.Name == "weights":
		case x.Name == "ref_logprobs" && x.Like != "":
			l.reference = true
		case number && !x.Optional:
			l.numbers = append(l.numbers, sft.Number{Name: x.Name, Int: x.DType == "int64"})
		case !x.Optional:
			return api.Errorf(api.BadRequest, "it wants the input %s, which rows do not give: train knows target_tokens, weights, ref_logprobs, and numbers of a whole row", x.Name)
		}
	}
	return nil
}

// names are the fields that every row must have.
func (l *customLoss) names() (out []string) {
	if l == nil {
		return nil
	}
	for _, n := range l.numbers {
		out = append(out, n.Name)
	}
	return out
}

// fits refuses examples for a loss that compares pairs.
func (l *customLoss) fits(d *trainingData) error {
	if g := l.Meta.Grouping; g != nil && g.By == "consecutive" && g.Size == 2 && !d.train.Prefers() {
		return api.Errorf(api.BadRequest, "the loss %s compares pairs, wanted rows of {\"prompt\": …, \"chosen\": …, \"rejected\": …}", l.Record.Name)
	}
	return nil
}

// task is the training task of a set of rows.
func (l *customLoss) task(s *data.Set, reference *engine.Run) *sft.Custom {
	c := &sft.Custom{Loss: l.Loss, Config: l.config, Numbers: l.numbers, Reference: reference}
	if s.Prefers() {
		c.Pairs = s
	} else {
		c.Examples = s
	}
	return c
}

// close unloads the plugin.
func (l *customLoss) close() {
	if l != nil {
		l.plugins.Close()
	}
}
