package hf

import (
	"path/filepath"
)

// File is one safetensors file, mapped into memory until Close. It must not be cut short while it is open: see [Checkpoint].
type File struct {
	Tensors  []Tensor // in the order of their bytes
	Metadata map[string]string

	blob *blob
}

// OpenFile opens a safetensors file.
func OpenFile(path string) (*File, error) {
	f, err := openFile(filepath.Split(filepath.Clean(path)))
	return f, in(path, err)
}

// OpenSection opens size bytes of a file, from offset on, as a safetensors file: one that lies within an archive.
func OpenSection(path string, offset, size int64) (*File, error) {
	dir, name := filepath.Split(filepath.Clean(path))
	b, err := openBlob(dir, name)
	if err != nil {
		return nil, in(path, err)
	}
	if offset < 0 || size < 0 || offset > int64(len(b.data)) || size > int64(len(b.data))-offset {
		_ = b.close()
		return nil, bad("%s: bytes %d to %d+%d are wanted, it has %d", path, offset, offset, size, len(b.data))
	}
	f, err := newFile(b, b.data[offset:offset+size:offset+size])
	return f, in(path, err)
}

func openFile(dir, name string) (*File, error) {
	b, err := openBlob(dir, name)
	if err != nil {
		return nil, err
	}
	return newFile(b, b.data)
}

// newFile parses data, which is of b. It closes b when it fails.
func newFile(b *blob, data []byte) (*File, error) {
	h, err := parseSafetensors(data)
	if err == nil {
		err = b.unchanged()
	}
	if err != nil {
		_ = b.close()
		return nil, err
	}
	return &File{h.tensors, h.metadata, b}, nil
}

// Release gives the memory of a tensor's mapped pages back to the system; its Data stays valid.
func (f *File) Release(t Tensor) { f.blob.release(t.Data) }

// Close unmaps and closes the file. No Data of it may be touched afterwards.
func (f *File) Close() error {
	f.Tensors = nil
	return f.blob.close()
}
