package hub

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
)

// folder is where one model goes, locked for this pull:
//
//	ORG/NAME                the model; whole, or not there
//	ORG/.NAME.lock          held by the pull that runs
//	ORG/.NAME.old           the model that NAME replaces, for a moment
//	ORG/.NAME.pull/ID       a whole, verified file; ID is its checksum
//	ORG/.NAME.pull/ID.part  the beginning of one
//	ORG/.NAME.pull/ID.etag  what the server called the version of which the part is
//	ORG/.NAME.pull/model    the files on the way from ID to their names
type folder struct {
	dir, staging, old string
	lock              *os.File
}

// recordName is a file in the model's folder that says where it is from. Models that have none were not
// made here, and are left alone.
const recordName = ".pull.json"

// record is the contents of recordName.
type record struct {
	Name     string  `json:"name"`
	Revision string  `json:"revision"`
	Commit   string  `json:"commit"`
	Endpoint string  `json:"endpoint"`
	Files    []*File `json:"files"`
}

// openFolder locks the model's folder and puts in order what an earlier pull left.
func openFolder(models, name string) (_ *folder, err error) {
	models, err = filepath.Abs(models)
	if err != nil {
		return nil, api.Errorf(api.BadRequest, "models folder %s: %w", models, err)
	}
	dir := filepath.Join(models, filepath.FromSlash(name))
	hidden := filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir))
	f := &folder{dir: dir, staging: hidden + ".pull", old: hidden + ".old"}
	if f.lock, err = lockFile(hidden+".lock", name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	if err = f.recover(); err != nil {
		return nil, api.Errorf(api.BadRequest, "%s: %w", f.staging, err)
	}
	return f, nil
}

// lockFile takes the lock of one model. The file is removed with the lock, so that a lock counts only when
// the file is still the one in the folder.
func lockFile(path, name string) (*os.File, error) {
	for range 10 {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, api.Errorf(api.BadRequest, "models folder: %w", err)
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if errors.Is(err, fs.ErrNotExist) { // another pull has just ended and taken the folder with it
			continue
		}
		if err != nil {
			return nil, api.Errorf(api.BadRequest, "models folder cannot be written: %w", err)
		}
		ok, err := disk.TryLock(f)
		if err != nil || !ok {
			f.Close()
			if err != nil {
				return nil, api.Errorf(api.BadRequest, "lock %s: %w", path, err)
			}
			return nil, api.Errorf(api.Busy, "%s is being downloaded by another process (it holds %s); wait for it, or stop it", name, path)
		}
		have, err := f.Stat()
		there, err2 := os.Stat(path)
		if err == nil && err2 == nil && os.SameFile(have, there) {
			return f, nil
		}
		f.Close()
	}
	return nil, api.Errorf(api.Busy, "lock %s changes hands all the time; try again", path)
}

// close gives the lock back. Folders that hold nothing go, so that a mistyped name leaves no trace.
func (f *folder) close() {
	path := f.lock.Name()
	_ = os.Remove(f.staging)
	defer os.Remove(filepath.Dir(f.dir))
	if os.Remove(path) != nil { // Windows does not remove open files
		f.lock.Close()
		_ = os.Remove(path)
		return
	}
	f.lock.Close()
}

// recover makes the staging folder, and undoes a completion that was cut off.
func (f *folder) recover() error {
	if _, err := os.Lstat(f.dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.Rename(f.old, f.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	} else if err := os.RemoveAll(f.old); err != nil {
		return err
	}
	if err := os.MkdirAll(f.staging, 0o755); err != nil {
		return err
	}
	model := filepath.Join(f.staging, "model")
	r, err := readRecord(model)
	if err == nil && r != nil {
		for _, x := range r.Files {
			if x == nil || checkPath(x.Path) != nil || x.sum() == "" || !(sha256Text.MatchString(x.id()) || sha1Text.MatchString(x.id())) {
				continue
			}
			_ = os.Rename(filepath.Join(model, filepath.FromSlash(x.Path)), filepath.Join(f.staging, x.id()))
		}
	}
	return os.RemoveAll(model)
}

// record reads what the model's folder says about itself: nil when there is no such folder.
func (f *folder) record() (*record, error) {
	st, err := os.Stat(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && !st.IsDir() {
		return nil, api.Errorf(api.BadRequest, "%s is a file, wanted a folder or nothing", f.dir)
	}
	r, err := readRecord(f.dir)
	if err != nil {
		return nil, api.Errorf(api.BadRequest, "%s: %w", filepath.Join(f.dir, recordName), err)
	}
	if r == nil {
		if left, err := os.ReadDir(f.dir); err == nil && len(left) == 0 {
			return nil, nil
		}
		return nil, api.Errorf(api.BadRequest, "%s is there and was not made by pull; it is left alone: move it away, or name another --models folder", f.dir)
	}
	return r, nil
}

// readRecord answers nil for a folder without a record.
func readRecord(dir string) (*record, error) {
	file, err := os.Open(filepath.Join(dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	r := &record{}
	if err := json.NewDecoder(io.LimitReader(file, maxListBytes)).Decode(r); err != nil {
		return nil, fmt.Errorf("not a record of a pull: %w", err)
	}
	return r, nil
}

// has reports whether the folder dir holds these files already.
func (r *record) has(dir, commit string, files []*File) bool {
	if r == nil || r.Commit != commit {
		return false
	}
	for _, x := range files {
		y := r.find(x.Path)
		if y == nil || y.SHA256 != x.SHA256 || y.GitSHA1 != x.GitSHA1 || !freshFile(filepath.Join(dir, filepath.FromSlash(x.Path)), y.Size) {
			return false
		}
	}
	return true
}

func (r *record) find(path string) *File {
	for _, x := range r.Files {
		if x != nil && x.Path == path {
			return x
		}
	}
	return nil
}

// adopt links a file of the model that is there into the staging folder, if it is unchanged.
func (f *folder) adopt(old *record, x *File) bool {
	if old == nil || x.sum() == "" {
		return false
	}
	for _, y := range old.Files {
		if y == nil || y.id() != x.id() || checkPath(y.Path) != nil {
			continue
		}
		path := filepath.Join(f.dir, filepath.FromSlash(y.Path))
		if !freshFile(path, x.Size) || os.Link(path, f.blob(x)) != nil {
			continue
		}
		if x.checkFile(f.blob(x)) == nil {
			return true
		}
		_ = os.Remove(f.blob(x)) // the link; the user's file stays
	}
	return false
}

// complete gives the verified files their names and puts the folder in place.
func (f *folder) complete(r record) error {
	model := filepath.Join(f.staging, "model")
	if err := os.Mkdir(model, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(model, recordName), append(text, '\n')); err != nil {
		return err
	}
	last := map[string]int{} // two files may have the same contents
	for i, x := range r.Files {
		last[x.id()] = i
	}
	for i, x := range r.Files {
		to := filepath.Join(model, filepath.FromSlash(x.Path))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		move := os.Rename
		if last[x.id()] != i {
			move = copyFile
		}
		if err := move(f.blob(x), to); err != nil {
			return err
		}
	}
	if err := disk.SyncDir(model); err != nil {
		return err
	}
	if _, err := os.Lstat(f.dir); err == nil {
		if err := os.Rename(f.dir, f.old); err != nil {
			return api.Errorf(api.BadRequest, "the old model cannot be moved away; is it in use? %w", err)
		}
	}
	if err := os.Rename(model, f.dir); err != nil {
		_ = os.Rename(f.old, f.dir)
		return err
	}
	if err := disk.SyncDir(filepath.Dir(f.dir)); err != nil {
		return err
	}
	_ = os.RemoveAll(f.old) // the next pull would do it
	f.discard()
	return nil
}

// discard removes the staging folder: nothing in it is wanted any more.
func (f *folder) discard() { _ = os.RemoveAll(f.staging) }

func writeSynced(path string, text []byte) error {
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return errors.Join(err, w.Sync(), w.Close())
}

func copyFile(from, to string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Sync(), w.Close())
}
