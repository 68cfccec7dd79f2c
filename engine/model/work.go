package model

import (
	"sync/atomic"

	"tinkerlocal/kernels"
)

// Work counts the multiply-adds of products with frozen weights: tokens x rows x columns of each. Products with adapters
// and attention are not in it.
type Work struct {
	Forward   int64 // of training passes, and of forwards without a gradient
	Backward  int64 // gradients of inputs; a frozen weight needs none of its own
	Recompute int64 // products of the forward that a backward runs again
	Sample    int64 // prompts read and tokens sampled
}

// Add returns the sum.
func (w Work) Add(o Work) Work {
	return Work{w.Forward + o.Forward, w.Backward + o.Backward, w.Recompute + o.Recompute, w.Sample + o.Sample}
}

// Sub returns the difference.
func (w Work) Sub(o Work) Work {
	return Work{w.Forward - o.Forward, w.Backward - o.Backward, w.Recompute - o.Recompute, w.Sample - o.Sample}
}

// Counters are a base's Work since it was loaded.
type Counters struct {
	Layers []Work
	Head   Work
}

// Total is the sum over layers and head.
func (c Counters) Total() Work {
	sum := c.Head
	for _, l := range c.Layers {
		sum = sum.Add(l)
	}
	return sum
}

// Counters tells what has been computed so far. Any goroutine may call it.
func (b *Base) Counters() Counters {
	out := Counters{Layers: make([]Work, len(b.work)-1)}
	for i := range b.work {
		c := &b.work[i]
		w := Work{c[forwardUse].Load(), c[backwardUse].Load(), c[recomputeUse].Load(), c[sampleUse].Load()}
		if i < len(out.Layers) {
			out.Layers[i] = w
		} else {
			out.Head = w
		}
	}
	return out
}

// use is what a product is for.
type use uint8

const (
	forwardUse use = iota
	backwardUse
	recomputeUse
	sampleUse
	uses
)

type counter [uses]atomic.Int64

func (c *counter) add(u use, tokens int, w kernels.Weight) {
	c[u].Add(int64(tokens) * int64(w.Rows()) * int64(w.Cols()))
}

// linear is Ops.Linear with a weight of layer i, counted.
func (b *Base) linear(u use, i int, a kernels.LinearArgs) error {
	b.work[i].add(u, a.X.Shape[0], a.W)
	return b.dev.Ops().Linear(a)
}

// linearBackward is Ops.LinearBackward with a weight of layer i, counted. Without a gradient of the input there is no
// product with the weight.
func (b *Base) linearBackward(i int, a kernels.LinearBackwardArgs) error {
	if !a.DX.None() {
		b.work[i].add(backwardUse, a.DY.Shape[0], a.W)
	}
	return b.dev.Ops().LinearBackward(a)
}

// countExperts counts the products of sparse layer i: the router's, and those of each token's experts.
func (b *Base) countExperts(u use, i, tokens int) {
	w := &b.layers[i]
	b.work[i].add(u, tokens, w.router)
	b.work[i].add(u, tokens*b.Spec.TopK, w.experts.GateUp[0])
	b.work[i].add(u, tokens*b.Spec.TopK, w.experts.Down[0])
}
