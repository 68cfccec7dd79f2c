package hf

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"tinkerlocal/engine/disk"
)

// The largest file of each kind that is read into memory.
const (
	maxConfigBytes = 1 << 20   // configurations are a few KB
	maxIndexBytes  = 64 << 20  // the largest published indexes are below 10 MB
	maxFileBytes   = 128 << 20 // tokenizers go up to about 35 MB
	maxMemoryBytes = 4 << 30   // weights of OpenFS, which are read and not mapped
)

// readFile reads a regular file of at most limit bytes. name must be a plain file name.
func readFile(fsys fs.FS, name string, limit int64) ([]byte, error) {
	if err := plainName(name); err != nil {
		return nil, err
	}
	st, err := fs.Stat(fsys, name) // before opening: opening a pipe would wait for its writer
	if err != nil {
		return nil, disk.Error(err)
	}
	if !st.Mode().IsRegular() {
		return nil, bad("is a %s, wanted a regular file", kindOf(st.Mode()))
	}
	if st.Size() > limit {
		return nil, bad("is %d bytes, wanted at most %d", st.Size(), limit)
	}
	f, err := fsys.Open(name)
	if err != nil {
		return nil, disk.Error(err)
	}
	defer f.Close()
	b := make([]byte, 0, st.Size()+1)
	for {
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case int64(len(b)) > limit:
			return nil, bad("grew past %d bytes while it was read", limit)
		case errors.Is(err, io.EOF):
			return b, nil
		case err != nil:
			return nil, disk.Error(err)
		case len(b) == cap(b):
			b = slices.Grow(b, min(len(b), 1<<20)+1)
		}
	}
}

// plainName refuses what is not a name of a file directly within a folder, on any system.
func plainName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 255 ||
		strings.ContainsAny(name, "/\\:\x00") || !filepath.IsLocal(name) || !fs.ValidPath(name) {
		return bad("%s is not a plain file name", quote(name))
	}
	return nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "folder"
	case m&fs.ModeNamedPipe != 0:
		return "pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	}
	return "device"
}

// blob is the bytes of one weights file: mapped, or in memory when file is nil.
type blob struct {
	name string // within the folder
	data []byte
	file *os.File // kept open to notice that the file has changed its size
}

// openBlob maps a file of a folder on disk.
func openBlob(dir, name string) (*blob, error) {
	if err := plainName(name); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, name)
	st, err := os.Stat(path) // before opening: opening a pipe would wait for its writer
	if err != nil {
		return nil, disk.Error(err)
	}
	if !st.Mode().IsRegular() {
		return nil, bad("is a %s, wanted a regular file", kindOf(st.Mode()))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, disk.Error(err)
	}
	b := &blob{name: name, file: f}
	size, err := b.size()
	switch {
	case err != nil:
	case size == 0:
		return b, nil // a mapping of nothing is an error; the parser says what is wrong
	case size > math.MaxInt:
		err = bad("is %d bytes, more than this system can map", size)
	default:
		if b.data, err = mapFile(f, int(size)); err != nil {
			err = bad("map %d bytes: %w", size, err)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return b, nil
}

func (b *blob) size() (int64, error) {
	st, err := b.file.Stat()
	if err != nil {
		return 0, disk.Error(err)
	}
	return st.Size(), nil
}

// unchanged looks whether the file still has the size it was opened with.
func (b *blob) unchanged() error {
	if b.file == nil {
		return nil
	}
	size, err := b.size()
	if err == nil && size != int64(len(b.data)) {
		err = bad("was %d bytes when it was opened and is %d now: it must not change while it is in use", len(b.data), size)
	}
	return err
}

// release gives the pages that lie wholly within part, a slice of data, back to the system.
func (b *blob) release(part []byte) {
	if b.file == nil || len(part) == 0 {
		return
	}
	page := uintptr(os.Getpagesize())
	start := uintptr(unsafe.Pointer(unsafe.SliceData(part)))
	skip := -start & (page - 1)
	if skip >= uintptr(len(part)) {
		return
	}
	if whole := (uintptr(len(part)) - skip) &^ (page - 1); whole > 0 {
		dropPages(part[skip : skip+whole])
	}
}

func (b *blob) close() error {
	if b.file == nil {
		return nil
	}
	var err error
	if len(b.data) > 0 {
		err = unmapFile(b.data)
	}
	b.data = nil
	return errors.Join(err, b.file.Close())
}
