package model

import (
	"math"

	"tinkerlocal/kernels"
)

// ropeTable holds cos and sin [positions, C/2]. It grows with the longest sequence seen, so a model with a
// context of a million positions does not pay for them at load.
type ropeTable struct {
	cos, sin kernels.Tensor
}

const ropeStep = 1024 // positions the table grows by

// grow makes the table cover positions [0, n).
func (r *ropeTable) grow(dev kernels.Device, s *Spec, n int) error {
	if !r.cos.None() && r.cos.Shape[0] >= n {
		return nil
	}
	n = (max(n, 2*r.cos.Shape[0]) + ropeStep - 1) / ropeStep * ropeStep
	half := s.HeadDim / 2
	cos, sin := make([]float32, n*half), make([]float32, n*half)
	for c := range half {
		for p := range n {
			a := float64(s.ropeAngle(p, c))
			cos[p*half+c], sin[p*half+c] = float32(math.Cos(a)), float32(math.Sin(a))
		}
	}
	r.free(dev)
	for _, t := range []struct {
		dst *kernels.Tensor
		src []float32
	}{{&r.cos, cos}, {&r.sin, sin}} {
		var err error
		if *t.dst, err = kernels.NewTensor(dev, dev.Info().Act, n, half); err != nil {
			return err
		}
		if err := kernels.WriteFloats(dev, *t.dst, t.src); err != nil {
			return err
		}
	}
	return nil
}

func (r *ropeTable) free(dev kernels.Device) {
	dev.Free(r.cos.Buf)
	dev.Free(r.sin.Buf)
	*r = ropeTable{}
}
