package ref

import (
	"math"

	"tinkerlocal/kernels"
)

// keyRow is the row of the key/value tensors that holds position j of a sequence.
func keyRow(s *kernels.Seq, pageLen, j int) int {
	if s.Pages == nil {
		return s.KV + j
	}
	return int(s.Pages[j/pageLen])*pageLen + j%pageLen
}

func (o ops[F]) Attention(a kernels.AttentionArgs) error {
	if err := a.Check(o.d.act); err != nil {
		return err
	}
	if err := o.d.own("attention", a.O, a.LSE, a.Q, a.K, a.V); err != nil {
		return err
	}
	out, lse := view[F](a.O), optional[F](a.LSE)
	q, k, v := view[F](a.Q), view[F](a.K), view[F](a.V)
	c, kvCols := a.Q.Shape[1]/a.Heads, a.K.Shape[1]
	for i := range a.Seqs {
		s := &a.Seqs[i]
		for t := s.Begin; t < s.End; t++ {
			keys := s.Pos + t - s.Begin + 1
			for h := range a.Heads {
				at := h / (a.Heads / a.KVHeads) * c // the head's place in a row of k or v
				qh := q[t*a.Heads*c+h*c:][:c]
				p := o.d.scores(keys)
				for j := range p {
					p[j] = dot(qh, k[keyRow(s, a.PageLen, j)*kvCols+at:][:c]) * F(a.Scale)
				}
				l := softmax(p)
				oh := out[t*a.Heads*c+h*c:][:c]
				clear(oh)
				for j, pj := range p {
					vh := v[keyRow(s, a.PageLen, j)*kvCols+at:][:c]
					for e := range oh {
						oh[e] += pj * vh[e]
					}
				}
				if lse != nil {
					lse[t*a.Heads+h] = l
				}
			}
		}
	}
	return nil
}

// softmax replaces z by exp(z - max)/sum and returns its log-sum-exp.
func softmax[F float](z []F) F {
	top, sum := expSum(z)
	for i := range z {
		z[i] = exp(z[i]-top) / sum
	}
	return top + F(math.Log(float64(sum)))
}

// expSum returns the largest value of z and the sum of exp(z - largest).
func expSum[F float](z []F) (top, sum F) {
	top = z[0]
	for _, v := range z {
		top = max(top, v)
	}
	for _, v := range z {
		sum += exp(v - top)
	}
	return top, sum
}

// AttentionBackward follows the formulas of Dao 2023 (arXiv 2307.08691), algorithm 2, without tiles:
//
//	p = exp(s - lse), dv += p do, ds = p (do.v - do.o), dq += scale ds k, dk += scale ds q
func (o ops[F]) AttentionBackward(a kernels.AttentionBackwardArgs) error {
	const op = "attention backward"
	if err := a.Check(o.d.act); err != nil {
		return err
	}
	if err := o.d.own(op, a.DQ, a.DK, a.DV, a.DO, a.O, a.LSE, a.Q, a.K, a.V); err != nil {
		return err
	}
	dq, dk, dv, do := view[F](a.DQ), view[F](a.DK), view[F](a.DV), view[F](a.DO)
	out, lse, q, k, v := view[F](a.O), view[F](a.LSE), view[F](a.Q), view[F](a.K), view[F](a.V)
	c, kvCols := a.Q.Shape[1]/a.Heads, a.K.Shape[1]
	scale := F(a.Scale)
	clear(dq)
	clear(dk)
	clear(dv)
	for i := range a.Seqs {
		s := &a.Seqs[i]
		for t := s.Begin; t < s.End; t++ {
			for h := range a.Heads {
				row := t*a.Heads*c + h*c
				qh, dqh, doh := q[row:][:c], dq[row:][:c], do[row:][:c]
				delta := dot(doh, out[row:][:c])
				for key := s.Begin; key <= t; key++ {
					at := key*kvCols + h/(a.Heads/a.KVHeads)*c
					kh, vh, dkh, dvh := k[at:][:c], v[at:][:c], dk[at:][:c], dv[at:][:c]
					p := exp(dot(qh, kh)*scale - lse[t*a.Heads+h])
					ds := p * (dot(doh, vh) - delta) * scale
					for e := range c {
						dvh[e] += p * doh[e]
						dqh[e] += ds * kh[e]
						dkh[e] += ds * qh[e]
					}
				}
			}
		}
	}
	return nil
}
