package plugins

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
)

const (
	extension = ".wasm"
	keptDir   = ".pinned"
)

// fileSignature says whether a file may have changed since it was read.
type fileSignature struct {
	size     int64
	modified time.Time
	fresh    bool // it was modified just before: the clock of the file system may be too coarse to show another change
}

// coarse is more than the resolution of any file system's clock.
const coarse = 2 * time.Second

// Refresh looks at the folder: new and changed files are loaded, and their names move once the self-test has passed; the names of
// files that are gone go. A file that is refused is reported in List and in the log, and its name keeps what it had. The error says
// that the folder cannot be read.
func (r *Registry) Refresh(ctx context.Context) error {
	if r.opt.Dir == "" {
		return nil
	}
	r.refreshing.Lock()
	defer r.refreshing.Unlock()
	entries, err := os.ReadDir(r.opt.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // one that is gone holds nothing
		return r.folderError(err)
	}
	there := map[string]bool{}
	for _, e := range entries {
		file := e.Name()
		name, ok := strings.CutSuffix(file, extension)
		if !ok || strings.HasPrefix(file, ".") {
			continue
		}
		there[file] = true
		if err := r.refreshFile(ctx, file, name); err != nil {
			if ctx.Err() != nil {
				return cancelled(ctx)
			}
			r.mu.Lock()
			r.problems[file] = err
			r.mu.Unlock()
			r.opt.Log.Warn("plugin file refused", "file", file, "error", err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for file := range r.seen {
		if !there[file] {
			delete(r.seen, file)
			delete(r.problems, file)
			delete(r.current, strings.TrimSuffix(file, extension))
			r.opt.Log.Info("plugin file gone", "file", file)
		}
	}
	return nil
}

func (r *Registry) folderError(err error) error {
	return api.Errorf(api.NotFound, "plugin folder %s: %w", r.opt.Dir, err)
}

// refreshFile loads a file if it has changed. Its signature is remembered when the bytes were judged, not when they could not be read.
func (r *Registry) refreshFile(ctx context.Context, file, name string) error {
	path := filepath.Join(r.opt.Dir, file)
	info, err := os.Stat(path)
	if err != nil {
		return bad("%w", err)
	}
	now := fileSignature{size: info.Size(), modified: info.ModTime(), fresh: time.Since(info.ModTime()) < coarse}
	r.mu.Lock()
	old, known := r.seen[file]
	r.mu.Unlock()
	if known && !old.fresh && old.size == now.size && old.modified.Equal(now.modified) {
		return nil
	}
	remember := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.seen[file] = now
	}
	switch {
	case !info.Mode().IsRegular():
		remember()
		return bad("%s is not a file", file)
	case !pluginName.MatchString(name):
		remember()
		return bad("%s: the name of a plugin has letters, digits, _ . - (at most 64)", file)
	}
	binary, err := readFile(path, r.host.lim.ModuleBytes)
	if err != nil {
		return bad("%s: %w", file, err)
	}
	r.mu.Lock()
	current := r.current[name]
	r.mu.Unlock()
	if current != nil && current.m.digest == Digest(binary) {
		remember()
		r.setCurrent(name, current.m, sourceFolder)
		return nil
	}
	m, err := r.take(ctx, name, binary, false)
	if err != nil {
		if ctx.Err() == nil && api.CodeOf(err) != api.Busy {
			remember()
		}
		return err
	}
	if err := r.keep(name, binary); err != nil {
		return err
	}
	remember()
	r.setCurrent(name, m, sourceFolder)
	r.opt.Log.Info("plugin loaded", "name", name, "plugin", m.String())
	return nil
}

// readFile reads at most one byte more than may be there.
func readFile(path string, most int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, int64(most)+1))
}

// keep stores a module's bytes under its digest, and says so.
func (r *Registry) keep(name string, binary []byte) error {
	digest := Digest(binary)
	path := r.keptPath(name, digest)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			return r.folderError(err)
		}
		if err := writeFile(path, binary); err != nil {
			return r.folderError(err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.known[digest]; k != nil {
		k.kept = true
	}
	return nil
}

func (r *Registry) keptPath(name, digest string) string {
	return filepath.Join(r.opt.Dir, keptDir, name+"@"+digest+extension)
}

// kept reads bytes that were stored under a digest, and holds them to it.
func (r *Registry) kept(name, digest string) ([]byte, error) {
	if r.opt.Dir == "" || !pluginName.MatchString(name) {
		return nil, fs.ErrNotExist
	}
	b, err := readFile(r.keptPath(name, digest), r.host.lim.ModuleBytes)
	if err != nil {
		return nil, err
	}
	if Digest(b) != digest {
		return nil, api.Errorf(api.DataLoss, "%s has other bytes than its name says", r.keptPath(name, digest))
	}
	return b, nil
}

// write puts an added module into the folder.
func (r *Registry) write(name string, binary []byte) error {
	if err := r.keep(name, binary); err != nil {
		return err
	}
	path := filepath.Join(r.opt.Dir, name+extension)
	if err := writeFile(path, binary); err != nil {
		return r.folderError(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return r.folderError(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[name+extension] = fileSignature{size: info.Size(), modified: info.ModTime(), fresh: true}
	return nil
}

func (r *Registry) unlink(name string) error {
	if err := os.Remove(filepath.Join(r.opt.Dir, name+extension)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r.folderError(err)
	}
	return disk.SyncDir(r.opt.Dir)
}

// writeFile writes a file whole or not at all.
func writeFile(path string, b []byte) error {
	write := func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}
	return disk.WriteFile(disk.System{}, path, true, write, nil)
}
