package ref

import (
	"math"

	"tinkerlocal/kernels"
)

// ops implements kernels.Ops: here the ops that work on rows or single elements.
type ops[F float] struct{ d *device[F] }

func (o ops[F]) Zero(x kernels.Tensor) error {
	if err := kernels.CheckZero(x); err != nil {
		return err
	}
	if err := o.d.own("zero", x); err != nil {
		return err
	}
	clear(view[byte](x))
	return nil
}

func (o ops[F]) Copy(dst, src kernels.Tensor) error {
	if err := kernels.CheckCopy(dst, src); err != nil {
		return err
	}
	if err := o.d.own("copy", dst, src); err != nil {
		return err
	}
	copy(view[byte](dst), view[byte](src))
	return nil
}

func (o ops[F]) Add(y, a, b kernels.Tensor) error {
	if err := kernels.CheckAdd(y, a, b, o.d.act); err != nil {
		return err
	}
	if err := o.d.own("add", y, a, b); err != nil {
		return err
	}
	yv, av, bv := view[F](y), view[F](a), view[F](b)
	for i := range yv {
		yv[i] = av[i] + bv[i]
	}
	return nil
}

func (o ops[F]) Embed(y kernels.Tensor, w kernels.Weight, ids kernels.Tensor) error {
	if err := kernels.CheckEmbed(y, w, ids, o.d.act); err != nil {
		return err
	}
	if err := o.d.own("embed", y, ids); err != nil {
		return err
	}
	m, err := o.d.weight("embed", w)
	if err != nil {
		return err
	}
	id := view[int32](ids)
	if err := inRange("embed", "ids", id, 0, m.rows-1); err != nil {
		return err
	}
	yv := view[F](y)
	for t, i := range id {
		copy(yv[t*m.cols:(t+1)*m.cols], m.row(int(i)))
	}
	return nil
}

// inRange checks every value of an integer tensor.
func inRange(op, name string, v []int32, lo, hi int) error {
	for i, x := range v {
		if int(x) < lo || int(x) > hi {
			return kernels.RangeError(op, name, i, x, lo, hi)
		}
	}
	return nil
}

func (o ops[F]) RMSNorm(y, rstd, x, g kernels.Tensor, eps float32) error {
	if err := kernels.CheckRMSNorm(y, rstd, x, g, eps, o.d.act); err != nil {
		return err
	}
	if err := o.d.own("rmsnorm", y, rstd, x, g); err != nil {
		return err
	}
	yv, rv, xv, gv := view[F](y), view[F](rstd), view[F](x), view[F](g)
	n := len(gv)
	for t := range rv {
		rv[t] = normRow(yv[t*n:(t+1)*n], xv[t*n:(t+1)*n], gv, F(eps))
	}
	return nil
}

// normRow sets y = x * rstd * g and returns rstd = 1/sqrt(mean(x^2) + eps).
func normRow[F float](y, x, g []F, eps F) F {
	r := rstdOf(x, eps)
	for c := range x {
		y[c] = x[c] * r * g[c]
	}
	return r
}

// rstdOf is 1/sqrt(mean(x^2) + eps).
func rstdOf[F float](x []F, eps F) F {
	var sum F
	for _, v := range x {
		sum += v * v
	}
	return 1 / F(math.Sqrt(float64(sum/F(len(x))+eps)))
}

func (o ops[F]) RMSNormBackward(dx, dy, x, rstd, g, dres kernels.Tensor) error {
	if err := kernels.CheckRMSNormBackward(dx, dy, x, rstd, g, dres, o.d.act); err != nil {
		return err
	}
	if err := o.d.own("rmsnorm backward", dx, dy, x, rstd, g, dres); err != nil {
		return err
	}
	dxv, dyv, xv, rv, gv := view[F](dx), view[F](dy), view[F](x), view[F](rstd), view[F](g)
	dresv := optional[F](dres)
	n := len(gv)
	for t, r := range rv {
		lo, hi := t*n, (t+1)*n
		mean := normDot(dyv[lo:hi], xv[lo:hi], gv, r)
		for c := range n {
			d := normGrad(dyv[lo+c], xv[lo+c], gv[c], r, mean)
			if dresv != nil {
				d += dresv[lo+c]
			}
			dxv[lo+c] = d
		}
	}
	return nil
}

// normDot is mean(g*dy*xhat), xhat = x*rstd.
func normDot[F float](dy, x, g []F, rstd F) F {
	var dot F
	for c := range x {
		dot += g[c] * dy[c] * (x[c] * rstd)
	}
	return dot / F(len(x))
}

// normGrad is one element of rstd*(g*dy - xhat*mean), with the mean of [normDot].
func normGrad[F float](dy, x, g, rstd, mean F) F {
	return rstd * (g*dy - x*rstd*mean)
}

func (o ops[F]) SwiGLU(h, gu kernels.Tensor) error {
	if err := kernels.CheckSwiGLU(h, gu, o.d.act); err != nil {
		return err
	}
	if err := o.d.own("swiglu", h, gu); err != nil {
		return err
	}
	hv, guv := view[F](h), view[F](gu)
	f := h.Shape[1]
	for i := range hv {
		t, c := i/f, i%f
		gate, up := guv[2*f*t+c], guv[2*f*t+f+c]
		hv[i] = gate * sigmoid(gate) * up
	}
	return nil
}

func (o ops[F]) SwiGLUBackward(dgu, dh, gu kernels.Tensor) error {
	if err := kernels.CheckSwiGLUBackward(dgu, dh, gu, o.d.act); err != nil {
		return err
	}
	if err := o.d.own("swiglu backward", dgu, dh, gu); err != nil {
		return err
	}
	dguv, dhv, guv := view[F](dgu), view[F](dh), view[F](gu)
	f := dh.Shape[1]
	for i, d := range dhv {
		t, c := i/f, i%f
		g, u := 2*f*t+c, 2*f*t+f+c
		gate, up := guv[g], guv[u]
		s := sigmoid(gate)
		// silu'(z) = s(z) * (1 + z*(1 - s(z))), s the logistic function.
		dguv[g] = d * up * s * (1 + gate*(1-s))
		dguv[u] = d * gate * s
	}
	return nil
}

// sigmoid is 1/(1+exp(-z)); an overflowing exp gives 0, which is right.
func sigmoid[F float](z F) F { return 1 / (1 + exp(-z)) }

func exp[F float](z F) F { return F(math.Exp(float64(z))) }

func (o ops[F]) SumSquares(x kernels.Tensor) (float64, error) {
	if err := kernels.CheckSumSquares(x, o.d.act); err != nil {
		return 0, err
	}
	if err := o.d.own("sumsquares", x); err != nil {
		return 0, err
	}
	sum := 0.0
	for _, v := range view[F](x) {
		sum += float64(v) * float64(v)
	}
	return sum, nil
}

func (o ops[F]) AdamW(a kernels.AdamWArgs) error {
	if err := a.Check(o.d.act); err != nil {
		return err
	}
	if err := o.d.own("adamw", a.P, a.G, a.M, a.V); err != nil {
		return err
	}
	p, g, m, v := view[F](a.P), view[F](a.G), view[F](a.M), view[F](a.V)
	// Scalars are formed in float64 and rounded once, as torch does for float32 parameters.
	decay := F(1 - a.LR*a.WeightDecay)
	rate := F(a.LR / (1 - math.Pow(a.Beta1, float64(a.Step))))
	root := F(math.Sqrt(1 - math.Pow(a.Beta2, float64(a.Step))))
	for i := range p {
		grad := g[i] * F(a.GradScale)
		p[i] *= decay
		m[i] += (grad - m[i]) * F(1-a.Beta1)
		v[i] = F(a.Beta2)*v[i] + F(1-a.Beta2)*grad*grad
		p[i] -= rate * m[i] / (F(math.Sqrt(float64(v[i])))/root + F(a.Eps))
		g[i] = 0
	}
	return nil
}
