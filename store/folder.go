package store

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tinkerlocal/engine/api"
)

// ownerFile says, for people, which process has the state directory open. The lock itself is Badger's, which the
// system releases when the process ends, however it ends.
const ownerFile = "owner.json"

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
	d, err := openDisk(dir, log)
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
	s.free = func() (int64, error) { return freeBytes(dir) }
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
	files, err := os.ReadDir(dir)
	if err != nil {
		return folderError(dir, err)
	}
	for _, f := range files {
		switch name := f.Name(); {
		case name == "MANIFEST":
			return nil
		case name == "LOCK", name == ownerFile, name == "KEYREGISTRY", strings.HasPrefix(name, "MANIFEST"),
			strings.HasPrefix(name, "."), strings.HasSuffix(name, ".mem"), strings.HasSuffix(name, ".vlog"), name == "DISCARD":
			// left by an opening that was killed
		default:
			return api.Errorf(api.BadRequest, "state directory %s holds %q and no store: wanted an empty folder, a store, or a new name", dir, name)
		}
	}
	return nil
}

// folderError names the folder, and whoever has it.
func folderError(dir string, err error) error {
	if strings.Contains(err.Error(), "Cannot acquire directory lock") || strings.Contains(err.Error(), "Cannot create lock file") {
		who := "another process"
		if text, readErr := os.ReadFile(filepath.Join(dir, ownerFile)); readErr == nil {
			var o owner
			if json.Unmarshal(text, &o) == nil && o.PID > 0 {
				who = fmt.Sprintf("process %d (%.200q) since %s", o.PID, o.Command, o.Since.Format(time.RFC3339))
			}
		}
		return &api.Error{Code: api.Busy, Msg: fmt.Sprintf("state directory %s is in use by %s; end it, or choose another directory", dir, who), Err: err}
	}
	code := api.CodeOf(err)
	switch {
	case isNoSpace(err):
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
