package interchange

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/kernels"
)

// The comparison of a merged folder with what it was to be shares no arithmetic with the writing. Of a merged weight it looks
//
//   - at every value: |W'-W| is at most |scale|·‖row of B‖·‖column of A‖ (Cauchy-Schwarz) and the rounding;
//   - at every row: (W'-W)·x is scale·B·(A·x) for a vector x of random signs (Freivalds 1977). The roundings of a row's values, at most
//     e_j each, add up to less than 8·√(Σ e_j²) but with probability 2·exp(-32) (Hoeffding), for they do not depend on x;
//   - at one row in sixteen or more, at random: every value is the exact one, rounded.
//
// The first finds single values that are damaged, the second a factor that is missing, wrong or in another's place wherever the
// rounding does not hide it, and the third what it does hide.
type comparison struct {
	m        *merged
	ctx      context.Context
	out      *hf.Checkpoint
	progress *progress
	cache    factorCache
	random   *rand.Rand
	scratch  scratches[compareScratch]
}

type compareScratch struct {
	was, is []float32
	exact   []float64
}

const (
	deviations = 8
	exactEvery = 16 // or the rank, if that is more: then this takes as long as looking at every row
)

// compare opens the written folder dir and compares it with the plan, the base and the adapter.
func (m *merged) compare(ctx context.Context, dir string, p *progress) error {
	out, err := hf.Open(dir)
	if err != nil {
		return err
	}
	defer out.Close()
	for i := range m.small {
		f := &m.small[i]
		text, err := out.File(f.name)
		if err != nil {
			return err
		}
		if newSmall(f.name, text).sum != f.sum {
			return differs("file "+f.name, "is not what was written")
		}
	}
	if names := out.Names(); len(names) != len(m.tensors) {
		return differs("the folder", "has %d tensors, wanted %d", len(names), len(m.tensors))
	}
	c := &comparison{m: m, ctx: ctx, out: out, progress: p, cache: factorCache{a: m.a}, random: rand.New(rand.NewPCG(1, 2))}
	for _, s := range m.shards {
		begin := p.done
		for _, t := range s.tensors {
			if err := c.tensor(t, s.file); err != nil {
				return err
			}
		}
		p.add(s.bytes - (p.done - begin)) // its header
	}
	return nil
}

func differs(what, format string, args ...any) error {
	return api.Errorf(api.Internal, "%s %s", what, fmt.Sprintf(format, args...))
}

func (c *comparison) tensor(t *mergedTensor, file string) error {
	is, ok := c.out.Tensor(t.name)
	if !ok || is.Stored != t.stored || !slices.Equal(is.Shape, t.from.Shape) || is.File != file {
		return differs("tensor "+t.name, "is %s%v in %q, wanted %s%v in %q", is.Stored, is.Shape, is.File, t.stored, t.from.Shape, file)
	}
	defer c.m.base.Release(t.from.Name)
	defer c.out.Release(t.name)
	sizeWas, sizeIs := 1, 1
	if t.dtype != 0 {
		sizeWas, sizeIs = t.from.DType.Size(), t.dtype.Size()
	}
	at := 0 // values
	plain := func(to int) error {
		defer func() { at = to }()
		return c.plain(t, t.from.Data[at*sizeWas:to*sizeWas], is.Data[at*sizeIs:to*sizeIs])
	}
	for i := range t.patches {
		p := &t.patches[i]
		if err := plain(p.row * t.cols); err != nil {
			return err
		}
		n := p.rows * t.cols
		if err := c.patch(t, p, t.from.Data[at*sizeWas:][:n*sizeWas], is.Data[at*sizeIs:][:n*sizeIs]); err != nil {
			return fmt.Errorf("tensor %s, rows from %d on: %w", t.name, p.row, err)
		}
		at += n
	}
	return plain(len(is.Data) / sizeIs)
}

// each runs compute on pieces of n items, and counts and lets go of the bytes of the written tensor that belong to them.
func (c *comparison) each(t *mergedTensor, was, is []byte, n, step int, compute func(s *compareScratch, lo, hi int) error) error {
	if n == 0 {
		return nil
	}
	sizeWas, sizeIs := len(was)/n, len(is)/n
	type piece struct{ lo, hi int }
	return inOrder(c.ctx, &c.scratch, (n+step-1)/step, func(s *compareScratch, i int) (piece, error) {
		p := piece{i * step, min((i+1)*step, n)}
		return p, compute(s, p.lo, p.hi)
	}, func(p piece) error {
		c.m.base.ReleasePart(t.from.Name, was[p.lo*sizeWas:p.hi*sizeWas])
		c.out.ReleasePart(t.name, is[p.lo*sizeIs:p.hi*sizeIs])
		c.progress.add(int64((p.hi - p.lo) * sizeIs))
		return nil
	})
}

// plain compares values without factors: they are the base's bytes, or its values in the other type.
func (c *comparison) plain(t *mergedTensor, was, is []byte) error {
	if t.dtype == t.from.DType {
		return c.each(t, was, is, len(is), 4*blockValues, func(_ *compareScratch, lo, hi int) error {
			if !bytes.Equal(was[lo:hi], is[lo:hi]) {
				return differs("tensor "+t.name, "is not the base's")
			}
			return nil
		})
	}
	sizeWas, sizeIs := t.from.DType.Size(), t.dtype.Size()
	return c.each(t, was, is, len(is)/sizeIs, blockValues, func(s *compareScratch, lo, hi int) error {
		s.was = floats(s.was, was[lo*sizeWas:hi*sizeWas], t.from.DType)
		s.is = floats(s.is, is[lo*sizeIs:hi*sizeIs], t.dtype)
		for i, v := range s.was {
			if t.dtype == kernels.BF16 {
				v = kernels.BF16ToF32(kernels.F32ToBF16(v))
			}
			if s.is[i] != v {
				return differs("tensor "+t.name, "has %v for %v", s.is[i], s.was[i])
			}
		}
		return nil
	})
}

// patch compares the rows of a patch with the base's and the factors.
func (c *comparison) patch(t *mergedTensor, p *patch, was, is []byte) error {
	f, err := c.cache.get(c.ctx, p.module)
	if err != nil {
		return err
	}
	a, b := f.of(p.expert)
	rank, cols, scale := p.module.rank, t.cols, c.m.a.Scale
	k := &patchCheck{a: a, b: b, rank: rank, cols: cols, scale: scale, x: make([]float64, cols), ax: make([]float64, rank), norms: make([]float64, cols)}
	k.step, k.least = stepOf(t.dtype)
	if c.m.productsInFloat32(t) {
		k.loose, k.sum = float64(rank+2)*0x1p-24, 0x1p-24
		k.step += k.sum
	}
	for j := range k.x {
		k.x[j] = float64(int(c.random.Uint32N(2))*2 - 1)
	}
	for i := range rank {
		for j, v := range a[i*cols:][:cols] {
			k.ax[i] += float64(v) * k.x[j]
			k.norms[j] += float64(v) * float64(v)
		}
	}
	for j, v := range k.norms {
		k.normA += v
		k.norms[j] = math.Sqrt(v)
	}
	k.normA = math.Sqrt(k.normA)
	every := max(exactEvery, rank)
	phase := c.random.IntN(min(every, p.rows)) // at least one row of every patch
	sizeWas, sizeIs := cols*t.from.DType.Size(), cols*t.dtype.Size()
	return c.each(t, was, is, p.rows, max(1, blockValues/cols), func(s *compareScratch, lo, hi int) error {
		for i := lo; i < hi; i++ {
			s.was = floats(s.was, was[i*sizeWas:][:sizeWas], t.from.DType)
			s.is = floats(s.is, is[i*sizeIs:][:sizeIs], t.dtype)
			if err := k.row(s, i); err != nil {
				return err
			}
			if i%every == phase {
				if err := k.exact(s, i); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// patchCheck is what the rows of a patch are held against.
type patchCheck struct {
	a, b       []float32 // [rank, cols], [rows, rank]
	rank, cols int
	scale      float64
	step       float64 // half a step of the type, per value; at least least
	least      float64
	loose      float64 // error of a product in float32, per ‖row of B‖·‖column of A‖
	sum        float64 // error of a sum in float32, per value
	x          []float64
	ax         []float64 // A·x
	norms      []float64 // of A's columns
	normA      float64
}

// stepOf is half the distance of neighbouring values of a type, relative to the power of two below them, and the least it can be.
func stepOf(d kernels.DType) (relative, least float64) {
	switch d {
	case kernels.F32:
		return 0x1p-24, 0x1p-150
	case kernels.F16:
		return 0x1p-11, 0x1p-25
	}
	return 0x1p-8, 0x1p-134
}

// row looks at every value of row i, and at their sum with random signs.
func (k *patchCheck) row(s *compareScratch, i int) error {
	b := k.b[i*k.rank:][:k.rank]
	want, size := 0.0, 0.0
	for j, v := range b {
		want += float64(v) * k.ax[j]
		size += float64(v) * float64(v)
	}
	want *= k.scale
	size = math.Sqrt(size) * math.Abs(k.scale) * (1 + 1e-6 + k.loose)
	// Two values at a time, so that one sum need not wait for the other.
	var sum, squares, sum1, squares1 float64
	n := len(s.is)
	is, was, x, norms := s.is, s.was[:n], k.x[:n], k.norms[:n]
	for j := 0; j < n; j += 2 {
		l := min(j+1, n-1)
		v, v1 := float64(is[j]), float64(is[l])
		d, d1 := v-float64(was[j]), v1-float64(was[l])
		far := math.Abs(d) - size*norms[j] - k.step*math.Abs(v)
		far1 := math.Abs(d1) - size*norms[l] - k.step*math.Abs(v1)
		if !(far <= k.least && far1 <= k.least) {
			if far <= k.least {
				j = l
			}
			return differs(fmt.Sprintf("row %d, column %d", i, j), "is %v, the base's is %v, and the update at most %.3g", is[j], was[j], size*norms[j])
		}
		sum += d * x[j]
		squares += v * v
		if l > j {
			sum1 += d1 * x[l]
			squares1 += v1 * v1
		}
	}
	sum, squares = sum+sum1, squares+squares1
	limit := deviations*(k.step*math.Sqrt(squares)+k.least*math.Sqrt(float64(k.cols))+k.loose*size*k.normA) + 1e-9*size*k.normA
	if !(math.Abs(sum-want) <= limit) {
		return differs(fmt.Sprintf("row %d", i), "is off: its update times random signs is %.6g, wanted %.6g within %.2g", sum, want, limit)
	}
	return nil
}

// exact looks at every value of row i: it is the exact one rounded.
func (k *patchCheck) exact(s *compareScratch, i int) error {
	s.exact = append(s.exact[:0], make([]float64, k.cols)...)
	size := 0.0
	for r := k.rank - 1; r >= 0; r-- {
		f := float64(k.b[i*k.rank+r]) * k.scale
		size += f * f
		for j, v := range k.a[r*k.cols:][:k.cols] {
			s.exact[j] += f * float64(v)
		}
	}
	size = math.Sqrt(size)
	for j, v := range s.exact {
		v += float64(s.was[j])
		power := math.Float64frombits(math.Float64bits(v) &^ (1<<63 | 1<<52 - 1))
		limit := max(power*k.step, k.least) + (k.loose+0x1p-40)*size*k.norms[j] + (k.sum+0x1p-50)*math.Abs(float64(s.was[j]))
		if is := float64(s.is[j]); !(math.Abs(is-v) <= limit) {
			return differs(fmt.Sprintf("row %d, column %d", i, j), "is %v, wanted %v within %.2g", is, v, limit)
		}
	}
	return nil
}

// floats reads values of type d into dst. It is not the writing's widen on purpose.
func floats(dst []float32, data []byte, d kernels.DType) []float32 {
	le := binary.LittleEndian
	if d == kernels.F32 {
		dst = room(dst, len(data)/4)
		for i := range dst {
			dst[i] = math.Float32frombits(le.Uint32(data[4*i:]))
		}
		return dst
	}
	dst = room(dst, len(data)/2)
	if d == kernels.BF16 {
		to := dst
		for ; len(to) >= 4 && len(data) >= 8; to, data = to[4:], data[8:] {
			v := le.Uint64(data)
			to[0], to[1] = kernels.BF16ToF32(uint16(v)), kernels.BF16ToF32(uint16(v>>16))
			to[2], to[3] = kernels.BF16ToF32(uint16(v>>32)), kernels.BF16ToF32(uint16(v>>48))
		}
		for i := range to {
			to[i] = kernels.BF16ToF32(le.Uint16(data[2*i:]))
		}
		return dst
	}
	for i := range dst {
		dst[i] = kernels.F16ToF32(le.Uint16(data[2*i:]))
	}
	return dst
}
