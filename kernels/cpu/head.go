package cpu

import "tinkerlocal/kernels"

// The unembedding: log-probabilities of targets, and logits for sampling, from one computation.
//
// Logits are those of Linear (base product, then adapter product), in blocks of 512 vocabulary rows from row 0. Of each block the largest
// logit m and sum exp(z-m) (the variant's lanes) are kept; they are merged in ascending order, lse = m + ln(sum), and a log-probability
// is z - lse, one rounding. Only one block of logits per thread exists at a time. (Online softmax: Milakov & Gimelshein 2018,
// arXiv 1805.02867, algorithm 3.)

// vocabBlock is the panels of one block.
const vocabBlock = 512 / panelRows

// headTask does the blocks (merge false), then joins them per token.
type headTask struct {
	w           *weight
	groups      []group
	h, v        []float32
	ldv         int
	out, lse, z []float32 // out nil for logits, z nil for log-probabilities
	target      []int32
	perToken    int // targets
	tokens      int
	rb          int
	blocks      int
	max, sum    []float32 // [tokens, blocks]
	merge       bool
}

// runHead runs t. The slices max and sum of the last call are used again.
func (o *ops) runHead(t headTask) {
	o.runDown(downTask{w: t.w, groups: t.groups, v: t.v, x: t.h, ldv: t.ldv, rows: t.tokens})
	t.blocks = ceilDiv(t.w.panels(), vocabBlock)
	n := t.tokens * t.blocks
	t.max, t.sum = o.head.max, o.head.sum
	if len(t.max) < n {
		t.max, t.sum = make([]float32, n), make([]float32, n)
	}
	t.rb = min(rowBlock, roundUp(ceilDiv(t.tokens, 2*o.pool.threads()), tileRows))
	t.rb = max(t.rb, ceilDiv(t.tokens, max(1, maxPieces/t.blocks)))
	o.head = t
	o.pool.run(&o.head, ceilDiv(t.tokens, t.rb)*t.blocks)
	o.head.merge = true
	pieces := 1
	if n > 1<<10 {
		pieces = min(t.tokens, 2*o.pool.threads())
	}
	o.head.rb = ceilDiv(t.tokens, pieces)
	o.pool.run(&o.head, ceilDiv(t.tokens, o.head.rb))
}

func (t *headTask) run(wk *worker, i int) {
	if t.merge {
		t.join(i*t.rb, min((i+1)*t.rb, t.tokens))
		return
	}
	r0, block := i/t.blocks*t.rb, i%t.blocks
	r1 := min(r0+t.rb, t.tokens)
	p0, p1 := block*vocabBlock, min((block+1)*vocabBlock, t.w.panels())
	o0, o1 := p0*panelRows, min(p1*panelRows, t.w.rows)
	var z []float32
	ld := t.w.rows
	if t.z != nil {
		z = t.z[r0*ld+o0:]
	} else {
		ld = (p1 - p0) * panelRows
		z = wk.scratch(0, (r1-r0)*ld)
	}
	wk.forward(&z[0], ld, &t.h[r0*t.w.cols], t.w.cols, r1-r0, t.w, p0, p1)
	wk.up(&z[0], ld, r0, r1, t.w, p0, p1, t.groups, t.v, t.ldv)
	for r := r0; r < r1; r++ {
		row, n := &z[(r-r0)*ld], uintptr(o1-o0)
		m := wk.vec.rowMax(row, n)
		t.max[r*t.blocks+block] = m
		t.sum[r*t.blocks+block] = wk.vec.expSumOnly(row, n, m)
		for j := r * t.perToken; j < (r+1)*t.perToken; j++ {
			if id := int(t.target[j]); id >= o0 && id < o1 {
				t.out[j] = z[(r-r0)*ld+id-o0]
			}
		}
	}
}

// join merges the blocks of the tokens [r0, r1) and finishes their log-probabilities.
func (t *headTask) join(r0, r1 int) {
	for r := r0; r < r1; r++ {
		at := r * t.blocks
		l := logSum{t.max[at], t.sum[at]}
		for b := at + 1; b < at+t.blocks; b++ {
			l.merge(t.max[b], t.sum[b])
		}
		t.lse[r] = l.value()
		for j := r * t.perToken; j < (r+1)*t.perToken; j++ {
			if t.target[j] < 0 {
				t.out[j] = 0
			} else {
				t.out[j] -= t.lse[r]
			}
		}
	}
}

// checkTargets finds a target that is neither -1 nor a row of the weight.
func checkTargets(op string, target []int32, rows int) error {
	for i, id := range target {
		if id < -1 || int(id) >= rows {
			return kernels.RangeError(op, "target", i, id, -1, rows-1)
		}
	}
	return nil
}

// LogProbs: out[t,j] = z[target] - lse.
func (o *ops) LogProbs(a kernels.LogProbsArgs) error {
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	w, err := o.mine("logprobs", a.W, a.Spans, a.Out, a.LSE, a.V, a.H, a.Target)
	if err != nil {
		return err
	}
	if err := checkTargets("logprobs", ints(a.Target), w.rows); err != nil {
		return err
	}
	o.groups = groups(o.groups, a.Spans, true)
	o.runHead(headTask{w: w, groups: o.groups, h: floats(a.H), v: floats(a.V), ldv: a.V.Cols(), out: floats(a.Out), lse: floats(a.LSE),
		target: ints(a.Target), perToken: a.Target.Shape[1], tokens: a.H.Shape[0]})
	return nil
}

// Logits: z and lse.
func (o *ops) Logits(a kernels.LogitsArgs) error {
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	w, err := o.mine("logits", a.W, a.Spans, a.Z, a.LSE, a.V, a.H)
	if err != nil {
		return err
	}
	o.groups = groups(o.groups, a.Spans, true)
	o.runHead(headTask{w: w, groups: o.groups, h: floats(a.H), v: floats(a.V), ldv: a.V.Cols(), z: floats(a.Z), lse: floats(a.LSE),
		tokens: a.H.Shape[0]})
	return nil
}
