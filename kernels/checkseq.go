package kernels

// Check checks the arguments of [Ops.RoPE].
func (a *RoPEArgs) Check(act DType) error {
	const op = "rope"
	t, c, err := checkRope(op, a.QKV, a.QNorm, a.KNorm, a.Cos, a.Sin, a.Pos, a.Heads, a.KVHeads, a.Eps, act)
	if err != nil {
		return err
	}
	if err := shape2(op, "q", a.Q, act, t, a.Heads*c); err != nil {
		return err
	}
	if err := shape2(op, "k", a.K, act, anySize, a.KVHeads*c); err != nil {
		return err
	}
	if err := shape2(op, "v", a.V, act, a.K.Shape[0], a.KVHeads*c); err != nil {
		return err
	}
	if !a.Rows.None() {
		return shape1(op, "rows", a.Rows, I32, t)
	}
	if a.K.Shape[0] < t {
		return shapeError(op, "k", a.K, act, 2, t, a.KVHeads*c)
	}
	return nil
}

// Check checks the arguments of [Ops.RoPEBackward].
func (a *RoPEBackwardArgs) Check(act DType) error {
	const op = "rope backward"
	t, c, err := checkRope(op, a.QKV, a.QNorm, a.KNorm, a.Cos, a.Sin, a.Pos, a.Heads, a.KVHeads, a.Eps, act)
	if err != nil {
		return err
	}
	if err := shape2(op, "dqkv", a.DQKV, act, t, a.QKV.Shape[1]); err != nil {
		return err
	}
	if err := shape2(op, "dq", a.DQ, act, t, a.Heads*c); err != nil {
		return err
	}
	if err := shape2(op, "dk", a.DK, act, t, a.KVHeads*c); err != nil {
		return err
	}
	return shape2(op, "dv", a.DV, act, t, a.KVHeads*c)
}

// checkRope checks what RoPE and its backward share and returns T and C.
func checkRope(op string, qkv, qnorm, knorm, cos, sin, pos Tensor, heads, kvHeads int, eps float32, act DType) (t, c int, err error) {
	if err := checkHeads(op, heads, kvHeads); err != nil {
		return 0, 0, err
	}
	if err := shape2(op, "cos", cos, act, anySize, anySize); err != nil {
		return 0, 0, err
	}
	if err := shape2(op, "sin", sin, act, cos.Shape[0], cos.Shape[1]); err != nil {
		return 0, 0, err
	}
	c = 2 * cos.Shape[1]
	if err := shape2(op, "qkv", qkv, act, anySize, (heads+2*kvHeads)*c); err != nil {
		return 0, 0, err
	}
	t = qkv.Shape[0]
	if err := shape1(op, "pos", pos, I32, t); err != nil {
		return 0, 0, err
	}
	if !qnorm.None() {
		if err := shape1(op, "qnorm", qnorm, act, c); err != nil {
			return 0, 0, err
		}
	}
	if !knorm.None() {
		if err := shape1(op, "knorm", knorm, act, c); err != nil {
			return 0, 0, err
		}
	}
	return t, c, notNegative(op, "eps", float64(eps))
}

// Check checks the arguments of [Ops.Attention]: the sequences cover the batch's rows in order and
// without gaps, and every key they look at lies inside k.
func (a *AttentionArgs) Check(act DType) error {
	const op = "attention"
	if err := checkAttention(op, a.O, a.Q, a.K, a.V, a.Heads, a.KVHeads, act); err != nil {
		return err
	}
	t, rows := a.Q.Shape[0], a.K.Shape[0]
	if !a.LSE.None() {
		if err := shape2(op, "lse", a.LSE, act, t, a.Heads); err != nil {
			return err
		}
	}
	if err := checkCover(op, a.Seqs, t); err != nil {
		return err
	}
	for i := range a.Seqs {
		s := &a.Seqs[i]
		if s.Pos < 0 || s.Pos > maxElems {
			return seqError(op, i, "pos", s.Pos, 0, maxElems)
		}
		keys := s.Pos + s.End - s.Begin
		if s.Pages == nil {
			if s.KV < 0 || s.KV > rows-keys {
				return seqError(op, i, "kv", s.KV, 0, rows-keys)
			}
			continue
		}
		if a.PageLen < 1 {
			return numberError(op, "page length", float64(a.PageLen), "1 or more")
		}
		need := (keys + a.PageLen - 1) / a.PageLen
		if len(s.Pages) < need {
			return seqError(op, i, "page count", len(s.Pages), need, maxElems)
		}
		for j, p := range s.Pages[:need] {
			if p < 0 || int(p) >= rows/a.PageLen {
				return pageError(op, i, j, int(p), rows/a.PageLen-1)
			}
		}
	}
	return nil
}

// Check checks the arguments of [Ops.AttentionBackward]: the sequences cover the batch's rows in
// order and without gaps, start at position 0, and their keys are the batch's own rows.
func (a *AttentionBackwardArgs) Check(act DType) error {
	const op = "attention backward"
	if err := checkAttention(op, a.O, a.Q, a.K, a.V, a.Heads, a.KVHeads, act); err != nil {
		return err
	}
	t, qCols, kvCols := a.Q.Shape[0], a.Q.Shape[1], a.K.Shape[1]
	if err := shape2(op, "lse", a.LSE, act, t, a.Heads); err != nil {
		return err
	}
	if err := shape2(op, "k", a.K, act, t, kvCols); err != nil {
		return err
	}
	if err := shape2(op, "do", a.DO, act, t, qCols); err != nil {
		return err
	}
	if err := shape2(op, "dq", a.DQ, act, t, qCols); err != nil {
		return err
	}
	if err := shape2(op, "dk", a.DK, act, t, kvCols); err != nil {
		return err
	}
	if err := shape2(op, "dv", a.DV, act, t, kvCols); err != nil {
		return err
	}
	if err := checkCover(op, a.Seqs, t); err != nil {
		return err
	}
	for i := range a.Seqs {
		s := &a.Seqs[i]
		if s.Pos != 0 {
			return seqError(op, i, "pos", s.Pos, 0, 0)
		}
		if s.KV != s.Begin {
			return seqError(op, i, "kv", s.KV, s.Begin, s.Begin)
		}
		if s.Pages != nil {
			return seqError(op, i, "page count", len(s.Pages), 0, 0)
		}
	}
	return nil
}

// checkAttention checks the tensors that attention and its backward share.
func checkAttention(op string, o, q, k, v Tensor, heads, kvHeads int, act DType) error {
	if err := checkHeads(op, heads, kvHeads); err != nil {
		return err
	}
	if err := shape2(op, "q", q, act, anySize, anySize); err != nil {
		return err
	}
	if q.Shape[1]%heads != 0 {
		return numberError(op, "columns of q", float64(q.Shape[1]), "a multiple of the heads")
	}
	c := q.Shape[1] / heads
	if err := shape2(op, "o", o, act, q.Shape[0], q.Shape[1]); err != nil {
		return err
	}
	if err := shape2(op, "k", k, act, anySize, kvHeads*c); err != nil {
		return err
	}
	return shape2(op, "v", v, act, k.Shape[0], kvHeads*c)
}

func checkHeads(op string, heads, kvHeads int) error {
	if heads < 1 || heads > maxHeads {
		return numberError(op, "heads", float64(heads), "1 or more")
	}
	if kvHeads < 1 || heads%kvHeads != 0 {
		return numberError(op, "kv heads", float64(kvHeads), "a divisor of the heads")
	}
	return nil
}

// checkCover checks that seqs are non-empty and tile the rows [0, t) in order.
func checkCover(op string, seqs []Seq, t int) error {
	next := 0
	for i := range seqs {
		s := &seqs[i]
		if s.Begin != next {
			return seqError(op, i, "begin", s.Begin, next, next)
		}
		if s.End <= s.Begin || s.End > t {
			return seqError(op, i, "end", s.End, s.Begin+1, t)
		}
		next = s.End
	}
	if next != t {
		return coverError(op, next, t)
	}
	return nil
}

// checkSpans checks spans against a batch of t tokens and the weight, with their gradients when
// grads is set, and returns the columns that v must have: the largest P*R, 0 without any LoRA.
func checkSpans(op string, spans []Span, t int, w Weight, act DType, grads bool) (int, error) {
	n, k, p := w.Rows(), w.Cols(), len(w.Parts())
	next := 0
	for i := range spans {
		s := &spans[i]
		if s.Begin < next || s.Begin >= t {
			return 0, spanError(op, i, "begin", s.Begin, next, t-1)
		}
		if s.End <= s.Begin || s.End > t {
			return 0, spanError(op, i, "end", s.End, s.Begin+1, t)
		}
		next = s.End
		l := s.LoRA
		if l == nil {
			continue
		}
		if l.Rank < 1 || l.Rank > maxElems/max(p, n, k) {
			return 0, spanError(op, i, "rank", l.Rank, 1, maxElems/max(p, n, k))
		}
		if err := shape2(op, "lora a", l.A, act, p*l.Rank, k); err != nil {
			return 0, inSpan(i, err)
		}
		if err := shape2(op, "lora b", l.B, act, n, l.Rank); err != nil {
			return 0, inSpan(i, err)
		}
		if !grads {
			continue
		}
		if err := shape2(op, "lora da", l.DA, act, p*l.Rank, k); err != nil {
			return 0, inSpan(i, err)
		}
		if err := shape2(op, "lora db", l.DB, act, n, l.Rank); err != nil {
			return 0, inSpan(i, err)
		}
	}
	return spanWidth(spans, w), nil
}

// spanWidth is the largest P*R of the spans, 0 without any LoRA.
func spanWidth(spans []Span, w Weight) int {
	width := 0
	for i := range spans {
		if l := spans[i].LoRA; l != nil {
			width = max(width, len(w.Parts())*l.Rank)
		}
	}
	return width
}

// checkWidth checks a down projection [t, >= width]; with width 0 it may be the zero Tensor.
func checkWidth(op, name string, v Tensor, act DType, t, width int) error {
	if width == 0 && v.None() {
		return nil
	}
	if err := shape2(op, name, v, act, t, anySize); err != nil {
		return err
	}
	if v.Shape[1] < width {
		return shapeError(op, name, v, act, 2, t, width)
	}
	return nil
}
