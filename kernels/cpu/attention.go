package cpu

import "tinkerlocal/kernels"

// Causal softmax attention of packed sequences.
//
// For a query row at position i, with q scaled first:
//
//	s[j] = sum over c of q[c]*k[j][c]            chains of gemm.go over the head
//	m = max s[j], l = sum exp(s[j]-m)            j = 0..i, the variant's lanes by absolute j
//	o = (sum over j of exp(s[j]-m)*v[j]) / l     chains over segments of 256 keys by absolute j
//
// Rows are taken in blocks. In a block a row may meet keys behind its own position: their p is exactly 0, and adding 0*v changes
// nothing (the last step, *(1/l) + 0, makes a zero positive). So a row has the same bits alone and in any block, from pages or from
// neighbouring rows. A key or value that is not finite behind a row's position would break this; it breaks its own row anyway.

// attentionTask is cut into (sequence, kv head, block of query tokens).
type attentionTask struct {
	kernels.AttentionArgs
	o, lse, q, k, v []float32
	c, group        int
	first           []int // first piece of each sequence, and the total
}

// attentionRows is the target for (token, query head) rows of a block.
const attentionRows = 96

// scoreFloats bounds a block's scores (4 MiB).
const scoreFloats = 1 << 20

// blockTokens is how many query tokens one piece takes when it sees keys keys. It only moves work around; no bit depends on it.
func blockTokens(group, keys int) int {
	rows := min(attentionRows, max(tileRows, scoreFloats/roundUp(keys, panelRows)))
	return max(1, rows/group)
}

// Attention runs the blocks.
func (o *ops) Attention(a kernels.AttentionArgs) error {
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	if err := o.own("attention", a.O, a.LSE, a.Q, a.K, a.V); err != nil {
		return err
	}
	t := &o.attn
	*t = attentionTask{AttentionArgs: a, o: floats(a.O), lse: floats(a.LSE), q: floats(a.Q), k: floats(a.K), v: floats(a.V),
		c: a.Q.Shape[1] / a.Heads, group: a.Heads / a.KVHeads}
	o.offsets = append(o.offsets[:0], 0)
	work := 0
	for i := range a.Seqs {
		s := &a.Seqs[i]
		n := s.End - s.Begin
		o.offsets = append(o.offsets, o.offsets[i]+a.KVHeads*ceilDiv(n, blockTokens(t.group, s.Pos+n)))
		work += n * (s.Pos + n)
	}
	t.first = o.offsets
	o.runParts(t, t.first[len(a.Seqs)], work*t.group*a.KVHeads*t.c)
	t.Seqs = nil
	return nil
}

// runParts runs n pieces of t, however many they are, on one thread when the work (multiply-adds) is small.
func (o *ops) runParts(t task, n, work int) {
	if work < 1<<15 || n > maxPieces {
		for i := range n {
			t.run(o.pool.workers[0], i)
		}
		return
	}
	o.pool.run(t, n)
}

// find returns the sequence that piece i belongs to.
func find(first []int, i int) int {
	lo, hi := 0, len(first)-1
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; first[mid] <= i {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

func (t *attentionTask) run(wk *worker, i int) {
	si := find(t.first, i)
	s := &t.Seqs[si]
	i -= t.first[si]
	total := s.End - s.Begin
	per := blockTokens(t.group, s.Pos+total)
	blocks := ceilDiv(total, per)
	// The last block sees the most keys; it goes first so that the pieces left at the end are short.
	head, t0 := i%t.KVHeads, (blocks-1-i/t.KVHeads)*per
	t1 := min(t0+per, total)
	c, g := t.c, t.group
	rows, keys := (t1-t0)*g, s.Pos+t1
	ld, cp := oddLines(keys), roundUp(c, panelRows)
	kv := rowsOf{data: t.k, ld: t.KVHeads * c, at: head * c, seq: s, page: t.PageLen}

	q := wk.scratch(0, rows*c)
	for r := t0; r < t1; r++ {
		wk.vec.scale(&q[(r-t0)*g*c], &t.q[((s.Begin+r)*t.Heads+head*g)*c], uintptr(g*c), t.Scale)
	}
	scores := wk.scratch(1, rows*ld)
	for j := 0; j < keys; j += panelRows {
		r := max(0, j-s.Pos-t0) * g // rows before this one see none of these keys
		wk.turned(&kv, scores[r*ld+j:], ld, q[r*c:], c, c, rows-r, j, min(panelRows, keys-j))
	}
	inv := wk.scratch(2, rows)
	for r := range rows {
		n := s.Pos + t0 + r/g + 1
		row := scores[r*ld : (r+1)*ld]
		m := wk.vec.rowMax(&row[0], uintptr(n))
		sum := wk.vec.expSum(&row[0], uintptr(n), m)
		clear(row[n:])
		inv[r] = 1 / sum
		if t.lse != nil {
			t.lse[(s.Begin+t0+r/g)*t.Heads+head*g+r%g] = m + float32(ln(float64(sum)))
		}
	}
	out := wk.scratch(3, rows*cp)
	kv.data = t.v
	for j := 0; j < keys; j += segment {
		jn := min(segment, keys-j)
		r := max(0, j-s.Pos-t0) * g
		for x := 0; x < c; x += panelRows {
			b, bs := kv.columns(wk, j, jn, x, min(panelRows, c-x), rows-r)
			for i := r; i < rows; i += tileRows { // the keys that the tile's last row sees are enough
				m := min(tileRows, rows-i)
				kn := min(jn, s.Pos+t0+(i+m-1)/g+1-j)
				wk.vec.tile[m](&scores[i*ld+j], bytesOf(ld), 4, b, bs, &out[i*cp+x], bytesOf(cp), uintptr(kn), addFlag(j > 0))
			}
		}
	}
	for r := t0; r < t1; r++ {
		for h := range g {
			i := (r-t0)*g + h
			wk.vec.scale(&t.o[((s.Begin+r)*t.Heads+head*g+h)*c], &out[i*cp], uintptr(c), inv[i])
		}
	}
}

// oddLines is n floats rounded up to an odd number of cache lines, so that a column's values fall into different sets of the cache.
func oddLines(n int) int { return ceilDiv(n, panelRows)/2*2*panelRows + panelRows }

// rowsOf is the keys or values of one sequence and head: row j at absolute position j.
type rowsOf struct {
	data []float32
	ld   int // floats from row to row
	at   int // first column
	seq  *kernels.Seq
	page int
}

func (k *rowsOf) row(j int) int {
	if k.seq.Pages == nil {
		return (k.seq.KV+j)*k.ld + k.at
	}
	return (int(k.seq.Pages[j/k.page])*k.page+j%k.page)*k.ld + k.at
}

// straight says whether rows [j, j+n) follow each other in memory.
func (k *rowsOf) straight(j, n int) bool { return k.seq.Pages == nil || j%k.page+n <= k.page }

// turned computes out[rows, 16] = q * k^T for the keys [j, j+n), n <= 16, through transposed panels. Columns past n are zero. Rows of q
// have c floats and lie ldq apart.
func (wk *worker) turned(k *rowsOf, out []float32, ld int, q []float32, ldq, c, rows, j, n int) {
	for x := 0; x < c; x += segment {
		xn := min(segment, c-x)
		if n == panelRows && k.straight(j, n) {
			wk.vec.transpose16(&wk.panel[0], &k.data[k.row(j)+x], bytesOf(k.ld), uintptr(xn))
		} else {
			clear(wk.panel[:xn*panelRows])
			for i := range n {
				for e, v := range k.data[k.row(j+i)+x : k.row(j+i)+x+xn] {
					wk.panel[e*panelRows+i] = v
				}
			}
		}
		wk.tiles(&out[0], ld, &q[x], ldq, 1, rows, &wk.panel[0], 4*panelRows, xn, panelRows, x > 0)
	}
}

// columns returns the columns [x, x+ncol) of the rows [j, j+n) as a panel with its stride. For a few rows of queries it stays in place where
// that is possible; for more a copy is better, because rows of a power of two crowd into a corner of the cache.
func (k *rowsOf) columns(wk *worker, j, n, x, ncol, queries int) (*float32, uintptr) {
	if ncol == panelRows && k.straight(j, n) {
		from := &k.data[k.row(j)+x]
		if queries <= 2*tileRows {
			return from, bytesOf(k.ld)
		}
		wk.vec.copy16(&wk.panel[0], from, bytesOf(k.ld), uintptr(n))
		return &wk.panel[0], 4 * panelRows
	}
	if ncol < panelRows {
		clear(wk.panel[:n*panelRows])
	}
	for i := range n {
		at := k.row(j+i) + x
		copy(wk.panel[i*panelRows:(i+1)*panelRows], k.data[at:at+ncol])
	}
	return &wk.panel[0], 4 * panelRows
}
