package model

import (
	"cmp"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
	"tinkerlocal/kernels"
)

// Scores are a feed's log-probabilities: of its targets, with the bits of Forward, and of the most probable
// tokens beside them.
type Scores struct {
	LogProbs []float32            // one per target
	Top      [][]api.TokenLogProb // one list of Feed.Top entries per target; nil when Top is 0
}

// scoreRows is how many rows of logits exist at a time to choose the most probable tokens from: enough that reading
// the head's weights is shared, and half of what a full decode step has.
const scoreRows = 32

// scoreShape checks what feeds want scored and makes room for it in sh.
func (b *Base) scoreShape(feeds []Feed, sh *shape) error {
	top := 0
	for i, fd := range feeds {
		if n := len(fd.Targets); n > len(fd.Tokens) {
			return api.Errorf(api.BadRequest, "feed %d: %d targets for %d tokens", i, n, len(fd.Tokens))
		}
		for j, id := range fd.Targets {
			if id < 0 || int(id) >= b.Spec.Vocab {
				return api.Errorf(api.BadRequest, "feed %d: target %d has id %d, the vocabulary is 0..%d", i, j, id, b.Spec.Vocab-1)
			}
		}
		switch {
		case fd.Top < 0 || fd.Top > b.Spec.Vocab:
			return api.Errorf(api.BadRequest, "feed %d: the %d most probable tokens are wanted, the vocabulary has %d", i, fd.Top, b.Spec.Vocab)
		case fd.listed():
			top += len(fd.Targets)
		case len(fd.Targets) > 0:
			sh.targets = 1
		}
	}
	sh.vrows = max(sh.vrows, min(top, scoreRows))
	return nil
}

// scored is the rows of one packed batch whose scores are wanted, packed once more.
type scored struct {
	feeds   []int
	ends    []int // the end row of each
	weights []*lora.Weights
	targets []int32
}

// score computes what the feeds want scored, from the hidden states in f.xn. Feeds that list tokens or look go by their
// logits, which have the targets' too; the others by the trainer's log-probabilities, without logits.
func (b *Base) score(f *frame, feeds []Feed) ([]Scores, error) {
	out := make([]Scores, len(feeds))
	var plain, listed scored
	rows := 0
	for _, list := range []struct {
		listed bool
		to     *scored
	}{{false, &plain}, {true, &listed}} {
		begin := 0
		for i, fd := range feeds {
			if n := len(fd.Targets); n > 0 && fd.listed() == list.listed {
				// The residual stream has been read: its memory takes the rows.
				if err := b.dev.Ops().Copy(f.xLast.RowRange(rows, rows+n), f.xn.RowRange(begin, begin+n)); err != nil {
					return nil, err
				}
				rows += n
				to := list.to
				to.feeds = append(to.feeds, i)
				to.targets = append(to.targets, fd.Targets...)
				to.ends = append(to.ends, len(to.targets))
				to.weights = append(to.weights, fd.Adapter)
			}
			begin += len(fd.Tokens)
		}
	}
	n := len(plain.targets)
	if err := b.scorePlain(f, f.xLast.RowRange(0, n), plain, out); err != nil {
		return nil, err
	}
	return out, b.scoreListed(f, f.xLast.RowRange(n, rows), listed, feeds, out)
}

func (b *Base) scorePlain(f *frame, h kernels.Tensor, s scored, out []Scores) error {
	n := len(s.targets)
	if n == 0 {
		return nil
	}
	target, lp := f.target.RowRange(0, n), f.out.RowRange(0, n)
	if err := kernels.WriteInts(b.dev, target, s.targets); err != nil {
		return err
	}
	err := b.dev.Ops().LogProbs(kernels.LogProbsArgs{
		Out: lp, LSE: f.lse.RowRange(0, n), V: f.vHead.RowRange(0, n), H: h,
		W: b.head, Spans: spans(len(b.Sites)-1, s.ends, s.weights), Target: target,
	})
	if err != nil {
		return err
	}
	b.work[len(b.layers)].add(sampleUse, n, b.head)
	all, err := kernels.ReadFloats(b.dev, lp)
	if err != nil {
		return err
	}
	begin := 0
	for i, end := range s.ends {
		out[s.feeds[i]].LogProbs = all[begin:end:end]
		begin = end
	}
	return nil
}

// scoreListed takes as many rows at a time as f.z holds.
func (b *Base) scoreListed(f *frame, h kernels.Tensor, s scored, feeds []Feed, out []Scores) error {
	head := spans(len(b.Sites)-1, s.ends, s.weights)
	at := 0 // the feed that row belongs to
	for lo, n := 0, len(s.targets); lo < n; {
		hi := min(n, lo+f.z.Shape[0])
		zs, ls := f.z.RowRange(0, hi-lo), f.lse.RowRange(0, hi-lo)
		err := b.dev.Ops().Logits(kernels.LogitsArgs{
			Z: zs, LSE: ls, V: f.vHead.RowRange(0, hi-lo), H: h.RowRange(lo, hi), W: b.head, Spans: within(head, lo, hi),
		})
		if err != nil {
			return err
		}
		b.work[len(b.layers)].add(sampleUse, hi-lo, b.head)
		z, err := kernels.ReadFloats(b.dev, zs)
		if err != nil {
			return err
		}
		lse, err := kernels.ReadFloats(b.dev, ls)
		if err != nil {
			return err
		}
		for row := lo; row < hi; row++ {
			for row == s.ends[at] {
				at++
			}
			o, fd := &out[s.feeds[at]], feeds[s.feeds[at]]
			line := z[(row-lo)*b.Spec.Vocab:][:b.Spec.Vocab]
			if fd.Look != nil {
				fd.Look(len(o.LogProbs), line, lse[row-lo])
			}
			o.LogProbs = append(o.LogProbs, line[s.targets[row]]-lse[row-lo])
			if fd.Top > 0 {
				o.Top = append(o.Top, Top(line, lse[row-lo], fd.Top))
			}
		}
		lo = hi
	}
	return nil
}

// within cuts spans to the rows [lo, hi), counted from lo.
func within(all []kernels.Span, lo, hi int) []kernels.Span {
	var out []kernels.Span
	for _, s := range all {
		s.Begin, s.End = max(s.Begin, lo)-lo, min(s.End, hi)-lo
		if s.Begin < s.End {
			out = append(out, s)
		}
	}
	return out
}

// Top lists the k tokens of the largest z[i]-lse, the largest first; of equal ones the lower id comes first. k is 1 to len(z).
func Top(z []float32, lse float32, k int) []api.TokenLogProb {
	heap := make([]api.TokenLogProb, 0, k) // above each entry is one that is worse
	for i, v := range z {
		t := api.TokenLogProb{Token: int32(i), LogProb: v - lse}
		switch {
		case len(heap) < k:
			heap = append(heap, t)
			if len(heap) == k {
				for j := k/2 - 1; j >= 0; j-- {
					sink(heap, j)
				}
			}
		case t.LogProb > heap[0].LogProb: // an equal one has the higher id
			heap[0] = t
			sink(heap, 0)
		}
	}
	slices.SortFunc(heap, func(a, b api.TokenLogProb) int {
		return cmp.Or(cmp.Compare(b.LogProb, a.LogProb), cmp.Compare(a.Token, b.Token))
	})
	return heap
}

func worse(a, b api.TokenLogProb) bool {
	return a.LogProb < b.LogProb || a.LogProb == b.LogProb && a.Token > b.Token
}

// sink moves entry i down to its place.
func sink(heap []api.TokenLogProb, i int) {
	for {
		c := 2*i + 1
		if c >= len(heap) {
			return
		}
		if c+1 < len(heap) && worse(heap[c+1], heap[c]) {
			c++
		}
		if !worse(heap[c], heap[i]) {
			return
		}
		heap[i], heap[c] = heap[c], heap[i]
		i = c
	}
}
