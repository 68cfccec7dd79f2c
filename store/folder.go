package store

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
)

// lockFile is locked by the process that has the state directory open; the system releases the lock when the process
// ends, however it ends. ownerFile says, for people, which process that is. Badger has a lock of its own besides, but it comes
// too late: see mend.
const (
	lockFile  = "store.lock"
	ownerFile = "owner.json"
)

// pluginsDir is a folder of a state directory that is not this package's business.
const pluginsDir = "plugins"

type owner struct {
	PID     int       `json:"pid"`
	Command string    `json:"command"`
	Since   time.Time `json:"since"`
}

// Open opens the store in a folder, which is made if it is not there. One process at a time may have it
// open: another one is told which.
func Open(dir string, o Options) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, folderError(dir, err)
	}
	if err := checkFolder(dir); err != nil {
		return nil, err
	}
	log := o.Log
	if log == nil {
		log = discard
	}
	unlock, err := disk.Lock(filepath.Join(dir, lockFile))
	if errors.Is(err, disk.ErrLocked) {
		return nil, inUse(dir)
	}
	if err != nil {
		return nil, folderError(dir, err)
	}
	s, err := openFolder(dir, o, log)
	if err != nil {
		unlock()
		return nil, err
	}
	s.unlock = unlock
	return s, nil
}

// openFolder opens the store in a folder that is locked.
func openFolder(dir string, o Options, log *slog.Logger) (*Store, error) {
	if err := mend(dir); err != nil {
		return nil, folderError(dir, err)
	}
	d, err := openBadger(dir, log, cmp.Or(o.valueLog, valueLogBytes))
	if err != nil {
		return nil, folderError(dir, err)
	}
	s, err := open(d, o)
	if err != nil {
		if closed := d.close(); closed != nil {
			log.Warn("close store", "err", closed)
		}
		return nil, folderError(dir, err)
	}
	s.free = func() (int64, error) { return disk.Free(dir) }
	s.dir = dir
	name := filepath.Join(dir, ownerFile)
	text, err := json.Marshal(owner{os.Getpid(), commandLine(), time.Now().UTC().Truncate(time.Second)})
	if err == nil {
		err = os.WriteFile(name, append(text, '\n'), 0o600)
	}
	if err != nil {
		log.Warn("the state directory does not say who uses it", "err", err)
	}
	s.gone = func() { os.Remove(name) }
	return s, nil
}

// checkFolder refuses a folder that has files but no store: Badger would fill it with its own.
func checkFolder(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "MANIFEST")); err == nil {
		return nil
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return folderError(dir, err)
	}
	for _, f := range files {
		switch name := f.Name(); {
		case name == pluginsDir: // somebody else's, and may be there first
		case name == "LOCK", name == lockFile, name == ownerFile, name == "KEYREGISTRY", strings.HasPrefix(name, "MANIFEST"),
			strings.HasPrefix(name, "."), strings.HasSuffix(name, ".mem"), strings.HasSuffix(name, ".vlog"), name == "DISCARD":
			// left by an opening that was killed
		default:
			return api.Errorf(api.BadRequest, "state directory %s holds %q and no store: wanted an empty folder, a store, or a new name", dir, name)
		}
	}
	return nil
}

// mend removes log files without content. A process that is killed while it makes one leaves it so, and Badger would
// refuse to open.
func mend(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if n := f.Name(); !strings.HasSuffix(n, ".vlog") && !strings.HasSuffix(n, ".mem") {
			continue
		}
		info, err := f.Info()
		if err != nil {
			return err
		}
		if info.Size() == 0 {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Owner is the process that has the store in a folder open, or had when it died; 0: nobody knows.
func Owner(dir string) (pid int) { return readOwner(dir).PID }

func readOwner(dir string) (o owner) {
	text, err := os.ReadFile(filepath.Join(dir, ownerFile))
	if err != nil || json.Unmarshal(text, &o) != nil {
		return owner{}
	}
	return o
}

// inUse is the error of a folder that a process has open.
func inUse(dir string) error {
	who := "another process"
	if o := readOwner(dir); o.PID > 0 {
		who = fmt.Sprintf("process %d (%.200q) since %s", o.PID, o.Command, o.Since.Format(time.RFC3339))
	}
	return api.Errorf(api.Busy, "state directory %s is in use by %s; end it, or choose another directory", dir, who)
}

// folderError names the folder.
func folderError(dir string, err error) error {
	code := api.CodeOf(err)
	switch {
	case disk.IsFull(err):
		code = api.NoSpace
	case os.IsPermission(err) || isReadOnly(err):
		code = api.BadRequest
	}
	if strings.Contains(err.Error(), dir) {
		return api.Errorf(code, "open state directory: %w", err)
	}
	return api.Errorf(code, "open state directory %s: %w", dir, err)
}

func isReadOnly(err error) bool { return strings.Contains(err.Error(), "read-only file system") }

func commandLine() string {
	c := strings.Join(os.Args, " ")
	if len(c) > 200 {
		c = c[:200]
	}
	return c
}
