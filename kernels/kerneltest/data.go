package kerneltest

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"

	"tinkerlocal/kernels"
)

// host is a tensor's values on the host: floats, or ints when ints is not nil.
type host struct {
	shape []int
	data  []float32
	ints  []int32
}

func size(shape []int) int {
	n := 1
	for _, s := range shape {
		n *= s
	}
	return n
}

func integers(shape []int, v []int32) host { return host{shape: shape, ints: v} }

// unset is values that nobody may use: NaN.
func unset(shape ...int) host {
	h := host{shape: shape, data: make([]float32, size(shape))}
	for i := range h.data {
		h.data[i] = float32(math.NaN())
	}
	return h
}

// encode is the host tensor's bytes in a dtype. A NaN becomes 0xff bytes, like the guards.
func (h host) encode(dt kernels.DType) []byte {
	if h.ints != nil {
		b := make([]byte, 4*len(h.ints))
		for i, v := range h.ints {
			binary.LittleEndian.PutUint32(b[4*i:], uint32(v))
		}
		return b
	}
	n := dt.Size()
	b := make([]byte, n*len(h.data))
	for i, v := range h.data {
		switch e := b[i*n:]; {
		case v != v:
			for k := range n {
				e[k] = 0xff
			}
		case dt == kernels.F64:
			binary.LittleEndian.PutUint64(e, math.Float64bits(float64(v)))
		case dt == kernels.F32:
			binary.LittleEndian.PutUint32(e, math.Float32bits(v))
		case dt == kernels.BF16:
			binary.LittleEndian.PutUint16(e, kernels.F32ToBF16(v))
		}
	}
	return b
}

// rows is rows [lo, hi) of a host tensor.
func (h host) rows(lo, hi int) host {
	n := size(h.shape[1:])
	return host{shape: append([]int{hi - lo}, h.shape[1:]...), data: h.data[lo*n : hi*n]}
}

// stack puts host tensors of equal columns below each other.
func stack(hs ...host) host {
	s := host{shape: append([]int(nil), hs[0].shape...)}
	s.shape[0] = 0
	for _, h := range hs {
		s.shape[0] += h.shape[0]
		s.data = append(s.data, h.data...)
		s.ints = append(s.ints, h.ints...)
	}
	return s
}

// gen draws inputs.
type gen struct{ *rand.Rand }

func newGen(seed uint64) *gen { return &gen{rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15))} }

// normal draws a tensor of normal values of a standard deviation.
func (g *gen) normal(dev float64, shape ...int) host {
	h := host{shape: shape, data: make([]float32, size(shape))}
	for i := range h.data {
		h.data[i] = float32(dev * g.NormFloat64())
	}
	return h
}

// ids draws integers from lo to hi, hi included.
func (g *gen) ids(lo, hi int, shape ...int) host {
	h := host{shape: shape, ints: make([]int32, size(shape))}
	for i := range h.ints {
		h.ints[i] = int32(lo + g.IntN(hi-lo+1))
	}
	return h
}

// hostWeight is a stacked weight's parts.
type hostWeight struct {
	cols  int
	parts []host
	store kernels.DType
}

// weight draws a stacked weight so that W x has the size of x. With zeroRow its first row is zero.
func (g *gen) weight(store kernels.DType, cols int, zeroRow bool, parts ...int) hostWeight {
	w := hostWeight{cols: cols, store: store}
	for _, n := range parts {
		p := g.normal(1/math.Sqrt(float64(cols)), n, cols)
		if store == kernels.BF16 {
			for i, v := range p.data {
				p.data[i] = kernels.BF16ToF32(kernels.F32ToBF16(v))
			}
		}
		w.parts = append(w.parts, p)
	}
	if zeroRow {
		clear(w.parts[0].data[:cols])
	}
	return w
}

func (w hostWeight) rows() int {
	n := 0
	for _, p := range w.parts {
		n += p.shape[0]
	}
	return n
}

// pack puts a weight on the device, from sources in the dtype it is stored in.
func (r *rig) pack(w hostWeight) kernels.Weight {
	var ms []kernels.Matrix
	for _, p := range w.parts {
		ms = append(ms, kernels.Matrix{Rows: p.shape[0], Cols: w.cols, DType: w.store, Data: p.encode(w.store)})
	}
	packed, err := r.dev.Pack(ms, w.store)
	r.must(err)
	r.weights = append(r.weights, packed)
	return packed
}

// hostLoRA is an adapter's values and what its gradients hold before a backward op.
type hostLoRA struct {
	rank         int
	scale        float32
	a, b, da, db host
}

// lora draws an adapter for a weight of so many parts.
func (g *gen) lora(rank, parts, n, k int) hostLoRA {
	return hostLoRA{
		rank:  rank,
		scale: float32(0.25 + g.Float64()),
		a:     g.normal(1/math.Sqrt(float64(k)), parts*rank, k),
		b:     g.normal(1/math.Sqrt(float64(rank)), n, rank),
		da:    g.normal(1, parts*rank, k),
		db:    g.normal(1, n, rank),
	}
}

// adapters places adapters; their gradients only when grads is set, as outputs.
func (r *rig) adapters(ls []hostLoRA, grads bool) []*kernels.LoRA {
	var out []*kernels.LoRA
	for i, l := range ls {
		p := &kernels.LoRA{Rank: l.rank, Scale: l.scale}
		p.A = r.in(fmt.Sprintf("a%d", i), l.a)
		p.B = r.in(fmt.Sprintf("b%d", i), l.b)
		if grads {
			p.DA = r.inout(fmt.Sprintf("da%d", i), l.da)
			p.DB = r.inout(fmt.Sprintf("db%d", i), l.db)
		}
		out = append(out, p)
	}
	return out
}

// hostSpan says which adapter (an index, or -1) tokens use.
type hostSpan struct{ begin, end, lora int }

func spansOf(hs []hostSpan, ls []*kernels.LoRA) []kernels.Span {
	var out []kernels.Span
	for _, h := range hs {
		s := kernels.Span{Begin: h.begin, End: h.end}
		if h.lora >= 0 {
			s.LoRA = ls[h.lora]
		}
		out = append(out, s)
	}
	return out
}

// skipOutside marks the elements of v [tokens, width] that no span's down projection defines.
func skipOutside(tokens, width, parts int, hs []hostSpan, ls []hostLoRA) []bool {
	skip := make([]bool, tokens*width)
	for i := range skip {
		skip[i] = true
	}
	for _, s := range hs {
		if s.lora < 0 {
			continue
		}
		for t := s.begin; t < s.end; t++ {
			for c := range parts * ls[s.lora].rank {
				skip[t*width+c] = false
			}
		}
	}
	return skip
}

// spanPattern is one way to lay adapters of the given ranks over tokens.
func spanPattern(kind, tokens int) (spans []hostSpan, ranks []int) {
	switch kind % 5 {
	case 1: // one adapter for all
		return []hostSpan{{0, tokens, 0}}, []int{8}
	case 2: // rank 1, on all tokens but the last
		if tokens == 1 {
			return []hostSpan{{0, 1, 0}}, []int{1}
		}
		return []hostSpan{{0, tokens - 1, 0}}, []int{1}
	case 3: // two ranks, a span without adapter, tokens outside every span, one adapter twice
		cut := func(i int) int { return tokens * i / 6 }
		for _, s := range []hostSpan{{cut(0), cut(1), 0}, {cut(1), cut(2), 1}, {cut(2), cut(3), -1}, {cut(4), cut(5), 0}, {cut(5), cut(6), 0}} {
			if s.end > s.begin {
				spans = append(spans, s)
			}
		}
		return spans, []int{3, 17}
	case 4: // every token its own span
		for t := range tokens {
			spans = append(spans, hostSpan{t, t + 1, t % 2})
		}
		return spans, []int{16, 5}
	}
	return nil, nil
}
