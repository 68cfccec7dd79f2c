package model

import (
	"fmt"

	"tinkerlocal/engine/hf"
	"tinkerlocal/kernels"
)

// experts packs the experts of one layer. Two layouts exist: a tensor per expert and projection, as published checkpoints have it
// (experts.3.gate_proj.weight, [F,D]), and one tensor for all, as transformers 5 holds it in memory (experts.gate_up_proj [E,2F,D] with
// the gate's rows first, experts.down_proj [E,D,F]).
func (ld *loader) experts(prefix string, s *Spec) *kernels.Experts {
	w := &kernels.Experts{GateUp: make([]kernels.Weight, s.Experts), Down: make([]kernels.Weight, s.Experts)}
	D, F := s.Hidden, s.ExpertFFN
	if _, fused := ld.src.Tensor(prefix + "gate_up_proj"); !fused {
		for e := range s.Experts {
			p := fmt.Sprintf("%s%d.", prefix, e)
			w.GateUp[e] = ld.weight(part{p + "gate_proj.weight", F, D}, part{p + "up_proj.weight", F, D})
			w.Down[e] = ld.weight(part{p + "down_proj.weight", D, F})
			if ld.err != nil {
				break
			}
		}
		return w
	}
	for _, m := range []struct {
		name       string
		into       []kernels.Weight
		parts      int
		rows, cols int
	}{{prefix + "gate_up_proj", w.GateUp, 2, F, D}, {prefix + "down_proj", w.Down, 1, D, F}} {
		t, ok := ld.tensor(m.name, s.Experts, m.parts*m.rows, m.cols)
		if !ok {
			return w
		}
		for e := range m.into {
			m.into[e] = ld.pack(m.name, slicesOf(t, e*m.parts, m.parts, m.rows, m.cols))
			if ld.err != nil {
				return w
			}
		}
		ld.src.Release(m.name)
	}
	return w
}

// slicesOf returns n matrices of a tensor that holds many, from number i on.
func slicesOf(t hf.Tensor, i, n, rows, cols int) []kernels.Matrix {
	size := rows * cols * t.DType.Size()
	ms := make([]kernels.Matrix, n)
	for j := range ms {
		ms[j] = kernels.Matrix{Rows: rows, Cols: cols, DType: t.DType, Data: t.Data[(i+j)*size : (i+j+1)*size]}
	}
	return ms
}
