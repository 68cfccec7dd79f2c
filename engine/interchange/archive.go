package interchange

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
	"tinkerlocal/engine/hf"
)

// The files of an archive, in their order: an archive that was cut off lacks the last one.
const (
	configFile    = "adapter_config.json"
	weightsFile   = "adapter_model.safetensors"
	optimizerFile = "optimizer.safetensors"
	stateFile     = "training_state.json"
	completeFile  = "checkpoint_complete"
)

// ArchiveOptions say what an archive holds.
type ArchiveOptions struct {
	// Optimizer adds optimizer.safetensors and training_state.json: with them a training run goes on elsewhere with the same bits.
	Optimizer bool

	// Metadata is the run's user metadata, kept beside the optimizer's state. May be nil.
	Metadata map[string]string
}

// trainingState is training_state.json: what of a run is not a tensor.
type trainingState struct {
	FormatVersion int            `json:"format_version"`
	BaseModel     string         `json:"base_model"`
	Lora          api.LoraConfig `json:"lora_config"` // with the seed that was used
	Version       int64          `json:"version"`
	Step          int64          `json:"step"`

	Plugins  []api.PluginRecord `json:"plugins,omitempty"`                  // custom losses that the weights were trained with
	Metadata map[string]string  `json:"user_metadata,omitempty"`            // the run's
	Notes    map[string]string  `json:"checkpoint_user_metadata,omitempty"` // the checkpoint's
}

// stateVersion is the format_version of trainingState. A reader refuses a newer one.
const stateVersion = 1

// WriteArchive writes a checkpoint to w as a tar archive, as the hosted service gives them out: adapter_config.json, adapter_model.safetensors,
// checkpoint_complete. The bytes depend on nothing but the checkpoint's tensors, configuration and base model. One tensor at a time is in memory.
func WriteArchive(ctx context.Context, w io.Writer, r api.CheckpointReader, o ArchiveOptions) error {
	p, err := planArchive(r, o)
	if err == nil {
		err = p.writeTo(ctx, w, newProgress(WriteOptions{Progress: func(int64, int64) {}}, 0))
	}
	if err != nil && ctx.Err() != nil {
		return api.Errorf(api.Cancelled, "archive of %v: %w", r.Checkpoint().Path, context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("archive of %v: %w", r.Checkpoint().Path, err)
	}
	return nil
}

// ArchiveBytes is how many bytes WriteArchive writes. It reads no tensor.
func ArchiveBytes(r api.CheckpointReader, o ArchiveOptions) (int64, error) {
	p, err := planArchive(r, o)
	if err != nil {
		return 0, fmt.Errorf("archive of %v: %w", r.Checkpoint().Path, err)
	}
	return p.size, nil
}

// PlanArchive plans an archive in a file. It is read again as a foreign one is, and every tensor is compared.
func PlanArchive(r api.CheckpointReader, o ArchiveOptions) (*Export, error) {
	p, err := planArchive(r, o)
	if err != nil {
		return nil, fmt.Errorf("export archive: %w", err)
	}
	x := &Export{Format: "archive", Bytes: p.size, write: p.writeFile}
	if r.Checkpoint().Optimizer && !o.Optimizer {
		x.Notes = append(x.Notes, "the optimizer's moments and the step are left out: training goes on from these weights with fresh ones")
	}
	return x, nil
}

// archive is an archive that is to be written.
type archive struct {
	r       api.CheckpointReader
	entries []entry
	size    int64 // of the archive
}

// entry is one file of an archive.
type entry struct {
	name    string
	text    []byte      // of a small file
	tensors []hf.Source // of the others; Write is nil
	from    []api.TensorInfo
	size    int64
}

func planArchive(r api.CheckpointReader, o ArchiveOptions) (*archive, error) {
	c := r.Checkpoint()
	if o.Optimizer && !c.Optimizer {
		return nil, api.Errorf(api.BadRequest, "checkpoint %v has weights only, no optimizer state", c.Path)
	}
	p := &archive{r: r}
	config := hf.Adapter{BaseModel: c.BaseModel, Rank: c.Lora.Rank, Alpha: api.LoraAlpha}
	weights, moments := entry{name: weightsFile}, entry{name: optimizerFile}
	for _, t := range r.Tensors() {
		if t.DType != "F32" {
			return nil, api.Errorf(api.Unsupported, "tensor %s is %s, wanted F32", t.Name, t.DType)
		}
		into, name := &weights, archiveName(t.Name)
		if isMoment(t.Name) {
			prefix, factor, _ := strings.Cut(t.Name, "/")
			into, name = &moments, prefix+"/"+archiveName(factor)
		} else {
			config.Tensors = append(config.Tensors, hf.AdapterTensor{Name: name})
		}
		into.tensors = append(into.tensors, hf.Source{Name: name, Stored: t.DType, Shape: t.Shape})
		into.from = append(into.from, t)
	}
	text, err := config.ConfigText()
	if err != nil {
		return nil, err
	}
	p.entries = []entry{{name: configFile, text: text}, weights}
	if o.Optimizer {
		state, err := json.MarshalIndent(trainingState{stateVersion, c.BaseModel, c.Lora, c.Version, c.Step, c.Plugins, o.Metadata, c.UserMetadata}, "", "  ")
		if err != nil {
			return nil, err
		}
		p.entries = append(p.entries, moments, entry{name: stateFile, text: append(state, '\n')})
	}
	p.entries = append(p.entries, entry{name: completeFile})
	for i := range p.entries {
		e := &p.entries[i]
		e.size = int64(len(e.text))
		if e.tensors != nil {
			if e.size, err = hf.SafetensorsSize(e.tensors, peftMetadata); err != nil {
				return nil, err
			}
		}
		var head counter
		if err := tar.NewWriter(&head).WriteHeader(e.header()); err != nil {
			return nil, err
		}
		p.size += head.n + (e.size+block-1)/block*block
	}
	p.size += 2 * block
	return p, nil
}

// block is the unit of tar: headers and contents fill whole ones, and two empty ones are the end.
const block = 512

var peftMetadata = map[string]string{"format": "pt"}

// header is the same for everyone who writes the file.
func (e *entry) header() *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Size: e.size, Mode: 0o644, ModTime: time.Unix(0, 0)}
}

func (p *archive) writeTo(ctx context.Context, w io.Writer, count *progress) error {
	t := tar.NewWriter(w)
	for i := range p.entries {
		e := &p.entries[i]
		if err := t.WriteHeader(e.header()); err != nil {
			return err
		}
		if err := p.writeEntry(ctx, t, e, count); err != nil {
			return err
		}
	}
	return t.Close()
}

// writeEntry writes the content of a file.
func (p *archive) writeEntry(ctx context.Context, w io.Writer, e *entry, count *progress) error {
	if e.tensors == nil {
		_, err := w.Write(e.text)
		return err
	}
	tensors := make([]hf.Source, len(e.tensors))
	for j, s := range e.tensors {
		s.Write = func(w io.Writer) error {
			data := make([]byte, 4*length(e.from[j]))
			if err := p.r.Read(ctx, e.from[j].Name, data); err != nil {
				return err
			}
			return put(ctx, w, data, count)
		}
		tensors[j] = s
	}
	return hf.WriteSafetensors(w, tensors, peftMetadata)
}

func (p *archive) writeFile(ctx context.Context, path string, o WriteOptions) error {
	tensors := int64(0)
	for _, e := range p.entries {
		for _, t := range e.from {
			tensors += 4 * int64(length(t))
		}
	}
	count := newProgress(o, 2*tensors)
	write := func(w io.Writer) error { return p.writeTo(ctx, w, count) }
	return disk.WriteFile(o.disk, path, o.Replace, write, func(staged string) error {
		if err := p.compare(ctx, staged, count); err != nil {
			return fmt.Errorf("reading it again: %w", err)
		}
		return nil
	})
}

// compare opens the archive as a foreign one and compares every tensor.
func (p *archive) compare(ctx context.Context, path string, count *progress) error {
	s, err := OpenArchive(ctx, path, ReadOptions{MaxBytes: p.size})
	if err != nil {
		return err
	}
	defer s.Close()
	n := 0
	for _, e := range p.entries {
		for _, t := range e.from {
			want := make([]byte, 4*length(t))
			if err := p.r.Read(ctx, t.Name, want); err != nil {
				return err
			}
			if got, err := s.bytes(t); err != nil || !bytes.Equal(got, want) {
				return api.Errorf(api.DataLoss, "tensor %s is not what was written", t.Name)
			}
			n++
			count.add(int64(len(want)))
		}
	}
	if have := len(s.factors) + len(s.moments); have != n {
		return api.Errorf(api.DataLoss, "%d tensors were read, %d were written", have, n)
	}
	return nil
}

// counter counts bytes.
type counter struct{ n int64 }

func (c *counter) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	return len(b), nil
}
