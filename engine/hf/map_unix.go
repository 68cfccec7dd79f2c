//go:build unix

package hf

import (
	"os"

	"golang.org/x/sys/unix"
)

// mapFile maps the first size bytes of f, read-only. size is not 0.
func mapFile(f *os.File, size int) ([]byte, error) {
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
}

func unmapFile(b []byte) error { return unix.Munmap(b) }

// dropPages tells the kernel that whole pages within b are not needed. The mapping is read-only and
// shared, so there is nothing to lose: a later read brings them back from the file.
func dropPages(b []byte) { _ = unix.Madvise(b, unix.MADV_DONTNEED) }
