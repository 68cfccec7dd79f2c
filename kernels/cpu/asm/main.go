// Command asm writes the AVX2 kernels of package cpu (kernels_amd64.s and its Go declarations) with avo.
//
//	go generate ./kernels/cpu
//
// Every function takes plain pointers and byte strides, reads nothing past the last element it is given, and says its order of
// sums beside its generator. The Go twins with the same names live in portable.go.
package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/gotypes"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

func main() {
	ConstraintExpr("amd64")
	constants()
	for m := 1; m <= 6; m++ {
		tile(m, false)
		tile(m, true)
	}
	wide(false)
	wide(true)
	transpose16()
	copy16()
	widen()
	elementwise()
	reductions()
	activations()
	rotary()
	adam()
	peak()
	pauses()
	Generate()
}

// ---- constants -------------------------------------------------------------------------------------------------

var (
	tailMask Mem            // 8 words of ones, then 8 of zeros
	vectors  map[string]Mem // eight copies of one value
)

func constants() {
	tailMask = GLOBL("tailMask", RODATA|NOPTR)
	for i := 0; i < 16; i++ {
		v := uint32(0)
		if i < 8 {
			v = 0xffffffff
		}
		DATA(4*i, U32(v))
	}
	vectors = map[string]Mem{}
	for _, c := range []struct {
		name  string
		value float32
	}{
		{"expHi", 88.3}, {"expLo", -87.33}, {"log2e", 1.44269504088896341},
		{"ln2Hi", 0.693359375}, {"ln2Lo", -2.12194440054690583e-4},
		{"inv2", 1.0 / 2}, {"inv6", 1.0 / 6}, {"inv24", 1.0 / 24}, {"inv120", 1.0 / 120}, {"inv720", 1.0 / 720}, {"inv5040", 1.0 / 5040},
		{"one", 1},
	} {
		m := GLOBL("vec"+c.name, RODATA|NOPTR)
		for i := 0; i < 8; i++ {
			DATA(4*i, U32(math.Float32bits(c.value))) // bits: avo prints a float of whole value as an integer
		}
		vectors[c.name] = m
	}
	m := GLOBL("vecBias", RODATA|NOPTR)
	for i := 0; i < 8; i++ {
		DATA(4*i, U32(127))
	}
	vectors["bias"] = m
}

// ---- helpers ---------------------------------------------------------------------------------------------------

func zeroY() VecVirtual {
	v := YMM()
	VXORPS(v, v, v)
	return v
}

func param(name string) GPVirtual { return Load(Param(name), GP64()).(GPVirtual) }

// broadcast loads a float32 argument into all lanes. It and result use VEX instructions, which avo's Load and Store of floats do not: an
// SSE instruction between AVX ones costs this kind of processor more than a hundred cycles.
func broadcast(name string) VecVirtual {
	y := YMM()
	VBROADCASTSS(address(Param(name)), y)
	return y
}

// result stores lane 0 of x as the function's float32.
func result(x VecVirtual) { VMOVSS(x, address(ReturnIndex(0))) }

func address(c gotypes.Component) Mem {
	b, err := c.Resolve()
	if err != nil {
		panic(err)
	}
	return b.Addr
}

// lanes runs over n elements, eight at a time, then once under a mask for the rest. body gets loaders and storers that
// apply the mask; masked-out lanes read as zero and are not written.
type lanes struct {
	i    GPVirtual
	mask VecVirtual
	tail bool
}

func (l *lanes) load(p GPVirtual) VecVirtual {
	v := YMM()
	m := Mem{Base: p, Index: l.i, Scale: 4}
	if l.tail {
		VMASKMOVPS(m, l.mask, v)
	} else {
		VMOVUPS(m, v)
	}
	return v
}

func (l *lanes) store(v VecVirtual, p GPVirtual) {
	m := Mem{Base: p, Index: l.i, Scale: 4}
	if l.tail {
		VMASKMOVPS(v, l.mask, m)
	} else {
		VMOVUPS(v, m)
	}
}

func forLanes(n GPVirtual, body func(l *lanes)) {
	i := GP64()
	XORQ(i, i)
	end := GP64()
	MOVQ(n, end)
	ANDQ(I32(-8), end)
	l := &lanes{i: i}
	Label("loop8")
	CMPQ(i, end)
	JGE(LabelRef("tail"))
	body(l)
	ADDQ(Imm(8), i)
	JMP(LabelRef("loop8"))
	Label("tail")
	rem := GP64()
	MOVQ(n, rem)
	SUBQ(i, rem)
	JZ(LabelRef("done"))
	l.mask, l.tail = tailFor(rem), true
	body(l)
	Label("done")
}

// tailFor is the mask of the first rem lanes, 0 <= rem <= 8.
func tailFor(rem GPVirtual) VecVirtual {
	base, off := GP64(), GP64()
	LEAQ(tailMask, base)
	MOVQ(U32(8), off)
	SUBQ(rem, off)
	mask := YMM()
	VMOVUPS(Mem{Base: base, Index: off, Scale: 4}, mask)
	return mask
}

// sum8 adds the eight lanes in the fixed tree ((0+4)+(2+6)) + ((1+5)+(3+7)); the result is in lane 0.
func sum8(v VecVirtual) VecVirtual {
	hi, t := XMM(), XMM()
	VEXTRACTF128(Imm(1), v, hi)
	lo := v.AsX()
	s := XMM()
	VADDPS(hi, lo, s)
	VMOVHLPS(s, s, t)
	VADDPS(t, s, s)
	u := XMM()
	VMOVSHDUP(s, u)
	VADDSS(u, s, s)
	return s
}

// expY replaces x by exp(x): x = n ln2 + r with |r| <= ln2/2, exp(r) by its Taylor series to r^7 (error 0.1 ulp before rounding),
// times 2^n. Below -87.33 the result is 0, above 88.3 it stays at exp(88.3); NaN stays NaN.
func expY(x VecVirtual) VecVirtual {
	small, t, n, p := YMM(), YMM(), YMM(), YMM()
	VCMPPS(Imm(17), vectors["expLo"], x, small) // x < lo
	VMOVUPS(vectors["expHi"], t)
	VMINPS(x, t, t) // the second source (x) is returned for NaN
	VMOVUPS(vectors["expLo"], n)
	VMAXPS(t, n, t)
	VMULPS(vectors["log2e"], t, n)
	VROUNDPS(Imm(8), n, n)
	VFNMADD231PS(vectors["ln2Hi"], n, t)
	VFNMADD231PS(vectors["ln2Lo"], n, t)
	VMOVUPS(vectors["inv5040"], p)
	for _, c := range []string{"inv720", "inv120", "inv24", "inv6", "inv2", "one", "one"} {
		VFMADD213PS(vectors[c], t, p)
	}
	VCVTPS2DQ(n, n)
	VPADDD(vectors["bias"], n, n)
	VPSLLD(Imm(23), n, n)
	VMULPS(n, p, p)
	VANDNPS(p, small, p)
	return p
}

// sigmoidY is 1/(1+exp(-x)); x is kept.
func sigmoidY(x VecVirtual) VecVirtual {
	neg := zeroY()
	VSUBPS(x, neg, neg)
	e := expY(neg)
	VADDPS(vectors["one"], e, e)
	one := YMM()
	VMOVUPS(vectors["one"], one)
	VDIVPS(e, one, one)
	return one
}
