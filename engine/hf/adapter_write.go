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
// BadRequest, before anything is written.
func WriteAdapter(dir string, a *Adapter) error {
	return in("write adapter "+dir, writeAdapter(disk.System{}, dir, a))
}

func writeAdapter(d disk.FS, dir string, a *Adapter) error {
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
	return disk.WriteFolder(d, dir, mayReplaceAdapter, a.writeFiles)
}

func (a *Adapter) writeFiles(f *disk.Folder) error {
	tensors := make([]Source, len(a.Tensors))
	for i, t := range a.Tensors {
		tensors[i] = Floats(t.Name, t.Shape, t.Values)
	}
	text, err := a.configText()
	if err != nil {
		return err
	}
	err = f.Write(adapterName, func(w io.Writer) error {
		return WriteSafetensors(w, tensors, map[string]string{"format": "pt"})
	})
	if err != nil {
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
