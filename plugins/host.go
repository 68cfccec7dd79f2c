package plugins

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	wasm "github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"

	"tinkerlocal/engine/api"
)

// Options say how a host runs plugins. The zero value is a host with default limits whose compiled code is kept in memory only.
type Options struct {
	// CacheDir is where compiled modules are kept between processes; empty: nowhere. It holds native code that later
	// processes run, so nobody but its owner may have access to it. It is made if there is none.
	CacheDir string

	Limits Limits

	// Log gets what plugins log, and what was refused. Nil: nowhere.
	Log *slog.Logger

	// Interpreter runs modules without compiling them: 30 to 60 times slower, to the same bits. It is what is used where there is no
	// compiler.
	Interpreter bool
}

// Host loads and runs plugins. Any goroutine may use it.
type Host struct {
	lim      Limits
	log      *slog.Logger
	rt       wazero.Runtime // runs the rewritten modules
	uncached wazero.Runtime // likewise, where the folder of the cache fails
	validate wazero.Runtime // checks the original ones
	cache    wazero.CompilationCache
	cacheDir string
	memory   *memories
	config   wazero.ModuleConfig
	running  chan struct{} // a place for each instance that may run
	quick    chan struct{} // likewise, for batches of one small request, which do not wait for large ones
	building chan struct{} // one module is compiled at a time
	closing  chan struct{} // closed by Close

	mu      sync.Mutex
	closed  bool
	modules map[string]*Module // by digest
	loading map[string]chan struct{}
}

// compiles says that wazero has a compiler for this machine's processor.
const compiles = runtime.GOARCH == "amd64" || runtime.GOARCH == "arm64"

// features are WebAssembly core 2.0 with 128-bit vectors, and nothing newer.
const features = wasm.CoreFeaturesV2

// Open makes a host. ctx bounds the call only.
func Open(ctx context.Context, o Options) (*Host, error) {
	lim := o.Limits.withDefaults(o.Interpreter || !compiles)
	h := &Host{
		lim: lim, log: o.Log, cacheDir: o.CacheDir, memory: &memories{keep: 2 * lim.Calls},
		// Nobody reads the random source, but wazero's own would be seeded for each instance, which takes longer than all the rest.
		config:  wazero.NewModuleConfig().WithName("").WithStartFunctions().WithRandSource(strings.NewReader("")),
		running: make(chan struct{}, lim.Calls), quick: make(chan struct{}, lim.Calls), building: make(chan struct{}, 1), closing: make(chan struct{}),
		modules: map[string]*Module{}, loading: map[string]chan struct{}{},
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if h.cache, err = openCache(o.CacheDir); err != nil {
		return nil, err
	}
	config := wazero.NewRuntimeConfig() // the compiler, where there is one
	if o.Interpreter {
		config = wazero.NewRuntimeConfigInterpreter()
	}
	ctx = context.WithoutCancel(ctx)
	newRuntime := func(c wazero.RuntimeConfig) wazero.Runtime {
		return wazero.NewRuntimeWithConfig(ctx, c.WithCoreFeatures(features).WithMemoryLimitPages(uint32(lim.MemoryPages)).WithDebugInfoEnabled(false))
	}
	h.rt, h.uncached = newRuntime(config.WithCompilationCache(h.cache)), newRuntime(config)
	h.validate = newRuntime(wazero.NewRuntimeConfigInterpreter())
	if err := errors.Join(instantiateHost(ctx, h.rt), instantiateHost(ctx, h.uncached)); err != nil {
		return nil, errors.Join(api.Errorf(api.Internal, "plugins: %w", err), h.Close())
	}
	return h, nil
}

// Limits are those in force.
func (h *Host) Limits() Limits { return h.lim }

// Close unloads all modules. It waits for instances that run and for a compilation; the limits bound both. What wanted to run later fails.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	for _, m := range h.modules {
		m.refs = 0
	}
	clear(h.modules)
	h.mu.Unlock()
	close(h.closing)
	for _, lane := range []chan struct{}{h.running, h.quick} {
		for range cap(lane) {
			lane <- struct{}{}
		}
	}
	h.building <- struct{}{}
	ctx := context.Background()
	return errors.Join(h.rt.Close(ctx), h.uncached.Close(ctx), h.validate.Close(ctx), h.cache.Close(ctx))
}

// place waits for the right to run an instance in one of the lanes; the function it returns gives it back.
func (h *Host) place(ctx context.Context, lane chan struct{}) (func(), error) {
	select {
	case <-h.closing:
		return nil, errHostClosed
	default:
	}
	select {
	case lane <- struct{}{}:
		return func() { <-lane }, nil
	case <-h.closing:
		return nil, errHostClosed
	case <-ctx.Done():
		return nil, cancelled(ctx)
	}
}

// Digest is the SHA-256 of a module's bytes in hexadecimal: what pins it.
func Digest(binary []byte) string {
	d := sha256.Sum256(binary)
	return hex.EncodeToString(d[:])
}

var errHostClosed = api.Errorf(api.Closed, "the plugin host is closed")

// Load validates, rewrites, compiles and tries a module, which takes milliseconds, or seconds for one of megabytes. The same bytes
// give the same Module again; each Load wants its own [Module.Close]. What is wrong with a module is an error of code
// BadRequest that says why.
func (h *Host) Load(ctx context.Context, binary []byte) (*Module, error) {
	digest := Digest(binary)
	for {
		h.mu.Lock()
		m, loaded := h.modules[digest]
		wait, loading := h.loading[digest]
		switch {
		case h.closed:
			h.mu.Unlock()
			return nil, errHostClosed
		case loaded:
			m.refs++
			h.mu.Unlock()
			return m, nil
		case loading:
			h.mu.Unlock()
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, cancelled(ctx)
			}
		case len(h.modules)+len(h.loading) >= h.lim.Modules:
			h.mu.Unlock()
			return nil, api.Errorf(api.Busy, "%d plugins are loaded, the limit is %d", len(h.modules), h.lim.Modules)
		}
		h.loading[digest] = make(chan struct{})
		h.mu.Unlock()
		break
	}
	m, err := h.build(ctx, binary, digest)
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.loading[digest])
	delete(h.loading, digest)
	if err != nil {
		return nil, err
	}
	if h.closed {
		return nil, errHostClosed
	}
	m.refs = 1
	h.modules[digest] = m
	return m, nil
}

// Check does what Load does, measures speed and fuel on a batch of an ordinary size, and keeps nothing.
func (h *Host) Check(ctx context.Context, binary []byte) (*Report, error) {
	m, err := h.build(ctx, binary, Digest(binary))
	if err != nil {
		return nil, err
	}
	defer m.code.Close(ctx)
	r := m.report
	if err := m.measure(ctx, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// build makes a module that is in no table yet.
func (h *Host) build(ctx context.Context, binary []byte, digest string) (*Module, error) {
	m := &Module{host: h, digest: digest, size: len(binary)}
	if err := m.build(ctx, binary); err != nil {
		h.log.Warn("plugin refused", "digest", digest[:12], "reason", clip(err.Error(), 300))
		return nil, err
	}
	h.log.Debug("plugin built", "name", m.meta.Name, "version", m.meta.Version, "digest", digest[:12])
	return m, nil
}

func (m *Module) build(ctx context.Context, binary []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = api.Errorf(api.Internal, "the host failed on the module: %v", p)
		}
	}()
	if len(binary) > m.host.lim.ModuleBytes {
		return bad("the module has %d bytes, the limit is %d", len(binary), m.host.lim.ModuleBytes)
	}
	parts, err := scan(binary)
	if err != nil {
		return err
	}
	if err := parts.checkABI(); err != nil {
		return err
	}
	if int(parts.pages) > m.host.lim.MemoryPages {
		return bad("its memory has at least %d pages, the limit is %d", parts.pages, m.host.lim.MemoryPages)
	}
	start := time.Now()
	if m.code, err = m.host.compile(ctx, binary, parts); err != nil {
		return err
	}
	m.report = Report{Digest: m.digest, Size: len(binary), Functions: len(parts.bodies), CompileTime: time.Since(start), Pages: int(parts.pages)}
	for _, i := range parts.imports {
		m.report.Imports = append(m.report.Imports, i.module+"."+i.name)
	}
	if err = m.describe(ctx); err == nil {
		err = m.selfTest(ctx)
	}
	if err != nil {
		m.code.Close(ctx)
	}
	return err
}

// compile validates the original and compiles the rewritten module. wazero cannot be interrupted, so this goes on behind the caller's back when
// the time is over, one module at a time.
func (h *Host) compile(ctx context.Context, binary []byte, parts *module) (code, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, h.lim.CompileTime, bad("compiling took longer than %v", h.lim.CompileTime))
	defer cancel()
	select {
	case h.building <- struct{}{}:
	case <-h.closing:
		return code{}, errHostClosed
	case <-ctx.Done():
		return code{}, cancelled(ctx)
	}
	type result struct {
		code
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-h.building }()
		c, err := h.translate(binary, parts)
		done <- result{c, err}
	}()
	select {
	case r := <-done:
		return r.code, r.err
	case <-ctx.Done():
		go func() { // it ends with the compilation
			if r := <-done; r.err == nil {
				r.Close(context.Background())
			}
		}()
		return code{}, cancelled(ctx)
	}
}

// code is a compiled module, and where it runs.
type code struct {
	wazero.CompiledModule
	rt wazero.Runtime
}

// translate validates the bytes as they are first: after rewriting, indices that named nothing would name what was added.
func (h *Host) translate(binary []byte, parts *module) (c code, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = bad("the module cannot be compiled: %v", p)
		}
	}()
	ctx := context.Background()
	original, err := h.validate.CompileModule(ctx, binary)
	if err != nil {
		return c, bad("the module is not valid: %s", clip(cleanText([]byte(err.Error())), 500))
	}
	original.Close(ctx)
	metered := parts.rewrite()
	if c.CompiledModule, err = h.rt.CompileModule(ctx, metered); err == nil {
		c.rt = h.rt
		return c, nil
	}
	if h.cacheDir != "" { // what is valid compiles, so it is the folder: damaged, full or gone
		h.log.Warn("plugin cache: cleared, and not used for this module", "error", clip(err.Error(), 300), "clearing", clearCache(h.cacheDir))
	}
	c.rt = h.uncached
	if c.CompiledModule, err = h.uncached.CompileModule(ctx, metered); err != nil {
		return c, bad("the module cannot be metered: %s", clip(cleanText([]byte(err.Error())), 500))
	}
	return c, nil
}

// cancelled is the error of a context that is done.
func cancelled(ctx context.Context) error {
	err := context.Cause(ctx)
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	return api.Errorf(api.Cancelled, "plugins: %w", err)
}

// instance is a fresh one of a module, with its memory and what the host counts.
type instance struct {
	wasm.Module
	call
	ctx context.Context
}

// start makes an instance that has so much for all that it will do, and runs its initialisation.
func (m *Module) start(ctx context.Context, a allowance) (*instance, error) {
	i := &instance{call: call{allowance: a, seen: time.Now()}}
	i.ctx = context.WithValue(ctx, callKey{}, &i.call)
	var err error
	i.Module, err = m.code.rt.InstantiateModule(experimental.WithMemoryAllocator(i.ctx, m.host.memory), m.code.CompiledModule, m.host.config)
	if err != nil {
		return nil, i.failure("start", err)
	}
	if f := i.ExportedFunction(exportInitialize); f != nil {
		if _, err := f.Call(i.ctx); err != nil {
			i.Close(i.ctx)
			return nil, i.failure(exportInitialize, err)
		}
	}
	return i, nil
}

// invoke calls an export.
func (i *instance) invoke(name string, args ...uint64) (uint64, error) {
	var stack [2]uint64
	copy(stack[:], args)
	if err := i.ExportedFunction(name).CallWithStack(i.ctx, stack[:]); err != nil {
		return 0, i.failure(name, err)
	}
	return stack[0], nil
}

// failure says why an export did not return.
func (i *instance) failure(name string, err error) error {
	var known *api.Error
	switch {
	case i.stopped == nil:
		return api.Errorf(api.Internal, "%s: %s", name, clip(cleanText([]byte(err.Error())), 600))
	case errors.As(i.stopped, &known):
		return known
	case errors.Is(i.stopped, context.Canceled):
		return api.Errorf(api.Cancelled, "%s: %w", name, i.stopped)
	}
	return api.Errorf(api.Internal, "%s: %w", name, i.stopped)
}

// spent is the fuel that the instance has used up to now.
func (i *instance) spent() int64 { return i.fuelUsed(i.ExportedGlobal(fuelExport).Get()) }

// flushLog hands on what the guest logged.
func (m *Module) flushLog(i *instance) {
	i.log.flush()
	levels := []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}
	for _, l := range i.log.lines {
		m.host.log.Log(i.ctx, levels[l.level], l.text, "plugin", m.meta.Name, "digest", m.digest[:12])
	}
	if i.log.dropped > 0 {
		m.host.log.Warn(fmt.Sprintf("%d more lines were dropped", i.log.dropped), "plugin", m.meta.Name, "digest", m.digest[:12])
	}
}
