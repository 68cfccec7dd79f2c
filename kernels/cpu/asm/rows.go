package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

func done() {
	VZEROUPPER()
	RET()
}

func elementwise() {
	TEXT("add", NOSPLIT, "func(y, a, b *float32, n uintptr)")
	Doc("add: y = a + b.")
	{
		y, a, b, n := param("y"), param("a"), param("b"), param("n")
		forLanes(n, func(l *lanes) {
			v, w := l.load(a), l.load(b)
			VADDPS(w, v, v)
			l.store(v, y)
		})
		done()
	}
	TEXT("scale", NOSPLIT, "func(y, x *float32, n uintptr, s float32)")
	Doc("scale: y = x*s + 0; the sum turns -0 into +0.")
	{
		y, x, n, s := param("y"), param("x"), param("n"), broadcast("s")
		zero := zeroY()
		forLanes(n, func(l *lanes) {
			v := l.load(x)
			VMULPS(s, v, v)
			VADDPS(zero, v, v)
			l.store(v, y)
		})
		done()
	}
	TEXT("normScale", NOSPLIT, "func(y, x, gn *float32, n uintptr, r float32)")
	Doc("normScale: y = (x*r)*g.")
	{
		y, x, g, n, r := param("y"), param("x"), param("gn"), param("n"), broadcast("r")
		forLanes(n, func(l *lanes) {
			v, w := l.load(x), l.load(g)
			VMULPS(r, v, v)
			VMULPS(w, v, v)
			l.store(v, y)
		})
		done()
	}
	TEXT("normGrad", NOSPLIT, "func(dx, dy, x, gn *float32, n uintptr, r, c float32)")
	Doc("normGrad: dx = r*(g*dy - x*c).")
	{
		dx, dy, x, g, n := param("dx"), param("dy"), param("x"), param("gn"), param("n")
		r, c := broadcast("r"), broadcast("c")
		forLanes(n, func(l *lanes) {
			d, w, v := l.load(dy), l.load(g), l.load(x)
			VMULPS(w, d, d)
			VFNMADD231PS(c, v, d)
			VMULPS(r, d, d)
			l.store(d, dx)
		})
		done()
	}
}

// reductions keep lane i%8 for element i (sums in four registers for the plain sums: lane i%32 up to the last full 32, then
// lane i%8 of the first register) and end in the tree of sum8.
func reductions() {
	four := func(name, args, doc string, ptrs []string, body func(v []VecVirtual, acc VecVirtual)) {
		TEXT(name, NOSPLIT, "func("+args+" *float32, n uintptr) float32")
		Doc(doc)
		var p []GPVirtual
		for _, s := range ptrs {
			p = append(p, param(s))
		}
		n := param("n")
		acc := [4]VecVirtual{zeroY(), zeroY(), zeroY(), zeroY()}
		groups := GP64()
		MOVQ(n, groups)
		SHRQ(Imm(5), groups)
		JZ(LabelRef("few"))
		Label("loop32")
		for u := 0; u < 4; u++ {
			var v []VecVirtual
			for _, q := range p {
				r := YMM()
				VMOVUPS(Mem{Base: q, Disp: 32 * u}, r)
				v = append(v, r)
			}
			body(v, acc[u])
		}
		for _, q := range p {
			ADDQ(I32(128), q)
		}
		DECQ(groups)
		JNZ(LabelRef("loop32"))
		Label("few")
		ANDQ(Imm(31), n)
		forLanes(n, func(l *lanes) {
			var v []VecVirtual
			for _, q := range p {
				v = append(v, l.load(q))
			}
			body(v, acc[0])
		})
		VADDPS(acc[1], acc[0], acc[0])
		VADDPS(acc[3], acc[2], acc[2])
		VADDPS(acc[2], acc[0], acc[0])
		result(sum8(acc[0]))
		done()
	}
	four("sumSq", "x", "sumSq: sum of x*x.", []string{"x"}, func(v []VecVirtual, acc VecVirtual) {
		VFMADD231PS(v[0], v[0], acc)
	})
	four("dot", "a, b", "dot: sum of a*b.", []string{"a", "b"}, func(v []VecVirtual, acc VecVirtual) {
		VFMADD231PS(v[0], v[1], acc)
	})
	four("dot3", "a, b, c", "dot3: sum of (a*b)*c.", []string{"a", "b", "c"}, func(v []VecVirtual, acc VecVirtual) {
		VMULPS(v[1], v[0], v[0])
		VFMADD231PS(v[0], v[2], acc)
	})

	TEXT("rowMax", NOSPLIT, "func(x *float32, n uintptr) float32")
	Doc("rowMax: the largest of n >= 1 values.")
	{
		x, n := param("x"), param("n")
		m := YMM()
		VBROADCASTSS(Mem{Base: x}, m)
		first := YMM()
		VMOVAPS(m, first)
		forLanes(n, func(l *lanes) {
			v := l.load(x)
			if l.tail { // lanes past the end repeat the first value
				VBLENDVPS(l.mask, v, first, v)
			}
			VMAXPS(v, m, m)
		})
		hi, t := XMM(), XMM()
		VEXTRACTF128(Imm(1), m, hi)
		s := XMM()
		VMAXPS(hi, m.AsX(), s)
		VMOVHLPS(s, s, t)
		VMAXPS(t, s, s)
		u := XMM()
		VMOVSHDUP(s, u)
		VMAXSS(u, s, s)
		result(s)
		done()
	}

	TEXT("sumSq64", NOSPLIT, "func(x *float32, n uintptr) float64")
	Doc("sumSq64: sum of x*x in float64; lane i%8, then a tree.")
	{
		x, n := param("x"), param("n")
		a, b := zeroY(), zeroY()
		forLanes(n, func(l *lanes) {
			v := l.load(x)
			hi := XMM()
			VEXTRACTF128(Imm(1), v, hi)
			d, e := YMM(), YMM()
			VCVTPS2PD(v.AsX(), d)
			VCVTPS2PD(hi, e)
			VFMADD231PD(d, d, a)
			VFMADD231PD(e, e, b)
		})
		VADDPD(b, a, a)
		hi := XMM()
		VEXTRACTF128(Imm(1), a, hi)
		s := XMM()
		VADDPD(hi, a.AsX(), s)
		t := XMM()
		VUNPCKHPD(s, s, t)
		VADDSD(t, s, s)
		VMOVSD(s, address(ReturnIndex(0)))
		done()
	}
}

// activations: everything built on expY.
func activations() {
	TEXT("expSum", NOSPLIT, "func(x *float32, n uintptr, m float32) float32")
	Doc("expSum: x = exp(x-m), returns the sum; lane i%8.")
	{
		x, n, m := param("x"), param("n"), broadcast("m")
		acc := zeroY()
		forLanes(n, func(l *lanes) {
			v := l.load(x)
			VSUBPS(m, v, v)
			e := expY(v)
			if l.tail {
				VANDPS(l.mask, e, e)
			}
			l.store(e, x)
			VADDPS(e, acc, acc)
		})
		result(sum8(acc))
		done()
	}
	TEXT("expSumOnly", NOSPLIT, "func(x *float32, n uintptr, m float32) float32")
	Doc("expSumOnly: the sum of expSum; x is kept.")
	{
		x, n, m := param("x"), param("n"), broadcast("m")
		acc := zeroY()
		forLanes(n, func(l *lanes) {
			v := l.load(x)
			VSUBPS(m, v, v)
			e := expY(v)
			if l.tail {
				VANDPS(l.mask, e, e)
			}
			VADDPS(e, acc, acc)
		})
		result(sum8(acc))
		done()
	}
	TEXT("expScale", NOSPLIT, "func(x *float32, n uintptr, m, s float32)")
	Doc("expScale: x = s*exp(x-m).")
	{
		x, n, m, s := param("x"), param("n"), broadcast("m"), broadcast("s")
		forLanes(n, func(l *lanes) {
			v := l.load(x)
			VSUBPS(m, v, v)
			e := expY(v)
			VMULPS(s, e, e)
			l.store(e, x)
		})
		done()
	}
	TEXT("softmaxGrad", NOSPLIT, "func(s, dp *float32, n uintptr, lse, delta float32)")
	Doc("softmaxGrad: s = p = exp(s-lse), dp = p*(dp-delta).")
	{
		s, dp, n := param("s"), param("dp"), param("n")
		lse, delta := broadcast("lse"), broadcast("delta")
		forLanes(n, func(l *lanes) {
			v, d := l.load(s), l.load(dp)
			VSUBPS(lse, v, v)
			p := expY(v)
			VSUBPS(delta, d, d)
			VMULPS(p, d, d)
			l.store(p, s)
			l.store(d, dp)
		})
		done()
	}
	TEXT("swiglu", NOSPLIT, "func(h, gn, u *float32, n uintptr)")
	Doc("swiglu: h = g*sigmoid(g)*u.")
	{
		h, g, u, n := param("h"), param("gn"), param("u"), param("n")
		forLanes(n, func(l *lanes) {
			v, w := l.load(g), l.load(u)
			s := sigmoidY(v)
			VMULPS(v, s, s)
			VMULPS(w, s, s)
			l.store(s, h)
		})
		done()
	}
	TEXT("swigluGrad", NOSPLIT, "func(dg, du, dh, gn, u *float32, n uintptr)")
	Doc("swigluGrad: du = dh*g*s, dg = dh*u*(s + g*s*(1-s)), s = sigmoid(g).")
	{
		dg, du, dh, g, u, n := param("dg"), param("du"), param("dh"), param("gn"), param("u"), param("n")
		forLanes(n, func(l *lanes) {
			v := l.load(g)
			s := sigmoidY(v)
			gs, one := YMM(), YMM()
			VMULPS(s, v, gs)
			d := l.load(dh)
			t := YMM()
			VMULPS(gs, d, t)
			w := l.load(u)
			l.store(t, du)
			VMOVUPS(vectors["one"], one)
			VSUBPS(s, one, one)
			VFMADD231PS(one, gs, s)
			VMULPS(w, d, d)
			VMULPS(s, d, d)
			l.store(d, dg)
		})
		done()
	}
}

// An argument cannot be called g: the assembler takes that for a register.
//
// rotary: the rotation of kernels.RoPEArgs on one head of 2*half elements.
func rotary() {
	TEXT("rope", NOSPLIT, "func(y, x, gn, cos, sin *float32, half uintptr, r float32)")
	Doc("rope: rotates (x*r)*g of 2*half elements.")
	{
		y, x, g, c, s, n, r := param("y"), param("x"), param("gn"), param("cos"), param("sin"), param("half"), broadcast("r")
		y2, x2, g2 := GP64(), GP64(), GP64()
		LEAQ(Mem{Base: y, Index: n, Scale: 4}, y2)
		LEAQ(Mem{Base: x, Index: n, Scale: 4}, x2)
		LEAQ(Mem{Base: g, Index: n, Scale: 4}, g2)
		forLanes(n, func(l *lanes) {
			a, b, ga, gb := l.load(x), l.load(x2), l.load(g), l.load(g2)
			VMULPS(r, a, a)
			VMULPS(r, b, b)
			VMULPS(ga, a, a)
			VMULPS(gb, b, b)
			rotate(l, a, b, c, s, y, y2, false)
		})
		done()
	}
	TEXT("unrope", NOSPLIT, "func(x, y, cos, sin *float32, half uintptr)")
	Doc("unrope: the inverse rotation, x from y.")
	{
		x, y, c, s, n := param("x"), param("y"), param("cos"), param("sin"), param("half")
		y2, x2 := GP64(), GP64()
		LEAQ(Mem{Base: y, Index: n, Scale: 4}, y2)
		LEAQ(Mem{Base: x, Index: n, Scale: 4}, x2)
		forLanes(n, func(l *lanes) {
			a, b := l.load(y), l.load(y2)
			rotate(l, a, b, c, s, x, x2, true)
		})
		done()
	}
}

func rotate(l *lanes, a, b VecVirtual, cos, sin, out, out2 GPVirtual, back bool) {
	c, s := l.load(cos), l.load(sin)
	as, bs := YMM(), YMM()
	VMULPS(s, a, as)
	VMULPS(s, b, bs)
	if back {
		VFMADD213PS(bs, c, a) // a*c + b*s
		VFMSUB213PS(as, c, b) // b*c - a*s
	} else {
		VFMSUB213PS(bs, c, a)
		VFMADD213PS(as, c, b)
	}
	l.store(a, out)
	l.store(b, out2)
}

// adam: one AdamW step; k holds gradScale, 1-lr*decay, 1-beta1, beta2, 1-beta2, -stepSize, sqrt(1-beta2^t), eps.
func adam() {
	TEXT("adamw", NOSPLIT, "func(p, gn, m, v *float32, n uintptr, k *[8]float32)")
	Doc("adamw: one step on n elements; zeroes g.")
	p, g, m, v, n, k := param("p"), param("gn"), param("m"), param("v"), param("n"), param("k")
	var c [8]VecVirtual
	for i := range c {
		c[i] = YMM()
		VBROADCASTSS(Mem{Base: k, Disp: 4 * i}, c[i])
	}
	forLanes(n, func(l *lanes) {
		gr, mo, ve, pa := l.load(g), l.load(m), l.load(v), l.load(p)
		VMULPS(c[0], gr, gr)
		VMULPS(c[1], pa, pa)
		t := YMM()
		VSUBPS(mo, gr, t)
		VMULPS(c[2], t, t)
		VADDPS(t, mo, mo)
		l.store(mo, m)
		VMULPS(c[3], ve, ve)
		VMULPS(c[4], gr, t)
		VMULPS(gr, t, t)
		VADDPS(t, ve, ve)
		l.store(ve, v)
		VSQRTPS(ve, ve)
		VDIVPS(c[6], ve, ve)
		VADDPS(c[7], ve, ve)
		VMULPS(c[5], mo, mo)
		VDIVPS(ve, mo, mo)
		VADDPS(mo, pa, pa)
		l.store(pa, p)
		z := zeroY()
		l.store(z, g)
	})
	done()
}
