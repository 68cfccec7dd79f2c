package disk

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// swapFiles exchanges two names in one step.
func swapFiles(a, b string) error {
	err := unix.RenamexNp(a, b, unix.RENAME_SWAP)
	switch err {
	case nil:
		return nil
	case unix.ENOSYS, unix.EINVAL, unix.ENOTSUP: // a file system without it
		return errors.ErrUnsupported
	}
	return &os.LinkError{Op: "exchange", Old: a, New: b, Err: err}
}
