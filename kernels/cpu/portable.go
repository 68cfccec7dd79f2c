package cpu

import (
	"math"
	"unsafe"

	"tinkerlocal/kernels"
)

// The portable variant: plain Go, the same bits on every architecture. Each product is written float32(a*b) (or float64(a*b)) before
// it is added, which forbids the compiler to fuse it. Reductions run in ascending order: float32 chains in the tiles, float64 sums
// elsewhere.

var portable = vectors{
	tile:        [tileRows + 1]tileFunc{nil, goTile(1), goTile(2), goTile(3), goTile(4), goTile(5), goTile(6)},
	tileBF16:    [tileRows + 1]tileBF16Func{nil, goTileBF16(1), goTileBF16(2), goTileBF16(3), goTileBF16(4), goTileBF16(5), goTileBF16(6)},
	wide:        goWide,
	wideBF16:    goWideBF16,
	transpose16: goTranspose16,
	copy16:      goCopy16,
	widen:       goWiden,
	add:         goAdd,
	scale:       goScale,
	normScale:   goNormScale,
	normGrad:    goNormGrad,
	sumSq:       goSumSq,
	dot:         goDot,
	dot3:        goDot3,
	rowMax:      goRowMax,
	sumSq64:     goSumSq64,
	expSum:      goExpSum,
	expSumOnly:  goExpSumOnly,
	expScale:    goExpScale,
	softmaxGrad: goSoftmaxGrad,
	swiglu:      goSwiGLU,
	swigluGrad:  goSwiGLUGrad,
	rope:        goRope,
	unrope:      goUnrope,
	adamw:       goAdamW,
}

// step moves a pointer by bytes. The result must lie in the same memory: the garbage collector stops the program over a pointer that is kept
// and leads nowhere, one past the end included.
func step[T any](p *T, bytes uintptr) *T { return (*T)(unsafe.Add(unsafe.Pointer(p), bytes)) }

func slice(p *float32, n uintptr) []float32 { return unsafe.Slice(p, n) }

type row16 = [panelRows]float32

func goTile(m int) tileFunc {
	return func(a *float32, rs, ks uintptr, b *float32, bs uintptr, c *float32, cs, k, add uintptr) {
		for i := range uintptr(m) {
			goRow(step(a, i*rs), ks, b, bs, (*row16)(unsafe.Pointer(step(c, i*cs))), k, add)
		}
	}
}

// goRow computes one row of a tile in two halves, so that the eight sums stay in registers.
func goRow(a *float32, ks uintptr, b *float32, bs uintptr, c *row16, k, add uintptr) {
	for half := 0; half < panelRows; half += 8 {
		var s0, s1, s2, s3, s4, s5, s6, s7 float32
		q := unsafe.Add(unsafe.Pointer(b), 4*half)
		for i := range k {
			x, w := *step(a, i*ks), (*[8]float32)(unsafe.Add(q, i*bs))
			s0 += float32(x * w[0])
			s1 += float32(x * w[1])
			s2 += float32(x * w[2])
			s3 += float32(x * w[3])
			s4 += float32(x * w[4])
			s5 += float32(x * w[5])
			s6 += float32(x * w[6])
			s7 += float32(x * w[7])
		}
		o := (*[8]float32)(c[half:])
		if add != 0 {
			*o = [8]float32{o[0] + s0, o[1] + s1, o[2] + s2, o[3] + s3, o[4] + s4, o[5] + s5, o[6] + s6, o[7] + s7}
		} else {
			*o = [8]float32{s0, s1, s2, s3, s4, s5, s6, s7}
		}
	}
}

func goTileBF16(m int) tileBF16Func {
	return func(a *float32, rs, ks uintptr, b *uint16, bs uintptr, c *float32, cs, k, add uintptr) {
		for i := range uintptr(m) {
			goRowBF16(step(a, i*rs), ks, b, bs, (*row16)(unsafe.Pointer(step(c, i*cs))), k, add)
		}
	}
}

func goRowBF16(a *float32, ks uintptr, b *uint16, bs uintptr, c *row16, k, add uintptr) {
	var s row16
	for i := range k {
		x, w := *step(a, i*ks), (*[panelRows]uint16)(unsafe.Pointer(step(b, i*bs)))
		for j := range s {
			s[j] += float32(x * kernels.BF16ToF32(w[j]))
		}
	}
	for j := range s {
		if add != 0 {
			s[j] = c[j] + s[j]
		}
		c[j] = s[j]
	}
}

func goWide(a *float32, b *float32, ps uintptr, c *float32, k, add uintptr) {
	for i := range uintptr(4) {
		goRow(a, 4, step(b, i*ps), 4*panelRows, (*row16)(unsafe.Pointer(step(c, i*4*panelRows))), k, add)
	}
}

func goWideBF16(a *float32, b *uint16, ps uintptr, c *float32, k, add uintptr) {
	for i := range uintptr(4) {
		goRowBF16(a, 4, step(b, i*ps), 2*panelRows, (*row16)(unsafe.Pointer(step(c, i*4*panelRows))), k, add)
	}
}

func goTranspose16(dst, src *float32, stride, n uintptr) {
	d := slice(dst, n*panelRows)
	for i := range panelRows {
		for j, v := range slice(step(src, uintptr(i)*stride), n) {
			d[j*panelRows+i] = v
		}
	}
}

func goCopy16(dst, src *float32, stride, n uintptr) {
	for i := range n {
		*(*row16)(unsafe.Pointer(step(dst, i*4*panelRows))) = *(*row16)(unsafe.Pointer(step(src, i*stride)))
	}
}

func goWiden(dst *float32, src *uint16, n uintptr) {
	d := slice(dst, n)
	for i, v := range unsafe.Slice(src, n) {
		d[i] = kernels.BF16ToF32(v)
	}
}

func goAdd(y, a, b *float32, n uintptr) {
	ys, as, bs := slice(y, n), slice(a, n), slice(b, n)
	for i := range ys {
		ys[i] = as[i] + bs[i]
	}
}

func goScale(y, x *float32, n uintptr, s float32) {
	ys, xs := slice(y, n), slice(x, n)
	for i := range ys {
		ys[i] = float32(xs[i]*s) + 0
	}
}

func goNormScale(y, x, g *float32, n uintptr, r float32) {
	ys, xs, gs := slice(y, n), slice(x, n), slice(g, n)
	for i := range ys {
		ys[i] = float32(xs[i]*r) * gs[i]
	}
}

func goNormGrad(dx, dy, x, g *float32, n uintptr, r, c float32) {
	os, ds, xs, gs := slice(dx, n), slice(dy, n), slice(x, n), slice(g, n)
	for i := range os {
		os[i] = r * (float32(gs[i]*ds[i]) - float32(xs[i]*c))
	}
}

func goSumSq(x *float32, n uintptr) float32 { return float32(goSumSq64(x, n)) }

func goSumSq64(x *float32, n uintptr) float64 {
	var s float64
	for _, v := range slice(x, n) {
		s += float64(float64(v) * float64(v))
	}
	return s
}

func goDot(a, b *float32, n uintptr) float32 {
	var s float64
	bs := slice(b, n)
	for i, v := range slice(a, n) {
		s += float64(float64(v) * float64(bs[i]))
	}
	return float32(s)
}

func goDot3(a, b, c *float32, n uintptr) float32 {
	var s float64
	bs, cs := slice(b, n), slice(c, n)
	for i, v := range slice(a, n) {
		s += float64(float64(float32(v*bs[i])) * float64(cs[i]))
	}
	return float32(s)
}

func goRowMax(x *float32, n uintptr) float32 {
	xs := slice(x, n)
	m := xs[0]
	for _, v := range xs {
		if v > m || v != v {
			m = v
		}
	}
	return m
}

func goExpSum(x *float32, n uintptr, m float32) float32 {
	var s float64
	xs := slice(x, n)
	for i, v := range xs {
		xs[i] = exp32(v - m)
		s += float64(xs[i])
	}
	return float32(s)
}

func goExpSumOnly(x *float32, n uintptr, m float32) float32 {
	var s float64
	for _, v := range slice(x, n) {
		s += float64(exp32(v - m))
	}
	return float32(s)
}

func goExpScale(x *float32, n uintptr, m, s float32) {
	xs := slice(x, n)
	for i, v := range xs {
		xs[i] = s * exp32(v-m)
	}
}

func goSoftmaxGrad(s, dp *float32, n uintptr, lse, delta float32) {
	ss, ds := slice(s, n), slice(dp, n)
	for i, v := range ss {
		p := exp32(v - lse)
		ss[i], ds[i] = p, p*(ds[i]-delta)
	}
}

func goSwiGLU(h, g, u *float32, n uintptr) {
	hs, gs, us := slice(h, n), slice(g, n), slice(u, n)
	for i, v := range gs {
		hs[i] = float32(v*sigmoid(v)) * us[i]
	}
}

func goSwiGLUGrad(dg, du, dh, g, u *float32, n uintptr) {
	dgs, dus, dhs, gs, us := slice(dg, n), slice(du, n), slice(dh, n), slice(g, n), slice(u, n)
	for i, v := range gs {
		s, d, w := sigmoid(v), dhs[i], us[i]
		gated := float32(v * s)
		dus[i] = d * gated
		dgs[i] = float32(d*w) * (s + float32(gated*(1-s)))
	}
}

func goRope(y, x, g, cos, sin *float32, half uintptr, r float32) {
	ys, xs, gs := slice(y, 2*half), slice(x, 2*half), slice(g, 2*half)
	cs, ss := slice(cos, half), slice(sin, half)
	h := int(half)
	for i := range cs {
		a, b := float32(xs[i]*r)*gs[i], float32(xs[h+i]*r)*gs[h+i]
		ys[i] = float32(a*cs[i]) - float32(b*ss[i])
		ys[h+i] = float32(b*cs[i]) + float32(a*ss[i])
	}
}

func goUnrope(x, y, cos, sin *float32, half uintptr) {
	xs, ys := slice(x, 2*half), slice(y, 2*half)
	cs, ss := slice(cos, half), slice(sin, half)
	h := int(half)
	for i := range cs {
		a, b := ys[i], ys[h+i]
		xs[i] = float32(a*cs[i]) + float32(b*ss[i])
		xs[h+i] = float32(b*cs[i]) - float32(a*ss[i])
	}
}

func goAdamW(p, g, m, v *float32, n uintptr, k *[8]float32) {
	ps, gs, ms, vs := slice(p, n), slice(g, n), slice(m, n), slice(v, n)
	for i := range ps {
		gr := gs[i] * k[0]
		w := float32(ps[i] * k[1])
		ms[i] += float32((gr - ms[i]) * k[2])
		vs[i] = float32(vs[i]*k[3]) + float32(float32(k[4]*gr)*gr)
		d := float32(float32(math.Sqrt(float64(vs[i])))/k[6]) + k[7]
		ps[i] = w + float32(float32(k[5]*ms[i])/d)
		gs[i] = 0
	}
}
