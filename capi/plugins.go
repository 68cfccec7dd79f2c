//go:build cgo && unix

package main

/*
#include "tinker.h"
*/
import "C"

import (
	"context"
	"log/slog"
	"sync"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// pluginHost compiles the modules that a program hands in. It is opened when it is first asked for.
type pluginHost struct {
	state string // state folder, "" for none
	log   *slog.Logger

	mu     sync.Mutex
	opened *local.Plugins
	closed bool
}

func (p *pluginHost) open() (*local.Plugins, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, api.Errorf(api.Closed, "the engine is closed")
	}
	if p.opened == nil {
		var err error
		if p.opened, err = local.OpenPlugins(context.Background(), p.state, false, p.log); err != nil {
			return nil, err
		}
	}
	return p.opened, nil
}

// close unloads all modules; later ones are refused.
func (p *pluginHost) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.opened == nil {
		return nil
	}
	return p.opened.Close() // twice does nothing
}

// loadModule loads a module for the engine's runs.
func (p *pluginHost) loadModule(wasm []byte) (*module, error) {
	host, err := p.open()
	if err != nil {
		return nil, err
	}
	m, err := host.Host.Load(context.Background(), wasm)
	if err != nil {
		return nil, err
	}
	loss := m.Loss()
	return &module{
		record: m.Record(),
		forwardBackward: func(r *engine.Run, data []api.Datum, config map[string]float64) (*engine.Future[api.ForwardBackwardOutput], error) {
			return r.ForwardBackwardCustom(data, loss, config)
		},
		forward: func(r *engine.Run, data []api.Datum, config map[string]float64) (*engine.Future[api.ForwardBackwardOutput], error) {
			return r.ForwardCustom(data, loss, config)
		},
		close: func() { _ = m.Close() },
	}, nil
}

//export tinkergo_engine_plugins
func tinkergo_engine_plugins(h C.uint64_t, out **C.char) C.int32_t {
	return engineJSON(h, out, func(e *engineObject) (any, error) {
		host, err := e.open()
		if err != nil {
			return nil, err
		}
		if err := host.Refresh(context.Background()); err != nil {
			return nil, err
		}
		list, err := host.Describe(context.Background())
		return append([]local.PluginInfo{}, list...), err
	})
}
