package hf

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// disk is what WriteAdapter asks of a file system. Tests have one that fails on demand.
type disk interface {
	resolve(name string) (string, error) // absolute, links followed where it exists
	list(dir string) ([]string, error)   // names; an error for what is not a folder
	mkdir(name string) error
	create(name string) (syncFile, error) // which must not exist
	rename(from, to string) error
	swap(a, b string) error // in one step, or errors.ErrUnsupported and nothing is changed
	syncDir(name string) error
	remove(name string) error
	removeAll(name string) error
}

type syncFile interface {
	io.WriteCloser
	Sync() error
}

// osDisk is the real one.
type osDisk struct{}

func (osDisk) resolve(name string) (string, error) {
	name, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	if target, err := filepath.EvalSymlinks(name); err == nil {
		return target, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return name, nil
}

func (osDisk) list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

func (osDisk) mkdir(name string) error { return os.Mkdir(name, 0o777) }

func (osDisk) create(name string) (syncFile, error) {
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
}

func (osDisk) rename(from, to string) error { return os.Rename(from, to) }

func (osDisk) swap(a, b string) error { return swapFiles(a, b) }

func (osDisk) syncDir(name string) error {
	if runtime.GOOS == "windows" {
		return nil // folders cannot be opened for this there
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	err = f.Sync()
	if closed := f.Close(); err == nil {
		err = closed
	}
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, os.ErrInvalid) {
		return nil // some network file systems have no such call
	}
	return err
}

func (osDisk) remove(name string) error { return os.Remove(name) }

func (osDisk) removeAll(name string) error { return os.RemoveAll(name) }
