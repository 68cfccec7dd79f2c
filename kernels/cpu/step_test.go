package cpu

import (
	"fmt"
	"sort"
	"testing"
	"time"

	"tinkerlocal/kernels"
)

// stack is a decoder of the embedded model's shape, put together from the ops alone, to see where a training step's time goes.
type stack struct {
	*rig
	tokens, layers, d, heads, kvHeads, c, f, vocab, rank int

	seqs     []kernels.Seq
	least    map[string]time.Duration // the shortest call of each op
	calls    map[string]int
	ids, pos kernels.Tensor
	cos, sin kernels.Tensor
	gain     kernels.Tensor
	emb      kernels.Weight
	qkv, o   proj
	gu, down proj
	head     proj

	x, y, y2, r1, r2, q, k, v, att, lse, qkvOut, guOut, h, mid kernels.Tensor
	dx, dy, dqkv, dq, dk, dv, datt, dgu, dh, dlow              kernels.Tensor
	out, dout, hlse, target                                    kernels.Tensor
}

// proj is a weight and one adapter for all data.
type proj struct {
	w     kernels.Weight
	spans []kernels.Span
	low   kernels.Tensor
}

func newStack(b *rig, seqs, length int) *stack {
	s := &stack{rig: b, tokens: seqs * length, layers: 4, d: 128, heads: 4, kvHeads: 2, c: 32, f: 384, vocab: 320, rank: 16,
		least: map[string]time.Duration{}, calls: map[string]int{}}
	for i := range seqs {
		s.seqs = append(s.seqs, kernels.Seq{Begin: i * length, End: (i + 1) * length, KV: i * length})
	}
	t, hc, kc := s.tokens, s.heads*s.c, s.kvHeads*s.c
	s.ids, s.pos, s.target = b.ints(t, s.vocab), b.ints(t, length), b.ints(t, s.vocab).Reshape(t, 1)
	for i := range t {
		ints(s.pos)[i] = int32(i % length)
	}
	s.cos, s.sin, s.gain = b.tensor(length, s.c/2), b.tensor(length, s.c/2), b.tensor(s.d)
	s.emb = b.weight(kernels.F32, s.d, s.vocab)
	s.qkv, s.o = s.proj(s.d, hc, kc, kc), s.proj(hc, s.d)
	s.gu, s.down = s.proj(s.d, s.f, s.f), s.proj(s.f, s.d)
	s.head = s.proj(s.d, s.vocab)
	s.x, s.y, s.y2, s.mid, s.dx, s.dy = b.tensor(t, s.d), b.tensor(t, s.d), b.tensor(t, s.d), b.tensor(t, s.d), b.tensor(t, s.d), b.tensor(t, s.d)
	s.r1, s.r2, s.hlse, s.lse = b.tensor(t), b.tensor(t), b.tensor(t), b.tensor(t, s.heads)
	s.q, s.att, s.dq, s.datt = b.tensor(t, hc), b.tensor(t, hc), b.tensor(t, hc), b.tensor(t, hc)
	s.k, s.v, s.dk, s.dv = b.tensor(t, kc), b.tensor(t, kc), b.tensor(t, kc), b.tensor(t, kc)
	s.qkvOut, s.dqkv = b.tensor(t, hc+2*kc), b.tensor(t, hc+2*kc)
	s.guOut, s.dgu, s.h, s.dh = b.tensor(t, 2*s.f), b.tensor(t, 2*s.f), b.tensor(t, s.f), b.tensor(t, s.f)
	s.dlow = b.tensor(t, 3*s.rank)
	s.out, s.dout = b.tensor(t, 1), b.tensor(t, 1)
	return s
}

func (s *stack) proj(k int, rows ...int) proj {
	n := 0
	for _, r := range rows {
		n += r
	}
	a := &kernels.LoRA{Rank: s.rank, Scale: 2, A: s.tensor(s.rank*len(rows), k), B: s.tensor(n, s.rank),
		DA: s.tensor(s.rank*len(rows), k), DB: s.tensor(n, s.rank)}
	p := proj{w: s.weight(kernels.F32, k, rows...), low: s.tensor(s.tokens, s.rank*len(rows))}
	for _, q := range s.seqs {
		p.spans = append(p.spans, kernels.Span{Begin: q.Begin, End: q.End, LoRA: a})
	}
	return p
}

// moment is a zero tensor of x's shape.
func (s *stack) moment(x kernels.Tensor) kernels.Tensor {
	t, err := kernels.NewTensor(s.dev, kernels.F32, x.Shape[0], x.Shape[1])
	if err != nil {
		s.Fatal(err)
	}
	return t
}

// do times one op.
func (s *stack) do(name string, err error, start time.Duration) {
	if err != nil {
		s.Fatal(name, err)
	}
	took := s.now() - start
	if old, ok := s.least[name]; !ok || took < old {
		s.least[name] = took
	}
	s.calls[name]++
}

func (s *stack) linear(name string, p *proj, y, x, res kernels.Tensor) {
	now := s.now()
	s.do(name, s.ops.Linear(kernels.LinearArgs{Y: y, V: p.low, X: x, W: p.w, Spans: p.spans, Res: res}), now)
}

func (s *stack) linearBack(name string, p *proj, dx, dy, x kernels.Tensor) {
	now := s.now()
	s.do(name+" back", s.ops.LinearBackward(kernels.LinearBackwardArgs{DX: dx, DV: s.dlow, DY: dy, V: p.low, X: x, W: p.w, Spans: p.spans}), now)
}

// step is forward, backward and an optimizer step of the adapters; layers share their buffers, so the numbers mean nothing.
func (s *stack) step() {
	now := s.now()
	s.do("embed", s.ops.Embed(s.x, s.emb, s.ids), now)
	for range s.layers {
		now = s.now()
		s.do("norm", s.ops.RMSNorm(s.y, s.r1, s.x, s.gain, 1e-6), now)
		s.linear("qkv", &s.qkv, s.qkvOut, s.y, kernels.Tensor{})
		now = s.now()
		s.do("rope", s.ops.RoPE(kernels.RoPEArgs{Q: s.q, K: s.k, V: s.v, QKV: s.qkvOut, QNorm: s.gain.RowRange(0, s.c), KNorm: s.gain.RowRange(0, s.c),
			Cos: s.cos, Sin: s.sin, Pos: s.pos, Heads: s.heads, KVHeads: s.kvHeads, Eps: 1e-6}), now)
		now = s.now()
		s.do("attention", s.ops.Attention(kernels.AttentionArgs{O: s.att, LSE: s.lse, Q: s.q, K: s.k, V: s.v, Seqs: s.seqs, Heads: s.heads,
			KVHeads: s.kvHeads, Scale: 0.17}), now)
		s.linear("o", &s.o, s.mid, s.att, s.x)
		now = s.now()
		s.do("norm", s.ops.RMSNorm(s.y2, s.r2, s.mid, s.gain, 1e-6), now)
		s.linear("gate up", &s.gu, s.guOut, s.y2, kernels.Tensor{})
		now = s.now()
		s.do("swiglu", s.ops.SwiGLU(s.h, s.guOut), now)
		s.linear("down", &s.down, s.x, s.h, s.mid)
	}
	now = s.now()
	s.do("head", s.ops.LogProbs(kernels.LogProbsArgs{Out: s.out, LSE: s.hlse, V: s.head.low, H: s.x, W: s.head.w, Spans: s.head.spans, Target: s.target}), now)
	now = s.now()
	s.do("head back", s.ops.LogProbsBackward(kernels.LogProbsBackwardArgs{DH: s.dx, DV: s.dlow, DOut: s.dout, LSE: s.hlse, V: s.head.low, H: s.x,
		W: s.head.w, Spans: s.head.spans, Target: s.target}), now)
	for range s.layers {
		s.linearBack("down", &s.down, s.dh, s.dx, s.h)
		now = s.now()
		s.do("swiglu back", s.ops.SwiGLUBackward(s.dgu, s.dh, s.guOut), now)
		s.linearBack("gate up", &s.gu, s.dy, s.dgu, s.y2)
		now = s.now()
		s.do("norm back", s.ops.RMSNormBackward(s.dx, s.dy, s.mid, s.r2, s.gain, s.dx), now)
		s.linearBack("o", &s.o, s.datt, s.dx, s.att)
		now = s.now()
		s.do("attention back", s.ops.AttentionBackward(kernels.AttentionBackwardArgs{DQ: s.dq, DK: s.dk, DV: s.dv, DO: s.datt, O: s.att, LSE: s.lse,
			Q: s.q, K: s.k, V: s.v, Seqs: s.seqs, Heads: s.heads, KVHeads: s.kvHeads, Scale: 0.17}), now)
		now = s.now()
		s.do("rope back", s.ops.RoPEBackward(kernels.RoPEBackwardArgs{DQKV: s.dqkv, DQ: s.dq, DK: s.dk, DV: s.dv, QKV: s.qkvOut,
			QNorm: s.gain.RowRange(0, s.c), KNorm: s.gain.RowRange(0, s.c), Cos: s.cos, Sin: s.sin, Pos: s.pos, Heads: s.heads, KVHeads: s.kvHeads, Eps: 1e-6}), now)
		s.linearBack("qkv", &s.qkv, s.dy, s.dqkv, s.y)
		now = s.now()
		s.do("norm back", s.ops.RMSNormBackward(s.dx, s.dy, s.x, s.r1, s.gain, s.dx), now)
	}
}

// BenchmarkStep is one forward and backward of 16 sequences of 80 tokens. ms-best is the best step, ms-ops the sum of each op's best call,
// which a busy machine disturbs less; -v lists the ops.
func BenchmarkStep(b *testing.B) {
	for _, threads := range []int{1, 2} {
		b.Run(fmt.Sprintf("t%d", threads), func(b *testing.B) {
			r := newBench(b, threads)
			s := newStack(r.rig, 16, 80)
			s.step()
			clear(s.least) // scratch has grown; and the clock is of one thread only inside best
			clear(s.calls)
			steps := 0
			took := r.best(func() error { steps++; s.step(); return nil })
			b.ReportMetric(float64(took.Microseconds())/1e3, "ms-best")
			b.ReportMetric(float64(s.tokens)/took.Seconds(), "tokens/s-best")
			var names []string
			total := time.Duration(0)
			for name := range s.least {
				s.least[name] *= time.Duration(s.calls[name] / steps)
				names = append(names, name)
				total += s.least[name]
			}
			b.ReportMetric(float64(total.Microseconds())/1e3, "ms-ops")
			sort.Slice(names, func(i, j int) bool { return s.least[names[i]] > s.least[names[j]] })
			for _, name := range names {
				if testing.Verbose() {
					b.Logf("%-16s %8.3f ms", name, float64(s.least[name].Microseconds())/1e3)
				}
			}
		})
	}
}
