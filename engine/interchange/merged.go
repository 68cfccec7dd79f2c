package interchange

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/model"
	"tinkerlocal/kernels"
)

// MergedOptions say what a merged model is to be. The zero value is the default.
type MergedOptions struct {
	// DType is F32 or BF16, for every floating-point tensor. 0: each as the base has it.
	DType kernels.DType
	// DropUnembed leaves the adapter's factors of the output projection out.
	DropUnembed bool
	// Device multiplies the factors where the result is rounded to 16 bits, several times faster: products, and W with them, are then summed in
	// float32. It must be the caller's alone while the export is written. nil: they are summed in float64, without a device.
	Device kernels.Device
}

// Names of a model folder's files.
const (
	mergedConfig  = "config.json"
	mergedWeights = "model.safetensors"
	mergedIndex   = "model.safetensors.index.json"
	embedWeight   = "model.embed_tokens.weight"
	headModule    = "lm_head"
)

// PlanMerged plans the base model with the adapter merged into its weights, as a Hugging Face folder: for every adapted module
//
//	W' = W + scale·B·A
//
// (Hu et al. 2021, arXiv 2106.09685, section 4.1), rounded once, to the nearest and ties to even. Tensor names, files and types are the base's, and tensors
// without a factor have the base's bytes. Shared-outer factors of experts are merged into every expert's weight. Each factor has its place, or
// the plan fails and names it. Factors of the output projection go to lm_head; where the base's head is the embedding, the merged model gets a
// head of its own, since the embedding's other side must not change.
//
// The base must stay open until the export is written. It is read as it is written, a block of rows at a time.
func PlanMerged(ctx context.Context, a *Adapter, base *hf.Checkpoint, o MergedOptions) (*Export, error) {
	if err := ctx.Err(); err != nil {
		return nil, api.Errorf(api.Cancelled, "plan of a merged model: %w", context.Cause(ctx))
	}
	m, err := planMerged(a, base, o)
	if err != nil {
		return nil, fmt.Errorf("merge into %s: %w", base.Name, err)
	}
	return &Export{Format: "merged", Bytes: m.bytes, Notes: m.notes, write: m.write}, nil
}

// merged is a planned merge.
type merged struct {
	a    *Adapter
	base *hf.Checkpoint
	o    MergedOptions
	spec *model.Spec

	modules map[string]*module
	tensors map[string]*mergedTensor
	shards  []shard     // in the order of their names
	small   []smallFile // the other files, in the order in which they are written
	ownHead bool        // the merged model's head is no longer the embedding

	bytes, weightBytes int64
	notes              []string

	spot func(tensor string, block []byte) // tests damage a block here; nil
}

// mergedTensor is a tensor of the merged model, seen as a matrix.
type mergedTensor struct {
	name    string
	from    hf.Tensor // of the base
	dtype   kernels.DType
	stored  string
	cols    int
	patches []patch // by row, disjoint; none: the base's values
}

// patch is rows of a tensor to which one expert's (or a plain module's) factors belong.
type patch struct {
	module    *module
	expert    int
	row, rows int
}

type shard struct {
	file    string
	tensors []*mergedTensor
	sources []hf.Source // names, types and shapes
	bytes   int64
}

func planMerged(a *Adapter, base *hf.Checkpoint, o MergedOptions) (*merged, error) {
	if _, ok := storedName[o.DType]; !ok && o.DType != 0 {
		return nil, api.Errorf(api.BadRequest, "dtype is %s, wanted F32, BF16 or the base's own", o.DType)
	}
	if math.IsNaN(a.Scale) || math.IsInf(a.Scale, 0) {
		return nil, api.Errorf(api.BadRequest, "the adapter's scale is %v", a.Scale)
	}
	if err := lora.Check(a.Lora); err != nil {
		return nil, err
	}
	spec, err := model.NewSpec(base.Config)
	if err != nil {
		return nil, err
	}
	m := &merged{a: a, base: base, o: o, spec: spec, tensors: map[string]*mergedTensor{}}
	if m.modules, err = matchModules(a, spec.Sites()); err != nil {
		return nil, err
	}
	for _, name := range base.Names() {
		t, _ := base.Tensor(name)
		m.add(name, t)
	}
	if err := m.placeAll(); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(slices.Collect(maps.Values(m.tensors)), func(t *mergedTensor) bool { return len(t.patches) > 0 }) {
		return nil, api.Errorf(api.BadRequest, "nothing is left to merge")
	}
	if err := m.layShards(); err != nil {
		return nil, err
	}
	return m, m.planFiles()
}

// add adds a tensor with the base's values.
func (m *merged) add(name string, from hf.Tensor) {
	t := &mergedTensor{name: name, from: from, dtype: from.DType, stored: from.Stored, cols: 1}
	if n := len(from.Shape); n > 0 {
		t.cols = from.Shape[n-1]
	}
	if isFloat(from.DType) && m.o.DType != 0 {
		t.dtype, t.stored = m.o.DType, storedName[m.o.DType]
	}
	m.tensors[name] = t
}

// storedName is what safetensors call the types that MergedOptions.DType may be.
var storedName = map[kernels.DType]string{kernels.F32: "F32", kernels.BF16: "BF16"}

// isFloat says whether weights of this type can be merged and converted.
func isFloat(d kernels.DType) bool { return d == kernels.F32 || d == kernels.BF16 || d == kernels.F16 }

// placeAll gives every module's factors their rows.
func (m *merged) placeAll() error {
	sites, missing := 0, 0
	for _, s := range m.spec.Sites() {
		for _, p := range s.Parts {
			mod := m.modules[p.Module]
			if mod == nil {
				if s.Kind == lora.Attn && m.a.Lora.TrainAttn || s.Kind == lora.MLP && m.a.Lora.TrainMLP || s.Kind == lora.Unembed && m.a.Lora.TrainUnembed {
					missing++
				}
				continue
			}
			sites++
			if err := m.place(mod); err != nil {
				return fmt.Errorf("adapter module %s: %w", mod.name, err)
			}
		}
	}
	if sites != len(m.modules) { // no factor may be lost without a word, whatever is changed here
		return api.Errorf(api.Internal, "%d of the adapter's %d modules have a place", sites, len(m.modules))
	}
	if missing > 0 {
		m.note("The adapter has no factors for %d of the %d modules that its configuration trains; they keep the base's weights.", missing, missing+sites)
	}
	for _, t := range m.tensors {
		slices.SortFunc(t.patches, func(a, b patch) int { return cmp.Compare(a.row, b.row) })
	}
	m.describe()
	return nil
}

// place finds the tensors that hold a module's weight. Experts lie in either of two layouts: see engine/model, load_experts.go.
func (m *merged) place(mod *module) error {
	if mod.name == headModule {
		return m.placeHead(mod)
	}
	if mod.experts == 0 {
		return m.patch(mod.name+".weight", []int{mod.out, mod.in}, patch{module: mod, rows: mod.out})
	}
	at := strings.LastIndexByte(mod.name, '.') + 1
	prefix, which := mod.name[:at], mod.name[at:]
	names := map[string]struct {
		own, fused  string
		parts, part int // of the fused tensor's rows of one expert
	}{
		"w1": {"gate_proj", "gate_up_proj", 2, 0},
		"w3": {"up_proj", "gate_up_proj", 2, 1},
		"w2": {"down_proj", "down_proj", 1, 0},
	}
	n, ok := names[which]
	if !ok {
		return api.Errorf(api.Unsupported, "wanted experts' modules w1, w2 or w3")
	}
	_, fused := m.base.Tensor(prefix + "gate_up_proj")
	for e := range mod.experts {
		p := patch{module: mod, expert: e, rows: mod.out}
		name, shape := fmt.Sprintf("%s%d.%s.weight", prefix, e, n.own), []int{mod.out, mod.in}
		if fused {
			name, shape = prefix+n.fused, []int{mod.experts, n.parts * mod.out, mod.in}
			p.row = (e*n.parts + n.part) * mod.out
		}
		if err := m.patch(name, shape, p); err != nil {
			return err
		}
	}
	return nil
}

func (m *merged) placeHead(mod *module) error {
	shape, p := []int{mod.out, mod.in}, patch{module: mod, rows: mod.out}
	const name = headModule + ".weight"
	switch {
	case m.o.DropUnembed:
		m.note("The adapter's factors of the output projection are left out, as asked for: the merged model is not the adapter's.")
		return nil
	case !m.spec.Tied:
		return m.patch(name, shape, p)
	}
	embed, err := m.base.Want(embedWeight, shape...)
	if err != nil {
		return err
	}
	m.add(name, embed) // a head that lies beside the embedding although it is tied is not looked at by loaders
	m.ownHead = true
	t := m.tensors[name]
	t.patches = []patch{p}
	m.note("The base's output projection is its embedding; the merged model has one of its own (lm_head.weight, %d bytes; tie_word_embeddings is false), so that "+
		"the input side stays as it is.", int64(t.from.Len())*int64(t.dtype.Size()))
	return nil
}

// patch notes that p belongs to a tensor of this shape.
func (m *merged) patch(name string, shape []int, p patch) error {
	if _, err := m.base.Want(name, shape...); err != nil {
		return err
	}
	t := m.tensors[name]
	t.patches = append(t.patches, p)
	return nil
}

// layShards puts the tensors into files as they are in the base.
func (m *merged) layShards() error {
	byFile := map[string]*shard{}
	for _, t := range m.tensors {
		s := byFile[t.from.File]
		if s == nil {
			s = &shard{file: t.from.File}
			byFile[s.file] = s
		}
		s.tensors = append(s.tensors, t)
	}
	for _, s := range byFile {
		slices.SortFunc(s.tensors, func(a, b *mergedTensor) int { return strings.Compare(a.name, b.name) })
		for _, t := range s.tensors {
			s.sources = append(s.sources, hf.Source{Name: t.name, Stored: t.stored, Shape: t.from.Shape})
		}
		var err error
		if s.bytes, err = hf.SafetensorsSize(s.sources, safetensorsNotes); err != nil {
			return fmt.Errorf("%s: %w", s.file, err)
		}
		m.weightBytes += s.bytes
		m.shards = append(m.shards, *s)
	}
	slices.SortFunc(m.shards, func(a, b shard) int { return strings.Compare(a.file, b.file) })
	return nil
}

// safetensorsNotes is the metadata without which some versions of transformers refuse a file.
var safetensorsNotes = map[string]string{"format": "pt"}

func (m *merged) note(format string, args ...any) {
	m.notes = append(m.notes, fmt.Sprintf(format, args...))
}

// describe adds the notes on types.
func (m *merged) describe() {
	changed, short := 0, 0
	for _, t := range m.tensors {
		if t.dtype != t.from.DType {
			changed++
		}
		if len(t.patches) > 0 && t.dtype.Size() == 2 {
			short++
		}
	}
	if changed > 0 {
		m.note("%d tensors are converted to %s.", changed, storedName[m.o.DType])
	}
	if short > 0 {
		m.note("%d merged tensors are rounded to 16 bits: of an update much smaller than the weight it is added to, part is lost. F32 keeps it, with twice the bytes.", short)
	}
}
