package local

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
)

// TokenizerDir is the folder from which other programs can read a base model's tokenizer, an absolute path. That of the embedded model is
// unpacked below the state directory first; without one it is "".
func (m Models) TokenizerDir(name, state string) (string, error) {
	f, ok := m.find(name)
	switch {
	case !ok:
		return "", api.Errorf(api.NotFound, "there is no model %q", name)
	case f.Source != Embedded:
		return filepath.Abs(f.Dir)
	case state == "":
		return "", nil
	}
	dir, err := filepath.Abs(filepath.Join(state, "tokenizers", filepath.FromSlash(TinyModel)))
	if err != nil {
		return "", err
	}
	return dir, unpackTiny(dir)
}

// unpackTiny writes what belongs to the embedded model's tokenizer, unless it is there.
func unpackTiny(dir string) error {
	files, err := fs.ReadDir(tinyFiles, "tiny")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return api.Errorf(api.BadRequest, "unpack the embedded tokenizer: %w", err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".safetensors") {
			continue
		}
		want, err := tinyFiles.ReadFile("tiny/" + f.Name())
		if err != nil {
			return err
		}
		name := filepath.Join(dir, f.Name())
		if have, err := os.ReadFile(name); err == nil && bytes.Equal(have, want) {
			continue
		}
		err = disk.WriteFile(disk.System{}, name, true, func(w io.Writer) error { _, err := w.Write(want); return err }, nil)
		if err != nil {
			return err
		}
	}
	return nil
}
