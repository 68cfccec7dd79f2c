package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"tinkerlocal/engine/disk"
)

// reserver gets the blocks of the logs that Badger writes next from the file system, before they are
// written. Badger writes through a memory map of a sparse file, and to write there on a full disk kills the process.
type reserver struct {
	dir      string
	valueLog int64           // size at which Badger begins a new file
	mu       sync.Mutex      // held over a reservation and the writes that use it
	done     map[string]bool // files that have their blocks
}

func newReserver(dir string, valueLog int64) *reserver {
	return &reserver{dir: dir, valueLog: valueLog, done: map[string]bool{}}
}

// ahead reserves the blocks of new log files: to where Badger begins the next one, and one transaction more.
func (r *reserver) ahead() error {
	files, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		name := f.Name()
		bytes := int64(0)
		switch {
		case r.done[name]:
		case strings.HasSuffix(name, ".vlog"):
			bytes = r.valueLog + min(r.valueLog, 2*batchBytes) // Badger makes it twice the size
		case strings.HasSuffix(name, ".mem"):
			bytes = 2 * memTableBytes // the size of the file; chunks of any size are in the value log
		}
		if bytes == 0 {
			continue
		}
		info, err := f.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // Badger has deleted it meanwhile
		}
		if err != nil {
			return err
		}
		// A log that was closed has been cut to its length, and is not written again.
		if info.Size() >= bytes {
			if err := reserveFile(filepath.Join(r.dir, name), bytes); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return noSpace(r.dir, bytes, err)
			}
		}
		r.done[name] = true
	}
	return nil
}

// bytes says whether the disk has n bytes.
func (r *reserver) bytes(n int64) error {
	free, err := disk.Free(r.dir)
	if err == nil && free < n {
		return noSpace(r.dir, n, nil)
	}
	return nil
}

// noSpace is the error of a disk without n bytes.
func noSpace(dir string, n int64, cause error) error {
	if cause != nil && !disk.IsFull(cause) {
		return cause
	}
	free, err := disk.Free(dir)
	if err != nil {
		free = 0
	}
	return disk.NoRoom(dir, n, free, cause)
}
