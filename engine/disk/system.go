package disk

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// FS is what this package asks of a file system. Tests have one that fails on demand.
type FS interface {
	Resolve(name string) (string, error) // absolute, links followed where it exists
	List(dir string) ([]string, error)   // names; an error for what is not a folder
	Mkdir(name string) error
	Create(name string) (File, error) // which must not exist
	Rename(from, to string) error
	Swap(a, b string) error // in one step, or errors.ErrUnsupported and nothing is changed
	SyncDir(name string) error
	Remove(name string) error
	RemoveAll(name string) error
}

// File is a file that is being written.
type File interface {
	io.WriteCloser
	Sync() error
}

// System is the real file system.
type System struct{}

// Resolve is of FS.
func (System) Resolve(name string) (string, error) {
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

// List is of FS.
func (System) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

// Mkdir is of FS.
func (System) Mkdir(name string) error { return os.Mkdir(name, 0o777) }

// Create is of FS.
func (System) Create(name string) (File, error) {
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
}

// Rename is of FS.
func (System) Rename(from, to string) error { return os.Rename(from, to) }

// Swap is of FS.
func (System) Swap(a, b string) error { return swapFiles(a, b) }

// SyncDir is of FS.
func (System) SyncDir(name string) error { return SyncDir(name) }

// SyncDir makes renames in a folder last.
func SyncDir(name string) error {
	if runtime.GOOS == "windows" {
		return nil // folders cannot be opened for this there, and NTFS journals renames
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

// Remove is of FS.
func (System) Remove(name string) error { return os.Remove(name) }

// RemoveAll is of FS.
func (System) RemoveAll(name string) error { return os.RemoveAll(name) }

var _ FS = System{}
