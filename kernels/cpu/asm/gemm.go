package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// loadB reads 16 consecutive weights, widening bfloat16 exactly.
func loadB(b Mem, bf16 bool, lo, hi VecVirtual) {
	if bf16 {
		VPMOVZXWD(b, lo)
		VPMOVZXWD(b.Offset(16), hi)
		VPSLLD(Imm(16), lo, lo)
		VPSLLD(Imm(16), hi, hi)
		return
	}
	VMOVUPS(b, lo)
	VMOVUPS(b.Offset(32), hi)
}

// tile: c[i][0:16] (+)= sum over k of a(i,k) * b[k][0:16] for m rows. Each output has one chain of fused multiply-adds that starts at
// zero and runs over ascending k; with add != 0 the chain's sum is then added to c.
func tile(m int, bf16 bool) {
	name, elem := "tile", "float32"
	if bf16 {
		name, elem = "tileBF16x", "uint16"
	}
	TEXT(fmt.Sprintf("%s%d", name, m), NOSPLIT,
		"func(a *float32, rs, ks uintptr, b *"+elem+", bs uintptr, c *float32, cs, k, add uintptr)")
	Doc(fmt.Sprintf("%s%d: c[%d][16] (+)= a*b over k steps; strides in bytes.", name, m, m))
	a0, rs, ks := param("a"), param("rs"), param("ks")
	b, bs := param("b"), param("bs")
	k := param("k")
	rows := []Mem{{Base: a0}, {Base: a0, Index: rs, Scale: 1}, {Base: a0, Index: rs, Scale: 2}}
	var a3 GPVirtual
	if m > 3 {
		a3 = GP64()
		LEAQ(Mem{Base: rs, Index: rs, Scale: 2}, a3)
		ADDQ(a0, a3)
		rows = append(rows, Mem{Base: a3}, Mem{Base: a3, Index: rs, Scale: 1}, Mem{Base: a3, Index: rs, Scale: 2})
	}
	acc := make([][2]VecVirtual, m)
	for i := range acc {
		acc[i] = [2]VecVirtual{zeroY(), zeroY()}
	}
	lo, hi := YMM(), YMM()
	step := func() {
		loadB(Mem{Base: b}, bf16, lo, hi)
		for i := 0; i < m; i++ {
			x := YMM()
			VBROADCASTSS(rows[i], x)
			VFMADD231PS(lo, x, acc[i][0])
			VFMADD231PS(hi, x, acc[i][1])
		}
		ADDQ(ks, a0)
		if m > 3 {
			ADDQ(ks, a3)
		}
		ADDQ(bs, b)
	}
	quads := GP64()
	MOVQ(k, quads)
	SHRQ(Imm(2), quads)
	JZ(LabelRef("rest"))
	Label("four")
	for u := 0; u < 4; u++ {
		step()
	}
	DECQ(quads)
	JNZ(LabelRef("four"))
	Label("rest")
	ANDQ(Imm(3), k)
	JZ(LabelRef("out"))
	Label("one")
	step()
	DECQ(k)
	JNZ(LabelRef("one"))
	Label("out")
	c, cs, add := param("c"), param("cs"), param("add")
	TESTQ(add, add)
	JZ(LabelRef("set"))
	p := GP64()
	MOVQ(c, p)
	for i := 0; i < m; i++ {
		VADDPS(Mem{Base: p}, acc[i][0], acc[i][0])
		VADDPS(Mem{Base: p, Disp: 32}, acc[i][1], acc[i][1])
		if i < m-1 {
			ADDQ(cs, p)
		}
	}
	Label("set")
	for i := 0; i < m; i++ {
		VMOVUPS(acc[i][0], Mem{Base: c})
		VMOVUPS(acc[i][1], Mem{Base: c, Disp: 32})
		if i < m-1 {
			ADDQ(cs, c)
		}
	}
	VZEROUPPER()
	RET()
}

// wide: one row times four neighbouring panels, c[0:64] (+)= sum over k of a[k] * b_p[k][0:16]; the chains of tile, eight at a time, so
// that one row is not bound by the latency of a multiply-add.
func wide(bf16 bool) {
	name, elem, step := "wide", "float32", 64
	if bf16 {
		name, elem, step = "wideBF16", "uint16", 32
	}
	TEXT(name, NOSPLIT, "func(a *float32, b *"+elem+", ps uintptr, c *float32, k, add uintptr)")
	Doc(name + ": c[64] (+)= a*b for four panels that lie ps bytes apart.")
	a, b, ps, k := param("a"), param("b"), param("ps"), param("k")
	b2 := GP64()
	LEAQ(Mem{Base: b, Index: ps, Scale: 2}, b2)
	panels := []Mem{{Base: b}, {Base: b, Index: ps, Scale: 1}, {Base: b2}, {Base: b2, Index: ps, Scale: 1}}
	var acc [8]VecVirtual
	for i := range acc {
		acc[i] = zeroY()
	}
	Label("loop")
	x := YMM()
	VBROADCASTSS(Mem{Base: a}, x)
	for p := range panels {
		lo, hi := YMM(), YMM()
		loadB(panels[p], bf16, lo, hi)
		VFMADD231PS(lo, x, acc[2*p])
		VFMADD231PS(hi, x, acc[2*p+1])
	}
	ADDQ(Imm(4), a)
	ADDQ(Imm(uint64(step)), b)
	ADDQ(Imm(uint64(step)), b2)
	DECQ(k)
	JNZ(LabelRef("loop"))
	c, add := param("c"), param("add")
	TESTQ(add, add)
	JZ(LabelRef("set"))
	for i := range acc {
		VADDPS(Mem{Base: c, Disp: 32 * i}, acc[i], acc[i])
	}
	Label("set")
	for i := range acc {
		VMOVUPS(acc[i], Mem{Base: c, Disp: 32 * i})
	}
	VZEROUPPER()
	RET()
}

// transpose16: dst[j][i] = src(i, j) for 16 rows i that lie stride bytes apart and n columns j.
func transpose16() {
	TEXT("transpose16", NOSPLIT, "func(dst, src *float32, stride, n uintptr)")
	Doc("transpose16: dst[j*16+i] = src[i][j], 16 rows, n columns; stride in bytes.")
	dst, src, s, n := param("dst"), param("src"), param("stride"), param("n")
	s3 := GP64()
	LEAQ(Mem{Base: s, Index: s, Scale: 2}, s3)
	// One set of registers for all: half-written ones would look alive to the allocator.
	var r, t, out [4]VecVirtual
	for i := range r {
		r[i], t[i], out[i] = YMM(), YMM(), YMM()
	}
	blocks := GP64()
	MOVQ(n, blocks)
	SHRQ(Imm(3), blocks)
	JZ(LabelRef("rest"))
	Label("block")
	for half := 0; half < 2; half++ {
		p, p4 := GP64(), GP64()
		if half == 0 {
			MOVQ(src, p)
		} else {
			LEAQ(Mem{Base: src, Index: s, Scale: 8}, p)
		}
		LEAQ(Mem{Base: p, Index: s, Scale: 4}, p4)
		at := func(b GPVirtual, i int) Mem {
			switch i {
			case 0:
				return Mem{Base: b}
			case 3:
				return Mem{Base: b, Index: s3, Scale: 1}
			}
			return Mem{Base: b, Index: s, Scale: uint8(i)}
		}
		// Rows i and i+4 share a register: low lane columns 0-3, high lane the other row's; so no cross-lane permute is needed.
		for part := 0; part < 2; part++ { // columns 0-3, then 4-7
			for i := 0; i < 4; i++ {
				VMOVUPS(at(p, i).Offset(16*part), r[i].AsX())
				VINSERTF128(Imm(1), at(p4, i).Offset(16*part), r[i], r[i])
			}
			VUNPCKLPS(r[1], r[0], t[0])
			VUNPCKHPS(r[1], r[0], t[1])
			VUNPCKLPS(r[3], r[2], t[2])
			VUNPCKHPS(r[3], r[2], t[3])
			VUNPCKLPD(t[2], t[0], out[0])
			VUNPCKHPD(t[2], t[0], out[1])
			VUNPCKLPD(t[3], t[1], out[2])
			VUNPCKHPD(t[3], t[1], out[3])
			for j := range out {
				VMOVUPS(out[j], Mem{Base: dst, Disp: 64*(4*part+j) + 32*half})
			}
		}
	}
	ADDQ(Imm(32), src)
	ADDQ(I32(512), dst)
	DECQ(blocks)
	JNZ(LabelRef("block"))
	Label("rest")
	ANDQ(Imm(7), n)
	JZ(LabelRef("done"))
	Label("column")
	p := GP64()
	MOVQ(src, p)
	for i := 0; i < 16; i++ {
		x := XMM()
		VMOVSS(Mem{Base: p}, x)
		VMOVSS(x, Mem{Base: dst, Disp: 4 * i})
		if i < 15 {
			ADDQ(s, p)
		}
	}
	ADDQ(Imm(4), src)
	ADDQ(Imm(64), dst)
	DECQ(n)
	JNZ(LabelRef("column"))
	Label("done")
	VZEROUPPER()
	RET()
}

// copy16: dst[j][0:16] = src[j][0:16] for n rows that lie stride bytes apart in src.
func copy16() {
	TEXT("copy16", NOSPLIT, "func(dst, src *float32, stride, n uintptr)")
	Doc("copy16: dst[j*16+i] = src[j][i], n rows of 16; stride in bytes.")
	dst, src, s, n := param("dst"), param("src"), param("stride"), param("n")
	Label("loop")
	// The rows are far apart, where no prefetcher of the processor sees a pattern.
	PREFETCHT0(Mem{Base: src, Index: s, Scale: 8})
	lo, hi := YMM(), YMM()
	VMOVUPS(Mem{Base: src}, lo)
	VMOVUPS(Mem{Base: src, Disp: 32}, hi)
	VMOVUPS(lo, Mem{Base: dst})
	VMOVUPS(hi, Mem{Base: dst, Disp: 32})
	ADDQ(s, src)
	ADDQ(Imm(64), dst)
	DECQ(n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

// widen: dst = src for n bfloat16 values, n a multiple of 16.
func widen() {
	TEXT("widen", NOSPLIT, "func(dst *float32, src *uint16, n uintptr)")
	Doc("widen: bfloat16 to float32, n a multiple of 16.")
	dst, src, n := param("dst"), param("src"), param("n")
	SHRQ(Imm(4), n)
	JZ(LabelRef("done"))
	Label("loop")
	lo, hi := YMM(), YMM()
	loadB(Mem{Base: src}, true, lo, hi)
	VMOVUPS(lo, Mem{Base: dst})
	VMOVUPS(hi, Mem{Base: dst, Disp: 32})
	ADDQ(Imm(32), src)
	ADDQ(Imm(64), dst)
	DECQ(n)
	JNZ(LabelRef("loop"))
	Label("done")
	VZEROUPPER()
	RET()
}

// peak runs 12 independent chains of multiply-adds on registers only: 12*8*2 FLOP per step. It measures the roof of one core.
func peak() {
	TEXT("fmaPeak", NOSPLIT, "func(n uintptr)")
	Doc("fmaPeak: n steps of 12 independent 8-wide multiply-adds.")
	n := param("n")
	var acc [12]VecVirtual
	for i := range acc {
		acc[i] = zeroY()
	}
	x, y := zeroY(), zeroY()
	Label("loop")
	for u := 0; u < 4; u++ {
		for i := range acc {
			VFMADD231PS(x, y, acc[i])
		}
	}
	SUBQ(Imm(4), n)
	JG(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

// pauses waits some 50 nanoseconds without using the core's units.
func pauses() {
	TEXT("pause", NOSPLIT, "func()")
	Doc("pause: a short wait in a spin loop.")
	PAUSE()
	RET()
}
