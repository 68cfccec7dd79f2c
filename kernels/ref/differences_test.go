package ref_test

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"tinkerlocal/kernels"
	"tinkerlocal/kernels/ref"
)

// Central differences check every backward op against its forward. In float64, with a step h = 1e-4
// and losses of size 1 to 100, the truncation error h^2/6 * f”' is about 1e-9 to 1e-8 and the rounding error
// 1e-16 * |L| / h below 1e-10. A wrong formula is off by the size of the gradient itself. The bound
// 1e-6 * (|g| + rms(g)) lies well between.
const (
	step  = 1e-4
	bound = 1e-6
)

// lab is a reference device with float64 values going in and out.
type lab struct {
	t   *testing.T
	dev kernels.Device
	ops kernels.Ops
	rng *rand.Rand
}

func newLab(t *testing.T) *lab {
	dev := ref.Open()
	return &lab{t, dev, dev.Ops(), rand.New(rand.NewPCG(1, 2))}
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// zeros is a new tensor of zeros.
func (l *lab) zeros(shape ...int) kernels.Tensor {
	t, err := kernels.NewTensor(l.dev, kernels.F64, shape...)
	l.must(err)
	return t
}

// normal is a new tensor of normal values.
func (l *lab) normal(shape ...int) kernels.Tensor {
	t := l.zeros(shape...)
	v := make([]float64, t.Len())
	for i := range v {
		v[i] = l.rng.NormFloat64()
	}
	l.set(t, v...)
	return t
}

func (l *lab) ints(v ...int32) kernels.Tensor {
	t, err := kernels.NewTensor(l.dev, kernels.I32, len(v))
	l.must(err)
	l.must(kernels.WriteInts(l.dev, t, v))
	return t
}

func (l *lab) set(t kernels.Tensor, v ...float64) {
	b := make([]byte, 8*len(v))
	for i, x := range v {
		binary.LittleEndian.PutUint64(b[8*i:], math.Float64bits(x))
	}
	l.must(l.dev.Upload(t, b))
}

func (l *lab) get(t kernels.Tensor) []float64 {
	b := make([]byte, t.Bytes())
	l.must(l.dev.Download(b, t))
	v := make([]float64, t.Len())
	for i := range v {
		v[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return v
}

// weight is a stacked weight with normal values.
func (l *lab) weight(cols int, parts ...int) kernels.Weight {
	var ms []kernels.Matrix
	for _, rows := range parts {
		m := kernels.Matrix{Rows: rows, Cols: cols, DType: kernels.F32, Data: make([]byte, 4*rows*cols)}
		for i := range rows * cols {
			binary.LittleEndian.PutUint32(m.Data[4*i:], math.Float32bits(float32(l.rng.NormFloat64()/2)))
		}
		ms = append(ms, m)
	}
	w, err := l.dev.Pack(ms, kernels.F32)
	l.must(err)
	return w
}

func (l *lab) lora(rank, parts, n, k int) *kernels.LoRA {
	return &kernels.LoRA{
		Rank: rank, Scale: 0.75,
		A: l.normal(parts*rank, k), B: l.normal(n, rank),
		DA: l.zeros(parts*rank, k), DB: l.zeros(n, rank),
	}
}

// inner is the inner product of two tensors.
func (l *lab) inner(a, b kernels.Tensor) float64 {
	sum := 0.0
	bv := l.get(b)
	for i, v := range l.get(a) {
		sum += v * bv[i]
	}
	return sum
}

// gradient checks the gradient of loss with respect to x.
func (l *lab) gradient(name string, x, grad kernels.Tensor, loss func() float64) {
	l.t.Helper()
	g, v := l.get(grad), l.get(x)
	rms := 0.0
	for _, e := range g {
		rms += e * e / float64(len(g))
	}
	rms = math.Sqrt(rms)
	if rms == 0 || math.IsNaN(rms) {
		l.t.Fatalf("%s: rms %v, the check would be empty", name, rms)
	}
	for i := range v {
		at := v[i]
		v[i] = at + step
		l.set(x, v...)
		up := loss()
		v[i] = at - step
		l.set(x, v...)
		down := loss()
		v[i] = at
		l.set(x, v...)
		want := (up - down) / (2 * step)
		if d := math.Abs(g[i] - want); !(d <= bound*(math.Abs(want)+rms)) {
			l.t.Errorf("%s[%d] is %v, differences give %v", name, i, g[i], want)
			return
		}
	}
}

func TestLinearBackward(t *testing.T) {
	l := newLab(t)
	const T, k = 7, 5
	w := l.weight(k, 3, 1, 2)
	one, two := l.lora(2, 3, 6, k), l.lora(3, 3, 6, k)
	spans := []kernels.Span{{Begin: 0, End: 2, LoRA: one}, {Begin: 2, End: 3}, {Begin: 4, End: 6, LoRA: two}, {Begin: 6, End: 7, LoRA: one}}
	x, y, v, dv, dy, dx := l.normal(T, k), l.zeros(T, 6), l.zeros(T, 9), l.zeros(T, 9), l.normal(T, 6), l.zeros(T, k)
	loss := func() float64 {
		l.must(l.ops.Linear(kernels.LinearArgs{Y: y, V: v, X: x, W: w, Spans: spans}))
		return l.inner(dy, y)
	}
	loss()
	l.must(l.ops.LinearBackward(kernels.LinearBackwardArgs{DX: dx, DV: dv, DY: dy, V: v, X: x, W: w, Spans: spans}))
	l.gradient("dx", x, dx, loss)
	for i, a := range []*kernels.LoRA{one, two} {
		l.gradient([]string{"da of one", "da of two"}[i], a.A, a.DA, loss)
		l.gradient([]string{"db of one", "db of two"}[i], a.B, a.DB, loss)
	}
}

func TestRMSNormBackward(t *testing.T) {
	l := newLab(t)
	x, y, rstd, g := l.normal(4, 6), l.zeros(4, 6), l.zeros(4), l.normal(6)
	dy, dx, dres := l.normal(4, 6), l.zeros(4, 6), l.normal(4, 6)
	loss := func() float64 {
		l.must(l.ops.RMSNorm(y, rstd, x, g, 0.01))
		return l.inner(dy, y) + l.inner(dres, x)
	}
	loss()
	l.must(l.ops.RMSNormBackward(dx, dy, x, rstd, g, dres))
	l.gradient("dx", x, dx, loss)
}

func TestRoPEBackward(t *testing.T) {
	for _, norms := range []bool{false, true} {
		l := newLab(t)
		const T, heads, kv, c, places = 3, 4, 2, 6, 9
		cos, sin := l.zeros(places, c/2), l.zeros(places, c/2)
		var cv, sv []float64
		for i := range places * c / 2 {
			cv, sv = append(cv, math.Cos(float64(i))), append(sv, math.Sin(float64(i)))
		}
		l.set(cos, cv...)
		l.set(sin, sv...)
		a := kernels.RoPEArgs{
			Q: l.zeros(T, heads*c), K: l.zeros(T, kv*c), V: l.zeros(T, kv*c), QKV: l.normal(T, (heads+2*kv)*c),
			Cos: cos, Sin: sin, Pos: l.ints(0, 8, 3), Heads: heads, KVHeads: kv, Eps: 0.01,
		}
		if norms {
			a.QNorm, a.KNorm = l.normal(c), l.normal(c)
		}
		b := kernels.RoPEBackwardArgs{
			DQKV: l.zeros(T, (heads+2*kv)*c), DQ: l.normal(T, heads*c), DK: l.normal(T, kv*c), DV: l.normal(T, kv*c), QKV: a.QKV,
			QNorm: a.QNorm, KNorm: a.KNorm, Cos: cos, Sin: sin, Pos: a.Pos, Heads: heads, KVHeads: kv, Eps: 0.01,
		}
		l.must(l.ops.RoPEBackward(b))
		l.gradient("dqkv", a.QKV, b.DQKV, func() float64 {
			l.must(l.ops.RoPE(a))
			return l.inner(b.DQ, a.Q) + l.inner(b.DK, a.K) + l.inner(b.DV, a.V)
		})
	}
}

func TestAttentionBackward(t *testing.T) {
	l := newLab(t)
	const T, heads, kv, c = 8, 4, 2, 3
	a := kernels.AttentionArgs{
		O: l.zeros(T, heads*c), LSE: l.zeros(T, heads), Q: l.normal(T, heads*c), K: l.normal(T, kv*c), V: l.normal(T, kv*c),
		Seqs: []kernels.Seq{{Begin: 0, End: 5}, {Begin: 5, End: 6, KV: 5}, {Begin: 6, End: 8, KV: 6}}, Heads: heads, KVHeads: kv, Scale: 0.5,
	}
	b := kernels.AttentionBackwardArgs{
		DQ: l.zeros(T, heads*c), DK: l.zeros(T, kv*c), DV: l.zeros(T, kv*c), DO: l.normal(T, heads*c),
		O: a.O, LSE: a.LSE, Q: a.Q, K: a.K, V: a.V, Seqs: a.Seqs, Heads: heads, KVHeads: kv, Scale: 0.5,
	}
	loss := func() float64 {
		l.must(l.ops.Attention(a))
		return l.inner(b.DO, a.O)
	}
	loss()
	l.must(l.ops.AttentionBackward(b))
	l.gradient("dq", a.Q, b.DQ, loss)
	l.gradient("dk", a.K, b.DK, loss)
	l.gradient("dv", a.V, b.DV, loss)
}

func TestSwiGLUBackward(t *testing.T) {
	l := newLab(t)
	gu, h, dh, dgu := l.normal(3, 10), l.zeros(3, 5), l.normal(3, 5), l.zeros(3, 10)
	l.must(l.ops.SwiGLUBackward(dgu, dh, gu))
	l.gradient("dgu", gu, dgu, func() float64 {
		l.must(l.ops.SwiGLU(h, gu))
		return l.inner(dh, h)
	})
}

func TestLogProbsBackward(t *testing.T) {
	l := newLab(t)
	const T, d, vocab, js = 6, 4, 9, 2
	w := l.weight(d, vocab)
	ad := l.lora(3, 1, vocab, d)
	spans := []kernels.Span{{Begin: 1, End: 3, LoRA: ad}, {Begin: 4, End: 6, LoRA: ad}}
	a := kernels.LogProbsArgs{
		Out: l.zeros(T, js), LSE: l.zeros(T), V: l.zeros(T, 3), H: l.normal(T, d), W: w, Spans: spans,
		Target: l.ints(0, 8, 3, 3, -1, 5, -1, -1, 7, 2, 1, 0).Reshape(T, js),
	}
	b := kernels.LogProbsBackwardArgs{
		DH: l.zeros(T, d), DV: l.zeros(T, 3), DOut: l.normal(T, js), LSE: a.LSE, V: a.V, H: a.H, W: w, Spans: spans, Target: a.Target,
	}
	loss := func() float64 {
		l.must(l.ops.LogProbs(a))
		return -l.inner(b.DOut, a.Out)
	}
	loss()
	l.must(l.ops.LogProbsBackward(b))
	l.gradient("dh", a.H, b.DH, loss)
	l.gradient("da", ad.A, ad.DA, loss)
	l.gradient("db", ad.B, ad.DB, loss)
}

// TestLogProbsAreNormalised: the probabilities of all entries add up to one, so no constant is missing
// that differences could not see.
func TestLogProbsAreNormalised(t *testing.T) {
	l := newLab(t)
	w := l.weight(4, 5)
	a := kernels.LogProbsArgs{Out: l.zeros(1, 5), LSE: l.zeros(1), H: l.normal(1, 4), W: w, Target: l.ints(0, 1, 2, 3, 4).Reshape(1, 5)}
	l.must(l.ops.LogProbs(a))
	sum := 0.0
	for _, v := range l.get(a.Out) {
		sum += math.Exp(v)
	}
	if math.Abs(sum-1) > 1e-14 {
		t.Errorf("probabilities add up to %v", sum)
	}
}

// TestAdamW: two steps worked by hand with lr 0.1, betas 0.5 and 0.75, eps 1, decay 0.5, and gradients 4 and then
// -2 scaled by 1/2.
func TestAdamW(t *testing.T) {
	l := newLab(t)
	p, g, m, v := l.zeros(1), l.zeros(1), l.zeros(1), l.zeros(1)
	l.set(p, 2)
	a := kernels.AdamWArgs{P: p, G: g, M: m, V: v, LR: 0.1, Beta1: 0.5, Beta2: 0.75, Eps: 1, WeightDecay: 0.5, GradScale: 0.5}
	want := func(name string, t kernels.Tensor, w float64) {
		l.t.Helper()
		if got := l.get(t)[0]; math.Abs(got-w) > 1e-14 {
			l.t.Errorf("step %d: %s is %v, wanted %v", a.Step, name, got, w)
		}
	}
	// g = 2; p: 2*0.95 = 1.9; m = 1, v = 0.25*4 = 1; corrected m = 1/0.5 = 2, sqrt(v)/sqrt(0.25) = 2;
	// p = 1.9 - 0.1*2/(2+1).
	a.Step = 1
	l.set(g, 4)
	l.must(l.ops.AdamW(a))
	want("m", m, 1)
	want("v", v, 1)
	want("p", p, 1.9-0.2/3)
	want("g", g, 0)
	// g = -1; m = 1 + (-1-1)/2 = 0; v = 0.75 + 0.25 = 1; p only decays.
	a.Step = 2
	l.set(g, -2)
	l.must(l.ops.AdamW(a))
	want("m", m, 0)
	want("v", v, 1)
	want("p", p, (1.9-0.2/3)*0.95)
	// g = 3, no decay: m = 1.5, v = 0.75 + 0.25*9 = 3; corrections 1 - 1/8 and 1 - 27/64.
	a.Step, a.WeightDecay, a.GradScale = 3, 0, 1
	l.set(g, 3)
	l.must(l.ops.AdamW(a))
	want("m", m, 1.5)
	want("v", v, 3)
	want("p", p, (1.9-0.2/3)*0.95-0.1*(1.5/0.875)/(math.Sqrt(3)/math.Sqrt(37.0/64)+1))
}
