package gguf

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"tinkerlocal/engine/api"
)

// Adapter is a LoRA adapter y = W·x + Alpha/Rank · B·(A·x), with A and B unscaled, on its way into a file. An adapter with rank-stabilised
// scale Alpha/√Rank is one with Alpha·√Rank here.
type Adapter struct {
	Base    Base
	Rank    int     // of every factor
	Alpha   float64 // above 0; the file has it as a float32
	Factors []Factor

	Name string // for people; may be empty
	Meta []KV   // more metadata, such as general.base_model.0.name; may be empty
}

// Base is what a file says and needs of the model under an adapter.
type Base struct {
	Family         string // model_type of config.json: "llama", "mistral", "qwen2", "qwen3", "qwen3_moe"
	Heads, KVHeads int
	Tied           bool // the base's GGUF has no output.weight: its head is the embedding

	Experts  int  // per layer; 0 for a dense model
	NormTopK bool // the gates of a token's experts are divided by their sum; llama.cpp runs a mixture of experts no other way
}

// Factor is one factor of a module: A [rank, in] or B [out, rank].
//
// Those of experts (modules w1, w3 and w2, which are gate, up and down) have a dimension in front, and one of the two is shared: w1 and w3
// have A [1, rank, in] and B [experts, out, rank], w2 has A [experts, rank, in] and B [1, out, rank].
type Factor struct {
	Module string // path in the Hugging Face model: "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts.w1", "lm_head"
	Which  string // "A" or "B"
	Shape  []int

	// Values returns the factor's values, row-major; they are only read. It is called each time the tensor is written, when its turn comes, so
	// that no more than one factor need be in memory.
	Values func() ([]float32, error)
}

// architecture is what llama.cpp calls a family, and what it does otherwise than Hugging Face.
type architecture struct {
	name     string
	permuted bool // the rows of q and k are interleaved within each head
	experts  bool // every layer is a mixture of experts; else none is
}

var architectures = map[string]architecture{
	"llama":     {name: "llama", permuted: true},
	"mistral":   {name: "llama", permuted: true},
	"qwen2":     {name: "qwen2"},
	"qwen3":     {name: "qwen3"},
	"qwen3_moe": {name: "qwen3moe", experts: true},
}

// modules lists the modules of a layer in the order of a file. own is the factor that every expert has of its own.
var modules = []struct{ hf, gguf, own string }{
	{"self_attn.q_proj", "attn_q", ""},
	{"self_attn.k_proj", "attn_k", ""},
	{"self_attn.v_proj", "attn_v", ""},
	{"self_attn.o_proj", "attn_output", ""},
	{"mlp.gate_proj", "ffn_gate", ""},
	{"mlp.up_proj", "ffn_up", ""},
	{"mlp.down_proj", "ffn_down", ""},
	{"mlp.experts.w1", "ffn_gate_exps", "B"},
	{"mlp.experts.w3", "ffn_up_exps", "B"},
	{"mlp.experts.w2", "ffn_down_exps", "A"},
}

// Contents returns the metadata and the tensors for [Write] and [Size]: layer by layer, then the head, A before B, whatever the order of
// Factors. The values are float32 with the bits they have, and are looked at only while they are written: one that is not finite fails Write.
//
// What llama.cpp cannot compute as we do is Unsupported, with the module's name: the head of a model whose head is its embedding, a dense
// feed-forward in qwen3_moe, gates that are not normalised, another family. Contradictions are BadRequest.
func (a *Adapter) Contents() (meta []KV, tensors []Tensor, err error) {
	arch, err := a.check()
	if err != nil {
		return nil, nil, err
	}
	sites := make([]site, len(a.Factors))
	for i := range a.Factors {
		if sites[i], err = a.place(arch, &a.Factors[i]); err != nil {
			return nil, nil, err
		}
	}
	slices.SortStableFunc(sites, func(x, y site) int {
		return cmp.Or(cmp.Compare(x.layer, y.layer), cmp.Compare(x.module, y.module), strings.Compare(x.factor.Which, y.factor.Which))
	})
	if err := paired(sites); err != nil {
		return nil, nil, err
	}
	for _, s := range sites {
		tensors = append(tensors, s.tensor(a.Base.Experts))
	}
	meta = []KV{{KeyArchitecture, arch.name}, {KeyType, "adapter"}}
	if a.Name != "" {
		meta = append(meta, KV{KeyName, a.Name})
	}
	meta = append(meta, KV{KeyAdapterType, "lora"}, KV{KeyLoraAlpha, float32(a.Alpha)})
	meta = append(meta, a.Meta...)
	_, err = Size(meta, tensors)
	return meta, tensors, err
}

// check looks at everything but the factors.
func (a *Adapter) check() (architecture, error) {
	arch, known := architectures[a.Base.Family]
	b := a.Base
	switch {
	case !known:
		return arch, api.Errorf(api.Unsupported, "family %s cannot become a GGUF adapter yet, wanted llama, mistral, qwen2, qwen3 or qwen3_moe", quote(b.Family))
	case b.Heads < 1 || b.KVHeads < 1 || b.Heads%b.KVHeads != 0:
		return arch, bad("the base has %d heads and %d key-value heads, wanted a multiple", b.Heads, b.KVHeads)
	case arch.experts != (b.Experts > 0):
		return arch, bad("the base has %d experts and family %s", b.Experts, b.Family)
	case arch.experts && !b.NormTopK:
		return arch, api.Errorf(api.Unsupported, "the base does not normalise the gates of its experts (norm_topk_prob), llama.cpp always does: it would compute something else")
	case a.Rank < 1:
		return arch, bad("rank is %d, wanted at least 1", a.Rank)
	case !(a.Alpha <= math.MaxFloat32) || !(float32(a.Alpha) > 0):
		return arch, bad("alpha is %v, wanted a float32 above 0: llama.cpp takes 0 for a scale of 1", a.Alpha)
	case len(a.Factors) == 0:
		return arch, bad("the adapter has no factors")
	}
	return arch, nil
}

// site is a factor with its place in a file.
type site struct {
	factor *Factor
	layer  int    // math.MaxInt for the head
	module int    // index into modules
	weight string // the base's tensor

	heads  int  // the rows are interleaved within each of so many heads; 0: they stay
	repeat bool // the factor is shared by all experts, and repeated
}

// place finds a factor's tensor, and checks its shape.
func (a *Adapter) place(arch architecture, f *Factor) (site, error) {
	s := site{factor: f, layer: math.MaxInt, weight: "output.weight"}
	own := ""
	if f.Which != "A" && f.Which != "B" {
		return s, bad("module %s: factor %s, wanted A or B", quote(f.Module), quote(f.Which))
	}
	if f.Module == "lm_head" {
		if a.Base.Tied {
			return s, api.Errorf(api.Unsupported, "module lm_head: the head of this base is its embedding, and llama.cpp cannot adapt the one without the other; leave lm_head out to write the rest")
		}
	} else {
		layer, module, ok := split(f.Module)
		if !ok {
			return s, api.Errorf(api.Unsupported, "module %s has no place in a GGUF adapter", quote(f.Module))
		}
		m := modules[module]
		s.layer, s.module, s.weight, own = layer, module, fmt.Sprintf("blk.%d.%s.weight", layer, m.gguf), m.own
		switch {
		case own != "" && !arch.experts:
			return s, bad("module %s, but family %s has no experts", quote(f.Module), a.Base.Family)
		case own == "" && arch.experts && strings.HasPrefix(m.hf, "mlp."):
			return s, api.Errorf(api.Unsupported, "module %s: llama.cpp has experts in every layer of %s", quote(f.Module), arch.name)
		}
		if f.Which == "B" && arch.permuted && m.gguf == "attn_q" {
			s.heads = a.Base.Heads
		}
		if f.Which == "B" && arch.permuted && m.gguf == "attn_k" {
			s.heads = a.Base.KVHeads
		}
	}
	s.repeat = own != "" && own != f.Which
	return s, s.shaped(a, own)
}

// split takes the path of a layer's module apart.
func split(module string) (layer, index int, ok bool) {
	rest, ok := strings.CutPrefix(module, "model.layers.")
	if !ok {
		return 0, 0, false
	}
	number, rest, _ := strings.Cut(rest, ".")
	layer, err := strconv.Atoi(number)
	if err != nil || layer < 0 || strconv.Itoa(layer) != number {
		return 0, 0, false
	}
	for i, m := range modules {
		if m.hf == rest {
			return layer, i, true
		}
	}
	return 0, 0, false
}

// shaped checks a factor's shape. own is the factor that every expert has of its own, or empty.
func (s *site) shaped(a *Adapter, own string) error {
	f := s.factor
	dims, wanted := f.Shape, "[rank, in]"
	if f.Which == "B" {
		wanted = "[out, rank]"
	}
	if own != "" {
		copies := a.Base.Experts
		if s.repeat {
			copies = 1
		}
		wanted = fmt.Sprintf("[%d, %s", copies, wanted[1:])
		if len(dims) != 3 || dims[0] != copies {
			dims = nil
		} else {
			dims = dims[1:]
		}
	}
	rank, other := 0, 1
	if f.Which == "B" {
		rank, other = 1, 0
	}
	if len(dims) != 2 || dims[rank] != a.Rank || dims[other] < 1 {
		return bad("module %s: %s has shape %v, wanted %s with rank %d", quote(f.Module), f.Which, f.Shape, wanted, a.Rank)
	}
	if s.heads > 0 && dims[0]%(2*s.heads) != 0 {
		return bad("module %s: B has %d rows, wanted a multiple of twice the %d heads", quote(f.Module), dims[0], s.heads)
	}
	return nil
}

// paired checks that every weight has A and B, once each.
func paired(sites []site) error {
	have := map[string]int{} // bit 1: A, bit 2: B
	for _, s := range sites {
		bit := 1 << strings.Index("AB", s.factor.Which)
		if have[s.weight]&bit != 0 {
			return bad("module %s: factor %s appears twice", quote(s.factor.Module), s.factor.Which)
		}
		have[s.weight] |= bit
	}
	for _, s := range sites {
		if have[s.weight] != 3 {
			return bad("module %s has factor %s alone", quote(s.factor.Module), s.factor.Which)
		}
	}
	return nil
}

// tensor is the factor as it goes into the file.
func (s site) tensor(experts int) Tensor {
	shape, times := slices.Clone(s.factor.Shape), 1
	if s.repeat {
		shape[0], times = experts, experts
	}
	return Tensor{Name: s.weight + ".lora_" + strings.ToLower(s.factor.Which), Type: F32, Shape: shape, Write: func(w io.Writer) error {
		values, err := s.factor.Values()
		if err != nil {
			return fmt.Errorf("module %s: %s: %w", quote(s.factor.Module), s.factor.Which, err)
		}
		n := 1
		for _, d := range s.factor.Shape {
			n *= d
		}
		if len(values) != n {
			return bad("module %s: %s has %d values, its shape is %v", quote(s.factor.Module), s.factor.Which, len(values), s.factor.Shape)
		}
		for i, v := range values {
			if v-v != 0 {
				return bad("module %s: %s: value %d is %v: the training diverged or the adapter is damaged", quote(s.factor.Module), s.factor.Which, i, v)
			}
		}
		for range times {
			if err := s.write(w, values); err != nil {
				return err
			}
		}
		return nil
	}}
}

// write writes the values once, row by row.
func (s site) write(w io.Writer, values []float32) error {
	cols := s.factor.Shape[len(s.factor.Shape)-1]
	row := make([]byte, 0, 1<<16)
	for r := range len(values) / cols {
		if s.heads > 0 {
			r = interleaved(r, len(values)/cols/s.heads)
		}
		for _, v := range values[r*cols : (r+1)*cols] {
			if row = binary.LittleEndian.AppendUint32(row, math.Float32bits(v)); len(row) == cap(row) {
				if _, err := w.Write(row); err != nil {
					return err
				}
				row = row[:0]
			}
		}
	}
	_, err := w.Write(row)
	return err
}

// interleaved returns which row of Hugging Face's is row r of llama.cpp's, in heads of size rows: rows 2i and 2i+1 of a head are its
// rows i and i+size/2.
func interleaved(r, size int) int {
	i := r % size
	return r - i + i%2*(size/2) + i/2
}
