package lora

import (
	"fmt"
	"math"

	"tinkerlocal/engine/api"
	"tinkerlocal/kernels"
)

// Adapter is one trainable set of factors with gradients and Adam moments on a device. It is used by
// the device's goroutine only.
type Adapter struct {
	Config  api.LoraConfig
	Version int64 // +1 at every optimiser step and load
	Step    int64 // optimiser steps taken: Adam's t

	// Weights are the live factors. The DA and DB of their sites are one op's own gradient sum: see BeginOp.
	Weights *Weights

	dev                  kernels.Device
	sites                []Site
	slots                []slot
	flat, op, grad, m, v kernels.Tensor
}

// Bytes is the device memory an Adapter of n parameters takes: weights, an op's gradients, the sum of
// gradients, and two moments.
func Bytes(n int, dt kernels.DType) int64 { return 5 * int64(n) * int64(dt.Size()) }

// New makes an adapter: A as [Init] draws it, B zero, so a fresh adapter equals the base. The same seed gives the same factors on every device.
func New(dev kernels.Device, sites []Site, c api.LoraConfig, seed int64) (*Adapter, error) {
	if err := Check(c); err != nil {
		return nil, err
	}
	slots, total := layout(sites, c)
	c.Seed = &seed
	a := &Adapter{Config: c, dev: dev, sites: sites, slots: slots}
	for _, t := range []*kernels.Tensor{&a.flat, &a.op, &a.grad, &a.m, &a.v} {
		var err error
		if *t, err = kernels.NewTensor(dev, dev.Info().Act, total); err != nil {
			a.Free()
			return nil, fmt.Errorf("adapter of %d parameters: %w", total, err)
		}
	}
	values := make([]float32, total)
	init := NewInit(seed)
	for _, s := range slots {
		if s.isA {
			init.Fill(values[s.off:s.off+s.size], s.shape[len(s.shape)-1])
		}
	}
	if err := kernels.WriteFloats(dev, a.flat, values); err != nil {
		a.Free()
		return nil, err
	}
	a.Weights = newWeights(dev, sites, c, a.flat, a.op)
	return a, nil
}

// Free gives the device memory back.
func (a *Adapter) Free() {
	for _, t := range []kernels.Tensor{a.flat, a.op, a.grad, a.m, a.v} {
		a.dev.Free(t.Buf)
	}
}

// BeginOp clears the op gradient. Backward passes add to it; CommitOp then adds the whole to the
// adapter's gradient. An op that fails in the middle never commits, so a gradient holds whole ops only.
func (a *Adapter) BeginOp() error { return a.dev.Ops().Zero(a.op) }

// CommitOp adds the op gradient to the gradient.
func (a *Adapter) CommitOp() error { return a.dev.Ops().Add(a.grad, a.grad, a.op) }

// CheckAdam says whether p can be used.
func CheckAdam(p api.AdamParams) error {
	for _, f := range []struct {
		name   string
		v      float64
		lo, hi float64
	}{
		{"learning_rate", p.LearningRate, 0, math.MaxFloat64},
		{"beta1", p.Beta1, 0, math.Nextafter(1, 0)},
		{"beta2", p.Beta2, 0, math.Nextafter(1, 0)},
		{"eps", p.Eps, 0, math.MaxFloat64},
		{"weight_decay", p.WeightDecay, 0, math.MaxFloat64},
		{"grad_clip_norm", p.GradClipNorm, 0, math.MaxFloat64},
	} {
		if !(f.v >= f.lo && f.v <= f.hi) {
			if f.hi < 1 {
				return api.Errorf(api.BadRequest, "adam_params: %s is %v, wanted 0 <= %s < 1", f.name, f.v, f.name)
			}
			return api.Errorf(api.BadRequest, "adam_params: %s is %v, wanted a finite number >= 0", f.name, f.v)
		}
	}
	return nil
}

// OptimStep clips by the global norm (torch.nn.utils.clip_grad_norm_: factor max/(norm+1e-6), at most 1), takes one AdamW
// step, clears the gradient and counts the Version up. It returns the norm before clipping. A
// gradient that is not finite is dropped and reported, and weights and moments stay as they were.
func (a *Adapter) OptimStep(p api.AdamParams) (norm float64, err error) {
	if err := CheckAdam(p); err != nil {
		return 0, err
	}
	ops := a.dev.Ops()
	sum, err := ops.SumSquares(a.grad)
	if err != nil {
		return 0, err
	}
	norm = math.Sqrt(sum)
	if math.IsNaN(norm) || math.IsInf(norm, 0) {
		if err := ops.Zero(a.grad); err != nil {
			return norm, err
		}
		return norm, api.Errorf(api.BadRequest, "optim_step: the gradient norm is %v; the gradient was dropped and the weights are unchanged", norm)
	}
	scale := 1.0
	if p.GradClipNorm > 0 {
		scale = min(1, p.GradClipNorm/(norm+1e-6))
	}
	err = ops.AdamW(kernels.AdamWArgs{
		P: a.flat, G: a.grad, M: a.m, V: a.v,
		LR: p.LearningRate, Beta1: p.Beta1, Beta2: p.Beta2, Eps: p.Eps, WeightDecay: p.WeightDecay,
		GradScale: scale, Step: a.Step + 1,
	})
	if err != nil {
		return norm, err
	}
	a.Step++
	a.Version++
	return norm, nil
}

// Snapshot copies the weights on the device.
func (a *Adapter) Snapshot() (*Snapshot, error) {
	flat, err := kernels.NewTensor(a.dev, a.flat.DType, a.flat.Len())
	if err != nil {
		return nil, fmt.Errorf("adapter snapshot: %w", err)
	}
	if err := a.dev.Ops().Copy(flat, a.flat); err != nil {
		a.dev.Free(flat.Buf)
		return nil, err
	}
	return &Snapshot{Weights: newWeights(a.dev, a.sites, a.Config, flat, kernels.Tensor{}), Config: a.Config, Version: a.Version, sites: a.sites}, nil
}

// Gradients downloads the accumulated gradient of every factor, named as the factor.
func (a *Adapter) Gradients() ([]Tensor, error) { return tensors(a.dev, a.grad, a.slots) }

// Load replaces the weights with factors from the host, scaled as in [NewSnapshot], with fresh moments and
// no gradient.
func (a *Adapter) Load(ts []Tensor, scale float64) error {
	values, err := gather(a.slots, a.flat.Len(), ts, Fold(a.Config, scale), whole)
	if err != nil {
		return err
	}
	if err := kernels.WriteFloats(a.dev, a.flat, values); err != nil {
		return err
	}
	for _, t := range []kernels.Tensor{a.op, a.grad, a.m, a.v} {
		if err := a.dev.Ops().Zero(t); err != nil {
			return err
		}
	}
	a.Step = 0
	a.Version++
	return nil
}
