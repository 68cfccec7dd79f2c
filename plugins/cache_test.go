package plugins

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestWazeroVersion keeps the cache's key in step with go.mod.
func TestWazeroVersion(t *testing.T) {
	mod := string(must(os.ReadFile("../go.mod")))
	if !strings.Contains(mod, "github.com/tetratelabs/wazero "+wazeroVersion+" ") {
		t.Errorf("go.mod requires another wazero than %s", wazeroVersion)
	}
}

// TestCache: a second host finds what the first compiled, and nobody else's folder is used.
func TestCache(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "cache")
	for range 2 {
		h := must(Open(context.Background(), Options{CacheDir: dir}))
		m := load(t, h, crossEntropy().build())
		evalOnce(t, m.Loss())
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	files := 0
	filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			t.Error(err)
		} else if !e.IsDir() {
			files++
		}
		return nil
	})
	if files != 1 {
		t.Errorf("%d files in the cache, wanted one module", files)
	}
	if runtime.GOOS == "windows" {
		return
	}
	for _, d := range []string{dir, filepath.Join(dir, must(os.ReadDir(dir))[0].Name())} {
		if err := os.Chmod(d, 0o750); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(context.Background(), Options{CacheDir: dir}); err == nil || !strings.Contains(err.Error(), "has mode 0750, wanted 0700") {
			t.Errorf("%s is open to others: %v", d, err)
		}
		if err := os.Chmod(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), Options{CacheDir: link}); err == nil || !strings.Contains(err.Error(), "is not a folder") {
		t.Errorf("a link: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	putFile(t, filepath.Dir(file), "file", nil)
	if _, err := Open(context.Background(), Options{CacheDir: file}); err == nil {
		t.Error("a file was taken for a folder")
	}
}

// TestDamagedCache: a module whose file is cut off is compiled anew, and so is one when nothing can be written.
func TestDamagedCache(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o700)
	for range 3 {
		h := must(Open(context.Background(), Options{CacheDir: dir}))
		m := load(t, h, crossEntropy().build())
		evalOnce(t, m.Loss())
		h.Close()
		filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				err = os.Truncate(path, 100)
			}
			if err != nil {
				t.Error(err)
			}
			return nil
		})
	}
	h := openHost(t, Options{CacheDir: dir})
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	evalOnce(t, load(t, h, version("2")).Loss())
}
