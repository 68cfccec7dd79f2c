package interchange

import (
	"encoding/binary"
	"math"

	"tinkerlocal/kernels"
)

// rowAdder computes rows of W + scale·B·A for one pair of factors. Any number of goroutines may use it, each with its own rowScratch.
type rowAdder struct {
	cols, rank int
	scale      float64
	at         []float64 // A transposed, [cols, rank]: what one value of the product reads lies together
	b          []float32 // [rows, rank]
	device     *product  // nil, or what multiplies instead; at is nil then
}

type rowScratch struct {
	out     []byte
	b       []float64 // [rows, rank]
	product []float64 // [tileRows, cols]
	w       []float32 // [cols]
	bytes   []byte    // of a product on its way from the device
}

// room returns v with n elements, new ones if it is too short.
func room[T any](v []T, n int) []T {
	if cap(v) < n {
		return make([]T, n)
	}
	return v[:n]
}

// newRowAdder takes A [rank, cols] and B [rows, rank]. dev may be nil. The caller frees it.
func newRowAdder(dev kernels.Device, cols, rank int, scale float64, a, b []float32) (*rowAdder, error) {
	r := &rowAdder{cols: cols, rank: rank, scale: scale, b: b}
	if dev != nil {
		var err error
		r.device, err = newProduct(dev, cols, rank, a)
		return r, err
	}
	r.at = make([]float64, cols*rank)
	for k := range rank {
		for j, v := range a[k*cols:][:cols] {
			r.at[j*rank+k] = float64(v)
		}
	}
	return r, nil
}

func (r *rowAdder) free() {
	if r != nil && r.device != nil {
		r.device.free()
	}
}

const tileRows = 4

// rows appends rows lo..hi of the merged weight to out, as values of type to. w is these rows of the base's, as values of type from.
// It returns the first row and column where the result is not finite, or -1.
//
// The products of a value are summed in float64 from k = 0 on, scaled, and added to W in float64; then comes the only rounding that
// counts, to the nearest, ties to even.
func (r *rowAdder) rows(s *rowScratch, out []byte, to kernels.DType, w []byte, from kernels.DType, lo, hi int) (_ []byte, row, col int, err error) {
	if r.device != nil {
		return r.deviceRows(s, out, to, w, from, lo, hi)
	}
	s.b = room(s.b, (hi-lo)*r.rank)
	for i, v := range r.b[lo*r.rank : hi*r.rank] {
		s.b[i] = float64(v)
	}
	s.product = room(s.product, tileRows*r.cols)
	for i := lo; i < hi; i += tileRows {
		n := min(tileRows, hi-i)
		r.products(s.product, s.b[(i-lo)*r.rank:][:n*r.rank], n)
		for j := range n {
			var bad int
			size := r.cols * from.Size()
			s.w = widen(s.w, w[(i-lo+j)*size:][:size], from)
			v := s.product[j*r.cols:][:r.cols]
			for c, x := range s.w {
				v[c] = float64(x) + r.scale*v[c]
			}
			if out, bad = narrow(out, v, to); bad >= 0 {
				return out, i + j, bad, nil
			}
		}
	}
	return out, -1, -1, nil
}

// deviceRows is rows with a product that a device summed in float32.
func (r *rowAdder) deviceRows(s *rowScratch, out []byte, to kernels.DType, w []byte, from kernels.DType, lo, hi int) (_ []byte, row, col int, err error) {
	n := hi - lo
	s.bytes = room(s.bytes, 4*n*max(r.rank, r.cols))
	if err := r.device.rows(s.bytes, r.b[lo*r.rank:hi*r.rank], n); err != nil {
		return out, -1, -1, err
	}
	s.product = room(s.product, r.cols)
	size := r.cols * from.Size()
	for i := range n {
		if from == kernels.BF16 && to == kernels.BF16 {
			at := len(out)
			out = append(out, w[i*size:][:size]...)
			if col = addBF16(out[at:], s.bytes[4*i*r.cols:][:4*r.cols], float32(r.scale)); col >= 0 {
				return out, lo + i, col, nil
			}
			continue
		}
		s.w = widen(s.w, w[i*size:][:size], from)
		product := s.bytes[4*i*r.cols:][:4*r.cols]
		v := s.product[:len(s.w)]
		for c, x := range s.w {
			v[c] = float64(x) + r.scale*float64(math.Float32frombits(binary.LittleEndian.Uint32(product[4*c:])))
		}
		if out, col = narrow(out, v, to); col >= 0 {
			return out, lo + i, col, nil
		}
	}
	return out, -1, -1, nil
}

// products overwrites product [n, cols] with n rows of B times A. Four rows and two columns are summed at a time, which the registers
// hold.
func (r *rowAdder) products(product, b []float64, n int) {
	if n < tileRows || r.cols < 2 {
		for i := range n {
			r.row(product[i*r.cols:][:r.cols], b[i*r.rank:][:r.rank], 0)
		}
		return
	}
	rank, cols := r.rank, r.cols
	b0, b1, b2, b3 := b[:rank], b[rank:][:rank], b[2*rank:][:rank], b[3*rank:][:rank]
	p0, p1, p2, p3 := product[:cols], product[cols:][:cols], product[2*cols:][:cols], product[3*cols:][:cols]
	even := cols &^ 1
	for j := 0; j < even; j += 2 {
		x, y := r.at[j*rank:][:rank], r.at[(j+1)*rank:][:rank]
		var x0, x1, x2, x3, y0, y1, y2, y3 float64
		for k := range x {
			u, v := x[k], y[k]
			x0 += b0[k] * u
			y0 += b0[k] * v
			x1 += b1[k] * u
			y1 += b1[k] * v
			x2 += b2[k] * u
			y2 += b2[k] * v
			x3 += b3[k] * u
			y3 += b3[k] * v
		}
		p0[j], p0[j+1] = x0, y0
		p1[j], p1[j+1] = x1, y1
		p2[j], p2[j+1] = x2, y2
		p3[j], p3[j+1] = x3, y3
	}
	if even < cols {
		for i := range n {
			r.row(product[i*cols:][:cols], b[i*rank:][:rank], even)
		}
	}
}

// row computes one row of the product from column j on.
func (r *rowAdder) row(product, b []float64, j int) {
	for ; j < r.cols; j++ {
		sum := 0.0
		for k, v := range r.at[j*r.rank:][:r.rank] {
			sum += b[k] * v
		}
		product[j] = sum
	}
}

// widen reads values of type d into dst, exactly.
func widen(dst []float32, src []byte, d kernels.DType) []float32 {
	le := binary.LittleEndian
	dst = room(dst, len(src)/d.Size())
	switch d {
	case kernels.F32:
		for i := range dst {
			dst[i] = math.Float32frombits(le.Uint32(src[4*i:]))
		}
	case kernels.BF16:
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(le.Uint16(src[2*i:])) << 16)
		}
	case kernels.F16:
		for i := range dst {
			dst[i] = kernels.F16ToF32(le.Uint16(src[2*i:]))
		}
	}
	return dst
}

// narrow appends values rounded to type d, and returns the index of the first that is not finite then, or -1.
func narrow(out []byte, values []float64, d kernels.DType) ([]byte, int) {
	le := binary.LittleEndian
	size := d.Size()
	at := len(out)
	if cap(out)-at < size*len(values) {
		out = append(make([]byte, 0, 2*(at+size*len(values))), out...)
	}
	out = out[:at+size*len(values)]
	dst := out[at:]
	bad := -1
	switch d {
	case kernels.F32:
		for i, v := range values {
			b := math.Float32bits(float32(v))
			if b&0x7f800000 == 0x7f800000 && bad < 0 {
				bad = i
			}
			le.PutUint32(dst[4*i:], b)
		}
	case kernels.BF16:
		i := 0
		for d := dst; len(d) >= 8; d = d[8:] {
			v := values[i:][:4]
			le.PutUint64(d, bf16(v[0])|bf16(v[1])<<16|bf16(v[2])<<32|bf16(v[3])<<48)
			i += 4
		}
		for ; i < len(values); i++ {
			le.PutUint16(dst[2*i:], uint16(bf16(values[i])))
		}
		bad = notFiniteBF16(dst)
	case kernels.F16:
		for i, v := range values {
			b := f16(toOdd(v))
			if b&0x7c00 == 0x7c00 && bad < 0 {
				bad = i
			}
			le.PutUint16(dst[2*i:], b)
		}
	}
	return out, bad
}

// addBF16 adds scale·product to w in float32 and rounds, in place. Both are little-endian, bfloat16 and float32. It returns the index of the
// first value that is not finite then, or -1.
func addBF16(w, product []byte, scale float32) int {
	le := binary.LittleEndian
	add := func(x uint32, p uint32) uint64 {
		b := math.Float32bits(math.Float32frombits(x) + scale*math.Float32frombits(p))
		return uint64((b + 0x7fff + (b>>16)&1) >> 16) // to the nearest, ties to even
	}
	const high = 0xffff0000
	d := w
	for len(d) >= 8 && len(product) >= 16 { // four values: loads and checks of bounds cost as much as the sum
		x, p, q := le.Uint64(d), le.Uint64(product), le.Uint64(product[8:])
		y := add(uint32(x)<<16, uint32(p)) | add(uint32(x)&high, uint32(p>>32))<<16
		y |= add(uint32(x>>16)&high, uint32(q))<<32 | add(uint32(x>>32)&high, uint32(q>>32))<<48
		le.PutUint64(d, y)
		d, product = d[8:], product[16:]
	}
	for ; len(d) > 0; d, product = d[2:], product[4:] {
		le.PutUint16(d, uint16(add(uint32(le.Uint16(d))<<16, le.Uint32(product))))
	}
	return notFiniteBF16(w)
}

// notFiniteBF16 returns the index of the first bfloat16 that is not finite, or -1.
func notFiniteBF16(b []byte) int {
	const exponents, one = 0x7f807f807f807f80, 0x0080008000800080
	le := binary.LittleEndian
	at := 0
	for len(b)-at >= 8 && (le.Uint64(b[at:])&exponents+one)&(one<<8) == 0 { // no exponent carries into its sign's place
		at += 8
	}
	for ; at < len(b); at += 2 {
		if le.Uint16(b[at:])&0x7f80 == 0x7f80 {
			return at / 2
		}
	}
	return -1
}

// bf16 rounds to bfloat16, to the nearest, ties to even.
func bf16(v float64) uint64 {
	b := math.Float32bits(toOdd(v))
	if v != v {
		b = 0x7fc00000 // rounding must not carry a NaN's ones into its sign
	}
	return uint64((b + 0x7fff + (b>>16)&1) >> 16)
}

// toOdd rounds to float32 so that a second rounding, to fewer bits, gives what one rounding of v would: the bits that do not fit are cut off, and
// if any of them was set, the last bit that stays is (round to odd: Boldo and Melquiond, IEEE Trans. Computers 57(4), 2008). For values of float32's
// normal range.
func toOdd(v float64) float32 {
	const cut = 1<<29 - 1 // float64 has 29 bits of significand more
	u := math.Float64bits(v)
	return float32(math.Float64frombits(u&^cut | (u&cut+cut)&(cut+1)))
}

// f16 rounds to IEEE half precision, to the nearest, ties to even; what is too large becomes an infinity.
func f16(v float32) uint16 {
	b := math.Float32bits(v)
	sign, b := uint16(b>>16)&0x8000, b&0x7fffffff
	switch {
	case b >= 0x7f800000: // infinity or NaN
		return sign | 0x7c00 | uint16(min(b&0x7fffff, 1))
	case b < 113<<23: // below 2^-14: steps of 2^-24, which adding 1/2 leaves as the last bits of a float32
		return sign | uint16(math.Float32bits(math.Float32frombits(b)+0.5)-0x3f000000)
	}
	b += 0xfff + b>>13&1 // half a step, rounded to even; a carry goes into the exponent
	if b >= 143<<23 {    // 2^16
		return sign | 0x7c00
	}
	return sign | uint16((b-112<<23)>>13)
}
