package local

import (
	"embed"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
)

// TinyModel is the name of the base model inside the binary.
const TinyModel = "tinker-local/tiny"

//go:embed tiny/config.json tiny/generation_config.json tiny/model.safetensors tiny/tokenizer.json tiny/tokenizer_config.json
var tinyFiles embed.FS

// Models finds base models: the embedded one, ORG/NAME folders below Dir, any folder by its path, and the
// models that other programs have downloaded into the hub cache.
type Models struct {
	Dir      string // "": only the embedded model, paths and the hub cache
	HubCache string // see DefaultHubCache; "": not looked into

	// Paths, if not nil, are the only paths that are names, for those who serve others: a client must not choose what is opened.
	Paths []string
}

// Source says where a model was found.
type Source string

// The sources of models.
const (
	Embedded   Source = "embedded"
	InFolder   Source = "models folder"
	InHubCache Source = "hub cache"
	ByPath     Source = "path"
)

// Found is a base model that Models.Open would open by this name.
type Found struct {
	Name   string `json:"name"`
	Source Source `json:"source"`
	Dir    string `json:"dir,omitempty"` // "" for the embedded model
}

// Open opens a checkpoint by name. A name is TinyModel, ORG/NAME below Dir, a path to a folder that holds a
// config.json, or ORG/NAME in the hub cache; the first that is there is taken.
func (m Models) Open(name string) (*hf.Checkpoint, error) {
	if f, ok := m.find(name); ok {
		if f.Source != Embedded {
			return hf.Open(f.Dir)
		}
		sub, err := fs.Sub(tinyFiles, "tiny")
		if err != nil {
			return nil, err
		}
		return hf.OpenFS(TinyModel, sub)
	}
	places := "no --models folder is given"
	if m.Dir != "" {
		places = "it is not in " + m.Dir
	}
	if m.HubCache != "" {
		places += ", nor with its weights in the hub cache " + m.HubCache
	}
	if m.Paths != nil { // others are asking
		return nil, api.Errorf(api.NotFound, "there is no model %q; known: %s", name, strings.Join(m.List(), ", "))
	}
	hint := ""
	if _, _, ok := splitName(name); ok {
		hint = "; download it with: tinker-local model pull " + name
	}
	return nil, api.Errorf(api.NotFound, "model %q: no such folder with a config.json, and %s; known: %s%s",
		name, places, strings.Join(m.List(), ", "), hint)
}

// find answers where Open takes a model from.
func (m Models) find(name string) (Found, bool) {
	if name == TinyModel {
		return Found{Name: name, Source: Embedded}, true
	}
	if dir, ok := m.below(name); ok {
		return Found{name, InFolder, dir}, true
	}
	if (m.Paths == nil || slices.Contains(m.Paths, name)) && isModel(name) {
		return Found{name, ByPath, name}, true
	}
	if dir, ok := m.cached(name); ok {
		return Found{name, InHubCache, dir}, true
	}
	return Found{}, false
}

// List names every model of Found.
func (m Models) List() []string {
	var names []string
	for _, f := range m.Found() {
		names = append(names, f.Name)
	}
	return names
}

// Found lists the embedded model, every ORG/NAME folder below Dir, the models of the hub cache that Dir
// does not have, and those of Paths, sorted by name.
func (m Models) Found() []Found {
	list := []Found{{Name: TinyModel, Source: Embedded}}
	seen := map[string]bool{TinyModel: true}
	if m.Dir != "" {
		configs, _ := filepath.Glob(filepath.Join(m.Dir, "*", "*", "config.json"))
		for _, c := range configs {
			dir := filepath.Dir(c)
			name := filepath.Base(filepath.Dir(dir)) + "/" + filepath.Base(dir)
			if _, ok := m.below(name); ok && !seen[name] {
				seen[name] = true
				list = append(list, Found{Name: name, Source: InFolder, Dir: dir})
			}
		}
	}
	for _, f := range m.cachedModels() {
		if !seen[f.Name] {
			list = append(list, f)
		}
	}
	for _, name := range m.Paths {
		if f, ok := m.find(name); ok && f.Source == ByPath && !seen[name] {
			seen[name] = true
			list = append(list, f)
		}
	}
	slices.SortFunc(list, func(a, b Found) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// below maps ORG/NAME to its folder; the name never leaves Dir. What begins with a dot is a download that
// has not ended.
func (m Models) below(name string) (string, bool) {
	if m.Dir == "" || !filepath.IsLocal(filepath.FromSlash(name)) || strings.HasPrefix(name, ".") || strings.Contains(name, "/.") {
		return "", false
	}
	dir := filepath.Join(m.Dir, filepath.FromSlash(name))
	return dir, isModel(dir)
}

func isModel(dir string) bool {
	st, err := os.Stat(filepath.Join(dir, "config.json"))
	return err == nil && st.Mode().IsRegular()
}
