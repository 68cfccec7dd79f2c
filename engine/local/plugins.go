package local

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
	"tinkerlocal/plugins"
	"tinkerlocal/plugins/losses"
)

// PluginPrefix begins the names of losses that are plugins: wasm:NAME, or wasm:NAME@sha256:DIGEST.
const PluginPrefix = plugins.Prefix

// PluginsDir is the folder of a state directory in which plugins lie, as NAME.wasm; "" when there is no state directory.
func PluginsDir(state string) string {
	if state == "" {
		return ""
	}
	return filepath.Join(state, "plugins")
}

// Plugins are the losses that are WASM modules: those of a state directory's plugins folder, and those that come with the program.
type Plugins struct {
	*plugins.Registry
	Host *plugins.Host
}

// OpenPlugins opens the plugins of a state directory, "" for the bundled ones alone. The plugins folder is made if make is set.
// Compiled modules are kept in the user's cache folder. Close it.
func OpenPlugins(ctx context.Context, state string, make bool, log *slog.Logger) (*Plugins, error) {
	dir := PluginsDir(state)
	if dir != "" && make {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, api.Errorf(api.BadRequest, "plugins folder: %w", err)
		}
	} else if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		dir = ""
	}
	h, err := openHost(ctx, log)
	if err != nil {
		return nil, err
	}
	r, err := plugins.NewRegistry(ctx, h, plugins.RegistryOptions{Bundled: losses.Bundled(), Dir: dir, Log: log})
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return &Plugins{r, h}, nil
}

// openHost does without a cache where it cannot be made, or others could write to it: modules are then compiled each time.
func openHost(ctx context.Context, log *slog.Logger) (*plugins.Host, error) {
	h, err := plugins.Open(ctx, plugins.Options{CacheDir: pluginCache(), Log: log})
	if err == nil {
		return h, nil
	}
	if log != nil {
		log.Warn("compiled plugins are not kept", "err", err)
	}
	return plugins.Open(ctx, plugins.Options{Log: log})
}

// pluginCache is where native code of compiled modules is kept; "": nowhere.
func pluginCache() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "tinker-local", "plugins")
}

// Close unloads the plugins.
func (p *Plugins) Close() error { return errors.Join(p.Registry.Close(), p.Host.Close()) }

// lazyLosses are the built-in losses and, from the first time that one is asked for, the plugins. An engine owns it.
type lazyLosses struct {
	state string
	log   *slog.Logger

	mu     sync.Mutex
	opened *Plugins
	looked time.Time // when the folder was looked at
	closed bool
}

// lookAgain is how old a look at the plugins folder may be.
const lookAgain = time.Second

// Loss implements engine.Losses.
func (l *lazyLosses) Loss(name string) (loss.Loss, error) {
	if !strings.HasPrefix(name, PluginPrefix) {
		return loss.Builtin(name)
	}
	p, err := l.plugins()
	if err != nil {
		return nil, err
	}
	return p.Loss(name)
}

// plugins opens the plugins, or looks again for what has changed in their folder. Only the caller that looks waits for new modules.
func (l *lazyLosses) plugins() (*Plugins, error) {
	ctx := context.Background()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, api.Errorf(api.Closed, "the engine is closed")
	}
	if l.opened == nil {
		defer l.mu.Unlock()
		p, err := OpenPlugins(ctx, l.state, l.state != "", l.log)
		if err == nil {
			l.opened, l.looked = p, time.Now()
		}
		return p, err
	}
	p, again := l.opened, time.Since(l.looked) > lookAgain
	if again {
		l.looked = time.Now()
	}
	l.mu.Unlock()
	if again {
		return p, p.Refresh(ctx)
	}
	return p, nil
}

// Close unloads the plugins. The engine calls it.
func (l *lazyLosses) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.opened == nil {
		return nil
	}
	return l.opened.Close()
}
