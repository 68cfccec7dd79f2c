package ref

import (
	"math"

	"tinkerlocal/kernels"
)

func (o ops[F]) LogProbs(a kernels.LogProbsArgs) error {
	const op = "logprobs"
	if err := a.Check(o.d.act); err != nil {
		return err
	}
	w, err := o.head(op, a.W, a.Spans, false, a.Out, a.LSE, a.V, a.H, a.Target)
	if err != nil {
		return err
	}
	target := view[int32](a.Target)
	if err := inRange(op, "target", target, -1, w.rows-1); err != nil {
		return err
	}
	out, lse, v, h := view[F](a.Out), view[F](a.LSE), optional[F](a.V), view[F](a.H)
	z := o.d.scores(w.rows)
	js := a.Target.Shape[1]
	for t := range lse {
		project(z, rowOf(v, t, a.V.Cols()), rowOf(h, t, w.cols), w, nil, spanOf(a.Spans, t), nil)
		lse[t] = logSumExp(z)
		for j, i := range target[t*js : (t+1)*js] {
			out[t*js+j] = 0
			if i >= 0 {
				out[t*js+j] = z[i] - lse[t]
			}
		}
	}
	return nil
}

func (o ops[F]) Logits(a kernels.LogitsArgs) error {
	if err := a.Check(o.d.act); err != nil {
		return err
	}
	w, err := o.head("logits", a.W, a.Spans, false, a.Z, a.LSE, a.V, a.H)
	if err != nil {
		return err
	}
	z, lse, v, h := view[F](a.Z), view[F](a.LSE), optional[F](a.V), view[F](a.H)
	for t := range lse {
		zt := rowOf(z, t, w.rows)
		project(zt, rowOf(v, t, a.V.Cols()), rowOf(h, t, w.cols), w, nil, spanOf(a.Spans, t), nil)
		lse[t] = logSumExp(zt)
	}
	return nil
}

func logSumExp[F float](z []F) F {
	top, sum := expSum(z)
	return top + F(math.Log(float64(sum)))
}

// head checks that everything an op of the unembedding touches is this device's own.
func (o ops[F]) head(op string, w kernels.Weight, spans []kernels.Span, grads bool, ts ...kernels.Tensor) (*matrix[F], error) {
	m, err := o.d.weight(op, w)
	if err != nil {
		return nil, err
	}
	if err := o.d.own(op, ts...); err != nil {
		return nil, err
	}
	return m, o.d.ownSpans(op, spans, grads)
}

// LogProbsBackward forms dz one row at a time. A target of -1 counts as weight zero.
func (o ops[F]) LogProbsBackward(a kernels.LogProbsBackwardArgs) error {
	const op = "logprobs backward"
	if err := a.Check(o.d.act); err != nil {
		return err
	}
	w, err := o.head(op, a.W, a.Spans, true, a.DH, a.DV, a.DOut, a.LSE, a.V, a.H, a.Target)
	if err != nil {
		return err
	}
	target := view[int32](a.Target)
	if err := inRange(op, "target", target, -1, w.rows-1); err != nil {
		return err
	}
	dh, dv, dout := view[F](a.DH), optional[F](a.DV), view[F](a.DOut)
	lse, v, h := view[F](a.LSE), optional[F](a.V), view[F](a.H)
	js, vCols, dvCols := a.Target.Shape[1], a.V.Cols(), a.DV.Cols()
	// One row of dz, the adapter's down projection formed again, and one span's gradient sums.
	scratch := o.d.scores(w.rows + vCols + gradLen(a.Spans))
	dz, low, sums := scratch[:w.rows], scratch[w.rows:w.rows+vCols], scratch[w.rows+vCols:]
	row := func(t int, l *kernels.LoRA) bool {
		if !headGrad(dz, low, rowOf(h, t, w.cols), w, l, lse[t], target[t*js:(t+1)*js], dout[t*js:(t+1)*js]) {
			clear(rowOf(dh, t, w.cols))
			return false
		}
		projectBack(rowOf(dh, t, w.cols), rowOf(dv, t, dvCols), dz, w, l, false)
		return true
	}
	next := 0
	for _, s := range a.Spans {
		for ; next < s.Begin; next++ {
			row(next, nil)
		}
		if s.LoRA == nil {
			continue
		}
		l := newAdapter[F](s.LoRA, true)
		g := l.sums(sums)
		for ; next < s.End; next++ {
			if row(next, s.LoRA) {
				g.add(&l, w, dz, rowOf(dv, next, dvCols), rowOf(v, next, vCols), rowOf(h, next, w.cols))
			}
		}
		g.flush(&l)
	}
	for ; next < len(lse); next++ {
		row(next, nil)
	}
	return nil
}

// headGrad sets dz = (sum_j w_j) softmax(z) - sum_j w_j e(target_j) for one token, or reports false
// when all its weights are zero.
func headGrad[F float](dz, low, h []F, w *matrix[F], l *kernels.LoRA, lse F, target []int32, weights []F) bool {
	var total F
	some := false
	for j, i := range target {
		if i >= 0 && weights[j] != 0 {
			some = true
			total += weights[j]
		}
	}
	if !some {
		return false
	}
	project(dz, low, h, w, nil, l, nil)
	for i := range dz {
		dz[i] = total * exp(dz[i]-lse)
	}
	for j, i := range target {
		if i >= 0 {
			dz[i] -= weights[j]
		}
	}
	return true
}
