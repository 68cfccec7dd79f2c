// Package sdk holds what loss plugins are written with, one folder per language, and starts new projects with it.
package sdk

import (
	"embed"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"tinkerlocal/engine/api"
)

// Names that the Go tool would take for parts of this module (go.mod, *.go) end in .txt here.
//
//go:embed template c/tinker_loss.h rust/Cargo.toml rust/src go/tinkerloss.go go/exports_wasip1.go
var files embed.FS

// languages says which files, beside its template, a project of that language gets: from here to there.
var languages = map[string]map[string]string{
	"c": {"c/tinker_loss.h": "tinker_loss.h"},
	"rust": {
		"rust/Cargo.toml":   "tinker-loss/Cargo.toml",
		"rust/src/lib.rs":   "tinker-loss/src/lib.rs",
		"rust/src/tests.rs": "tinker-loss/src/tests.rs",
	},
	"go": {
		"go/tinkerloss.go":     "tinkerloss/tinkerloss.go",
		"go/exports_wasip1.go": "tinkerloss/exports_wasip1.go",
	},
}

// Languages are the languages that New knows, in order.
func Languages() []string { return slices.Sorted(maps.Keys(languages)) }

var nameRule = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// New writes a project for the loss plugin called name into dir: the SDK, an example that builds with `make`, and a README. dir
// must be absent or an empty folder. When New fails, nothing of the project is there.
func New(dir, lang, name string) error {
	extra, ok := languages[lang]
	if !ok {
		return api.Errorf(api.BadRequest, "plugin new: language %q, wanted one of %s", lang, strings.Join(Languages(), ", "))
	}
	if !nameRule.MatchString(name) {
		return api.Errorf(api.BadRequest, "plugin new: name %q, wanted a lowercase letter, then up to 63 of a-z, 0-9 and _", name)
	}
	project, err := render(lang, name, extra)
	if err != nil {
		return err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	switch {
	case err == nil && len(entries) > 0:
		return api.Errorf(api.BadRequest, "plugin new: %s is not empty", dir)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return api.Errorf(api.BadRequest, "plugin new: %s is not a folder for a project: %v", dir, err)
	}
	absent := err != nil
	if err := os.MkdirAll(filepath.Dir(dir), 0o777); err != nil {
		return err
	}
	// Everything is written beside dir, and takes its place when it is complete.
	draft, err := os.MkdirTemp(filepath.Dir(dir), ".plugin-new-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(draft)
	for path, text := range project {
		path = filepath.Join(draft, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			return err
		}
	}
	if absent {
		if err := os.Chmod(draft, 0o755); err != nil { // MkdirTemp's folders are private
			return err
		}
		return os.Rename(draft, dir)
	}
	return fill(dir, draft)
}

// fill moves what is in draft into the empty folder dir, which may be where the user stands and stays what it is.
func fill(dir, draft string) error {
	entries, err := os.ReadDir(draft)
	if err != nil {
		return err
	}
	for i, e := range entries {
		if err := os.Rename(filepath.Join(draft, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			for _, moved := range entries[:i] {
				err = errors.Join(err, os.RemoveAll(filepath.Join(dir, moved.Name())))
			}
			return err
		}
	}
	return nil
}

// render is the project's text by slash-separated path.
func render(lang, name string, extra map[string]string) (map[string]string, error) {
	out := map[string]string{}
	root := "template/" + lang
	err := fs.WalkDir(files, root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := files.ReadFile(path)
		out[strings.TrimSuffix(strings.TrimPrefix(path, root+"/"), ".txt")] = strings.ReplaceAll(string(text), "NAME", name)
		return err
	})
	for from, to := range extra {
		text, readErr := files.ReadFile(from)
		err = errors.Join(err, readErr)
		out[to] = string(text)
	}
	return out, err
}
