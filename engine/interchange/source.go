package interchange

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
	"tinkerlocal/kernels"
)

// Source is an adapter that another program has written, opened and checked by itself; whether a base model has its modules, [Source.Fit]
// and [Import] find out. The tensors stay in their files until Close, which must not be changed meanwhile.
type Source struct {
	BaseModel string         // name or path; may be empty
	Lora      api.LoraConfig // with the flags of those modules that are there
	Scale     float64        // of B·A·x
	Notes     []string       // what was passed over

	// Of an archive with training state.
	Optimizer     bool // the moments are there
	Version, Step int64
	Plugins       []api.PluginRecord // custom losses that it was trained with
	Metadata      map[string]string  // the run's

	CheckpointMetadata map[string]string // the checkpoint's

	factors map[string]*storedFactor // by the engine's names
	moments map[string]hf.Tensor     // by the engine's names, with their prefixes
	closers []func() error
}

// storedFactor is a factor in its file: one tensor, or one for each expert.
type storedFactor struct {
	name  string // of the first in the file
	shape []int  // of the whole
	parts []hf.Tensor
	first int // of the parts that count: all, or 1 where the experts share it
}

// OpenPEFT opens a PEFT folder. What is not plain LoRA on modules that can be adapted here is refused by name.
func OpenPEFT(dir string) (*Source, error) {
	a, closeFile, err := hf.OpenAdapter(dir)
	if err != nil {
		return nil, err
	}
	s := &Source{closers: []func() error{closeFile}}
	if err := s.take(a); err != nil {
		s.Close()
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return s, nil
}

// Close closes the files.
func (s *Source) Close() error {
	var errs []error
	for _, f := range slices.Backward(s.closers) {
		errs = append(errs, f())
	}
	s.closers, s.factors, s.moments = nil, nil, nil
	return errors.Join(errs...)
}

// take finds the engine's names of an adapter's tensors.
func (s *Source) take(a *hf.Adapter) error {
	s.BaseModel, s.Lora.Rank, s.Scale = a.BaseModel, a.Rank, a.Scale()
	s.factors = map[string]*storedFactor{}
	split := map[string]map[int]hf.Tensor{} // of experts, by number
	for _, t := range a.Tensors {
		name, expert, err := engineName(t.Name)
		if err != nil {
			return err
		}
		k, _ := kindOf(name)
		train(&s.Lora, k)
		if expert >= 0 {
			if split[name] == nil {
				split[name] = map[int]hf.Tensor{}
			}
			split[name][expert] = t.Stored // the names of a file differ, so it is the only one
			continue
		}
		if other := s.factors[name]; other != nil {
			return api.Errorf(api.BadRequest, "adapter tensors %s and %s are two names of the same factor", clip(other.name), clip(t.Name))
		}
		s.factors[name] = &storedFactor{t.Name, t.Shape, []hf.Tensor{t.Stored}, 1}
	}
	for _, name := range sortedNames(split) {
		f, err := joined(name, split[name])
		if err != nil {
			return err
		}
		if other := s.factors[name]; other != nil {
			return api.Errorf(api.BadRequest, "adapter tensors %s and %s are two names of the same factor", clip(other.name), clip(f.name))
		}
		s.factors[name] = f
	}
	return nil
}

// joined makes one factor of those of each expert. What the experts share here must be equal there.
func joined(name string, experts map[int]hf.Tensor) (*storedFactor, error) {
	f := &storedFactor{first: len(experts)}
	if shares(name) {
		f.first = 1
	}
	for e := range len(experts) {
		t, ok := experts[e]
		zero := experts[0]
		switch {
		case !ok:
			return nil, api.Errorf(api.Unsupported, "adapter factor %s has no expert %d, but one of a higher number; wanted all experts", name, e)
		case !slices.Equal(t.Shape, zero.Shape):
			return nil, api.Errorf(api.BadRequest, "adapter tensor %s has shape %v, that of expert 0 has %v", clip(t.Name), t.Shape, zero.Shape)
		case f.first == 1 && (t.DType != zero.DType || !bytes.Equal(t.Data, zero.Data)):
			return nil, api.Errorf(api.Unsupported,
				"adapter tensor %s differs from that of expert 0: of adapters on experts, only those are supported whose factors on the side of the hidden size are one for all experts", clip(t.Name))
		}
		f.parts = append(f.parts, t)
	}
	f.name, f.shape = f.parts[0].Name, append([]int{f.first}, f.parts[0].Shape...)
	return f, nil
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// floats writes the factor's values as little-endian float32 to dst, times scale, each rounded once.
func (f *storedFactor) floats(dst []byte, scale float64) error {
	for _, t := range f.parts[:f.first] {
		if t.DType == kernels.F32 && scale == 1 {
			dst = dst[copy(dst, t.Data):]
			continue
		}
		for _, v := range t.Float32s() {
			x := float32(float64(v) * scale)
			if x-x != 0 {
				return api.Errorf(api.BadRequest, "adapter tensor %s: %v times %v is too large for a float32", clip(t.Name), v, scale)
			}
			binary.LittleEndian.PutUint32(dst, math.Float32bits(x))
			dst = dst[4:]
		}
	}
	return nil
}

// bytes reads a factor or a moment as it is, as little-endian float32.
func (s *Source) bytes(t api.TensorInfo) ([]byte, error) {
	if m, ok := s.moments[t.Name]; ok && slices.Equal(m.Shape, t.Shape) {
		return m.Data, nil
	}
	f, ok := s.factors[t.Name]
	if !ok || !slices.Equal(f.shape, t.Shape) {
		return nil, api.Errorf(api.BadRequest, "there is no tensor %s%v", t.Name, t.Shape)
	}
	data := make([]byte, 4*length(t))
	return data, f.floats(data, 1)
}

// Tensors reads all factors as they are: some modules may be missing, and Scale may be any.
func (s *Source) Tensors() ([]lora.Tensor, error) {
	var out []lora.Tensor
	for _, name := range sortedNames(s.factors) {
		t := api.TensorInfo{Name: name, DType: "F32", Shape: s.factors[name].shape}
		data, err := s.bytes(t)
		if err != nil {
			return nil, err
		}
		values := make([]float32, len(data)/4)
		for i := range values {
			values[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
		}
		out = append(out, lora.Tensor{Name: name, Shape: t.Shape, Values: values})
	}
	return out, nil
}

// Fit makes an adapter of the engine of a source: every factor that its flags stand for on sites (those of [model.Spec.Sites]), in the
// order of checkpoints, scaled by LoraAlpha/rank. A module that the source lacks gets the A that a fresh adapter of this seed has there, and
// B zero: the forward is the same, and training can go on. s must stay open while the adapter is in use. The adapter is used by one goroutine.
//
// Modules that the base does not have, and other shapes, are BadRequest.
func (s *Source) Fit(sites []lora.Site, seed int64) (*Adapter, error) {
	if err := lora.Check(s.Lora); err != nil {
		return nil, err
	}
	a := &Adapter{BaseModel: s.BaseModel, Lora: s.Lora, Scale: api.LoraAlpha / float64(s.Lora.Rank)}
	fold := lora.Fold(s.Lora, s.Scale)
	if s.Optimizer && fold != 1 {
		return nil, api.Errorf(api.Unsupported, "the adapter's scale is %v, wanted %v for rank %d: the moments of another cannot be used", s.Scale, a.Scale, s.Lora.Rank)
	}
	known, begins, n := map[string]bool{}, map[string]int{}, 0
	adapted := map[string]bool{}
	for name := range s.factors {
		adapted[lora.Module(name)] = true
	}
	for _, f := range lora.Factors(sites, s.Lora) {
		known[f.Name] = true
		have, ok := s.factors[f.Name]
		switch {
		case ok && !slices.Equal(have.shape, f.Shape):
			return nil, api.Errorf(api.BadRequest, "adapter tensor %s has shape %v, the base model wants %v", clip(have.name), have.shape, f.Shape)
		case !ok && adapted[lora.Module(f.Name)]:
			return nil, api.Errorf(api.BadRequest, "the adapter has no tensor %s, only its partner", f.Name)
		case !ok && s.Optimizer:
			return nil, api.Errorf(api.BadRequest, "the training state has no tensor %s", f.Name)
		}
		if f.IsA {
			begins[f.Name] = n
			n += f.Size
		}
		a.Factors = append(a.Factors, api.TensorInfo{Name: f.Name, DType: "F32", Shape: f.Shape})
	}
	for _, name := range sortedNames(s.factors) {
		if !known[name] {
			return nil, api.Errorf(api.BadRequest, "adapter tensor %s belongs to no module of the base model", clip(s.factors[name].name))
		}
	}
	fresh := freshFactors{seed: seed, begins: begins}
	a.read = func(ctx context.Context, name string, dst []byte) error {
		f, ok := s.factors[name]
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case ok && strings.HasSuffix(name, ".lora_B.weight"):
			return f.floats(dst, fold)
		case ok:
			return f.floats(dst, 1)
		}
		fresh.fill(name, dst, a)
		return nil
	}
	return a, nil
}

// freshFactors are those of a fresh adapter, drawn when they are asked for. It is fast when that is in their order.
type freshFactors struct {
	seed   int64
	begins map[string]int // place of an A in the random numbers
	init   *lora.Init
	at     int
}

// fill writes the values of a fresh factor of a.
func (f *freshFactors) fill(name string, dst []byte, a *Adapter) {
	begin, isA := f.begins[name]
	if !isA {
		clear(dst)
		return
	}
	if f.init == nil || f.at > begin {
		f.init, f.at = lora.NewInit(f.seed), 0
	}
	f.init.Skip(begin - f.at)
	i := slices.IndexFunc(a.Factors, func(t api.TensorInfo) bool { return t.Name == name })
	shape := a.Factors[i].Shape
	values := make([]float32, len(dst)/4)
	f.init.Fill(values, shape[len(shape)-1])
	f.at = begin + len(values)
	for i, v := range values {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
	}
}
