package lora

import (
	"fmt"
	"math"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/kernels"
)

// Weights is one set of adapter factors on a device, as the model's forward wants them: one
// *kernels.LoRA per site of the base, nil where the adapter has none.
type Weights struct {
	Rank  int
	Sites []*kernels.LoRA

	flat  kernels.Tensor
	slots []slot
	dev   kernels.Device
}

// newWeights lays views over flat (and grad, which may be the zero Tensor).
func newWeights(dev kernels.Device, sites []Site, c api.LoraConfig, flat, grad kernels.Tensor) *Weights {
	slots, _ := layout(sites, c)
	w := &Weights{Rank: c.Rank, Sites: make([]*kernels.LoRA, len(sites)), flat: flat, slots: slots, dev: dev}
	size := int64(flat.DType.Size())
	view := func(t kernels.Tensor, off, rows, cols int) kernels.Tensor {
		if t.None() {
			return kernels.Tensor{}
		}
		return kernels.View(t.Buf, t.Off+int64(off)*size, t.DType, rows, cols)
	}
	for _, s := range slots {
		if w.Sites[s.site] != nil {
			continue // the first slot of a site is where its stacked A begins
		}
		site := sites[s.site]
		nA, nB := site.copies()
		aRows, bRows := nA*len(site.Parts)*c.Rank, nB*site.Out()
		bOff := s.off + aRows*site.In
		w.Sites[s.site] = &kernels.LoRA{
			Rank:  c.Rank,
			Scale: float32(api.LoraAlpha) / float32(c.Rank),
			A:     view(flat, s.off, aRows, site.In),
			B:     view(flat, bOff, bRows, c.Rank),
			DA:    view(grad, s.off, aRows, site.In),
			DB:    view(grad, bOff, bRows, c.Rank),
		}
	}
	return w
}

// Tensors downloads every factor, in layout order.
func (w *Weights) Tensors() ([]Tensor, error) { return tensors(w.dev, w.flat, w.slots) }

func tensors(dev kernels.Device, flat kernels.Tensor, slots []slot) ([]Tensor, error) {
	values, err := kernels.ReadFloats(dev, flat)
	if err != nil {
		return nil, fmt.Errorf("read adapter: %w", err)
	}
	out := make([]Tensor, len(slots))
	for i, s := range slots {
		out[i] = Tensor{Name: s.name, Shape: slices.Clone(s.shape), Values: values[s.off : s.off+s.size : s.off+s.size]}
	}
	return out, nil
}

// Snapshot is an immutable copy of an adapter's weights; later training never changes it.
type Snapshot struct {
	*Weights
	Config  api.LoraConfig
	Version int64

	sites []Site
}

// NewSnapshot puts factors from a file on the device. ts must hold factors that c has on sites, in any order; a module of which
// neither factor is there is not adapted. scale is folded into B when it differs from LoraAlpha/rank.
func NewSnapshot(dev kernels.Device, sites []Site, c api.LoraConfig, ts []Tensor, scale float64) (*Snapshot, error) {
	if err := Check(c); err != nil {
		return nil, err
	}
	slots, total := layout(sites, c)
	values, err := gather(slots, total, ts, Fold(c, scale), partial)
	if err != nil {
		return nil, err
	}
	flat, err := kernels.NewTensor(dev, dev.Info().Act, total)
	if err != nil {
		return nil, fmt.Errorf("adapter snapshot: %w", err)
	}
	if err := kernels.WriteFloats(dev, flat, values); err != nil {
		dev.Free(flat.Buf)
		return nil, err
	}
	return &Snapshot{Weights: newWeights(dev, sites, c, flat, kernels.Tensor{}), Config: c, sites: sites}, nil
}

// Free gives the device memory back.
func (s *Snapshot) Free() { s.dev.Free(s.flat.Buf) }

// Bytes is the device memory that it takes, and the length of what Save gives.
func (s *Snapshot) Bytes() int64 { return s.flat.Bytes() }

// Save downloads the weights, to the bit.
func (s *Snapshot) Save() ([]byte, error) {
	b := make([]byte, s.flat.Bytes())
	if err := s.dev.Download(b, s.flat); err != nil {
		return nil, fmt.Errorf("read adapter snapshot: %w", err)
	}
	return b, nil
}

// Restore puts what Save gave on the device again after Free. Its Weights stay the same pointer.
func (s *Snapshot) Restore(b []byte) error {
	if int64(len(b)) != s.flat.Bytes() {
		return fmt.Errorf("restore adapter snapshot: got %d bytes, wanted %d", len(b), s.flat.Bytes())
	}
	flat, err := kernels.NewTensor(s.dev, s.flat.DType, s.flat.Len())
	if err != nil {
		return fmt.Errorf("adapter snapshot: %w", err)
	}
	if err := s.dev.Upload(flat, b); err != nil {
		s.dev.Free(flat.Buf)
		return fmt.Errorf("restore adapter snapshot: %w", err)
	}
	*s.Weights = *newWeights(s.dev, s.sites, s.Config, flat, kernels.Tensor{})
	return nil
}

// Fold is what B is multiplied by when an adapter whose B·A is scaled by scale becomes one of ours, scaled by LoraAlpha/rank. The product
// is rounded once; for a power of two it is exact.
func Fold(c api.LoraConfig, scale float64) float64 { return Alpha(c, scale) / api.LoraAlpha }

// Alpha is scale times the rank: a whole number where one gives this scale. (32/49·49 is not 32 in floating point.)
func Alpha(c api.LoraConfig, scale float64) float64 {
	alpha := scale * float64(c.Rank)
	if n := math.Round(alpha); n/float64(c.Rank) == scale {
		return n
	}
	return alpha
}

// What gather does about modules that are not there.
const (
	whole   = false // refuse
	partial = true  // leave both factors zero
)

// gather puts named tensors in layout order; B factors are multiplied by scaleB.
func gather(slots []slot, total int, ts []Tensor, scaleB float64, lacking bool) ([]float32, error) {
	byName := make(map[string]Tensor, len(ts))
	adapted := map[string]bool{}
	for _, t := range ts {
		byName[t.Name] = t
		adapted[Module(t.Name)] = true
	}
	values := make([]float32, total)
	for _, s := range slots {
		t, ok := byName[s.name]
		if !ok && lacking && !adapted[Module(s.name)] {
			continue
		}
		if !ok {
			return nil, api.Errorf(api.BadRequest, "adapter has no tensor %s", s.name)
		}
		if !slices.Equal(t.Shape, s.shape) || len(t.Values) != s.size {
			return nil, api.Errorf(api.BadRequest, "adapter tensor %s has shape %v, wanted %v", s.name, t.Shape, s.shape)
		}
		delete(byName, s.name)
		dst := values[s.off : s.off+len(t.Values)]
		copy(dst, t.Values)
		if !s.isA && scaleB != 1 {
			for i, v := range dst {
				dst[i] = float32(float64(v) * scaleB)
				if math.IsInf(float64(dst[i]), 0) {
					return nil, api.Errorf(api.BadRequest, "adapter tensor %s: value %d is %v, which times %v is too large for a float32", s.name, i, v, scaleB)
				}
			}
		}
	}
	for name := range byName {
		return nil, api.Errorf(api.BadRequest, "adapter tensor %s belongs to no module of this base model with these settings", name)
	}
	return values, nil
}
