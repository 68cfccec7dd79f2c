//go:build !unix && !windows

package hf

import (
	"io"
	"os"
)

// mapFile reads the first size bytes of f into memory: this system has no mapping that we know.
func mapFile(f *os.File, size int) ([]byte, error) {
	b := make([]byte, size)
	_, err := io.ReadFull(f, b)
	return b, err
}

func unmapFile([]byte) error { return nil }

func dropPages([]byte) {}
