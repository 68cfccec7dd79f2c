package sdk

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree is every file below a folder.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			out = append(out, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestNew(t *testing.T) {
	want := map[string][]string{
		"c":    {"Makefile", "README.md", "loss.cpp", "tinker_loss.h"},
		"go":   {"Makefile", "README.md", "go.mod", "main.go", "tinkerloss/exports_wasip1.go", "tinkerloss/tinkerloss.go"},
		"rust": {"Cargo.toml", "Makefile", "README.md", "src/lib.rs", "tinker-loss/Cargo.toml", "tinker-loss/src/lib.rs", "tinker-loss/src/tests.rs"},
	}
	if !slices.Equal(Languages(), []string{"c", "go", "rust"}) {
		t.Errorf("languages %v", Languages())
	}
	for _, lang := range Languages() {
		parent := t.TempDir()
		dir := filepath.Join(parent, "deep", "my_loss")
		if lang == "go" { // an empty folder will do
			if err := os.MkdirAll(dir, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		if err := New(dir, lang, "my_loss"); err != nil {
			t.Fatal(err)
		}
		if got := tree(t, parent); !slices.Equal(tree(t, dir), want[lang]) || len(got) != len(want[lang]) {
			t.Errorf("%s: %v, wanted %v", lang, got, want[lang])
		}
		for _, path := range tree(t, dir) {
			text, err := os.ReadFile(filepath.Join(dir, path))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(text), "NAME") {
				t.Errorf("%s: %s still says NAME", lang, path)
			}
		}
	}
}

func TestNewRefused(t *testing.T) {
	parent := t.TempDir()
	full := filepath.Join(parent, "full")
	if err := New(full, "c", "x"); err != nil {
		t.Fatal(err)
	}
	before := tree(t, parent)
	for _, c := range []struct{ dir, lang, name, want string }{
		{"new", "zig", "x", `language "zig", wanted one of c, go, rust`},
		{"new", "c", "", `name "", wanted`},
		{"new", "c", "Dpo", `name "Dpo", wanted`},
		{"new", "c", "../x", `name "../x", wanted`},
		{"new", "c", "1x", `name "1x", wanted`},
		{"new", "c", strings.Repeat("x", 65), "wanted a lowercase letter"},
		{"full", "c", "x", "is not empty"},
		{"full/README.md", "c", "x", "is not a folder"},
		{"full/README.md/y", "c", "x", "not a directory"},
	} {
		err := New(filepath.Join(parent, c.dir), c.lang, c.name)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: got %v", c, err)
		}
	}
	if after := tree(t, parent); !slices.Equal(before, after) {
		t.Errorf("refusals left %v, before there was %v", after, before)
	}
}
