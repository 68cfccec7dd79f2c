package disk

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"tinkerlocal/engine/api"
)

// Folder is a folder that is being written, under another name than it will have.
type Folder struct {
	Dir string // where its files are until it is in place
	fs  FS
}

// Write makes a file of the folder. It returns when the contents are on the disk and were read again.
func (f *Folder) Write(name string, write func(io.Writer) error) error {
	return writeFile(f.fs, filepath.Join(f.Dir, name), write)
}

// WriteFolder makes dir appear whole or not at all: write fills a folder with another name beside it, which is synced and then
// renamed. What was at dir before is given to mayReplace as a list of names, unless it is absent; an error of that is returned
// before anything is written. Missing parents are made. After an error the disk is as it was before. write may read what it has written.
//
// An old folder is exchanged for the new one in one step where the system can (Linux and macOS on most file systems).
// Elsewhere it is renamed out of the way first; a power cut between these two renames leaves it whole under a name that begins
// with a dot and ends in ".old".
func WriteFolder(d FS, dir string, mayReplace func(names []string) error, write func(*Folder) error) (err error) {
	if dir, err = d.Resolve(dir); err != nil {
		return Error(err)
	}
	names, err := d.List(dir)
	replace := err == nil
	switch {
	case replace:
		err = mayReplace(names)
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	default:
		err = Error(err)
	}
	if err != nil {
		return err
	}
	staged, undo, err := stage(d, dir)
	defer func() {
		if err != nil {
			undo()
		}
	}()
	if err != nil {
		return err
	}
	if err := d.Mkdir(staged); err != nil {
		return Error(err)
	}
	if err := write(&Folder{staged, d}); err != nil {
		return err
	}
	if err := d.SyncDir(staged); err != nil {
		return Error(err)
	}
	if err := publish(d, staged, dir, replace); err != nil {
		return Error(err)
	}
	// It is in place. A folder that cannot be synced is not a reason to take it back.
	_ = d.SyncDir(filepath.Dir(dir))
	return nil
}

// WriteFile makes a file appear whole or not at all, as WriteFolder does. A file that is there is replaced if replace is set, and
// refused otherwise. check, which may be nil, is called with the name under which the whole file lies before it is put in its place.
func WriteFile(d FS, name string, replace bool, write func(io.Writer) error, check func(staged string) error) (err error) {
	if name, err = d.Resolve(name); err != nil {
		return Error(err)
	}
	beside, err := d.List(filepath.Dir(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Error(err)
	}
	if slices.Contains(beside, filepath.Base(name)) {
		if _, err := d.List(name); err == nil {
			return api.Errorf(api.BadRequest, "it is a folder, wanted the name of a file")
		}
		if !replace {
			return api.Errorf(api.BadRequest, "it is there already")
		}
	}
	staged, undo, err := stage(d, name)
	defer func() {
		if err != nil {
			undo()
		}
	}()
	if err != nil {
		return err
	}
	if err := writeFile(d, staged, write); err != nil {
		return err
	}
	if check != nil {
		if err := check(staged); err != nil {
			return err
		}
	}
	if err := d.Rename(staged, name); err != nil {
		return Error(err)
	}
	_ = d.SyncDir(filepath.Dir(name))
	return nil
}

// stage makes the parents of a name that is to be written, and chooses the one it has meanwhile. undo removes both; it is never nil.
func stage(d FS, name string) (staged string, undo func(), err error) {
	parent, base := filepath.Split(name)
	made, err := makeParents(d, filepath.Clean(parent))
	// The dot keeps it out of listings; the number keeps two writers apart, and nothing depends on it.
	staged = filepath.Join(parent, fmt.Sprintf(".%s.%08x.new", base, rand.Uint32()))
	return staged, func() {
		_ = d.RemoveAll(staged)
		for _, p := range slices.Backward(made) {
			_ = d.Remove(p)
		}
	}, Error(err)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// writeFile makes a file, and returns when its contents are on the disk. They are read again and compared by their CRC-32C, so that what
// was damaged on its way is not taken for what was to be written.
func writeFile(d FS, name string, write func(io.Writer) error) error {
	f, err := d.Create(name)
	if err != nil {
		return Error(err)
	}
	sum := crc32.New(castagnoli)
	w := bufio.NewWriterSize(f, 1<<18)
	err = write(io.MultiWriter(w, sum))
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = compare(name, sum.Sum32())
	}
	return Error(err)
}

// compare reads a file and compares its CRC-32C.
func compare(name string, want uint32) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := crc32.New(castagnoli)
	if _, err := io.CopyBuffer(sum, struct{ io.Reader }{f}, make([]byte, 1<<18)); err != nil {
		return err
	}
	if got := sum.Sum32(); got != want {
		return api.Errorf(api.DataLoss, "read again, it has the CRC-32C %08x, wanted %08x: the disk or the memory is damaged", got, want)
	}
	return nil
}

// makeParents makes the folders of path that are missing and returns those it made, outermost first,
// also with an error.
func makeParents(d FS, path string) (made []string, err error) {
	var missing []string
	for {
		_, err := d.List(path)
		if err == nil {
			break
		}
		if parent := filepath.Dir(path); errors.Is(err, fs.ErrNotExist) && parent != path {
			missing = append(missing, path)
			path = parent
			continue
		}
		if errors.Is(err, fs.ErrPermission) {
			break // a folder that can be passed but not listed is no obstacle
		}
		return nil, err
	}
	for _, p := range slices.Backward(missing) {
		if err := d.Mkdir(p); err != nil {
			return made, err
		}
		made = append(made, p)
	}
	return made, nil
}

// publish gives the staged folder its name and removes what had it before.
func publish(d FS, staged, dir string, replace bool) error {
	if !replace {
		return d.Rename(staged, dir)
	}
	err := d.Swap(staged, dir)
	if err == nil {
		_ = d.RemoveAll(staged) // the old one now; at worst it is left over
		return nil
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	old := staged + ".old"
	if err := d.Rename(dir, old); err != nil {
		return err
	}
	if err := d.Rename(staged, dir); err != nil {
		if back := d.Rename(old, dir); back != nil {
			return api.Errorf(api.Internal, "%w; what was there is now %s", err, old)
		}
		return err
	}
	_ = d.RemoveAll(old)
	return nil
}
