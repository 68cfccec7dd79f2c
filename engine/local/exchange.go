package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/interchange"
	"tinkerlocal/engine/model"
	"tinkerlocal/kernels"
)

// The formats of exports.
const (
	Archive = "archive" // a tar file, as the hosted service gives them out
	PEFT    = "peft"    // a folder that peft loads
	Merged  = "merged"  // a Hugging Face model folder with the adapter in its weights
	GGUF    = "gguf"    // a file for llama.cpp
)

// Formats names them all.
var Formats = []string{Archive, PEFT, Merged, GGUF}

// What becomes of the adapter of the output projection in an export. An archive keeps it.
const (
	KeepUnembed  = "keep"  // it stays what it is; in a merged model it is merged, as the others are
	DropUnembed  = "drop"  // it is left out
	MergeUnembed = "merge" // peft: the folder holds the whole projection
)

// Unembeds names them all.
var Unembeds = []string{KeepUnembed, DropUnembed, MergeUnembed}

// ExportOptions say how a checkpoint is exported.
type ExportOptions struct {
	Format    string
	BaseModel string // name of the base model; "": the checkpoint's
	Unembed   string // "": keep
	Optimizer bool   // archive: moments and step, too, where the checkpoint has them
	DType     string // merged: "auto" (or ""; each tensor as the base has it), "float32", "bfloat16"
	OwnHead   bool   // gguf: the base's file has an output.weight of its own, although its embeddings are tied
}

// Export is a planned export of a checkpoint. Close it.
type Export struct {
	*interchange.Export
	closers []func() error
}

// Close closes what the export reads.
func (x *Export) Close() error {
	var errs []error
	for _, f := range x.closers {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// WriteOptions say how an export is written.
type WriteOptions = interchange.WriteOptions

// PlanExport plans the export of a checkpoint: what can be refused is refused, and the size is known. Base models are found in m.
func (m Models) PlanExport(ctx context.Context, s api.Store, p api.Path, o ExportOptions) (_ *Export, err error) {
	r, err := s.Open(ctx, p)
	if err != nil {
		return nil, err
	}
	x := &Export{closers: []func() error{r.Close}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("export %v: %w", r.Checkpoint().Path, err), x.Close())
		}
	}()
	x.Export, err = x.plan(ctx, m, s, r, o)
	return x, err
}

// base opens the base model for as long as the export lasts.
func (x *Export) base(m Models, name string) (*hf.Checkpoint, error) {
	src, err := m.Open(name)
	if err == nil {
		x.closers = append(x.closers, src.Close)
	}
	return src, err
}

// device is a device of the export's own: it multiplies factors faster than plain code.
func (x *Export) device() (kernels.Device, error) {
	dev, err := OpenDevice("cpu")
	if err == nil {
		x.closers = append(x.closers, dev.Close)
	}
	return dev, err
}

func (x *Export) plan(ctx context.Context, m Models, s api.Store, r api.CheckpointReader, o ExportOptions) (*interchange.Export, error) {
	a := interchange.FromCheckpoint(r)
	if o.BaseModel == "" {
		o.BaseModel = a.BaseModel
	}
	drop := o.Unembed == DropUnembed
	if o.Unembed == MergeUnembed && o.Format != PEFT {
		return nil, api.Errorf(api.BadRequest, "the adapter of the output projection is merged by itself in the format peft only")
	}
	switch o.Format {
	case Archive:
		if drop {
			return nil, api.Errorf(api.BadRequest, "an archive holds the whole adapter")
		}
		c := r.Checkpoint()
		a := interchange.ArchiveOptions{Optimizer: o.Optimizer && c.Optimizer}
		if run, err := s.Run(ctx, c.Path.Run); a.Optimizer && err == nil && run.Owner == c.Owner {
			a.Metadata = run.UserMetadata
		}
		return interchange.PlanArchive(r, a)
	case PEFT:
		p := interchange.PEFTOptions{Unembed: interchange.Unembed(o.Unembed)}
		if o.Unembed == MergeUnembed {
			src, err := x.base(m, o.BaseModel)
			if err != nil {
				return nil, err
			}
			p.Base = src
		}
		return interchange.PlanPEFT(a, p)
	}
	src, err := x.base(m, o.BaseModel)
	if err != nil {
		return nil, err
	}
	switch o.Format {
	case Merged:
		dtype, err := storeType(o.DType)
		if err != nil {
			return nil, err
		}
		dev, err := x.device()
		if err != nil {
			return nil, err
		}
		return interchange.PlanMerged(ctx, a, src, interchange.MergedOptions{DType: dtype, DropUnembed: drop, Device: dev})
	case GGUF:
		spec, err := model.NewSpec(src.Config)
		if err != nil {
			return nil, err
		}
		return interchange.PlanGGUF(ctx, a, spec, interchange.GGUFOptions{DropUnembed: drop, OwnHead: o.OwnHead, Name: r.Checkpoint().Path.String()})
	}
	return nil, api.Errorf(api.BadRequest, "the format is %q, wanted one of %s", o.Format, strings.Join(Formats, ", "))
}

// ImportOptions say how an adapter is imported.
type ImportOptions struct {
	Path      api.Path // three parts
	Owner     string   // "": engine.LocalOwner
	BaseModel string   // "": the one that the source names
	Seed      int64    // of factors that the source lacks
	Save      api.SaveOptions
	Temp      string // folder in which a compressed archive is unpacked meanwhile; "": the system's
}

// Import brings a PEFT folder or an archive into a store. The base model must be at hand, for its shapes. It also returns what the
// reader of the source has to say about it.
func (m Models) Import(ctx context.Context, source string, s api.Store, o ImportOptions) (c api.Checkpoint, notes []string, err error) {
	st, err := os.Stat(source)
	if err != nil {
		return c, nil, api.Errorf(api.NotFound, "%w", err)
	}
	var src *interchange.Source
	if st.IsDir() {
		src, err = interchange.OpenPEFT(source)
	} else {
		src, err = interchange.OpenArchive(ctx, source, interchange.ReadOptions{Temp: o.Temp})
	}
	if err != nil {
		return c, nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if o.BaseModel == "" {
		o.BaseModel = src.BaseModel
	}
	if o.BaseModel == "" {
		return c, nil, api.Errorf(api.BadRequest, "%s does not name its base model: name it with --base-model", source)
	}
	base, err := m.Open(o.BaseModel)
	if err != nil {
		return c, nil, err
	}
	defer base.Close()
	spec, err := model.NewSpec(base.Config)
	if err != nil {
		return c, nil, err
	}
	if o.Owner == "" {
		o.Owner = engine.LocalOwner
	}
	c = api.Checkpoint{Path: o.Path, Owner: o.Owner, BaseModel: o.BaseModel}
	c, err = interchange.Import(ctx, src, spec.Sites(), s, c, interchange.ImportOptions{Save: o.Save, Seed: o.Seed})
	if err != nil {
		return c, src.Notes, err
	}
	return c, src.Notes, recordImport(ctx, s, c, src.Metadata)
}

// recordImport makes the record of the run that a checkpoint was imported under, if there is none yet.
func recordImport(ctx context.Context, s api.Store, c api.Checkpoint, metadata map[string]string) error {
	if _, err := s.Run(ctx, c.Path.Run); api.CodeOf(err) != api.NotFound {
		return nil // it is there, or its record is damaged and not ours to mend
	}
	return s.PutRun(ctx, api.RunRecord{ID: c.Path.Run, Owner: c.Owner, BaseModel: c.BaseModel, Lora: c.Lora, UserMetadata: metadata})
}
