//go:build unix

package plugins

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// private wants a folder of this user to which nobody else has access.
func private(info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("has mode %04o, wanted 0700: others could plant code in it", mode)
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("belongs to user %d, not to %d", s.Uid, os.Geteuid())
	}
	return nil
}
