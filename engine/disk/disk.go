// Package disk is what several packages ask of a disk: how much room it has, locks between processes, and files and folders
// that appear whole or not at all.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"tinkerlocal/engine/api"
)

// Error gives a file system's error its code, without the path: the caller names the thing once.
func Error(err error) error {
	var p *fs.PathError
	var l *os.LinkError
	var known *api.Error
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.As(err, &p):
		err = p.Err
	case errors.As(err, &l):
		err = l.Err
	}
	code := api.BadRequest
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code = api.NotFound
	case IsFull(err):
		code = api.NoSpace
	}
	return api.Errorf(code, "%w", err)
}

// Room refuses to write n bytes into dir, with numbers, when less than those and margin are free. dir need not exist: its disk is
// that of the nearest folder above it that does. Where nobody can tell, there is room.
func Room(dir string, n, margin int64) error {
	free, where, err := freeAbove(dir)
	if err != nil || free-margin >= n {
		return nil
	}
	return NoRoom(where, n+margin, free, nil)
}

func freeAbove(dir string) (free int64, where string, err error) {
	dir, err = filepath.Abs(dir)
	for err == nil {
		free, err = Free(dir)
		if err == nil || !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			break
		}
		dir, err = filepath.Dir(dir), nil
	}
	return free, dir, err
}

// Margin is what an export leaves free: other programs fail in ways worse than ours on a full disk.
const Margin = 64 << 20

// NoRoom is the error of a disk that has fewer bytes free than are needed. cause may be nil.
func NoRoom(dir string, needed, free int64, cause error) error {
	msg := fmt.Sprintf("the disk of %s has too little space: %d bytes needed, %d free", dir, needed, max(0, free))
	return &api.Error{Code: api.NoSpace, Msg: msg, Err: cause}
}

// ErrLocked is the error of a lock that another process has.
var ErrLocked = errors.New("locked by another process")

// Lock locks a file, which is made if it is not there, until unlock is called or the process ends, however it ends. Where the
// system has no locks it does nothing.
func Lock(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	ok, err := TryLock(f)
	switch {
	case err != nil:
		f.Close()
		return nil, &fs.PathError{Op: "lock", Path: name, Err: err}
	case !ok:
		f.Close()
		return nil, ErrLocked
	}
	return func() { f.Close() }, nil
}
