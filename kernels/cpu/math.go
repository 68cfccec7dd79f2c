package cpu

import "math"

// exp32 is exp(x) for the portable variant and for single values: x = n ln2 + r with |r| <= ln2/2, Taylor's series to r^7 and a scaling
// by 2^n. Below -87.33 it is 0, above 88.3 it stays at exp(88.3); NaN stays NaN. No product is fused.
func exp32(x float32) float32 {
	if x != x {
		return x
	}
	if x < -87.33 {
		return 0
	}
	if x > 88.3 {
		x = 88.3
	}
	t := float32(x * 1.44269504088896341)
	n := int32(t + 0.5)
	if t < 0 {
		n = int32(t - 0.5)
	}
	r := x - float32(float32(n)*0.693359375)
	r -= float32(float32(n) * -2.12194440054690583e-4)
	p := float32(1.0 / 5040)
	p = float32(p*r) + 1.0/720
	p = float32(p*r) + 1.0/120
	p = float32(p*r) + 1.0/24
	p = float32(p*r) + 1.0/6
	p = float32(p*r) + 1.0/2
	p = float32(p*r) + 1
	p = float32(p*r) + 1
	return float32(p * math.Float32frombits(uint32(n+127)<<23))
}

func sigmoid(x float32) float32 { return 1 / (1 + exp32(-x)) }

// ln is the natural logarithm of a positive x in float64, without fused products, so that its bits are the same everywhere:
// x = m 2^e with m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh((m-1)/(m+1)).
func ln(x float64) float64 {
	if !(x > 0) || math.IsInf(x, 1) {
		return math.Log(x)
	}
	m, e := math.Frexp(x)
	if m < math.Sqrt2/2 {
		m *= 2
		e--
	}
	s := (m - 1) / (m + 1)
	q := float64(s * s)
	sum := 0.0
	for k := 23; k >= 1; k -= 2 {
		sum = float64(sum*q) + 1/float64(k)
	}
	return float64(2*s*sum) + float64(float64(e)*math.Ln2)
}

// logSum is the running log-sum-exp of blocks that come in a fixed order: of the values so far, the largest and the sum of
// exp(value - largest).
type logSum struct{ max, sum float32 }

// merge adds a block with largest value m and sum s = sum exp(value - m). Milakov & Gimelshein 2018, arXiv 1805.02867, eq. 4.
func (l *logSum) merge(m, s float32) {
	if m > l.max || m != m {
		l.sum = float32(l.sum*exp32(l.max-m)) + s
		l.max = m
		return
	}
	l.sum += float32(s * exp32(m-l.max))
}

func (l *logSum) value() float32 { return l.max + float32(ln(float64(l.sum))) }
