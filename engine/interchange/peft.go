package interchange

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
)

// Unembed says what becomes of the factors of the output projection in a PEFT folder.
type Unembed string

// What becomes of them.
const (
	KeepUnembed  Unembed = "keep"  // factors of the module lm_head
	DropUnembed  Unembed = "drop"  // they are left out
	MergeUnembed Unembed = "merge" // the whole projection W + scale·B·A, in the base's type, as PEFT's modules_to_save
)

// PEFTOptions say what a PEFT folder holds.
type PEFTOptions struct {
	Unembed Unembed        // "": keep
	Base    *hf.Checkpoint // the base model: needed for MergeUnembed, then it must stay open until the export is written
}

// PlanPEFT plans a folder that peft.PeftModel.from_pretrained and transformers' load_adapter load. One factor at a time is in memory, or
// those of one layer's experts.
//
// Factors of experts are written for each expert, as PEFT has them; so those that all experts share are there once for every expert.
func PlanPEFT(a *Adapter, o PEFTOptions) (*Export, error) {
	x, err := planPEFT(a, o)
	if err != nil {
		return nil, fmt.Errorf("export peft: %w", err)
	}
	return x, nil
}

func planPEFT(a *Adapter, o PEFTOptions) (*Export, error) {
	x, p, err := layPEFT(a, o)
	if err != nil {
		return nil, err
	}
	if x.Bytes, err = p.out.FolderBytes(); err != nil {
		return nil, err
	}
	x.write = p.write
	return x, nil
}

// layPEFT decides what a folder will hold.
func layPEFT(a *Adapter, o PEFTOptions) (*Export, *peftFolder, error) {
	x := &Export{Format: "peft"}
	p := &peftFolder{source: a, cache: layerCache{a: a}}
	p.out = hf.Adapter{BaseModel: a.BaseModel, Rank: a.Lora.Rank, Alpha: lora.Alpha(a.Lora, a.Scale)}
	has := map[lora.Kind]bool{}
	dense, copies := false, 0
	var shared int64
	for _, t := range a.Factors {
		k, known := kindOf(t.Name)
		if !known {
			return nil, nil, api.Errorf(api.Unsupported, "factor %s is of no module that PEFT adapters are known to have", t.Name)
		}
		has[k] = true
		switch {
		case k == lora.Unembed && o.Unembed != KeepUnembed && o.Unembed != "":
		case isExperts(t):
			n := expertCount(a.Factors, t.Name)
			copies = max(copies, n)
			if t.Shape[0] == 1 {
				shared += int64(n-1) * 4 * int64(length(t))
			}
			for e := range n {
				p.add(expertName(t.Name, e), t.Shape[1:], func(ctx context.Context) ([]byte, error) { return p.cache.slice(ctx, t, e) })
			}
		default:
			dense = dense || k == lora.MLP
			p.add(peftRoot+t.Name, t.Shape, func(ctx context.Context) ([]byte, error) { return a.bytes(ctx, t) })
		}
	}
	if copies > 0 {
		x.Notes = append(x.Notes, fmt.Sprintf("PEFT has factors for each of the %d experts of a layer; what they share is written for each, which takes %d bytes more", copies, shared),
			"with transformers 5, peft 0.20 or newer is needed: older ones leave out the factors of experts, without an error")
		if dense {
			x.Notes = append(x.Notes, "peft with transformers 5 leaves out the factors of dense feed-forward layers in a model that has experts, too; peft with transformers 4 loads all")
		}
	}
	if has[lora.Unembed] {
		note, err := p.planHead(o)
		if err != nil {
			return nil, nil, err
		}
		if note != "" {
			x.Notes = append(x.Notes, note)
		}
	}
	if len(p.out.Tensors) == 0 { // PEFT has no adapter that is a whole module alone
		return nil, nil, api.Errorf(api.BadRequest, "without the factors of the output projection nothing is left")
	}
	return x, p, nil
}

// planHead decides about the output projection.
func (p *peftFolder) planHead(o PEFTOptions) (note string, err error) {
	switch o.Unembed {
	case KeepUnembed, "":
		if o.Base != nil && o.Base.Config.TieWordEmbeddings {
			note = "the base's output projection is its embedding: peft adapts the output alone, but its merge_and_unload changes the embedding as well; merge does not"
		}
		return note, nil
	case DropUnembed:
		return "the factors of the output projection are left out: the model computes other logits than the adapter", nil
	case MergeUnembed:
		p.head, err = foldHead(p.source, o.Base)
		if err != nil {
			return "", err
		}
		p.out.Saved = map[string]hf.Source{head: {Stored: p.head.weight.Stored, Shape: p.head.weight.Shape}}
		note = fmt.Sprintf("the output projection is written whole, %d bytes, rounded to %s", len(p.head.weight.Data), p.head.weight.Stored)
		if p.head.tied {
			note += "; the base's is its embedding, which stays as it was: the projection becomes one of its own when the adapter is loaded"
		}
		return note, nil
	}
	return "", api.Errorf(api.BadRequest, "unembed is %s, wanted %s, %s or %s", clip(string(o.Unembed)), KeepUnembed, DropUnembed, MergeUnembed)
}

// peftFolder is a PEFT folder that is to be written.
type peftFolder struct {
	source *Adapter
	out    hf.Adapter
	read   []func(ctx context.Context) ([]byte, error) // of the tensor at this place of out
	cache  layerCache
	head   *foldedHead
}

func (p *peftFolder) add(name string, shape []int, read func(ctx context.Context) ([]byte, error)) {
	// A stream that does nothing stands for a value that is not here: sizes come from the shape.
	p.out.Tensors = append(p.out.Tensors, hf.AdapterTensor{Name: name, Shape: shape, Stream: func(io.Writer) error { return nil }})
	p.read = append(p.read, read)
}

func (p *peftFolder) write(ctx context.Context, dir string, o WriteOptions) error {
	size := int64(0)
	for _, t := range p.out.Tensors {
		size += 4 * int64(length(api.TensorInfo{Shape: t.Shape}))
	}
	if p.head != nil {
		size += int64(len(p.head.weight.Data))
	}
	count := newProgress(o, 2*size)
	return hf.WriteAdapterTo(o.disk, dir, p.filled(ctx, count), o.Replace, func(staged string) error {
		err := p.compare(ctx, staged, count)
		if err != nil {
			return fmt.Errorf("reading it again: %w", err)
		}
		return nil
	})
}

// filled is the adapter with streams that read its values when they are written.
func (p *peftFolder) filled(ctx context.Context, count *progress) *hf.Adapter {
	out := p.out
	out.Tensors = slices.Clone(p.out.Tensors)
	for i := range out.Tensors {
		t := &out.Tensors[i]
		t.Stream = func(w io.Writer) error {
			data, err := p.read[i](ctx)
			if err == nil {
				err = finite(t.Name, data)
			}
			if err == nil {
				err = put(ctx, w, data, count)
			}
			return err
		}
	}
	if p.head != nil {
		s := p.out.Saved[head]
		s.Write = func(w io.Writer) error { return p.head.write(ctx, w, count) }
		out.Saved = map[string]hf.Source{head: s}
	}
	return &out
}

// compare reads the folder again and compares every byte of every tensor.
func (p *peftFolder) compare(ctx context.Context, dir string, count *progress) error {
	want, err := p.out.ConfigText()
	if err != nil {
		return err
	}
	if got, err := os.ReadFile(filepath.Join(dir, configFile)); err != nil || !bytes.Equal(got, want) {
		return api.Errorf(api.DataLoss, "%s is not what was written", configFile)
	}
	if p.head == nil { // as everybody reads it; whole modules are refused there
		_, closeFile, err := hf.OpenAdapter(dir)
		if err != nil {
			return err
		}
		if err := closeFile(); err != nil {
			return err
		}
	}
	f, err := hf.OpenFile(filepath.Join(dir, weightsFile))
	if err != nil {
		return err
	}
	defer f.Close()
	read := map[string]hf.Tensor{}
	for _, t := range f.Tensors {
		read[t.Name] = t
	}
	for i, t := range p.out.Tensors {
		got, ok := read[t.Name]
		want, err := p.read[i](ctx)
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case !ok || got.Stored != "F32" || !slices.Equal(got.Shape, t.Shape) || !bytes.Equal(got.Data, want):
			return api.Errorf(api.DataLoss, "tensor %s is not what was written", t.Name)
		}
		delete(read, t.Name)
		f.Release(got)
		count.add(int64(len(want)))
	}
	if p.head != nil {
		name := peftRoot + head + ".weight"
		got, ok := read[name]
		if !ok || got.Stored != p.head.weight.Stored || !slices.Equal(got.Shape, p.head.weight.Shape) || !p.head.equals(got.Data) {
			return api.Errorf(api.DataLoss, "tensor %s is not what was written", name)
		}
		delete(read, name)
		count.add(int64(len(got.Data)))
	}
	for name := range read {
		return api.Errorf(api.DataLoss, "tensor %s was not written", clip(name))
	}
	return nil
}
