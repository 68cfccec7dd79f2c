package kerneltest

import (
	"fmt"

	"tinkerlocal/kernels"
	"tinkerlocal/kernels/ref"
)

// rowShapes are [T, D] around likely tiles, and long.
var rowShapes = [][2]int{
	{1, 1}, {1, 5}, {3, 6}, {5, 7}, {6, 8}, {7, 9}, {8, 15}, {9, 16}, {15, 17}, {16, 33}, {17, 64}, {2, 255}, {3, 257}, {2, 700}, {130, 12},
}

// rowCases are the ops without a sum over anything but a row.
func rowCases() []opCase {
	var all []opCase
	for _, cases := range []func([2]int) []opCase{moveCases, addCases, normCases, normBackwardCases, gluCases, gluBackwardCases, squareCases, adamCases} {
		for _, s := range rowShapes {
			all = append(all, cases(s)...)
		}
	}
	return append(all, embedCases()...)
}

func rowCase(op string, factor float64, s [2]int, variant string, build func(r *rig) func() error) opCase {
	return opCase{op, fmt.Sprintf("T=%d D=%d%s", s[0], s[1], variant), factor, seedsFor(s[0] * s[1]), build}
}

func moveCases(s [2]int) []opCase {
	return []opCase{
		rowCase("zero and copy", 0, s, " zero", func(r *rig) func() error {
			x := r.inout("x", r.g.normal(1, s[0], s[1]))
			return func() error { return r.ops.Zero(x) }
		}),
		rowCase("zero and copy", 0, s, " copy", func(r *rig) func() error {
			x := r.in("x", r.g.normal(1, s[0], s[1]))
			y := r.out("y", s[0]*s[1]) // only the element count must agree
			return func() error { return r.ops.Copy(y, x) }
		}),
		rowCase("zero and copy", 0, s, " ints", func(r *rig) func() error {
			x := r.in("x", r.g.ids(-5, 5, s[0]*s[1]))
			y := r.inout("y", r.g.ids(7, 9, s[0]*s[1]))
			return func() error { return r.ops.Copy(y, x) }
		}),
	}
}

func addCases(s [2]int) []opCase {
	return []opCase{
		rowCase("add", 2, s, "", func(r *rig) func() error {
			a, b := r.in("a", r.g.normal(1, s[0], s[1])), r.in("b", r.g.normal(1, s[0], s[1]))
			y := r.out("y", s[0], s[1])
			return func() error { return r.ops.Add(y, a, b) }
		}),
		rowCase("add", 2, s, " y=a", func(r *rig) func() error {
			a, b := r.inout("a", r.g.normal(1, s[0], s[1])), r.in("b", r.g.normal(1, s[0], s[1]))
			return func() error { return r.ops.Add(a, a, b) }
		}),
		rowCase("add", 2, s, " y=b", func(r *rig) func() error {
			a, b := r.in("a", r.g.normal(1, s[0], s[1])), r.inout("b", r.g.normal(1, s[0], s[1]))
			return func() error { return r.ops.Add(b, a, b) }
		}),
	}
}

// normEps is larger than models use, so that a row of one element keeps a gradient.
const normEps = 1e-2

func normCases(s [2]int) []opCase {
	build := func(zeroRow bool) func(r *rig) func() error {
		return func(r *rig) func() error {
			h := r.g.normal(2, s[0], s[1])
			if zeroRow {
				clear(h.data[:s[1]])
			}
			x, g := r.in("x", h), r.in("g", r.g.normal(1, s[1]))
			y, rstd := r.out("y", s[0], s[1]), r.out("rstd", s[0])
			return func() error { return r.ops.RMSNorm(y, rstd, x, g, normEps) }
		}
	}
	return []opCase{rowCase("rmsnorm", 2, s, "", build(false)), rowCase("rmsnorm", 2, s, " zero row", build(true))}
}

func normBackwardCases(s [2]int) []opCase {
	build := func(form int) func(r *rig) func() error {
		return func(r *rig) func() error {
			hx, hg := r.g.normal(2, s[0], s[1]), r.g.normal(1, s[1])
			rstd, err := keptRstd(hx, hg)
			r.must(err)
			x, g, rs := r.in("x", hx), r.in("g", hg), r.in("rstd", rstd)
			dy, hres := r.in("dy", r.g.normal(1, s[0], s[1])), r.g.normal(1, s[0], s[1])
			var dx, dres kernels.Tensor
			switch form {
			case 1:
				dres = r.in("dres", hres)
				fallthrough
			case 0:
				dx = r.out("dx", s[0], s[1])
			case 2:
				dx = r.inout("dx", hres)
				dres = dx
			}
			r.slot(dx).scale = 0.5 // about rms(rstd*g*dy)
			return func() error { return r.ops.RMSNormBackward(dx, dy, x, rs, g, dres) }
		}
	}
	return []opCase{
		rowCase("rmsnorm backward", 3, s, "", build(0)),
		rowCase("rmsnorm backward", 3, s, " dres", build(1)),
		rowCase("rmsnorm backward", 3, s, " dres=dx", build(2)),
	}
}

// keptRstd is the reference's rstd.
func keptRstd(x, g host) (rstd host, err error) {
	dev := ref.Open()
	defer dev.Close()
	err = onRig(dev, 0, func(r *rig) {
		out := r.out("rstd", x.shape[0])
		r.must(r.ops.RMSNorm(r.out("y", x.shape...), out, r.in("x", x), r.in("g", g), normEps))
		rstd = r.floats(out)
	})
	return rstd, err
}

// gates draws [T, 2F] with some gates so large that exp overflows a float32.
func gates(g *gen, t, f int) host {
	gu := g.normal(2, t, 2*f)
	for i, v := range []float32{-200, 200, 0, -95, 1e4, -1e4} {
		if t > 4 && i < f {
			gu.data[i] = v
		}
	}
	return gu
}

func gluCases(s [2]int) []opCase {
	return []opCase{rowCase("swiglu", 2, s, "", func(r *rig) func() error {
		gu := r.in("gu", gates(r.g, s[0], s[1]))
		h := r.out("h", s[0], s[1])
		return func() error { return r.ops.SwiGLU(h, gu) }
	})}
}

func gluBackwardCases(s [2]int) []opCase {
	return []opCase{rowCase("swiglu backward", 3, s, "", func(r *rig) func() error {
		gu, dh := r.in("gu", gates(r.g, s[0], s[1])), r.in("dh", r.g.normal(1, s[0], s[1]))
		dgu := r.out("dgu", s[0], 2*s[1])
		return func() error { return r.ops.SwiGLUBackward(dgu, dh, gu) }
	})}
}

func squareCases(s [2]int) []opCase {
	return []opCase{rowCase("sumsquares", 2, s, "", func(r *rig) func() error {
		x := r.in("x", r.g.normal(3, s[0], s[1]))
		r.number = new(float64)
		return func() (err error) {
			*r.number, err = r.ops.SumSquares(x)
			return err
		}
	})}
}

func adamCases(s [2]int) []opCase {
	var all []opCase
	for i, a := range []kernels.AdamWArgs{
		{LR: 1e-2, Beta1: 0.9, Beta2: 0.95, Eps: 1e-12, GradScale: 1, Step: 1},
		{LR: 3e-4, Beta1: 0.9, Beta2: 0.999, Eps: 1e-8, WeightDecay: 0.1, GradScale: 0.37, Step: 1000},
		{LR: 1e-2, GradScale: 0, Eps: 1e-8, Step: 2},
	} {
		all = append(all, rowCase("adamw", 2, s, fmt.Sprint(" ", i), func(r *rig) func() error {
			n := s[0] * s[1]
			v := r.g.normal(1, n)
			for i := range v.data {
				v.data[i] *= v.data[i]
			}
			a.P, a.G = r.inout("p", r.g.normal(1, n)), r.inout("g", r.g.normal(1, n))
			a.M, a.V = r.inout("m", r.g.normal(1, n)), r.inout("v", v)
			return func() error { return r.ops.AdamW(a) }
		}))
	}
	return all
}

func embedCases() []opCase {
	var all []opCase
	for _, s := range []struct{ t, d, v int }{{1, 1, 1}, {1, 7, 3}, {5, 8, 17}, {6, 16, 9}, {17, 33, 40}, {9, 700, 7}} {
		for _, store := range []kernels.DType{kernels.F32, kernels.BF16} {
			all = append(all, opCase{"embed", fmt.Sprintf("T=%d D=%d V=%d %v", s.t, s.d, s.v, store), 0, 1, func(r *rig) func() error {
				parts := []int{s.v}
				if s.v > 8 {
					parts = []int{s.v - 8, 8}
				}
				w := r.pack(r.g.weight(store, s.d, false, parts...))
				ids := r.in("ids", r.g.ids(0, s.v-1, s.t))
				y := r.out("y", s.t, s.d)
				return func() error { return r.ops.Embed(y, w, ids) }
			}})
		}
	}
	return all
}
