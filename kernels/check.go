package kernels

import "math"

// The argument checks of every op, shared so that all devices accept and refuse the same calls in the
// same words. They look at shapes, dtypes and placement only: values that live in device memory (ids,
// targets, positions, rows) are for the op that reads them, which answers with [RangeError]. A check
// that passes allocates nothing; errors are built out of line in fault.go.

// CheckZero checks the argument of [Ops.Zero]; any dtype is fine.
func CheckZero(x Tensor) error { return present("zero", "x", x) }

// CheckCopy checks the arguments of [Ops.Copy].
func CheckCopy(dst, src Tensor) error {
	if err := present("copy", "src", src); err != nil {
		return err
	}
	if err := present("copy", "dst", dst); err != nil {
		return err
	}
	if dst.DType != src.DType || dst.Len() != src.Len() {
		return sameError("copy", "dst", dst, "src", src)
	}
	return nil
}

// CheckAdd checks the arguments of [Ops.Add]: three tensors of one shape.
func CheckAdd(y, a, b Tensor, act DType) error {
	if err := typed("add", "a", a, act); err != nil {
		return err
	}
	if err := like("add", "b", b, "a", a); err != nil {
		return err
	}
	return like("add", "y", y, "a", a)
}

// CheckEmbed checks the arguments of [Ops.Embed].
func CheckEmbed(y Tensor, w Weight, ids Tensor, act DType) error {
	if err := weight("embed", w); err != nil {
		return err
	}
	if err := shape1("embed", "ids", ids, I32, anySize); err != nil {
		return err
	}
	return shape2("embed", "y", y, act, ids.Shape[0], w.Cols())
}

// CheckRMSNorm checks the arguments of [Ops.RMSNorm].
func CheckRMSNorm(y, rstd, x, g Tensor, eps float32, act DType) error {
	if err := shape2("rmsnorm", "x", x, act, anySize, anySize); err != nil {
		return err
	}
	if err := shape2("rmsnorm", "y", y, act, x.Shape[0], x.Shape[1]); err != nil {
		return err
	}
	if err := shape1("rmsnorm", "rstd", rstd, act, x.Shape[0]); err != nil {
		return err
	}
	if err := shape1("rmsnorm", "g", g, act, x.Shape[1]); err != nil {
		return err
	}
	return notNegative("rmsnorm", "eps", float64(eps))
}

// CheckRMSNormBackward checks the arguments of [Ops.RMSNormBackward].
func CheckRMSNormBackward(dx, dy, x, rstd, g, dres Tensor, act DType) error {
	const op = "rmsnorm backward"
	if err := shape2(op, "x", x, act, anySize, anySize); err != nil {
		return err
	}
	if err := shape2(op, "dy", dy, act, x.Shape[0], x.Shape[1]); err != nil {
		return err
	}
	if err := shape2(op, "dx", dx, act, x.Shape[0], x.Shape[1]); err != nil {
		return err
	}
	if err := shape1(op, "rstd", rstd, act, x.Shape[0]); err != nil {
		return err
	}
	if err := shape1(op, "g", g, act, x.Shape[1]); err != nil {
		return err
	}
	if dres.None() {
		return nil
	}
	return shape2(op, "dres", dres, act, x.Shape[0], x.Shape[1])
}

// Check checks the arguments of [Ops.Linear].
func (a *LinearArgs) Check(act DType) error {
	const op = "linear"
	if err := weight(op, a.W); err != nil {
		return err
	}
	n, k := a.W.Rows(), a.W.Cols()
	if err := shape2(op, "x", a.X, act, anySize, k); err != nil {
		return err
	}
	t := a.X.Shape[0]
	if err := shape2(op, "y", a.Y, act, t, n); err != nil {
		return err
	}
	if !a.Bias.None() {
		if err := shape1(op, "bias", a.Bias, act, n); err != nil {
			return err
		}
	}
	if !a.Res.None() {
		if err := shape2(op, "res", a.Res, act, t, n); err != nil {
			return err
		}
	}
	width, err := checkSpans(op, a.Spans, t, a.W, act, false)
	if err != nil {
		return err
	}
	return checkWidth(op, "v", a.V, act, t, width)
}

// Check checks the arguments of [Ops.LinearBackward]. X, V and DV may be the zero Tensor when no
// span has a LoRA.
func (a *LinearBackwardArgs) Check(act DType) error {
	const op = "linear backward"
	if err := weight(op, a.W); err != nil {
		return err
	}
	n, k := a.W.Rows(), a.W.Cols()
	if err := shape2(op, "dy", a.DY, act, anySize, n); err != nil {
		return err
	}
	t := a.DY.Shape[0]
	if !a.DX.None() {
		if err := shape2(op, "dx", a.DX, act, t, k); err != nil {
			return err
		}
	}
	width, err := checkSpans(op, a.Spans, t, a.W, act, true)
	if err != nil {
		return err
	}
	if width > 0 || !a.X.None() {
		if err := shape2(op, "x", a.X, act, t, k); err != nil {
			return err
		}
	}
	if err := checkWidth(op, "v", a.V, act, t, width); err != nil {
		return err
	}
	return checkWidth(op, "dv", a.DV, act, t, width)
}

// CheckSwiGLU checks the arguments of [Ops.SwiGLU].
func CheckSwiGLU(h, gu Tensor, act DType) error {
	if err := shape2("swiglu", "h", h, act, anySize, anySize); err != nil {
		return err
	}
	return shape2("swiglu", "gu", gu, act, h.Shape[0], 2*h.Shape[1])
}

// CheckSwiGLUBackward checks the arguments of [Ops.SwiGLUBackward].
func CheckSwiGLUBackward(dgu, dh, gu Tensor, act DType) error {
	const op = "swiglu backward"
	if err := shape2(op, "dh", dh, act, anySize, anySize); err != nil {
		return err
	}
	if err := shape2(op, "gu", gu, act, dh.Shape[0], 2*dh.Shape[1]); err != nil {
		return err
	}
	return shape2(op, "dgu", dgu, act, dh.Shape[0], 2*dh.Shape[1])
}

// Check checks the arguments of [Ops.LogProbs].
func (a *LogProbsArgs) Check(act DType) error {
	const op = "logprobs"
	t, err := checkHead(op, a.H, a.LSE, a.V, a.W, a.Spans, act, false)
	if err != nil {
		return err
	}
	if err := shape2(op, "target", a.Target, I32, t, anySize); err != nil {
		return err
	}
	return shape2(op, "out", a.Out, act, t, a.Target.Shape[1])
}

// Check checks the arguments of [Ops.LogProbsBackward]. V and DV may be the zero Tensor when no span
// has a LoRA.
func (a *LogProbsBackwardArgs) Check(act DType) error {
	const op = "logprobs backward"
	t, err := checkHead(op, a.H, a.LSE, a.V, a.W, a.Spans, act, true)
	if err != nil {
		return err
	}
	if err := shape2(op, "target", a.Target, I32, t, anySize); err != nil {
		return err
	}
	if err := shape2(op, "dout", a.DOut, act, t, a.Target.Shape[1]); err != nil {
		return err
	}
	if err := shape2(op, "dh", a.DH, act, t, a.W.Cols()); err != nil {
		return err
	}
	return checkWidth(op, "dv", a.DV, act, t, spanWidth(a.Spans, a.W))
}

// Check checks the arguments of [Ops.Logits].
func (a *LogitsArgs) Check(act DType) error {
	t, err := checkHead("logits", a.H, a.LSE, a.V, a.W, a.Spans, act, false)
	if err != nil {
		return err
	}
	return shape2("logits", "z", a.Z, act, t, a.W.Rows())
}

// checkHead checks what the three ops of the unembedding share and returns T.
func checkHead(op string, h, lse, v Tensor, w Weight, spans []Span, act DType, grads bool) (int, error) {
	if err := weight(op, w); err != nil {
		return 0, err
	}
	if err := shape2(op, "h", h, act, anySize, w.Cols()); err != nil {
		return 0, err
	}
	t := h.Shape[0]
	if err := shape1(op, "lse", lse, act, t); err != nil {
		return 0, err
	}
	width, err := checkSpans(op, spans, t, w, act, grads)
	if err != nil {
		return 0, err
	}
	return t, checkWidth(op, "v", v, act, t, width)
}

// CheckSumSquares checks the argument of [Ops.SumSquares].
func CheckSumSquares(x Tensor, act DType) error { return typed("sumsquares", "x", x, act) }

// Check checks the arguments of [Ops.AdamW]: four tensors of one element count, step >= 1, betas in
// [0, 1), the other numbers finite and, except for the gradient scale, not negative.
func (a *AdamWArgs) Check(act DType) error {
	const op = "adamw"
	if err := typed(op, "p", a.P, act); err != nil {
		return err
	}
	if err := sameLen(op, "g", a.G, "p", a.P); err != nil {
		return err
	}
	if err := sameLen(op, "m", a.M, "p", a.P); err != nil {
		return err
	}
	if err := sameLen(op, "v", a.V, "p", a.P); err != nil {
		return err
	}
	if a.Step < 1 {
		return numberError(op, "step", float64(a.Step), "1 or more")
	}
	if !(a.Beta1 >= 0 && a.Beta1 < 1) {
		return numberError(op, "beta1", a.Beta1, "0 <= beta1 < 1")
	}
	if !(a.Beta2 >= 0 && a.Beta2 < 1) {
		return numberError(op, "beta2", a.Beta2, "0 <= beta2 < 1")
	}
	if err := notNegative(op, "lr", a.LR); err != nil {
		return err
	}
	if err := notNegative(op, "eps", a.Eps); err != nil {
		return err
	}
	if err := notNegative(op, "weight decay", a.WeightDecay); err != nil {
		return err
	}
	if math.IsNaN(a.GradScale) || math.IsInf(a.GradScale, 0) {
		return numberError(op, "gradient scale", a.GradScale, "a finite number")
	}
	return nil
}

// CheckUpload checks the arguments of [Device.Upload] and, with the roles changed, [Device.Download]:
// host is the number of bytes on the host side, op "upload" or "download".
func CheckUpload(op string, t Tensor, host int) error {
	if err := present(op, "tensor", t); err != nil {
		return err
	}
	if int64(host) != t.Bytes() {
		return bytesError(op, t, host)
	}
	return nil
}

// CheckPack checks the arguments of [Device.Pack].
func CheckPack(parts []Matrix, store DType) error {
	if len(parts) == 0 {
		return numberError("pack", "part count", 0, "1 or more")
	}
	if store != F32 && store != BF16 {
		return storeError(store)
	}
	for i := range parts {
		m := &parts[i]
		if m.Rows < 1 || m.Cols < 1 || m.Rows > maxElems/m.Cols {
			return packError(i, "is", m.Rows, m.Cols, "a positive size")
		}
		if m.Cols != parts[0].Cols {
			return packError(i, "is", m.Rows, m.Cols, "the column count of part 0")
		}
		if m.DType != F32 && m.DType != F16 && m.DType != BF16 {
			return packError(i, "has "+m.DType.String()+" values in", m.Rows, m.Cols, "float32, float16 or bfloat16")
		}
		if len(m.Data) != m.Rows*m.Cols*m.DType.Size() {
			return packDataError(i, m)
		}
	}
	return nil
}
