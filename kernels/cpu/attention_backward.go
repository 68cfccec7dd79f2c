package cpu

import "tinkerlocal/kernels"

// Backward of attention (Dao et al. 2022, arXiv 2205.14135, appendix B.2), p recomputed from the log-sum-exp:
//
//	p = exp(s - lse), dp[j] = do.v[j], delta = do.o, ds = p*(dp - delta)
//	dv[j] += p*do, dk[j] += ds*(scale*q), dq = scale * sum over j of ds*k[j]
//
// One piece owns a (sequence, kv head), so nothing is shared. It takes its query rows (token, then query head of the group) in blocks of a
// fixed size from the sequence's start: dk and dv of a key are chains over a block's rows in ascending order, the blocks' sums added in
// order; dq is as o in the forward. All of it depends on the sequence alone.

type attentionBackwardTask struct {
	kernels.AttentionBackwardArgs
	dq, dk, dv, do, o, lse, q, k, v []float32
	c, group                        int
}

// AttentionBackward runs the pieces.
func (o *ops) AttentionBackward(a kernels.AttentionBackwardArgs) error {
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	if err := o.own("attention backward", a.DQ, a.DK, a.DV, a.DO, a.O, a.LSE, a.Q, a.K, a.V); err != nil {
		return err
	}
	t := &o.attnB
	*t = attentionBackwardTask{AttentionBackwardArgs: a, dq: floats(a.DQ), dk: floats(a.DK), dv: floats(a.DV), do: floats(a.DO),
		o: floats(a.O), lse: floats(a.LSE), q: floats(a.Q), k: floats(a.K), v: floats(a.V),
		c: a.Q.Shape[1] / a.Heads, group: a.Heads / a.KVHeads}
	work := 0
	for i := range a.Seqs {
		n := a.Seqs[i].End - a.Seqs[i].Begin
		work += n * n
	}
	o.runParts(t, len(a.Seqs)*a.KVHeads, work*t.group*a.KVHeads*t.c)
	t.Seqs = nil
	return nil
}

// backwardTokens is the fixed size of a block of query tokens.
func backwardTokens(group int) int { return max(1, attentionRows/group) }

func (t *attentionBackwardTask) run(wk *worker, i int) {
	s, head := &t.Seqs[i/t.KVHeads], i%t.KVHeads
	total := s.End - s.Begin
	// The sums live side by side in scratch: in dk and dv each row of a head is on another page.
	cp := oddLines(t.c)
	dk, dv := wk.scratch(4, total*cp), wk.scratch(5, total*cp)
	clear(dk)
	clear(dv)
	per := backwardTokens(t.group)
	for t0 := 0; t0 < total; t0 += per {
		t.block(wk, s, head, t0, min(t0+per, total), dk, dv)
	}
	for j := range total {
		at := ((s.Begin+j)*t.KVHeads + head) * t.c
		copy(t.dk[at:at+t.c], dk[j*cp:])
		copy(t.dv[at:at+t.c], dv[j*cp:])
	}
}

// block adds the query tokens [t0, t1) to dk and dv, and forms their dq.
func (t *attentionBackwardTask) block(wk *worker, s *kernels.Seq, head, t0, t1 int, dk, dv []float32) {
	c, g := t.c, t.group
	rows, keys := (t1-t0)*g, t1
	ld, cp, kvLd := oddLines(keys), oddLines(c), t.KVHeads*c
	q, do := wk.scratch(0, rows*cp), wk.scratch(2, rows*cp)
	if c%panelRows != 0 { // whole panels are read
		clear(q)
		clear(do)
	}
	for r := range rows {
		at := ((s.Begin+t0+r/g)*t.Heads + head*g + r%g) * c
		wk.vec.scale(&q[r*cp], &t.q[at], uintptr(c), t.Scale)
		copy(do[r*cp:r*cp+c], t.do[at:at+c])
	}
	p, ds := wk.scratch(1, rows*ld), wk.scratch(3, rows*ld)
	kr := rowsOf{data: t.k, ld: kvLd, at: head * c, seq: s}
	vr := kr
	vr.data = t.v
	for j := 0; j < keys; j += panelRows {
		r, n := max(0, j-t0)*g, min(panelRows, keys-j)
		wk.turned(&kr, p[r*ld+j:], ld, q[r*cp:], cp, c, rows-r, j, n)
		wk.turned(&vr, ds[r*ld+j:], ld, do[r*cp:], cp, c, rows-r, j, n)
	}
	for r := range rows {
		n := t0 + r/g + 1
		token, h := s.Begin+t0+r/g, head*g+r%g
		delta := wk.vec.dot(&do[r*cp], &t.o[(token*t.Heads+h)*c], uintptr(c))
		wk.vec.softmaxGrad(&p[r*ld], &ds[r*ld], uintptr(n), t.lse[token*t.Heads+h], delta)
		clear(p[r*ld+n : (r+1)*ld])
		clear(ds[r*ld+n : (r+1)*ld])
	}
	// dk and dv: keys are the tiles' rows, query rows the reduction; rows before the tile's first key hold zeros and are skipped.
	for x := 0; x < c; x += panelRows {
		for j := 0; j < keys; j += tileRows {
			m := min(tileRows, keys-j)
			r := max(0, j-t0) * g
			wk.tiles(&dv[j*cp+x], cp, &p[r*ld+j], 1, ld, m, &do[r*cp+x], bytesOf(cp), rows-r, panelRows, true)
			wk.tiles(&dk[j*cp+x], cp, &ds[r*ld+j], 1, ld, m, &q[r*cp+x], bytesOf(cp), rows-r, panelRows, true)
		}
	}
	// dq, in the scratch of q, which is no longer needed.
	for j := 0; j < keys; j += segment {
		jn := min(segment, keys-j)
		r := max(0, j-t0) * g
		for x := 0; x < c; x += panelRows {
			b, bs := kr.columns(wk, j, jn, x, min(panelRows, c-x), rows-r)
			for i := r; i < rows; i += tileRows {
				m := min(tileRows, rows-i)
				kn := min(jn, t0+(i+m-1)/g+1-j)
				wk.vec.tile[m](&ds[i*ld+j], bytesOf(ld), 4, b, bs, &q[i*cp+x], bytesOf(cp), uintptr(kn), addFlag(j > 0))
			}
		}
	}
	for r := range rows {
		at := ((s.Begin+t0+r/g)*t.Heads + head*g + r%g) * c
		wk.vec.scale(&t.dq[at], &q[r*cp], uintptr(c), t.Scale)
	}
}
