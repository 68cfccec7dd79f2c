//go:build !linux && !darwin && !freebsd && !windows

package disk

import (
	"errors"
	"os"
	"syscall"
)

// Free is not known here.
func Free(string) (int64, error) { return 0, errors.ErrUnsupported }

// IsFull says whether err is of a disk without room.
func IsFull(err error) bool { return errors.Is(err, syscall.ENOSPC) }

// TryLock does nothing here: to keep two processes apart is left to the user.
func TryLock(*os.File) (bool, error) { return true, nil }
