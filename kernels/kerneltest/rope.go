package kerneltest

import (
	"fmt"
	"math"

	"tinkerlocal/kernels"
)

// ropeShape is the shape of one RoPE case. Rows of the key/value tensors are permuted when rows > 0.
type ropeShape struct {
	tokens, heads, kv, c, rows int
	qnorm, knorm               bool
}

var ropeShapes = []ropeShape{
	{1, 1, 1, 2, 0, false, false},
	{1, 2, 1, 6, 5, true, true},
	{5, 3, 3, 8, 0, true, false},
	{6, 4, 2, 16, 9, true, true},
	{7, 2, 2, 14, 7, false, true},
	{8, 1, 1, 64, 0, true, true},
	{17, 6, 2, 32, 40, true, true},
	{9, 2, 1, 128, 0, false, false},
	{130, 2, 1, 16, 131, true, true},
}

// maxPos is the rows of the cos and sin tables.
const maxPos = 200

// ropeProblem is the inputs of a RoPE op.
type ropeProblem struct {
	ropeShape
	qkv, gq, gk, cos, sin, pos, at host
	oldK, oldV                     host
	dq, dk, dv                     host
}

func drawRope(g *gen, s ropeShape) *ropeProblem {
	p := &ropeProblem{ropeShape: s}
	p.qkv = g.normal(2, s.tokens, (s.heads+2*s.kv)*s.c)
	p.gq, p.gk = g.normal(1, s.c), g.normal(1, s.c)
	p.cos, p.sin = ropeTable(s.c)
	p.pos = g.ids(0, maxPos-1, s.tokens)
	p.pos.ints[0] = maxPos - 1
	rows := max(s.rows, s.tokens)
	p.oldK, p.oldV = g.normal(1, rows, s.kv*s.c), g.normal(1, rows, s.kv*s.c)
	perm := make([]int32, s.tokens)
	for i, row := range g.Perm(rows)[:s.tokens] {
		perm[i] = int32(row)
	}
	p.at = integers([]int{s.tokens}, perm)
	p.dq = g.normal(1, s.tokens, s.heads*s.c)
	p.dk, p.dv = g.normal(1, s.tokens, s.kv*s.c), g.normal(1, s.tokens, s.kv*s.c)
	return p
}

// ropeTable is cos and sin of position * 10000^(-2i/C), [maxPos, C/2].
func ropeTable(c int) (cos, sin host) {
	h := c / 2
	cos, sin = unset(maxPos, h), unset(maxPos, h)
	for p := range maxPos {
		for i := range h {
			angle := float64(p) * math.Pow(10000, -2*float64(i)/float64(c))
			cos.data[p*h+i], sin.data[p*h+i] = float32(math.Cos(angle)), float32(math.Sin(angle))
		}
	}
	return cos, sin
}

// gains places the norms that the shape has.
func (p *ropeProblem) gains(r *rig) (q, k kernels.Tensor) {
	if p.qnorm {
		q = r.in("qnorm", p.gq)
	}
	if p.knorm {
		k = r.in("knorm", p.gk)
	}
	return q, k
}

func (p *ropeProblem) forward(r *rig) kernels.RoPEArgs {
	a := kernels.RoPEArgs{
		Q: r.out("q", p.tokens, p.heads*p.c), QKV: r.in("qkv", p.qkv),
		Cos: r.in("cos", p.cos), Sin: r.in("sin", p.sin), Pos: r.in("pos", p.pos),
		Heads: p.heads, KVHeads: p.kv, Eps: normEps,
	}
	a.QNorm, a.KNorm = p.gains(r)
	if p.rows > 0 {
		// Rows that no token is written to keep what they hold.
		a.K, a.V, a.Rows = r.inout("k", p.oldK), r.inout("v", p.oldV), r.in("rows", p.at)
	} else {
		a.K, a.V = r.out("k", p.tokens, p.kv*p.c), r.out("v", p.tokens, p.kv*p.c)
	}
	return a
}

func (p *ropeProblem) backward(r *rig) kernels.RoPEBackwardArgs {
	a := kernels.RoPEBackwardArgs{
		DQKV: r.out("dqkv", p.tokens, (p.heads+2*p.kv)*p.c),
		DQ:   r.in("dq", p.dq), DK: r.in("dk", p.dk), DV: r.in("dv", p.dv), QKV: r.in("qkv", p.qkv),
		Cos: r.in("cos", p.cos), Sin: r.in("sin", p.sin), Pos: r.in("pos", p.pos),
		Heads: p.heads, KVHeads: p.kv, Eps: normEps,
	}
	a.QNorm, a.KNorm = p.gains(r)
	return a
}

func ropeCases() []opCase {
	var fwd, bwd []opCase
	for _, s := range ropeShapes {
		name := fmt.Sprintf("T=%d H=%d K=%d C=%d rows %d norms %v %v", s.tokens, s.heads, s.kv, s.c, s.rows, s.qnorm, s.knorm)
		seeds := seedsFor(s.tokens * s.c)
		fwd = append(fwd, opCase{"rope", name, 2, seeds, func(r *rig) func() error {
			a := drawRope(r.g, s).forward(r)
			return func() error { return r.ops.RoPE(a) }
		}})
		bwd = append(bwd, opCase{"rope backward", name, 3, seeds, func(r *rig) func() error {
			a := drawRope(r.g, s).backward(r)
			return func() error { return r.ops.RoPEBackward(a) }
		}})
	}
	return append(fwd, bwd...)
}
