package interchange

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
	"tinkerlocal/engine/gguf"
	"tinkerlocal/engine/model"
)

// GGUFOptions say how an adapter becomes a GGUF file.
type GGUFOptions struct {
	DropUnembed bool   // leave the factors of the head out
	OwnHead     bool   // the base's GGUF has an output.weight of its own, although its embeddings are tied
	Name        string // for people; may be empty
}

// PlanGGUF plans a file that llama.cpp reads with --lora, beside a GGUF of the base model that base describes.
func PlanGGUF(ctx context.Context, a *Adapter, base *model.Spec, o GGUFOptions) (*Export, error) {
	g := &gguf.Adapter{
		Base: gguf.Base{
			Family: base.Family, Heads: base.Heads, KVHeads: base.KVHeads, Tied: base.Tied && !o.OwnHead, Experts: base.Experts, NormTopK: base.NormTopK,
		},
		Rank: a.Lora.Rank, Alpha: a.Scale * float64(a.Lora.Rank), Name: o.Name,
		Meta: []gguf.KV{{Key: "general.base_model.count", Value: uint32(1)}, {Key: "general.base_model.0.name", Value: a.BaseModel}},
	}
	x := &Export{Format: "gguf"}
	for _, t := range a.Factors {
		if o.DropUnembed && strings.HasPrefix(t.Name, head+".") {
			x.Notes = []string{"the adapter of the output projection is left out: the model will not answer quite as it was trained"}
			continue
		}
		module, which, ok := strings.Cut(t.Name, ".lora_")
		if !ok {
			return nil, api.Errorf(api.Unsupported, "tensor %s is not a factor of LoRA", t.Name)
		}
		g.Factors = append(g.Factors, gguf.Factor{
			Module: module, Which: strings.TrimSuffix(which, ".weight"), Shape: t.Shape,
			Values: func() ([]float32, error) { return a.Floats(ctx, t) },
		})
	}
	if len(g.Factors) == 0 {
		return nil, api.Errorf(api.BadRequest, "the adapter has nothing but the output projection, which is to be left out")
	}
	meta, tensors, err := g.Contents()
	if err == nil {
		x.Bytes, err = gguf.Size(meta, tensors)
	}
	if err != nil {
		return nil, err
	}
	if base.Experts > 0 {
		x.Notes = append(x.Notes, "llama.cpp wants the factors that experts share repeated for each of them: the file is larger than the checkpoint")
	}
	x.write = func(ctx context.Context, path string, w WriteOptions) error {
		p := newProgress(w, 2*x.Bytes)
		write := func(to io.Writer) error { return gguf.Write(countingWriter{ctx, to, p}, meta, tensors) }
		return disk.WriteFile(w.disk, path, w.Replace, write, func(staged string) error {
			return sameGGUF(ctx, staged, meta, tensors, p)
		})
	}
	return x, nil
}

// sameGGUF reads a file again and compares it with what was to be written.
func sameGGUF(ctx context.Context, path string, meta []gguf.KV, tensors []gguf.Tensor, p *progress) error {
	f, err := gguf.Open(path)
	if err != nil {
		return fmt.Errorf("read it again: %w", err)
	}
	defer f.Close()
	for _, kv := range meta {
		if got := f.Value(kv.Key); !equalValue(got, kv.Value) {
			return api.Errorf(api.DataLoss, "read again, %s is %v, wanted %v", kv.Key, got, kv.Value)
		}
	}
	if len(f.Tensors) != len(tensors) {
		return api.Errorf(api.DataLoss, "read again, it has %d tensors, wanted %d", len(f.Tensors), len(tensors))
	}
	for _, want := range tensors {
		if err := ctx.Err(); err != nil {
			return err
		}
		i := slices.IndexFunc(f.Tensors, func(t gguf.Tensor) bool { return t.Name == want.Name })
		if i < 0 || !slices.Equal(f.Tensors[i].Shape, want.Shape) {
			return api.Errorf(api.DataLoss, "read again, tensor %s is not there with the shape %v", want.Name, want.Shape)
		}
		got, err := f.Tensors[i].Float32s()
		if err != nil {
			return err
		}
		was, err := want.Float32s()
		if err != nil {
			return err
		}
		for k := range was {
			if math.Float32bits(got[k]) != math.Float32bits(was[k]) {
				return api.Errorf(api.DataLoss, "read again, value %d of tensor %s is %v, wanted %v", k, want.Name, got[k], was[k])
			}
		}
		p.add(int64(4 * len(was)))
	}
	return nil
}

func equalValue(a, b any) bool { return fmt.Sprint(a) == fmt.Sprint(b) }
