package kernels

// maxExperts bounds expert counts so that products with other sizes cannot overflow.
const maxExperts = 1 << 16

// Check checks the arguments of [Ops.Route].
func (a *RouteArgs) Check(act DType) error {
	const op = "route"
	if err := weight(op, a.W); err != nil {
		return err
	}
	if err := shape2(op, "x", a.X, act, anySize, a.W.Cols()); err != nil {
		return err
	}
	_, err := a.Routing.check(op, a.X.Shape[0], a.W.Rows(), act)
	return err
}

// Check checks the arguments of [Ops.RouteBackward].
func (a *RouteBackwardArgs) Check(act DType) error {
	const op = "route backward"
	if err := weight(op, a.W); err != nil {
		return err
	}
	if err := shape2(op, "dx", a.DX, act, anySize, a.W.Cols()); err != nil {
		return err
	}
	t := a.DX.Shape[0]
	k, err := a.Routing.check(op, t, a.W.Rows(), act)
	if err != nil {
		return err
	}
	return shape2(op, "dgate", a.DGate, act, t, k)
}

// check checks a routing of t tokens to some of e experts and returns TopK.
func (r *Routing) check(op string, t, e int, act DType) (int, error) {
	if e > maxExperts {
		return 0, numberError(op, "experts", float64(e), "at most 65536")
	}
	if err := shape2(op, "ids", r.IDs, I32, t, anySize); err != nil {
		return 0, err
	}
	k := r.IDs.Shape[1]
	if k > e {
		return 0, numberError(op, "columns of ids", float64(k), "at most the experts")
	}
	if err := shape2(op, "gate", r.Gate, act, t, k); err != nil {
		return 0, err
	}
	if err := shape2(op, "prob", r.Prob, act, t, e); err != nil {
		return 0, err
	}
	if err := shape2(op, "rows", r.Rows, I32, t, k); err != nil {
		return 0, err
	}
	if err := shape1(op, "slots", r.Slots, I32, t*k); err != nil {
		return 0, err
	}
	return k, shape1(op, "begin", r.Begin, I32, e+1)
}

// check checks the weights of a block and returns its sizes.
func (w *Experts) check(op string) (e, d, f int, err error) {
	if w == nil || len(w.GateUp) == 0 || len(w.GateUp) != len(w.Down) {
		return 0, 0, 0, missingError(op, "a weight of the experts")
	}
	for i, up := range w.GateUp {
		down := w.Down[i]
		if err := weight(op, up); err != nil {
			return 0, 0, 0, err
		}
		if err := weight(op, down); err != nil {
			return 0, 0, 0, err
		}
		if i == 0 {
			d, f = down.Rows(), down.Cols()
		}
		parts := up.Parts()
		if up.Cols() != d || len(parts) != 2 || parts[0] != f || parts[1] != f || down.Rows() != d || down.Cols() != f {
			return 0, 0, 0, expertError(op, i, up, down, d, f)
		}
	}
	return len(w.GateUp), d, f, nil
}

// Check checks the arguments of [Ops.Experts].
func (a *ExpertsArgs) Check(act DType) error {
	const op = "experts"
	e, d, f, err := a.W.check(op)
	if err != nil {
		return err
	}
	if err := shape2(op, "x", a.X, act, anySize, d); err != nil {
		return err
	}
	t := a.X.Shape[0]
	k, err := a.Routing.check(op, t, e, act)
	if err != nil {
		return err
	}
	if err := shape2(op, "y", a.Y, act, t, d); err != nil {
		return err
	}
	if !a.Res.None() {
		if err := shape2(op, "res", a.Res, act, t, d); err != nil {
			return err
		}
	}
	if err := shape2(op, "gu", a.GU, act, t*k, 2*f); err != nil {
		return err
	}
	if err := shape2(op, "h", a.H, act, t*k, f); err != nil {
		return err
	}
	up, down, err := checkExpertSpans(op, a.Up, a.Down, t, e, d, f, act, false)
	if err != nil {
		return err
	}
	if err := checkWidth(op, "v", a.V, act, t, 2*up); err != nil {
		return err
	}
	if err := checkWidth(op, "vsum", a.VSum, act, t, down); err != nil {
		return err
	}
	return checkWidth(op, "lows", a.Lows, act, t*k, down)
}

// Check checks the arguments of [Ops.ExpertsBackward].
func (a *ExpertsBackwardArgs) Check(act DType) error {
	const op = "experts backward"
	e, d, f, err := a.W.check(op)
	if err != nil {
		return err
	}
	if err := shape2(op, "dy", a.DY, act, anySize, d); err != nil {
		return err
	}
	t := a.DY.Shape[0]
	k, err := a.Routing.check(op, t, e, act)
	if err != nil {
		return err
	}
	if err := shape2(op, "dx", a.DX, act, t, d); err != nil {
		return err
	}
	if err := shape2(op, "dgate", a.DGate, act, t, k); err != nil {
		return err
	}
	if err := shape2(op, "gu", a.GU, act, t*k, 2*f); err != nil {
		return err
	}
	if err := shape2(op, "dgu", a.DGU, act, t*k, 2*f); err != nil {
		return err
	}
	if err := shape2(op, "h", a.H, act, t*k, f); err != nil {
		return err
	}
	if err := shape2(op, "dh", a.DH, act, t*k, f); err != nil {
		return err
	}
	up, down, err := checkExpertSpans(op, a.Up, a.Down, t, e, d, f, act, true)
	if err != nil {
		return err
	}
	if up > 0 || !a.X.None() {
		if err := shape2(op, "x", a.X, act, t, d); err != nil {
			return err
		}
	}
	if err := checkWidth(op, "v", a.V, act, t, 2*up); err != nil {
		return err
	}
	if err := checkWidth(op, "vsum", a.VSum, act, t, down); err != nil {
		return err
	}
	if err := checkWidth(op, "low", a.Low, act, t, max(2*up, down)); err != nil {
		return err
	}
	return checkWidth(op, "lows", a.Lows, act, t*k, max(2*up, down))
}

// checkExpertSpans checks both lists of adapters, with their gradients when grads is set, and returns the
// largest rank of each, 0 without any LoRA.
func checkExpertSpans(op string, ups, downs []Span, t, e, d, f int, act DType, grads bool) (up, down int, err error) {
	for side, spans := range [2][]Span{ups, downs} {
		next := 0
		for i := range spans {
			s := &spans[i]
			if s.Begin < next || s.Begin >= t {
				return 0, 0, spanError(op, i, "begin", s.Begin, next, t-1)
			}
			if s.End <= s.Begin || s.End > t {
				return 0, 0, spanError(op, i, "end", s.End, s.Begin+1, t)
			}
			next = s.End
			l := s.LoRA
			if l == nil {
				continue
			}
			if most := maxElems / (2 * maxExperts); l.Rank < 1 || l.Rank > most {
				return 0, 0, spanError(op, i, "rank", l.Rank, 1, most)
			}
			// A is [ar, ac], B is [br, R].
			ar, ac, br := 2*l.Rank, d, 2*e*f
			if side == 1 {
				ar, ac, br = e*l.Rank, f, d
				down = max(down, l.Rank)
			} else {
				up = max(up, l.Rank)
			}
			if err := checkFactors(op, side, l.A, l.B, ar, ac, br, l.Rank, act); err != nil {
				return 0, 0, inSpan(i, err)
			}
			if grads {
				if err := checkFactors(op, 2+side, l.DA, l.DB, ar, ac, br, l.Rank, act); err != nil {
					return 0, 0, inSpan(i, err)
				}
			}
		}
	}
	return up, down, nil
}

// factorNames are the names of an expert adapter's tensors in errors.
var factorNames = [4][2]string{{"up a", "up b"}, {"down a", "down b"}, {"up da", "up db"}, {"down da", "down db"}}

func checkFactors(op string, which int, a, b Tensor, ar, ac, br, rank int, act DType) error {
	if err := shape2(op, factorNames[which][0], a, act, ar, ac); err != nil {
		return err
	}
	return shape2(op, factorNames[which][1], b, act, br, rank)
}
