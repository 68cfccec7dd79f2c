package plugins

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
)

// Prefix begins the names of losses that are plugins, as they stand in loss_fn: "wasm:dpo" is the current one of that name,
// "wasm:dpo@sha256:<64 hexadecimal digits>" exactly the one with these bytes.
const Prefix = "wasm:"

// RegistryOptions say where a registry finds plugins.
type RegistryOptions struct {
	// Bundled are modules that the program brings along, by name. They are loaded when they are first asked for, and must not be
	// changed.
	Bundled map[string][]byte

	// Dir is a folder of modules; empty: there is none, and added modules are kept in memory. A file NAME.wasm is the plugin of that
	// name, whatever its metadata calls it: the operator decides what clients get. It comes before a bundled one of the
	// same name. The bytes of all that were loaded are kept in the folder's .pinned, so that a digest can be asked for later.
	Dir string

	// Log gets what happens to the folder's files. Nil: nowhere.
	Log *slog.Logger
}

// Registry finds losses by name: plugins by names that begin with Prefix, built-in ones by all others. Any goroutine may use it.
type Registry struct {
	host *Host
	opt  RegistryOptions

	refreshing sync.Mutex // one look at the folder at a time

	mu       sync.Mutex
	closed   bool
	current  map[string]*named        // what was found in the folder or added, by name
	known    map[string]*knownModule  // all that was loaded, by digest
	problems map[string]error         // of files, by their name
	seen     map[string]fileSignature // files by their name, as they were last read
}

// named is what a name stands for.
type named struct {
	m      *Module
	source string
}

// knownModule is a module of which the registry holds one Load.
type knownModule struct {
	m     *Module
	names map[string]bool
	kept  bool // its bytes are on disk
	order int  // of loading
}

// Info is what a registry knows about one name or one bad file.
type Info struct {
	Name    string `json:"name"`
	Source  string `json:"source"`            // "bundled", "folder" or "memory"
	Digest  string `json:"digest,omitempty"`  // of the current module
	Report  Report `json:"report,omitzero"`   // zero for a bundled one that nobody has asked for yet
	Problem string `json:"problem,omitempty"` // why the file is not used; an older module of the name may still be
}

// NewRegistry looks at the folder once and reports what is wrong with its files in List. An error says that the folder cannot be
// used at all. The host must stay open as long as the registry.
func NewRegistry(ctx context.Context, h *Host, o RegistryOptions) (*Registry, error) {
	r := &Registry{
		host: h, opt: o, current: map[string]*named{}, known: map[string]*knownModule{}, problems: map[string]error{},
		seen: map[string]fileSignature{},
	}
	if r.opt.Log == nil {
		r.opt.Log = slog.New(slog.DiscardHandler)
	}
	for _, name := range sortedNames(o.Bundled) {
		if !pluginName.MatchString(name) {
			return nil, bad("bundled plugin %q: wanted a name of letters, digits, _ . -", name)
		}
	}
	if err := r.Refresh(ctx); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

var pinned = regexp.MustCompile(`^([^@]*)@sha256:([0-9a-f]{64})$`)

// Loss implements the engine's Losses. What it returns stays usable, whatever happens to the name.
func (r *Registry) Loss(name string) (loss.Loss, error) {
	rest, ok := strings.CutPrefix(name, Prefix)
	if !ok {
		l, err := loss.Builtin(name)
		if err != nil {
			return nil, bad("%w; plugins: %s", err, r.names())
		}
		return l, nil
	}
	m, err := r.find(rest)
	if err != nil {
		return nil, err
	}
	return m.lend()
}

// Module finds a plugin as Loss does. It stays loaded until the registry is closed, or its place is needed.
func (r *Registry) Module(_ context.Context, name string) (*Module, error) {
	return r.find(strings.TrimPrefix(name, Prefix))
}

// find finds NAME or NAME@sha256:DIGEST.
func (r *Registry) find(name string) (*Module, error) {
	if p := pinned.FindStringSubmatch(name); p != nil {
		return r.pinned(p[1], p[2])
	}
	if strings.Contains(name, "@") {
		return nil, bad("loss_fn %q: wanted %sNAME or %sNAME@sha256: and 64 digits 0-9a-f", clip(Prefix+name, 200), Prefix, Prefix)
	}
	return r.byName(name)
}

// names lists what Loss would find.
func (r *Registry) names() string {
	var out []string
	for _, i := range r.List() {
		if i.Digest != "" && !slices.Contains(out, Prefix+i.Name) {
			out = append(out, Prefix+i.Name)
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}

func (r *Registry) byName(name string) (*Module, error) {
	r.mu.Lock()
	n, ok := r.current[name]
	r.mu.Unlock()
	if ok {
		return n.m, nil
	}
	binary, ok := r.opt.Bundled[name]
	if !ok {
		return nil, api.Errorf(api.NotFound, "unknown loss_fn %q; plugins: %s", Prefix+clip(name, 100), r.names())
	}
	m, err := r.take(context.Background(), name, binary, false)
	if err != nil || r.opt.Dir == "" {
		return m, err
	}
	// A later program may bring another module of this name; a run that was trained with this one may want it then.
	if err := r.keep(name, binary); err != nil {
		r.opt.Log.Warn("a bundled plugin cannot be kept for later", "name", name, "error", err)
	}
	return m, nil
}

// pinned finds a digest: among what was loaded, what is bundled, and what the folder keeps.
func (r *Registry) pinned(name, digest string) (*Module, error) {
	r.mu.Lock()
	k, ok := r.known[digest]
	ok = ok && k.names[name]
	r.mu.Unlock()
	if ok {
		return k.m, nil
	}
	binary, bundled := r.opt.Bundled[name]
	if !bundled || Digest(binary) != digest {
		var err error
		if binary, err = r.kept(name, digest); err != nil {
			return nil, api.Errorf(api.NotFound, "loss_fn %s%s@sha256:%s: no module with these bytes is known under this name", Prefix, clip(name, 100), digest)
		}
		bundled = false
	}
	return r.take(context.Background(), name, binary, !bundled)
}

// take loads a module and remembers it. The registry's Load is given back in Close, or when the place is needed and the bytes
// are on disk.
func (r *Registry) take(ctx context.Context, name string, binary []byte, kept bool) (*Module, error) {
	m, err := r.host.Load(ctx, binary)
	if api.CodeOf(err) == api.Busy && r.makeRoom() {
		m, err = r.host.Load(ctx, binary)
	}
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, errors.Join(errRegistryClosed, m.Close())
	}
	k, ok := r.known[m.digest]
	if ok {
		m.Close() // one is enough
	} else {
		k = &knownModule{m: m, names: map[string]bool{}, order: len(r.known)}
		for _, o := range r.known {
			k.order = max(k.order, o.order+1)
		}
		r.known[m.digest] = k
	}
	k.names[name] = true
	k.kept = k.kept || kept
	return k.m, nil
}

var errRegistryClosed = api.Errorf(api.Closed, "the plugin registry is closed")

// makeRoom gives up the oldest module that no name stands for and that can be had from disk again.
func (r *Registry) makeRoom() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var oldest *knownModule
	for _, k := range r.known {
		used := slices.ContainsFunc(slices.Collect(maps.Values(r.current)), func(n *named) bool { return n.m == k.m })
		if k.kept && !used && (oldest == nil || k.order < oldest.order) {
			oldest = k
		}
	}
	if oldest == nil {
		return false
	}
	delete(r.known, oldest.m.digest)
	oldest.m.Close()
	return true
}

// handle holds one Load of a module, as long as it is reachable.
type handle struct{ m *Module }

// lend makes a loss that keeps the module loaded until the last reference to the loss is gone.
func (m *Module) lend() (loss.Loss, error) {
	m.host.mu.Lock()
	defer m.host.mu.Unlock()
	if m.host.closed || m.refs <= 0 {
		return nil, errHostClosed
	}
	m.refs++
	h := &handle{m}
	runtime.AddCleanup(h, func(m *Module) { m.Close() }, m)
	return moduleLoss{m: m, held: h}, nil
}

// List says what there is, by name: a bad file has an entry of its own.
func (r *Registry) List() []Info {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Info
	for name, n := range r.current {
		out = append(out, Info{Name: name, Source: n.source, Digest: n.m.digest, Report: n.m.report})
	}
	for name, binary := range r.opt.Bundled {
		if r.current[name] != nil {
			continue
		}
		i := Info{Name: name, Source: sourceBundled, Digest: Digest(binary)}
		if k := r.known[i.Digest]; k != nil {
			i.Report = k.m.report
		}
		out = append(out, i)
	}
	for file, err := range r.problems {
		out = append(out, Info{Name: strings.TrimSuffix(file, extension), Source: sourceFolder, Problem: err.Error()})
	}
	slices.SortFunc(out, func(a, b Info) int { return strings.Compare(a.Name+"\x00"+a.Problem, b.Name+"\x00"+b.Problem) })
	return out
}

const (
	sourceBundled = "bundled"
	sourceFolder  = "folder"
	sourceMemory  = "memory"
)

// Add checks a module and makes it the one of that name, replacing another; with a folder, it is written there whole or not at
// all. Whoever has the old one keeps it.
func (r *Registry) Add(ctx context.Context, name string, binary []byte) (Info, error) {
	if !pluginName.MatchString(name) {
		return Info{}, bad("plugin name %q, wanted letters, digits, _ . - (at most 64)", clip(name, 80))
	}
	r.refreshing.Lock()
	defer r.refreshing.Unlock()
	m, err := r.take(ctx, name, binary, false)
	if err != nil {
		return Info{}, err
	}
	source := sourceMemory
	if r.opt.Dir != "" {
		source = sourceFolder
		if err := r.write(name, binary); err != nil {
			return Info{}, err
		}
	}
	r.setCurrent(name, m, source)
	return Info{Name: name, Source: source, Digest: m.digest, Report: m.report}, nil
}

func (r *Registry) setCurrent(name string, m *Module, source string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.problems, name+extension)
	r.current[name] = &named{m: m, source: source}
}

// Remove takes a name away, and its file. Whoever has the module keeps it, and its digest stays known.
func (r *Registry) Remove(name string) error {
	r.refreshing.Lock()
	defer r.refreshing.Unlock()
	r.mu.Lock()
	_, ok := r.current[name]
	_, broken := r.problems[name+extension]
	r.mu.Unlock()
	if !ok && !broken {
		if _, bundled := r.opt.Bundled[name]; bundled {
			return bad("plugin %s comes with the program and cannot be removed", name)
		}
		return api.Errorf(api.NotFound, "no plugin %q", clip(name, 80))
	}
	if r.opt.Dir != "" {
		if err := r.unlink(name); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.current, name)
	delete(r.problems, name+extension)
	delete(r.seen, name+extension)
	return nil
}

// Watch looks at the folder again and again, until ctx is done.
func (r *Registry) Watch(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := r.Refresh(ctx); err != nil && ctx.Err() == nil {
				r.opt.Log.Error("plugin folder", "error", err)
			}
		}
	}
}

// Close gives all modules back. Losses that were handed out stay usable until the host is closed.
func (r *Registry) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	var errs []error
	for _, k := range r.known {
		errs = append(errs, k.m.Close())
	}
	clear(r.known)
	clear(r.current)
	return errors.Join(errs...)
}
