package model

import (
	"tinkerlocal/engine/lora"
	"tinkerlocal/kernels"
)

// shape is all that decides how large a frame is.
type shape struct {
	tokens  int
	targets int  // J: targets per position
	vrows   int  // rows of logits that exist at a time (generation), 0 in training
	rank    int  // largest adapter rank in the batch
	keep    bool // a backward will follow

	recompute int  // with keep: the first layers of which only the input is kept
	cached    bool // keys and values go to a KV pool, not into the frame
}

// frame is the device memory of one packed batch: what the layers read and write, and with keep what the
// backward needs. Normalised inputs and the SwiGLU product are not kept: they are cheap to make again.
type frame struct {
	ids, pos, rows kernels.Tensor // I32 [T]
	target         kernels.Tensor // I32 [T,J]
	layers         []layerTape    // one per layer with keep, else one for all; the first recompute+1 share memory
	xLast, rstd    kernels.Tensor // final residual [T,D]; rstd of the final norm [T]
	xn             kernels.Tensor // [T,D] scratch: normalised input
	h              kernels.Tensor // [T,F] scratch: SwiGLU product
	vHead          kernels.Tensor // [T,R]
	out, lse       kernels.Tensor // [T,J], [T]
	last           kernels.Tensor // [S,D]: the rows whose logits are wanted
	z              kernels.Tensor // [S,V]; S is shape.vrows

	moe experts

	// backward only
	dx, dxn, do, dq, dk, dv, dqkv, dh, dgu, dlow, dout kernels.Tensor
}

// layerTape is what one layer's forward leaves for its backward. Every layer has its own x and low[siteDown], so that
// running it forward again can stop before the down projection; the rest may be shared by layers.
type layerTape struct {
	x, mid       kernels.Tensor                // residual stream before the layer and between its halves [T,D]
	rstd1, rstd2 kernels.Tensor                // [T]
	qkv          kernels.Tensor                // [T,(H+2K)C], before norm and rotation
	q, k, v      kernels.Tensor                // after them
	o, lse       kernels.Tensor                // attention output [T,HC], log-sum-exp [T,H]
	gu           kernels.Tensor                // [T,2F]
	low          [sitesPerLayer]kernels.Tensor // v = s*A*x of each site [T,P*R]

	// A sparse layer has these instead of gu. Its low[siteDown] is the sum over a token's experts, gate*s*A*h.
	routing kernels.Routing
	gus     kernels.Tensor // [T*TopK,2F], F of an expert
}

// layout cuts a frame out of a.
func (s *Spec) layout(a *arena, sh shape) *frame {
	T, D := sh.tokens, s.Hidden
	low := func(parts int) kernels.Tensor {
		if sh.rank == 0 {
			return kernels.Tensor{}
		}
		return a.floats(T, parts*sh.rank)
	}
	f := &frame{ids: a.ints(T), pos: a.ints(T), rows: a.ints(T)}
	n := 1
	if sh.keep {
		n = s.Layers
	}
	f.layers = make([]layerTape, n)
	for i := range f.layers {
		l := &f.layers[i]
		if i == 0 || i > sh.recompute {
			s.layoutLayer(a, l, i, sh)
		} else {
			*l = f.layers[0]
		}
		l.x, l.low[siteDown] = a.floats(T, D), low(1)
	}
	f.xLast, f.rstd = f.layers[0].x, a.floats(T)
	if sh.keep {
		f.xLast = a.floats(T, D)
	}
	f.xn, f.vHead = a.floats(T, D), low(1)
	if s.sparseLayers() < s.Layers {
		f.h = a.floats(T, s.FFN)
	}
	f.lse = a.floats(max(T, sh.vrows))
	if sh.targets > 0 {
		f.target, f.out = a.ints(T, sh.targets), a.floats(T, sh.targets)
	}
	if sh.vrows > 0 {
		f.last, f.z = a.floats(sh.vrows, D), a.floats(sh.vrows, s.Vocab)
	}
	if sh.keep {
		f.dx, f.dxn = a.floats(T, D), a.floats(T, D)
		f.do, f.dq = a.floats(T, s.QWidth()), a.floats(T, s.QWidth())
		f.dk, f.dv = a.floats(T, s.KVWidth()), a.floats(T, s.KVWidth())
		f.dqkv = a.floats(T, s.QWidth()+2*s.KVWidth())
		if s.sparseLayers() < s.Layers {
			f.dh, f.dgu = a.floats(T, s.FFN), a.floats(T, 2*s.FFN)
		}
		f.dlow, f.dout = low(3), a.floats(T, sh.targets)
	}
	s.layoutExperts(a, f, sh)
	return f
}

// layoutLayer cuts what layer i has for itself, unless it is the first of those that share.
func (s *Spec) layoutLayer(a *arena, l *layerTape, i int, sh shape) {
	T := sh.tokens
	l.mid = a.floats(T, s.Hidden)
	l.rstd1, l.rstd2 = a.floats(T), a.floats(T)
	l.qkv = a.floats(T, s.QWidth()+2*s.KVWidth())
	l.q = a.floats(T, s.QWidth())
	if !sh.cached {
		l.k, l.v = a.floats(T, s.KVWidth()), a.floats(T, s.KVWidth())
	}
	l.o = a.floats(T, s.QWidth())
	if sh.keep {
		l.lse = a.floats(T, s.Heads)
	}
	// One layerTape for several layers has what both kinds need.
	last := i
	if !sh.keep {
		last = s.Layers - 1
	} else if i == 0 {
		last = sh.recompute
	}
	dense, sparse := false, false
	for ; i <= last; i++ {
		dense, sparse = dense || !s.IsSparse(i), sparse || s.IsSparse(i)
	}
	if dense {
		l.gu = a.floats(T, 2*s.FFN)
	}
	if sparse {
		s.layoutRouting(a, l, T)
	}
	if sh.rank > 0 {
		for site, parts := range [siteDown]int{3, 1, 2} {
			l.low[site] = a.floats(T, parts*sh.rank)
		}
	}
}

// bytes is the memory a frame of this shape takes.
func (s *Spec) bytes(act kernels.DType, sh shape) int64 {
	a := &arena{act: act}
	s.layout(a, sh)
	return a.off
}

// TrainBytes is the device memory that one packed batch of tokens with J targets per position and an
// adapter of the given rank takes, with what a backward needs when keep is true: all but what ForwardRecompute
// leaves out of the first recompute layers. Any goroutine may call it.
func (b *Base) TrainBytes(tokens, targets, rank int, keep bool, recompute int) int64 {
	return b.Spec.bytes(b.act, shape{tokens: tokens, targets: targets, rank: rank, keep: keep, recompute: recompute})
}

// DecodeBytes is the device memory that one Extend of up to that many sequences and tokens takes besides the pool, logits
// included. Any goroutine may call it.
func (b *Base) DecodeBytes(sequences, tokens, rank int) int64 {
	return b.Spec.bytes(b.act, shape{tokens: tokens, vrows: sequences, targets: 1, rank: rank, cached: true})
}

// spans lists, for one site, which tokens use which adapter. ends[i] is the end row of item i.
func spans(site int, ends []int, weights []*lora.Weights) []kernels.Span {
	var out []kernels.Span
	begin := 0
	for i, end := range ends {
		if w := weights[i]; w != nil && w.Sites[site] != nil {
			out = append(out, kernels.Span{Begin: begin, End: end, LoRA: w.Sites[site]})
		}
		begin = end
	}
	return out
}
