package kerneltest

import (
	"fmt"
	"math"

	"tinkerlocal/kernels"
)

// judge pools the errors of one case over its seeds; see the package comment for the rule.
type judge struct {
	factor, floor float64
	outputs       []verdict
}

// verdict is what is known about one output.
type verdict struct {
	name       string
	dev, plain float64
	place      string
}

// floorUlps is the error that is always allowed.
const floorUlps = 4

func newJudge(factor float64, act kernels.DType) *judge {
	ulp := 0x1p-23
	switch act {
	case kernels.BF16:
		ulp = 0x1p-7
	case kernels.F64:
		ulp = 0x1p-52
	}
	if factor == 0 { // an op that only moves values
		ulp = 0
	}
	return &judge{factor: factor, floor: floorUlps * ulp}
}

func (j *judge) add(got, want, plain *outcome) error {
	if j.outputs == nil {
		j.outputs = make([]verdict, len(want.slots))
	}
	for i, s := range want.slots {
		v := &j.outputs[i]
		v.name = s.name
		g, w, p := got.values(i), want.values(i), plain.values(i)
		if len(g) != len(w) {
			return fmt.Errorf("%s has %d values, wanted %d", s.name, len(g), len(w))
		}
		scale := max(rms(w), s.scale, math.SmallestNonzeroFloat32)
		for k := range w {
			e := math.Abs(g[k]-w[k]) / (math.Abs(w[k]) + scale)
			if !(e <= v.dev) { // also when e is NaN
				v.dev = e
				v.place = fmt.Sprintf("element %d is %v, wanted %v, plain float32 gives %v", k, g[k], w[k], p[k])
				if math.IsNaN(e) {
					return fmt.Errorf("%s: %s", s.name, v.place)
				}
			}
			v.plain = max(v.plain, math.Abs(p[k]-w[k])/(math.Abs(w[k])+scale))
		}
	}
	// A number is a sum of squares accumulated in float64, of at most a few thousand values.
	if !(math.Abs(got.number-want.number) <= 1e-12*math.Abs(want.number)) {
		return fmt.Errorf("the result is %v, wanted %v", got.number, want.number)
	}
	return nil
}

func (j *judge) verdict() error {
	for _, v := range j.outputs {
		if bound := j.factor*v.plain + j.floor; !(v.dev <= bound) {
			return fmt.Errorf("%s: error %.3g, at most %.3g allowed (plain float32: %.3g): %s", v.name, v.dev, bound, v.plain, v.place)
		}
	}
	return nil
}

func rms(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	sum := 0.0
	for _, x := range v {
		sum += x * x
	}
	return math.Sqrt(sum / float64(len(v)))
}
