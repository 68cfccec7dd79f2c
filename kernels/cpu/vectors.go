package cpu

import (
	"unsafe"

	"tinkerlocal/kernels"
)

// The shape of the arithmetic; the package comment says why it is fixed.
const (
	panelRows = 16  // weight rows (outputs) in a panel
	tileRows  = 6   // activation rows in a tile
	segment   = 256 // steps of one chain
)

// tileFunc: c[i][0:16] (+)= sum over k of a(i,k)*b[k][0:16]. Strides rs, ks, bs, cs are bytes; with add 0 c is overwritten.
type tileFunc func(a *float32, rs, ks uintptr, b *float32, bs uintptr, c *float32, cs, k, add uintptr)

// tileBF16Func is tileFunc for bfloat16 weights.
type tileBF16Func func(a *float32, rs, ks uintptr, b *uint16, bs uintptr, c *float32, cs, k, add uintptr)

// vectors is one variant: every loop that touches more than a few numbers. The orders of their sums are part of the variant.
type vectors struct {
	tile     [tileRows + 1]tileFunc // by row count
	tileBF16 [tileRows + 1]tileBF16Func
	wide     func(a *float32, b *float32, ps uintptr, c *float32, k, add uintptr) // one row, four panels ps bytes apart
	wideBF16 func(a *float32, b *uint16, ps uintptr, c *float32, k, add uintptr)

	transpose16 func(dst, src *float32, stride, n uintptr) // dst[j*16+i] = src(i,j)
	copy16      func(dst, src *float32, stride, n uintptr) // dst[j*16+i] = src(j,i), n >= 1
	widen       func(dst *float32, src *uint16, n uintptr) // n a multiple of 16

	add       func(y, a, b *float32, n uintptr)
	scale     func(y, x *float32, n uintptr, s float32) // y = x*s + 0
	normScale func(y, x, g *float32, n uintptr, r float32)
	normGrad  func(dx, dy, x, g *float32, n uintptr, r, c float32)

	sumSq   func(x *float32, n uintptr) float32
	dot     func(a, b *float32, n uintptr) float32
	dot3    func(a, b, c *float32, n uintptr) float32
	rowMax  func(x *float32, n uintptr) float32
	sumSq64 func(x *float32, n uintptr) float64

	expSum      func(x *float32, n uintptr, m float32) float32 // x = exp(x-m), and their sum
	expSumOnly  func(x *float32, n uintptr, m float32) float32 // the same sum, x kept
	expScale    func(x *float32, n uintptr, m, s float32)      // x = s*exp(x-m)
	softmaxGrad func(s, dp *float32, n uintptr, lse, delta float32)
	swiglu      func(h, g, u *float32, n uintptr)
	swigluGrad  func(dg, du, dh, g, u *float32, n uintptr)

	rope   func(y, x, g, cos, sin *float32, half uintptr, r float32)
	unrope func(x, y, cos, sin *float32, half uintptr)
	adamw  func(p, g, m, v *float32, n uintptr, k *[8]float32)
}

// floats is t's memory as float32. The caller has checked t.
func floats(t kernels.Tensor) []float32 {
	if t.Buf == nil {
		return nil
	}
	b := t.Buf.(*buffer)
	return unsafe.Slice((*float32)(unsafe.Pointer(&b.data[t.Off])), t.Len())
}

// ints is t's memory as int32. The caller has checked t.
func ints(t kernels.Tensor) []int32 {
	if t.Buf == nil {
		return nil
	}
	b := t.Buf.(*buffer)
	return unsafe.Slice((*int32)(unsafe.Pointer(&b.data[t.Off])), t.Len())
}

func alignedFloats(n int) []float32 {
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(aligned(4*int64(n))))), n)
}

// bytesOf is a stride of n float32 in bytes.
func bytesOf(n int) uintptr { return uintptr(n) * 4 }

// addFlag is the add argument of the tiles.
func addFlag(add bool) uintptr {
	if add {
		return 1
	}
	return 0
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }

func roundUp(a, b int) int { return ceilDiv(a, b) * b }
