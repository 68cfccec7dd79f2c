package kerneltest

import (
	"encoding/binary"
	"fmt"
	"math"

	"tinkerlocal/kernels"
)

// agreementChecks compare ways to ask for the same numbers, bit by bit.
func agreementChecks() []check {
	var all []check
	for _, c := range []int{16, 64} {
		all = append(all, check{"agreement", fmt.Sprintf("attention prefill chunks decode pages C=%d", c), func(dev kernels.Device) error {
			return onRig(dev, 0, func(r *rig) { attentionWays(r, 4, 2, c, 150) })
		}})
	}
	for _, s := range []struct{ d, vocab, rank int }{{20, 40, 0}, {20, 40, 5}, {700, 17, 8}, {8, 600, 2}} {
		all = append(all, check{"agreement", fmt.Sprintf("logits and logprobs D=%d V=%d R=%d", s.d, s.vocab, s.rank), func(dev kernels.Device) error {
			return onRig(dev, 0, func(r *rig) { headWays(r, s.d, s.vocab, s.rank) })
		}})
	}
	return all
}

// attentionWays computes one sequence in one piece, in chunks, token by token, and with its keys on pages.
func attentionWays(r *rig, heads, kv, c, n int) {
	const pageLen, pages = 16, 12
	hq, hk, hv := r.g.normal(1, n, heads*c), r.g.normal(1, n, kv*c), r.g.normal(1, n, kv*c)
	q := r.in("q", hq)
	args := func(rows int) kernels.AttentionArgs {
		return kernels.AttentionArgs{
			O: r.out("o", rows, heads*c), LSE: r.out("lse", rows, heads), Q: q, PageLen: pageLen,
			Heads: heads, KVHeads: kv, Scale: 0.25,
		}
	}
	whole := args(n)
	whole.K, whole.V = r.in("k", hk), r.in("v", hv)
	whole.Seqs = []kernels.Seq{{End: n}}
	r.must(r.ops.Attention(whole))
	want := append(r.bytesOf(whole.O), r.bytesOf(whole.LSE)...)
	compare := func(way string, a kernels.AttentionArgs) {
		if d := sameBits(want, append(r.bytesOf(a.O), r.bytesOf(a.LSE)...)); d != "" {
			r.must(fmt.Errorf("attention of one sequence in one piece and %s differ: %s", way, d))
		}
	}
	// Keys of the same sequence on shuffled pages; everything else on them is NaN.
	table := make([]int32, (n+pageLen-1)/pageLen)
	for i, p := range r.g.Perm(pages)[:len(table)] {
		table[i] = int32(p)
	}
	pk, pv := unset(pages*pageLen, kv*c), unset(pages*pageLen, kv*c)
	for j := range n {
		row := int(table[j/pageLen])*pageLen + j%pageLen
		copy(pk.data[row*kv*c:], hk.data[j*kv*c:][:kv*c])
		copy(pv.data[row*kv*c:], hv.data[j*kv*c:][:kv*c])
	}
	tk, tv := r.in("paged k", pk), r.in("paged v", pv)
	paged := args(n)
	paged.K, paged.V = tk, tv
	paged.Seqs = []kernels.Seq{{End: n, Pages: table}}
	r.must(r.ops.Attention(paged))
	compare("on pages", paged)
	for _, chunk := range []int{1, 7, 64} {
		flat, onPages := args(n), args(n)
		flat.K, flat.V, onPages.K, onPages.V = whole.K, whole.V, tk, tv
		for at := 0; at < n; at += chunk {
			end := min(at+chunk, n)
			for _, a := range []kernels.AttentionArgs{flat, onPages} {
				a.Q, a.O, a.LSE = a.Q.RowRange(at, end), a.O.RowRange(at, end), a.LSE.RowRange(at, end)
				a.Seqs = []kernels.Seq{{End: end - at, Pos: at}}
				if a.K == tk {
					a.Seqs[0].Pages = table
				}
				r.must(r.ops.Attention(a))
			}
		}
		compare(fmt.Sprintf("in chunks of %d", chunk), flat)
		compare(fmt.Sprintf("in chunks of %d on pages", chunk), onPages)
	}
	// Several positions of the sequence decoded in one batch, out of order.
	batch := args(5)
	batch.K, batch.V = tk, tv
	rows := []int{149, 0, 16, 15, 77}
	var picked []host
	for i, p := range rows {
		picked = append(picked, hq.rows(p, p+1))
		batch.Seqs = append(batch.Seqs, kernels.Seq{Begin: i, End: i + 1, Pos: p, Pages: table})
	}
	batch.Q = r.in("picked q", stack(picked...))
	r.must(r.ops.Attention(batch))
	for i, p := range rows {
		if d := sameBits(r.bytesOf(whole.O.RowRange(p, p+1)), r.bytesOf(batch.O.RowRange(i, i+1))); d != "" {
			r.must(fmt.Errorf("position %d in a decode batch differs from prefill: %s", p, d))
		}
	}
}

// headWays asks LogProbs for every vocabulary entry and compares with Logits in batches of one and of all.
func headWays(r *rig, d, vocab, rank int) {
	const tokens = 7
	w := r.pack(r.g.weight(kernels.BF16, d, false, vocab))
	h, v := r.in("h", r.g.normal(2, tokens, d)), r.out("v", tokens, max(rank, 1))
	every := host{shape: []int{tokens, vocab}}
	for range tokens {
		for i := range vocab {
			every.ints = append(every.ints, int32(i))
		}
	}
	a := kernels.LogProbsArgs{Out: r.out("out", tokens, vocab), LSE: r.out("lse", tokens), V: v, H: h, W: w, Target: r.in("target", every)}
	var l *kernels.LoRA
	if rank > 0 {
		l = r.adapters([]hostLoRA{r.g.lora(rank, 1, vocab, d)}, false)[0]
	}
	a.Spans = []kernels.Span{{End: tokens, LoRA: l}}
	r.must(r.ops.LogProbs(a))
	z, lse := r.out("z", tokens, vocab), r.out("lse of z", tokens)
	r.must(r.ops.Logits(kernels.LogitsArgs{Z: z, LSE: lse, V: v, H: h, W: w, Spans: a.Spans}))
	z1, lse1 := r.out("z of one", tokens, vocab), r.out("lse of one", tokens)
	for t := range tokens {
		r.must(r.ops.Logits(kernels.LogitsArgs{
			Z: z1.RowRange(t, t+1), LSE: lse1.RowRange(t, t+1), V: v.RowRange(t, t+1), H: h.RowRange(t, t+1),
			W: w, Spans: []kernels.Span{{End: 1, LoRA: l}},
		}))
	}
	want := append(r.bytesOf(a.Out), r.bytesOf(a.LSE)...)
	for _, got := range [][2]kernels.Tensor{{z, lse}, {z1, lse1}} {
		bits := append(r.minus(got[0], got[1]), r.bytesOf(got[1])...)
		if diff := sameBits(want, bits); diff != "" {
			r.must(fmt.Errorf("logits - lse and logprobs differ (%v): %s", got[0], diff))
		}
	}
}

// minus is z - lse per row in the device's dtype, the way a sampler computes it.
func (r *rig) minus(z, lse kernels.Tensor) []byte {
	zb, lb := r.bytesOf(z), r.bytesOf(lse)
	for i := range z.Len() {
		t := i / z.Shape[1]
		switch r.act {
		case kernels.F32:
			v := math.Float32frombits(binary.LittleEndian.Uint32(zb[4*i:])) - math.Float32frombits(binary.LittleEndian.Uint32(lb[4*t:]))
			binary.LittleEndian.PutUint32(zb[4*i:], math.Float32bits(v))
		case kernels.F64:
			v := math.Float64frombits(binary.LittleEndian.Uint64(zb[8*i:])) - math.Float64frombits(binary.LittleEndian.Uint64(lb[8*t:]))
			binary.LittleEndian.PutUint64(zb[8*i:], math.Float64bits(v))
		case kernels.BF16:
			v := kernels.BF16ToF32(binary.LittleEndian.Uint16(zb[2*i:])) - kernels.BF16ToF32(binary.LittleEndian.Uint16(lb[2*t:]))
			binary.LittleEndian.PutUint16(zb[2*i:], kernels.F32ToBF16(v))
		}
	}
	return zb
}
