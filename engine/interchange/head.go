package interchange

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/kernels"
)

// foldedHead is an output projection with an adapter in it: W + scale·B·A, summed in float64 and rounded once to W's type.
type foldedHead struct {
	a      *Adapter
	fa, fb api.TensorInfo // A [R, D], B [V, R]
	weight hf.Tensor      // W [V, D]
	tied   bool           // W is the embedding
	sum    []byte         // SHA-256 of what was written
}

// foldHead finds the weights.
func foldHead(a *Adapter, base *hf.Checkpoint) (*foldedHead, error) {
	if base == nil {
		return nil, api.Errorf(api.BadRequest, "to merge the output projection, the base model's folder is needed")
	}
	h := &foldedHead{a: a, tied: base.Config.TieWordEmbeddings}
	for _, t := range a.Factors {
		switch t.Name {
		case head + ".lora_A.weight":
			h.fa = t
		case head + ".lora_B.weight":
			h.fb = t
		}
	}
	if len(h.fa.Shape) != 2 || len(h.fb.Shape) != 2 {
		return nil, api.Errorf(api.BadRequest, "the output projection has factors of shapes %v and %v, wanted [rank, in] and [out, rank]", h.fa.Shape, h.fb.Shape)
	}
	name := head + ".weight"
	if h.tied {
		name = "model.embed_tokens.weight"
	}
	var err error
	h.weight, err = base.Want(name, h.fb.Shape[0], h.fa.Shape[1])
	return h, err
}

// write writes the rows.
func (h *foldedHead) write(ctx context.Context, w io.Writer, count *progress) error {
	fa, err := h.a.Floats(ctx, h.fa)
	if err != nil {
		return err
	}
	fb, err := h.a.Floats(ctx, h.fb)
	if err != nil {
		return err
	}
	hash := sha256.New()
	w = io.MultiWriter(w, hash)
	R, V, D := h.fa.Shape[0], h.weight.Shape[0], h.weight.Shape[1]
	size := h.weight.DType.Size()
	sums, out := make([]float64, D), make([]byte, D*size)
	for v := range V {
		row := hf.Tensor{DType: h.weight.DType, Data: h.weight.Data[v*D*size : (v+1)*D*size]}
		for i, x := range row.Float32s() {
			sums[i] = float64(x)
		}
		for r := range R {
			b := h.a.Scale * float64(fb[v*R+r])
			for i, x := range fa[r*D : (r+1)*D] {
				sums[i] += b * float64(x)
			}
		}
		for i, s := range sums {
			f := float32(s)
			if f-f != 0 || h.weight.DType == kernels.F16 && !(math.Abs(s) < 65520) {
				return api.Errorf(api.BadRequest, "the output projection of token %d becomes %v, which is too large for %s", v, s, h.weight.Stored)
			}
			switch h.weight.DType {
			case kernels.BF16:
				binary.LittleEndian.PutUint16(out[2*i:], kernels.F32ToBF16(f))
			case kernels.F16:
				binary.LittleEndian.PutUint16(out[2*i:], halfBits(f))
			default:
				binary.LittleEndian.PutUint32(out[4*i:], math.Float32bits(f))
			}
		}
		if err := put(ctx, w, out, count); err != nil {
			return err
		}
	}
	h.sum = hash.Sum(nil)
	return nil
}

// equals compares with what was written.
func (h *foldedHead) equals(data []byte) bool {
	sum := sha256.Sum256(data)
	return string(sum[:]) == string(h.sum)
}

// halfBits rounds to the nearest IEEE half, ties to even; what is too large becomes infinite.
func halfBits(f float32) uint16 {
	u := math.Float32bits(f)
	sign, abs := uint16(u>>16)&0x8000, math.Float32frombits(u&^(1<<31))
	switch {
	case !(abs < 65520):
		return sign | 0x7c00
	case abs < 1.0/(1<<14): // a multiple of 2^-24
		return sign | uint16(math.RoundToEven(float64(abs)*(1<<24)))
	}
	u = math.Float32bits(abs) - 112<<23
	return sign | uint16((u+0xfff+(u>>13)&1)>>13)
}
