//go:build !linux && !darwin && !freebsd && !windows

package hub

import (
	"errors"
	"os"
	"syscall"
)

// freeBytes is not known here: the check before a download is left out.
func freeBytes(string) (int64, error) { return 0, errors.ErrUnsupported }

func isDiskFull(err error) bool { return errors.Is(err, syscall.ENOSPC) }

// tryLock does nothing here: two pulls of one model at a time are the user's to avoid.
func tryLock(*os.File) (bool, error) { return true, nil }

func syncDir(string) error { return nil }
