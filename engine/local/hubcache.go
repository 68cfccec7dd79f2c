package local

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// The cache that Hugging Face programs share has a folder models--ORG--NAME for each model, with the commit
// of each branch in refs/BRANCH and the files of a commit, links into blobs/, in snapshots/COMMIT.

var (
	hubName   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}$`)
	hubCommit = regexp.MustCompile(`^[0-9a-f]{40,64}$`)
)

// splitName takes ORG/NAME apart, if it is a name that the hub could have given.
func splitName(name string) (org, model string, ok bool) {
	org, model, ok = strings.Cut(name, "/")
	return org, model, ok && hubPart(org) && hubPart(model)
}

func hubPart(s string) bool {
	return hubName.MatchString(s) && !strings.Contains(s, "--") && !strings.Contains(s, "..")
}

// cached maps ORG/NAME to the folder of its snapshot in the hub cache.
func (m Models) cached(name string) (string, bool) {
	org, model, ok := splitName(name)
	if m.HubCache == "" || !ok {
		return "", false
	}
	return cachedSnapshot(filepath.Join(m.HubCache, "models--"+org+"--"+model))
}

// cachedSnapshot finds the snapshot of a cached model: that of branch main, or the only one. A snapshot
// without weights, as a program leaves it that wanted only the tokenizer, does not count.
func cachedSnapshot(repo string) (string, bool) {
	commit, err := readShort(filepath.Join(repo, "refs", "main"))
	if err != nil {
		entries, _ := os.ReadDir(filepath.Join(repo, "snapshots"))
		if len(entries) != 1 {
			return "", false
		}
		commit = entries[0].Name()
	}
	if !hubCommit.MatchString(commit) {
		return "", false
	}
	dir := filepath.Join(repo, "snapshots", commit)
	return dir, isModel(dir) && hasWeights(dir)
}

// readShort reads a file of one word.
func readShort(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 256))
	return strings.TrimSpace(string(text)), err
}

func hasWeights(dir string) bool {
	for _, name := range []string{"model.safetensors", "model.safetensors.index.json"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil { // follows the link into blobs/
			return true
		}
	}
	return false
}

// cachedModels lists the usable models of the hub cache.
func (m Models) cachedModels() []Found {
	if m.HubCache == "" {
		return nil
	}
	entries, _ := os.ReadDir(m.HubCache)
	var list []Found
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), "models--")
		name := strings.Replace(rest, "--", "/", 1)
		if !ok {
			continue
		}
		if dir, ok := m.cached(name); ok {
			list = append(list, Found{Name: name, Source: InHubCache, Dir: dir})
		}
	}
	return list
}
