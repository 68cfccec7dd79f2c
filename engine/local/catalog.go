package local

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"tinkerlocal/engine/api"
)

// Catalog describes every model of Found, and what lies below Dir and looks like a model that is not one: its Problem says why.
// It is sorted by name and never fails; a Dir that does not exist has nothing in it.
func (m Models) Catalog() []Info {
	good, all := m.scan()
	names := append(m.List(), good...)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		i, err := m.Describe(name)
		if err != nil {
			i.Problem = err.Error()
		}
		all = append(all, i)
	}
	slices.SortStableFunc(all, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// scan looks through Dir. It names the models, and lists what is wrong: model folders that are not at ORG/NAME or have no
// config.json, links to nowhere, folders that cannot be read. What begins with a dot is nobody's model.
func (m Models) scan() (good []string, bad []Info) {
	problem := func(name string, err error) {
		bad = append(bad, Info{Name: name, Problem: err.Error(), Source: InFolder})
	}
	if m.Dir == "" {
		return nil, nil
	}
	for _, org := range folders(m.Dir, "", problem) {
		if isModel(filepath.Join(m.Dir, org)) {
			problem(org, api.Errorf(api.BadRequest, "is a model folder directly below %s, wanted it at ORG/NAME; its path can be used as a name", m.Dir))
			continue
		}
		for _, name := range folders(filepath.Join(m.Dir, org), org, problem) {
			dir := filepath.Join(m.Dir, org, name)
			if isModel(dir) {
				good = append(good, path.Join(org, name))
				continue
			}
			switch file := modelFile(dir); file {
			case "":
			case "config.json":
				problem(path.Join(org, name), api.Errorf(api.BadRequest, "config.json is not a regular file"))
			default:
				problem(path.Join(org, name), api.Errorf(api.BadRequest, "has a file %s and no config.json", strconv.Quote(file)))
			}
		}
	}
	return good, bad
}

// folders names the folders in dir, and reports what cannot be read. under is where dir is, for names.
func folders(dir, under string, problem func(name string, err error)) (names []string) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		name := under
		if name == "" {
			name = dir
		}
		problem(name, err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		st, err := os.Stat(filepath.Join(dir, e.Name())) // through links
		if err != nil {
			problem(path.Join(under, e.Name()), err)
		} else if st.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// modelFile is a file of dir that only folders of models have, or "".
func modelFile(dir string) string {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		n := e.Name()
		switch {
		case n == "config.json", n == "generation_config.json", n == "tokenizer.json", n == "tokenizer_config.json":
			return n
		case strings.HasSuffix(n, ".safetensors"), strings.HasSuffix(n, ".gguf"), strings.HasPrefix(n, "pytorch_model"):
			return n
		}
	}
	return ""
}
