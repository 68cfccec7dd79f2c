// Package lora holds adapters: their shapes on a base model, initialisation, gradients, the AdamW
// step, and immutable snapshots. All trained tensors of an adapter lie in one flat device tensor, so
// an optimiser step, a snapshot and a checkpoint each touch one piece of memory.
package lora

import (
	"fmt"

	"tinkerlocal/engine/api"
)

// Kind says which train_ flag a site belongs to.
type Kind uint8

// The kinds of sites.
const (
	Attn Kind = iota
	MLP
	Unembed
)

// Part is one adapted module inside a stacked weight.
type Part struct {
	Module string // path in a Hugging Face model: "model.layers.0.self_attn.q_proj", "lm_head"
	Out    int    // output features
}

// Site is one frozen stacked weight of a base that an adapter may attach to. Its parts share the
// input; each has its own A and B.
//
// With Experts it stands for the weights of that many experts, and the adapter is "shared-outer": of each part's factors, the one on the
// side of the hidden size is one for all experts, and the other is every expert's own ([kernels.ExpertsArgs]).
type Site struct {
	Kind  Kind
	In    int
	Parts []Part

	Experts int  // 0: an ordinary weight
	OwnA    bool // every expert has its own A, and one B is shared (down); else its own B, and A is shared (gate and up)
}

// copies is how many times a part's A and B are there.
func (s Site) copies() (a, b int) {
	switch {
	case s.Experts == 0:
		return 1, 1
	case s.OwnA:
		return s.Experts, 1
	}
	return 1, s.Experts
}

// Out is the number of output features of all parts.
func (s Site) Out() int {
	n := 0
	for _, p := range s.Parts {
		n += p.Out
	}
	return n
}

func (s Site) params(rank int) int {
	a, b := s.copies()
	return rank * (a*len(s.Parts)*s.In + b*s.Out())
}

func trains(c api.LoraConfig, k Kind) bool {
	switch k {
	case Attn:
		return c.TrainAttn
	case MLP:
		return c.TrainMLP
	default:
		return c.TrainUnembed
	}
}

// Params counts the trainable parameters of an adapter.
func Params(sites []Site, c api.LoraConfig) int {
	n := 0
	for _, s := range sites {
		if trains(c, s.Kind) {
			n += s.params(c.Rank)
		}
	}
	return n
}

// Check says whether c is a configuration that can be trained.
func Check(c api.LoraConfig) error {
	if c.Rank < 1 || c.Rank > api.MaxRank {
		return api.Errorf(api.BadRequest, "lora rank is %d, wanted 1..%d", c.Rank, api.MaxRank)
	}
	if !c.TrainAttn && !c.TrainMLP && !c.TrainUnembed {
		return api.Errorf(api.BadRequest, "lora config trains nothing: at least one of train_attn, train_mlp, train_unembed must be true")
	}
	return nil
}

// Tensor is one factor of an adapter on the host, under its PEFT name without the
// "base_model.model." prefix: "model.layers.0.self_attn.q_proj.lora_A.weight". A is [rank, in], B is [out, rank]. Factors of experts
// ("model.layers.0.mlp.experts.w1.lora_A.weight") have a dimension in front: 1 for the shared one, the number of experts for the other.
type Tensor struct {
	Name   string
	Shape  []int
	Values []float32
}

// slot is where one factor lies in the flat tensor.
type slot struct {
	name  string
	shape []int
	size  int
	off   int // elements
	isA   bool
	site  int
}

// layout fixes the order of factors in the flat tensor: per site all A factors (stacked in part
// order), then all B factors; sites in order. So the stacked A [P*R, In] and B [Out, R] are contiguous, and those of experts too.
func layout(sites []Site, c api.LoraConfig) (slots []slot, total int) {
	for i, s := range sites {
		if !trains(c, s.Kind) {
			continue
		}
		nA, nB := s.copies()
		add := func(p Part, which string, copies, rows, cols int) {
			sl := slot{name: fmt.Sprintf("%s.lora_%s.weight", p.Module, which), shape: []int{rows, cols}, size: copies * rows * cols, off: total, isA: which == "A", site: i}
			if s.Experts > 0 {
				sl.shape = []int{copies, rows, cols}
			}
			slots = append(slots, sl)
			total += sl.size
		}
		for _, p := range s.Parts {
			add(p, "A", nA, c.Rank, s.In)
		}
		for _, p := range s.Parts {
			add(p, "B", nB, p.Out, c.Rank)
		}
	}
	return slots, total
}
