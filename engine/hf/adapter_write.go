package hf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"

	"tinkerlocal/engine/api"
)

// adapterFiles are what an adapter's folder may hold for WriteAdapter to replace it: what it writes
// itself, and the model card that PEFT adds. Anything else is somebody's, and stays.
var adapterFiles = []string{adapterName, adapterConfigName, "README.md"}

// WriteAdapter writes a as a folder that peft.PeftModel.from_pretrained loads: factors in float32, as
// they are, and adapter_config.json. The folder appears whole or not at all: it is made under another name
// beside dir, synced, and renamed. dir may be absent (missing parents are made), empty, or an adapter's
// folder, which is replaced; a folder with anything else in it is refused. After an error the disk is as
// it was before, and an adapter that was there is untouched.
//
// An old adapter is exchanged for the new one in one step where the system can (Linux and macOS on most
// file systems). Elsewhere it is renamed out of the way first; a power cut between these two renames
// leaves it whole under a name that begins with a dot and ends in ".old".
//
// Values that are not finite, a factor without its partner, and a module that no target names are
// BadRequest, before anything is written.
func WriteAdapter(dir string, a *Adapter) error {
	return in("write adapter "+dir, writeAdapter(osDisk{}, dir, a))
}

func writeAdapter(d disk, dir string, a *Adapter) (err error) {
	copied := *a
	a = &copied
	if len(a.Targets) == 0 {
		a.Targets = targets(a.Tensors)
	}
	if err := a.check(); err != nil {
		return err
	}
	if err := a.covered(); err != nil {
		return err
	}
	if dir, err = d.resolve(dir); err != nil {
		return fsError(err)
	}
	replace, err := replaceable(d, dir)
	if err != nil {
		return err
	}
	parent, base := filepath.Split(dir)
	made, err := makeParents(d, filepath.Clean(parent))
	defer func() {
		if err != nil {
			for _, p := range slices.Backward(made) {
				_ = d.remove(p)
			}
		}
	}()
	if err != nil {
		return fsError(err)
	}
	// The dot keeps it out of listings; the number keeps two writers apart, and nothing depends on it.
	staged := filepath.Join(parent, fmt.Sprintf(".%s.%08x.new", base, rand.Uint32()))
	if err := d.mkdir(staged); err != nil {
		return fsError(err)
	}
	defer func() {
		if err != nil {
			_ = d.removeAll(staged)
		}
	}()
	if err := a.writeFiles(d, staged); err != nil {
		return err
	}
	if err := publish(d, staged, dir, replace); err != nil {
		return fsError(err)
	}
	// The adapter is in place. A folder that cannot be synced is not a reason to take it back.
	_ = d.syncDir(filepath.Clean(parent))
	return nil
}

func (a *Adapter) writeFiles(d disk, dir string) error {
	tensors := make([]Source, len(a.Tensors))
	for i, t := range a.Tensors {
		tensors[i] = Floats(t.Name, t.Shape, t.Values)
	}
	text, err := a.configText()
	if err != nil {
		return err
	}
	err = writeFile(d, filepath.Join(dir, adapterName), func(w io.Writer) error {
		return WriteSafetensors(w, tensors, map[string]string{"format": "pt"})
	})
	if err != nil {
		return in(adapterName, err)
	}
	err = writeFile(d, filepath.Join(dir, adapterConfigName), func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
	if err != nil {
		return in(adapterConfigName, err)
	}
	return fsError(d.syncDir(dir))
}

// writeFile makes a file, and returns when its contents are on the disk.
func writeFile(d disk, name string, write func(io.Writer) error) error {
	f, err := d.create(name)
	if err != nil {
		return fsError(err)
	}
	w := bufio.NewWriterSize(f, 1<<18)
	err = write(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return fsError(err)
}

// replaceable looks what is at dir: nothing (false), or a folder that may be replaced (true).
func replaceable(d disk, dir string) (bool, error) {
	names, err := d.list(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fsError(err)
	}
	for _, name := range names {
		if !slices.Contains(adapterFiles, name) {
			return false, bad("it holds %s, which is not part of an adapter; wanted a new folder, an empty one, or an adapter's", quote(name))
		}
	}
	if len(names) > 0 && !slices.Contains(names, adapterConfigName) {
		return false, bad("it holds %s but no %s; wanted a new folder, an empty one, or an adapter's", quote(names[0]), adapterConfigName)
	}
	return true, nil
}

// makeParents makes the folders of path that are missing and returns those it made, outermost first,
// also with an error.
func makeParents(d disk, path string) (made []string, err error) {
	var missing []string
	for {
		_, err := d.list(path)
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
		if err := d.mkdir(p); err != nil {
			return made, err
		}
		made = append(made, p)
	}
	return made, nil
}

// publish gives the staged folder its name and removes what had it before.
func publish(d disk, staged, dir string, replace bool) error {
	if !replace {
		return d.rename(staged, dir)
	}
	err := d.swap(staged, dir)
	if err == nil {
		_ = d.removeAll(staged) // the old one now; at worst it is left over
		return nil
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	old := staged + ".old"
	if err := d.rename(dir, old); err != nil {
		return err
	}
	if err := d.rename(staged, dir); err != nil {
		if back := d.rename(old, dir); back != nil {
			return api.Errorf(api.Internal, "%w; the adapter that was there is now %s", err, old)
		}
		return err
	}
	_ = d.removeAll(old)
	return nil
}
