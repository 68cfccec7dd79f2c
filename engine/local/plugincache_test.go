package local

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// TestPluginCache: compiled modules are kept in the user's cache folder; where others may write, or where there is none, plugins work without.
func TestPluginCache(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("skipped: the folder's place and its mode are those of Linux")
	}
	for _, c := range []struct {
		name string
		kept bool
		make func(home string) string
	}{
		{"new", true, func(home string) string { return home }},
		{"shared", false, func(home string) string {
			dir := filepath.Join(home, "tinker-local", "plugins")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
			return home
		}},
		{"impossible", false, func(home string) string {
			file := filepath.Join(home, "file")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return file
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := c.make(t.TempDir())
			t.Setenv("XDG_CACHE_HOME", home)
			p, err := OpenPlugins(context.Background(), "", false, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if _, err := p.Use(context.Background(), "dpo"); err != nil {
				t.Error(err)
			}
			files, _ := filepath.Glob(filepath.Join(home, "tinker-local", "plugins", "*", "*", "*"))
			if (len(files) > 0) != c.kept {
				t.Errorf("kept %v", files)
			}
		})
	}
}
