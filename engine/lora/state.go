package lora

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/kernels"
)

// State is an immutable copy of an adapter on the device: its factors, and Adam's moments if asked for. It is read in
// pieces, so that nobody waits long for the device.
type State struct {
	Config        api.LoraConfig
	Version, Step int64
	Tensors       []StateTensor

	dev    kernels.Device
	arenas []kernels.Tensor // its own
}

// StateTensor is one factor, or one of its moments, in a State.
type StateTensor struct {
	Name  string // the factor's, with MomentM or MomentV before it for its moments
	Shape []int
	Size  int // values

	arena kernels.Tensor
	off   int
}

// Prefixes of the names of moments.
const (
	MomentM = "adam_m/" // running mean of the gradient
	MomentV = "adam_v/" // running mean of its square
)

// StateBytes is the device memory that a State of n parameters takes.
func StateBytes(n int, dt kernels.DType, moments bool) int64 {
	if moments {
		n *= 3
	}
	return int64(n) * int64(dt.Size())
}

// Capture copies the adapter on the device. The gradient is not part of it.
func (a *Adapter) Capture(moments bool) (*State, error) { return a.state(moments, true) }

// Live is the adapter itself as a State, without a copy: it changes when the adapter does.
func (a *Adapter) Live(moments bool) *State {
	s, _ := a.state(moments, false) // only the copy can fail
	return s
}

func (a *Adapter) state(moments, owned bool) (*State, error) {
	s := &State{Config: a.Config, Version: a.Version, Step: a.Step, dev: a.dev}
	parts := []struct {
		prefix string
		from   kernels.Tensor
	}{{"", a.flat}, {MomentM, a.m}, {MomentV, a.v}}
	if !moments {
		parts = parts[:1]
	}
	for _, p := range parts {
		t := p.from
		if owned {
			var err error
			if t, err = kernels.NewTensor(a.dev, p.from.DType, p.from.Len()); err == nil {
				s.arenas = append(s.arenas, t)
				err = a.dev.Ops().Copy(t, p.from)
			}
			if err != nil {
				s.Free()
				return nil, fmt.Errorf("copy of the adapter: %w", err)
			}
		}
		for _, x := range a.slots {
			s.Tensors = append(s.Tensors, StateTensor{p.prefix + x.name, slices.Clone(x.shape), x.size, t, x.off})
		}
	}
	return s, nil
}

// Bytes is the size of all tensors as float32.
func (s *State) Bytes() (n int64) {
	for _, t := range s.Tensors {
		n += 4 * int64(t.Size)
	}
	return n
}

// Read downloads values from value lo of t on, as little-endian float32 that fill dst.
func (s *State) Read(t StateTensor, lo int, dst []byte) error {
	n := len(dst) / 4
	part := kernels.View(t.arena.Buf, t.arena.Off+int64(t.off+lo)*int64(t.arena.DType.Size()), t.arena.DType, n)
	if t.arena.DType == kernels.F32 {
		return s.dev.Download(dst, part)
	}
	values, err := kernels.ReadFloats(s.dev, part)
	for i, v := range values {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
	}
	return err
}

// Free gives the device memory back.
func (s *State) Free() {
	for _, t := range s.arenas {
		s.dev.Free(t.Buf)
	}
	s.arenas = nil
}

// Restore replaces weights, moments and step: training goes on as from where ts were captured. m and v are named as the
// factors are. The gradient is dropped.
func (a *Adapter) Restore(ts, m, v []Tensor, step int64) error {
	if step < 0 {
		return api.Errorf(api.BadRequest, "the step is %d, wanted 0 or more", step)
	}
	var values [3][]float32
	for i, x := range [][]Tensor{ts, m, v} {
		var err error
		if values[i], err = gather(a.slots, a.flat.Len(), x, 1, whole); err != nil {
			return fmt.Errorf("%s: %w", [...]string{"weights", "first moments", "second moments"}[i], err)
		}
	}
	for i, t := range []kernels.Tensor{a.flat, a.m, a.v} {
		if err := kernels.WriteFloats(a.dev, t, values[i]); err != nil {
			return err
		}
	}
	for _, t := range []kernels.Tensor{a.op, a.grad} {
		if err := a.dev.Ops().Zero(t); err != nil {
			return err
		}
	}
	a.Step = step
	a.Version++
	return nil
}

// DeviceBytes is the device memory it holds.
func (s *State) DeviceBytes() (n int64) {
	for _, t := range s.arenas {
		n += t.Bytes()
	}
	return n
}
