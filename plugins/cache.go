package plugins

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tetratelabs/wazero"

	"tinkerlocal/engine/api"
)

// wazeroVersion is go.mod's: native code of another version must not be run. (wazero looks for its version in the
// program, where it is not always to be found.)
const wazeroVersion = "v1.12.0"

// openCache opens the cache of compiled modules. The files in it are run as they are, so a folder that others could
// write to, or that belongs to somebody else, is refused. wazero names the files by a hash of the rewritten module and the CPU's features.
func openCache(dir string) (wazero.CompilationCache, error) {
	if dir == "" {
		return wazero.NewCompilationCache(), nil
	}
	own := cacheFolder(dir)
	refuse := func(err error) error {
		return api.Errorf(api.BadRequest, "plugin cache %s: %w", dir, err)
	}
	dir = filepath.Clean(dir)
	if err := os.MkdirAll(own, 0o700); err != nil {
		return nil, refuse(err)
	}
	for _, d := range []string{dir, own} {
		info, err := os.Lstat(d)
		if err != nil {
			return nil, refuse(err)
		}
		if !info.IsDir() {
			return nil, refuse(fmt.Errorf("%s is not a folder", d))
		}
		if err := private(info); err != nil {
			return nil, refuse(fmt.Errorf("%s %w", d, err))
		}
	}
	c, err := wazero.NewCompilationCacheWithDir(own)
	if err != nil {
		return nil, refuse(err)
	}
	return c, nil
}

// cacheFolder is where files of this wazero and this rewriter are.
func cacheFolder(dir string) string {
	return filepath.Join(dir, fmt.Sprintf("wazero-%s-rewriter-%d", wazeroVersion, rewriterVersion))
}

// clearCache removes all files, one of which is damaged.
func clearCache(dir string) error {
	return filepath.WalkDir(cacheFolder(dir), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			err = os.Remove(path)
		}
		return err
	})
}
