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

// Models finds base models: the embedded one, ORG/NAME folders below Dir, and any folder by its path.
type Models struct {
	Dir string // "": only the embedded model and paths
}

// Open opens a checkpoint by name. A name is TinyModel, ORG/NAME below Dir, or a path to a folder that holds a config.json.
func (m Models) Open(name string) (*hf.Checkpoint, error) {
	if name == TinyModel {
		sub, err := fs.Sub(tinyFiles, "tiny")
		if err != nil {
			return nil, err
		}
		return hf.OpenFS(TinyModel, sub)
	}
	if dir, ok := m.below(name); ok {
		return hf.Open(dir)
	}
	if isModel(name) {
		return hf.Open(name)
	}
	have := strings.Join(m.List(), ", ")
	if m.Dir == "" {
		return nil, api.Errorf(api.NotFound, "model %q: no such folder with a config.json, and no --models folder is given; known: %s", name, have)
	}
	return nil, api.Errorf(api.NotFound, "model %q: neither in %s nor a folder with a config.json; known: %s", name, m.Dir, have)
}

// List names the embedded model and every ORG/NAME folder below Dir.
func (m Models) List() []string {
	names := []string{TinyModel}
	if m.Dir != "" {
		configs, _ := filepath.Glob(filepath.Join(m.Dir, "*", "*", "config.json"))
		for _, c := range configs {
			name := filepath.Dir(c)
			names = append(names, filepath.ToSlash(filepath.Join(filepath.Base(filepath.Dir(name)), filepath.Base(name))))
		}
	}
	slices.Sort(names)
	return names
}

// below maps ORG/NAME to its folder; the name never leaves Dir.
func (m Models) below(name string) (string, bool) {
	if m.Dir == "" || !filepath.IsLocal(filepath.FromSlash(name)) {
		return "", false
	}
	dir := filepath.Join(m.Dir, filepath.FromSlash(name))
	return dir, isModel(dir)
}

func isModel(dir string) bool {
	st, err := os.Stat(filepath.Join(dir, "config.json"))
	return err == nil && st.Mode().IsRegular()
}
