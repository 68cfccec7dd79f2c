package hf

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"tinkerlocal/engine/disk"
)

// maxOthers bounds the files of a folder beside the weights; published models have about ten.
const maxOthers = 1000

// weightEndings end the names of files that hold weights, of this or of other formats.
var weightEndings = []string{
	".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".onnx_data", ".npz", ".ot", ".mlmodel",
	".index.json",
}

// Others lists the folder's plain files beside the weights, sorted: what a copy of the model needs of them. Passed over, with the
// reason, are those that belong to other things than this model: hidden ones, weights of any format, adapters, folders, what is
// larger than File reads, and links that lead out of the folder. Links within it count as the files they lead to, and so do those of a hub
// cache, where a model's files are links to the folder "blobs" beside its snapshots.
func (c *Checkpoint) Others() (names, passed []string, err error) {
	entries, err := fs.ReadDir(c.fsys, ".")
	if err != nil {
		return nil, nil, in(c.Name, disk.Error(err))
	}
	for _, e := range entries {
		name := e.Name()
		why := ""
		switch lower := strings.ToLower(name); {
		case strings.HasPrefix(name, "."):
			continue
		case slices.ContainsFunc(weightEndings, func(end string) bool { return strings.HasSuffix(lower, end) }):
			continue
		case e.IsDir():
			why = "is a folder"
		case strings.HasPrefix(name, "adapter_"):
			why = "belongs to an adapter" // with it in the folder, loaders would apply the adapter again
		case plainName(name) != nil:
			why = "has a name that not every system allows"
		case !c.within(name, e):
			why = "is a link that leads out of the folder"
		default:
			why = c.unfit(name)
		}
		if why != "" {
			passed = append(passed, fmt.Sprintf("%s %s", quote(name), why))
			continue
		}
		if names = append(names, name); len(names) > maxOthers {
			return nil, nil, bad("%s: more than %d files beside the weights", c.Name, maxOthers)
		}
	}
	slices.Sort(names)
	return names, passed, nil
}

// within says whether a file lies in the folder, or where a hub cache keeps those of this model.
func (c *Checkpoint) within(name string, e fs.DirEntry) bool {
	if e.Type()&fs.ModeSymlink == 0 {
		return true
	}
	if c.dir == "" {
		return false
	}
	folder, err := filepath.EvalSymlinks(c.dir)
	if err != nil {
		return false
	}
	if folder, err = filepath.Abs(folder); err != nil {
		return false
	}
	target, err := filepath.EvalSymlinks(filepath.Join(folder, name))
	if err != nil {
		return false
	}
	at := filepath.Dir(target)
	if at == folder {
		return true
	}
	snapshots := filepath.Dir(folder) // models--ORG--NAME/snapshots/REVISION
	return filepath.Base(snapshots) == "snapshots" && at == filepath.Join(filepath.Dir(snapshots), "blobs")
}

// unfit says why File cannot read a file, or "".
func (c *Checkpoint) unfit(name string) string {
	st, err := fs.Stat(c.fsys, name)
	switch {
	case err != nil:
		return "cannot be read"
	case !st.Mode().IsRegular():
		return "is a " + kindOf(st.Mode())
	case st.Size() > maxFileBytes:
		return fmt.Sprintf("is %d bytes, more than the %d that are copied", st.Size(), maxFileBytes)
	}
	return ""
}
