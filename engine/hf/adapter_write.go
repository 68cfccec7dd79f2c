package hf

import (
	"io"
	"slices"

	"tinkerlocal/engine/disk"
)

// adapterFiles are what an adapter's folder may hold for WriteAdapter to replace it: what it writes
// itself, and the model card that PEFT adds. Anything else is somebody's, and stays.
var adapterFiles = []string{adapterName, adapterConfigName, "README.md"}

// WriteAdapter writes a as a folder that peft.PeftModel.from_pretrained loads: factors in float32, as
// they are, and adapter_config.json. The folder appears whole or not at all: see [disk.WriteFolder]. dir may be absent
// (missing parents are made), empty, or an adapter's folder, which is replaced; a folder with anything else in it is refused.
//
// Values that are not finite, a factor without its partner, and a module that no target names are
// BadRequest, before anything is written; of a Stream, the caller has to look at the values.
func WriteAdapter(dir string, a *Adapter) error {
	return in("write adapter "+dir, WriteAdapterTo(disk.System{}, dir, a, true, nil))
}

// WriteAdapterTo is WriteAdapter on any disk. With replace false, an adapter that is there is refused. check, which may be nil, is called
// with the whole folder, under the name that it has before it is put in its place. Errors do not name dir.
func WriteAdapterTo(d disk.FS, dir string, a *Adapter, replace bool, check func(staged string) error) error {
	if err := a.writable(); err != nil {
		return err
	}
	mayReplace := func(names []string) error {
		err := mayReplaceAdapter(names)
		if err == nil && !replace && len(names) > 0 {
			err = bad("an adapter is there already")
		}
		return err
	}
	return disk.WriteFolder(d, dir, mayReplace, func(f *disk.Folder) error {
		err := a.writeFiles(f)
		if err == nil && check != nil {
			err = check(f.Dir)
		}
		return err
	})
}

// writable says what of a cannot be written, or nil.
func (a *Adapter) writable() error {
	if err := a.check(); err != nil {
		return err
	}
	return a.covered()
}

// WeightsBytes is the size of adapter_model.safetensors. What WriteAdapter refuses, it refuses, too.
func (a *Adapter) WeightsBytes() (int64, error) {
	if err := a.writable(); err != nil {
		return 0, err
	}
	return SafetensorsSize(a.sources(), peftMetadata)
}

// WriteWeights writes adapter_model.safetensors as WriteAdapter does.
func (a *Adapter) WriteWeights(w io.Writer) error {
	return WriteSafetensors(w, a.sources(), peftMetadata)
}

// sources are the tensors of the folder's file.
func (a *Adapter) sources() []Source {
	var tensors []Source
	for _, t := range a.Tensors {
		s := Floats(t.Name, t.Shape, t.Values)
		if t.Values == nil {
			s.Write = t.Stream
		}
		tensors = append(tensors, s)
	}
	for module, s := range a.Saved {
		s.Name = peftRoot + module + ".weight"
		tensors = append(tensors, s)
	}
	return tensors
}

// FolderBytes is the size of the files that WriteAdapter writes.
func (a *Adapter) FolderBytes() (int64, error) {
	text, err := a.ConfigText()
	if err != nil {
		return 0, err
	}
	n, err := SafetensorsSize(a.sources(), peftMetadata)
	return n + int64(len(text)), err
}

// peftMetadata is what readers of the format look for in the header.
var peftMetadata = map[string]string{"format": "pt"}

func (a *Adapter) writeFiles(f *disk.Folder) error {
	text, err := a.ConfigText()
	if err != nil {
		return err
	}
	if err := f.Write(adapterName, a.WriteWeights); err != nil {
		return in(adapterName, err)
	}
	return in(adapterConfigName, f.Write(adapterConfigName, func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	}))
}

// mayReplaceAdapter refuses a folder that is not an adapter's.
func mayReplaceAdapter(names []string) error {
	for _, name := range names {
		if !slices.Contains(adapterFiles, name) {
			return bad("it holds %s, which is not part of an adapter; wanted a new folder, an empty one, or an adapter's", quote(name))
		}
	}
	if len(names) > 0 && !slices.Contains(names, adapterConfigName) {
		return bad("it holds %s but no %s; wanted a new folder, an empty one, or an adapter's", quote(names[0]), adapterConfigName)
	}
	return nil
}
