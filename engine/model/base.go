package model

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
	"tinkerlocal/kernels"
)

// Base is the frozen weights of one base model on one device, loaded once and shared by all
// adapters. Its methods are called by the device's goroutine only, except those that say otherwise.
type Base struct {
	Spec  *Spec
	Sites []lora.Site // what adapters attach to; read-only, any goroutine

	dev    kernels.Device
	act    kernels.DType // of activations: asking the device for all that it knows of itself takes longer than a small step
	embed  kernels.Weight
	head   kernels.Weight // the embedding itself when tied
	norm   kernels.Tensor // [D]
	layers []layer
	rope   ropeTable
	spare  kernels.Buffer // the last released arena, kept for the next batch
	bytes  int64
	work   []counter // per layer, then the head; any goroutine
}

type layer struct {
	qkv, o, gateUp, down kernels.Weight
	router               kernels.Weight   // of a sparse layer, which has experts instead of gateUp and down
	experts              *kernels.Experts // nil in a dense layer
	norm1, norm2         kernels.Tensor   // [D]
	qNorm, kNorm         kernels.Tensor   // [C], or none
	qkvBias              kernels.Tensor   // [(H+2K)C], or none
}

// LoadOptions say how weights are kept. The zero value is the default.
type LoadOptions struct {
	Store    kernels.DType           // F32 or BF16; 0: BF16 when the checkpoint's matrices are, else F32
	Progress func(done, total int64) // parameters loaded so far; may be nil
}

// Load packs src's weights onto dev. It reads each tensor once and gives its file pages back, so the
// peak is one packed copy. A tensor that is missing, has another shape, or holds a NaN or an infinity is
// named in the error.
func Load(ctx context.Context, dev kernels.Device, src *hf.Checkpoint, o LoadOptions) (_ *Base, err error) {
	spec, err := NewSpec(src.Config)
	if err != nil {
		return nil, err
	}
	b := &Base{Spec: spec, Sites: spec.Sites(), dev: dev, act: dev.Info().Act, layers: make([]layer, spec.Layers), work: make([]counter, spec.Layers+1)}
	defer func() {
		if err != nil {
			b.Free()
		}
	}()
	ld := &loader{ctx: ctx, dev: dev, src: src, opt: o, base: b, total: spec.Params()}
	if err := ld.fits(); err != nil {
		return nil, err
	}
	D, C := spec.Hidden, spec.HeadDim
	b.embed = ld.weight(part{"model.embed_tokens.weight", spec.Vocab, D})
	for i := range b.layers {
		p := fmt.Sprintf("model.layers.%d.", i)
		l := &b.layers[i]
		l.norm1 = ld.vector(p+"input_layernorm.weight", D)
		l.qkv = ld.weight(
			part{p + "self_attn.q_proj.weight", spec.QWidth(), D},
			part{p + "self_attn.k_proj.weight", spec.KVWidth(), D},
			part{p + "self_attn.v_proj.weight", spec.KVWidth(), D})
		if spec.QKVBias {
			l.qkvBias = ld.vectors(
				part{p + "self_attn.q_proj.bias", 1, spec.QWidth()},
				part{p + "self_attn.k_proj.bias", 1, spec.KVWidth()},
				part{p + "self_attn.v_proj.bias", 1, spec.KVWidth()})
		}
		if spec.QKNorm {
			l.qNorm = ld.vector(p+"self_attn.q_norm.weight", C)
			l.kNorm = ld.vector(p+"self_attn.k_norm.weight", C)
		}
		l.o = ld.weight(part{p + "self_attn.o_proj.weight", D, spec.QWidth()})
		l.norm2 = ld.vector(p+"post_attention_layernorm.weight", D)
		if spec.IsSparse(i) {
			l.router = ld.weight(part{p + "mlp.gate.weight", spec.Experts, D})
			l.experts = ld.experts(p+"mlp.experts.", spec)
			continue
		}
		l.gateUp = ld.weight(
			part{p + "mlp.gate_proj.weight", spec.FFN, D},
			part{p + "mlp.up_proj.weight", spec.FFN, D})
		l.down = ld.weight(part{p + "mlp.down_proj.weight", D, spec.FFN})
	}
	b.norm = ld.vector("model.norm.weight", D)
	b.head = b.embed
	if !spec.Tied {
		b.head = ld.weight(part{"lm_head.weight", spec.Vocab, D})
	}
	if ld.err != nil {
		return nil, fmt.Errorf("load %s: %w", src.Name, ld.err)
	}
	return b, nil
}

// Bytes is the device memory the base's weights take. Any goroutine may call it.
func (b *Base) Bytes() int64 { return b.bytes }

// Device is the device the base lives on.
func (b *Base) Device() kernels.Device { return b.dev }

// Free gives the base's device memory back.
func (b *Base) Free() {
	free := func(w kernels.Weight) {
		if w != nil {
			w.Free()
		}
	}
	for _, l := range b.layers {
		free(l.qkv)
		free(l.o)
		free(l.gateUp)
		free(l.down)
		free(l.router)
		if l.experts != nil {
			for e := range l.experts.GateUp {
				free(l.experts.GateUp[e])
				free(l.experts.Down[e])
			}
		}
		for _, t := range []kernels.Tensor{l.norm1, l.norm2, l.qNorm, l.kNorm, l.qkvBias} {
			b.dev.Free(t.Buf)
		}
	}
	b.dev.Free(b.norm.Buf)
	if b.head != b.embed {
		free(b.head)
	}
	free(b.embed)
	b.rope.free(b.dev)
	b.dev.Free(b.spare)
	// What any goroutine may read, such as one that checks the tokens of a request that will be refused, is not written.
	b.embed, b.head, b.norm, b.layers, b.rope, b.spare = nil, nil, kernels.Tensor{}, nil, ropeTable{}, nil
}

type part struct {
	name       string
	rows, cols int
}

// loader remembers the first error, so that Load reads as a list of what a model is made of.
type loader struct {
	ctx         context.Context
	dev         kernels.Device
	src         *hf.Checkpoint
	opt         LoadOptions
	base        *Base
	done, total int64
	err         error
}

// LoadBytes is about the device memory that Load takes for src.
func LoadBytes(src *hf.Checkpoint, o LoadOptions) (int64, error) {
	spec, err := NewSpec(src.Config)
	if err != nil {
		return 0, err
	}
	ld := &loader{src: src, opt: o, total: spec.Params()}
	return ld.needs(), nil
}

func (ld *loader) needs() int64 {
	size := int64(2)
	if ld.store(kernels.F32) == kernels.F32 {
		if t, ok := ld.src.Tensor("model.embed_tokens.weight"); !ok || ld.store(t.DType) == kernels.F32 {
			size = 4
		}
	}
	return ld.total * size
}

// fits refuses a model that cannot fit before any work is done.
func (ld *loader) fits() error {
	need, free := ld.needs(), ld.dev.Info().Free
	if free > 0 && need > free {
		return api.Errorf(api.OutOfMemory, "load %s: the weights need %d bytes, %d bytes are free", ld.src.Name, need, free)
	}
	return nil
}

func (ld *loader) store(have kernels.DType) kernels.DType {
	switch {
	case ld.opt.Store != 0:
		return ld.opt.Store
	case have == kernels.BF16:
		return kernels.BF16
	}
	return kernels.F32
}

// tensor finds a tensor, checks its shape and values, and reports progress.
func (ld *loader) tensor(name string, shape ...int) (hf.Tensor, bool) {
	if ld.err == nil {
		ld.err = ld.ctx.Err()
	}
	if ld.err != nil {
		return hf.Tensor{}, false
	}
	t, err := ld.src.Want(name, shape...)
	if err != nil {
		ld.err = err
		return t, false
	}
	if i, v := firstBad(t.DType, t.Data); i >= 0 {
		ld.err = api.Errorf(api.BadRequest, "tensor %s: value %d is %v; the file is damaged or the model diverged", name, i, v)
		return t, false
	}
	ld.done += int64(t.Len())
	if ld.opt.Progress != nil {
		ld.opt.Progress(ld.done, ld.total)
	}
	return t, true
}

// weight packs parts into one stacked weight.
func (ld *loader) weight(parts ...part) kernels.Weight {
	ms := make([]kernels.Matrix, 0, len(parts))
	for _, p := range parts {
		t, ok := ld.tensor(p.name, p.rows, p.cols)
		if !ok {
			return nil
		}
		ms = append(ms, kernels.Matrix{Rows: p.rows, Cols: p.cols, DType: t.DType, Data: t.Data})
	}
	w := ld.pack(parts[0].name, ms)
	for _, p := range parts {
		ld.src.Release(p.name)
	}
	return w
}

// pack puts host matrices on the device as one stacked weight.
func (ld *loader) pack(name string, ms []kernels.Matrix) kernels.Weight {
	w, err := ld.dev.Pack(ms, ld.store(ms[0].DType))
	if err != nil {
		ld.err = fmt.Errorf("%s: %w", name, err)
		return nil
	}
	ld.base.bytes += w.Bytes()
	return w
}

// vector uploads a norm's gain, widened to the activations' dtype.
func (ld *loader) vector(name string, n int) kernels.Tensor { return ld.vectors(part{name, 1, n}) }

// vectors uploads vectors one after the other as one, as the parts of a stacked weight lie.
func (ld *loader) vectors(parts ...part) kernels.Tensor {
	var v []float32
	for _, p := range parts {
		t, ok := ld.tensor(p.name, p.cols)
		if !ok {
			return kernels.Tensor{}
		}
		for i := range p.cols {
			v = append(v, floatAt(t.DType, t.Data, i))
		}
		ld.src.Release(p.name)
	}
	out, err := kernels.NewTensor(ld.dev, ld.dev.Info().Act, len(v))
	if err == nil {
		err = kernels.WriteFloats(ld.dev, out, v)
	}
	if err != nil {
		ld.err = fmt.Errorf("%s: %w", parts[0].name, err)
		return out
	}
	ld.base.bytes += out.Bytes()
	return out
}

func floatAt(d kernels.DType, data []byte, i int) float32 {
	switch d {
	case kernels.BF16:
		return kernels.BF16ToF32(binary.LittleEndian.Uint16(data[2*i:]))
	case kernels.F16:
		return kernels.F16ToF32(binary.LittleEndian.Uint16(data[2*i:]))
	}
	return math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
}

// firstBad finds the first NaN or infinity: all exponent bits set.
func firstBad(d kernels.DType, data []byte) (int, float32) {
	if d == kernels.F32 {
		for i := 0; i+4 <= len(data); i += 4 {
			if binary.LittleEndian.Uint32(data[i:])&0x7f800000 == 0x7f800000 {
				return i / 4, floatAt(d, data, i/4)
			}
		}
		return -1, 0
	}
	mask := uint16(0x7f80)
	if d == kernels.F16 {
		mask = 0x7c00
	}
	for i := 0; i+2 <= len(data); i += 2 {
		if binary.LittleEndian.Uint16(data[i:])&mask == mask {
			return i / 2, floatAt(d, data, i/2)
		}
	}
	return -1, 0
}
