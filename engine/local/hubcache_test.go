package local

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
)

// cacheModel puts the embedded model into a hub cache, as links into blobs/ where the system has links.
func cacheModel(t *testing.T, cache, folder, commit string, files ...string) string {
	t.Helper()
	repo := filepath.Join(cache, folder)
	snapshot := filepath.Join(repo, "snapshots", commit)
	for _, dir := range []string{filepath.Join(repo, "refs"), filepath.Join(repo, "blobs"), snapshot} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range files {
		data, err := os.ReadFile(filepath.Join("tiny", name))
		if err != nil {
			t.Fatal(err)
		}
		blob := filepath.Join(repo, "blobs", "blob-of-"+name)
		if err := os.WriteFile(blob, data, 0o644); err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(snapshot, name)
		if runtime.GOOS == "windows" {
			err = os.Rename(blob, link)
		} else {
			err = os.Symlink(filepath.Join("..", "..", "blobs", "blob-of-"+name), link)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(repo, "refs", "main"), []byte(commit+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return snapshot
}

// TestHubCache: models that other programs have downloaded are found where they lie; names and references
// do not lead out of the cache.
func TestHubCache(t *testing.T) {
	root := t.TempDir()
	cache, commit := filepath.Join(root, "hub"), strings.Repeat("a", 40)
	all := []string{"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
	snapshot := cacheModel(t, cache, "models--Org--Name-1.5", commit, all...)
	cacheModel(t, cache, "models--Org--OnlyTokenizer", commit, "config.json", "tokenizer.json")
	cacheModel(t, cache, "datasets--Org--Data", commit, all...)
	noRef := cacheModel(t, cache, "models--Org--NoRef", commit, all...)
	if err := os.Remove(filepath.Join(cache, "models--Org--NoRef", "refs", "main")); err != nil {
		t.Fatal(err)
	}
	cacheModel(t, cache, "models--Org--BadRef", commit, all...)
	for _, ref := range []string{"../../models--Org--Name-1.5/snapshots/" + commit, "..", ""} {
		if err := os.WriteFile(filepath.Join(cache, "models--Org--BadRef", "refs", "main"), []byte(ref), 0o644); err != nil {
			t.Fatal(err)
		}
		if dir, ok := (Models{HubCache: cache}).cached("Org/BadRef"); ok {
			t.Errorf("reference %q leads to %s", ref, dir)
		}
	}
	m := Models{Dir: filepath.Join(root, "models"), HubCache: cache}
	want := []Found{
		{Name: "Org/Name-1.5", Source: InHubCache, Dir: snapshot},
		{Name: "Org/NoRef", Source: InHubCache, Dir: noRef},
		{Name: TinyModel, Source: Embedded},
	}
	if got := m.Found(); !slices.Equal(got, want) {
		t.Errorf("found %+v, wanted %+v", got, want)
	}
	src, err := m.Open("Org/Name-1.5")
	if err != nil {
		t.Fatal(err)
	}
	if src.Name != snapshot {
		t.Errorf("opened %s, wanted %s", src.Name, snapshot)
	}
	src.Close()
	if _, err := m.Tokenizer("Org/NoRef"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"Org/OnlyTokenizer", "Org/../Org--Name-1.5", "../hub/models--Org--Name-1.5", "Org--Name-1.5", "Org/Name-1.5/..", "Org/Name--1.5", "Org/", "/Name"} {
		if src, err := m.Open(name); api.CodeOf(err) != api.NotFound {
			t.Errorf("%q: got %v, %v; wanted not found", name, src, err)
		}
	}
	if _, err := m.Open("Org/Other"); err == nil || !strings.Contains(err.Error(), "the hub cache "+cache) || !strings.Contains(err.Error(), "tinker-local model pull Org/Other") {
		t.Errorf("got %v, wanted the cache and the command named", err)
	}
	// The models folder comes first; a download that has not ended is not seen.
	own := filepath.Join(m.Dir, "Org", "Name-1.5")
	half := filepath.Join(m.Dir, "Org", ".Half.pull")
	for _, dir := range []string{own, half} {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(dir, os.DirFS("tiny")); err != nil {
			t.Fatal(err)
		}
	}
	if got := m.Found(); len(got) != 3 || got[0] != (Found{Name: "Org/Name-1.5", Source: InFolder, Dir: own}) {
		t.Errorf("found %+v", got)
	}
	if _, err := m.Open("Org/.Half.pull"); api.CodeOf(err) != api.NotFound {
		t.Errorf("a download that has not ended opens: %v", err)
	}
}

// TestFolders: the settings that name folders, and what holds without them.
func TestFolders(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("skipped: the expected paths are those of Linux")
	}
	for _, c := range []struct {
		env           string
		models, cache string
	}{
		{"", "", ""},
		{"HOME=/h", "/h/.local/share/tinker-local/models", "/h/.cache/huggingface/hub"},
		{"HOME=/h XDG_DATA_HOME=/d XDG_CACHE_HOME=/c", "/d/tinker-local/models", "/c/huggingface/hub"},
		{"HOME=/h XDG_DATA_HOME=rel", "/h/.local/share/tinker-local/models", "/h/.cache/huggingface/hub"},
		{"HOME=/h TINKER_LOCAL_MODELS=~/m HF_HOME=$HOME/hf", "/h/m", "/h/hf/hub"},
		{"HOME=/h HF_HOME=/hf HUGGINGFACE_HUB_CACHE=/old", "/h/.local/share/tinker-local/models", "/old"},
		{"HOME=/h HF_HUB_CACHE=/new/ HUGGINGFACE_HUB_CACHE=/old", "/h/.local/share/tinker-local/models", "/new"},
	} {
		env := map[string]string{}
		for _, kv := range strings.Fields(c.env) {
			k, v, _ := strings.Cut(kv, "=")
			env[k] = v
		}
		get := func(k string) string { return env[k] }
		state, _ := strings.CutSuffix(c.models, "/models")
		if got := DefaultState(get); c.models == state+"/models" && got != state+"/state" || c.models == "" && got != "" {
			t.Errorf("%q: state %q, wanted it beside the models %q", c.env, got, c.models)
		}
		if models, cache := DefaultModels(get), DefaultHubCache(get); models != c.models || cache != c.cache {
			t.Errorf("%q: models %q, cache %q; wanted %q and %q", c.env, models, cache, c.models, c.cache)
		}
	}
}
