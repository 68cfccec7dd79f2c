package local

import (
	"context"
	"fmt"
	"os"
	"strings"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
	"tinkerlocal/plugins"
	"tinkerlocal/plugins/sdk"
)

// What is known of plugins: see package plugins.
type (
	PluginInfo        = plugins.Info
	PluginReport      = plugins.Report
	PluginMeta        = plugins.Meta
	PluginInput       = plugins.Input
	PluginParam       = plugins.Param
	PluginMeasurement = plugins.Measurement
)

// LossPlugin is one plugin that is ready to be used.
type LossPlugin struct {
	Loss   loss.Loss
	Meta   PluginMeta
	Record api.PluginRecord
}

// isFile tells the file of a module from a plugin's name.
func isFile(what string) bool {
	return strings.HasSuffix(what, ".wasm") || strings.ContainsAny(what, `/\`)
}

// maxModule is more than a host takes; it refuses what is larger than its limit by itself.
const maxModule = 64 << 20

// ReadModule reads the file of a module.
func ReadModule(file string) ([]byte, error) {
	st, err := os.Stat(file)
	switch {
	case err != nil:
		return nil, api.Errorf(api.NotFound, "%w", err)
	case !st.Mode().IsRegular():
		return nil, api.Errorf(api.BadRequest, "%s is not a file", file)
	case st.Size() > maxModule:
		return nil, api.Errorf(api.BadRequest, "%s has %d bytes, wanted a module of at most %d", file, st.Size(), maxModule)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, api.Errorf(api.BadRequest, "%w", err)
	}
	return b, nil
}

// Use loads a plugin by its name, NAME or NAME@sha256:DIGEST, or from a file. It stays usable until p is closed.
func (p *Plugins) Use(ctx context.Context, what string) (*LossPlugin, error) {
	m, err := p.module(ctx, what)
	if err != nil {
		return nil, err
	}
	return &LossPlugin{m.Loss(), *m.Meta(), m.Record()}, nil
}

func (p *Plugins) module(ctx context.Context, what string) (*plugins.Module, error) {
	what = strings.TrimPrefix(what, PluginPrefix)
	if !isFile(what) {
		return p.Module(ctx, PluginPrefix+what)
	}
	b, err := ReadModule(what)
	if err != nil {
		return nil, err
	}
	m, err := p.Host.Load(ctx, b)
	return m, inFile(what, err)
}

// Describe lists all plugins, those that come with the program with what they say about themselves.
func (p *Plugins) Describe(ctx context.Context) ([]PluginInfo, error) {
	all := p.List()
	for i, x := range all {
		if x.Problem != "" || x.Report.Meta.Name != "" {
			continue
		}
		m, err := p.Module(ctx, PluginPrefix+x.Name)
		if err != nil {
			return nil, err
		}
		all[i].Report = m.Report()
	}
	return all, nil
}

// Find describes one plugin.
func (p *Plugins) Find(ctx context.Context, name string) (PluginInfo, error) {
	m, err := p.Module(ctx, PluginPrefix+name)
	if err != nil {
		return PluginInfo{}, err
	}
	name, _, _ = strings.Cut(name, "@")
	x := PluginInfo{Name: name, Source: "pinned", Digest: m.Digest(), Report: m.Report()}
	for _, i := range p.List() {
		if i.Name == name && i.Digest == m.Digest() {
			x.Source = i.Source
		}
	}
	return x, nil
}

// CheckFile checks the module in a file.
func (p *Plugins) CheckFile(ctx context.Context, file string) (*PluginReport, error) {
	b, err := ReadModule(file)
	if err != nil {
		return nil, err
	}
	r, err := p.Host.Check(ctx, b)
	return r, inFile(file, err)
}

// inFile says which file an error is about.
func inFile(file string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", file, err)
}

// AddFile puts the module in a file into the plugins folder, under the name that it gives itself if name is empty.
func (p *Plugins) AddFile(ctx context.Context, file, name string) (PluginInfo, error) {
	b, err := ReadModule(file)
	if err != nil {
		return PluginInfo{}, err
	}
	if name == "" {
		m, err := p.Host.Load(ctx, b)
		if err != nil {
			return PluginInfo{}, inFile(file, err)
		}
		name = m.Meta().Name
		if err := m.Close(); err != nil {
			return PluginInfo{}, err
		}
	}
	x, err := p.Add(ctx, name, b)
	return x, inFile(file, err)
}

// Measure calls a plugin, by name or from a file, with made-up batches of these sizes.
func (p *Plugins) Measure(ctx context.Context, what string, sizes []int) ([]PluginMeasurement, error) {
	m, err := p.module(ctx, what)
	if err != nil {
		return nil, err
	}
	var out []PluginMeasurement
	for _, n := range sizes {
		x, err := m.Measure(ctx, n)
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, nil
}

// PluginLanguages are the languages that NewPlugin knows.
func PluginLanguages() []string { return sdk.Languages() }

// NewPlugin writes a project for a new plugin.
func NewPlugin(dir, lang, name string) error { return sdk.New(dir, lang, name) }
