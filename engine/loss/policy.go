package loss

import (
	"context"
	"math"
	"slices"

	"tinkerlocal/engine/api"
)

// policy is a policy-gradient loss: a sum over positions of a function of the log-probability t under the
// model, the log-probability q under the policy that sampled, and the advantage A. Masked positions
// have advantage 0.
type policy struct {
	name string
	keys []string // configuration keys, beyond none
	clip *bounds  // defaults of the ratio's bounds, for losses that clip
	beta bool     // "beta" is required: it has no default
	// term is one position's loss and its weight w = -dloss/dt.
	term func(t, q, a float64, k constants) (loss, weight float64)
}

// bounds are absolute ratios, not distances from 1.
type bounds struct{ lo, hi float64 }

// constants are the configured numbers that hold at one position.
type constants struct {
	bounds
	beta float64
}

const (
	keyLow  = "clip_low_threshold"
	keyHigh = "clip_high_threshold"
	keyBeta = "beta"
)

// importanceSampling is L = sum -r*A with r = exp(t-q); the gradient flows through r.
var importanceSampling = policy{
	name: "importance_sampling",
	term: func(t, q, a float64, _ constants) (float64, float64) {
		r := math.Exp(t - q)
		return -r * a, r * a
	},
}

// ppo is L = sum -min(r*A, clamp(r, lo, hi)*A). (Schulman et al. 2017, arXiv 1707.06347, eq. 7, with
// bounds in place of 1±epsilon.) Where the clamped branch is the smaller one the gradient is zero.
var ppo = policy{
	name: "ppo", keys: []string{keyLow, keyHigh}, clip: &bounds{0.8, 1.2},
	term: func(t, q, a float64, k constants) (float64, float64) {
		r := math.Exp(t - q)
		free, clipped := r*a, min(max(r, k.lo), k.hi)*a
		if clipped < free {
			return -clipped, 0
		}
		return -free, free
	},
}

// cispo is L = sum -stop_gradient(clamp(r, lo, hi))*t*A. (MiniMax 2025, arXiv 2506.13585, eq. 4-5.)
var cispo = policy{
	name: "cispo", keys: []string{keyLow, keyHigh}, clip: &bounds{0, 4},
	term: func(t, q, a float64, k constants) (float64, float64) {
		w := min(max(math.Exp(t-q), k.lo), k.hi) * a
		return -w * t, w
	},
}

// dro is L = sum -(t*A - beta/2*(t-q)^2). (Richemond et al. 2024, arXiv 2405.19107, eq. 9, per token.)
var dro = policy{
	name: "dro", keys: []string{keyBeta}, beta: true,
	term: func(t, q, a float64, k constants) (float64, float64) {
		d := t - q
		return -(t*a - k.beta/2*d*d), a - k.beta*d
	},
}

// PerDatum: every position stands alone.
func (policy) PerDatum() {}

// Check wants logprobs and advantages of one value per target, finite, and sensible constants.
func (p policy) Check(data []api.Datum, config map[string]float64) error {
	if err := onlyKeys(p.name, config, p.keys...); err != nil {
		return err
	}
	k, err := p.constants(config)
	if err != nil {
		return err
	}
	for i, d := range data {
		targets := d.LossInputs["target_tokens"]
		if dims := targets.Dims(); len(dims) != 1 {
			return api.Errorf(api.BadRequest, "datum %d: target_tokens has shape %v, %s wants (N)", i, dims, p.name)
		}
		for _, name := range []string{"logprobs", "advantages"} {
			if err := perPosition(d, i, name, targets.Len(), true); err != nil {
				return err
			}
		}
		for _, name := range []string{keyLow, keyHigh} {
			_, given := d.LossInputs[name]
			if given && p.clip == nil {
				return api.Errorf(api.BadRequest, "datum %d: %s does not know the input %q", i, p.name, name)
			}
			if err := perPosition(d, i, name, targets.Len(), false); err != nil {
				return err
			}
		}
		for j := range targets.Len() {
			if b := k.at(d, j); p.clip != nil && !(b.lo >= 0 && b.lo <= b.hi) {
				return api.Errorf(api.BadRequest, "datum %d: position %d is clipped to %v..%v, wanted 0 <= low <= high", i, j, b.lo, b.hi)
			}
		}
	}
	return nil
}

// constants reads the configuration; Check has refused unknown keys.
func (p policy) constants(config map[string]float64) (constants, error) {
	var k constants
	if p.clip != nil {
		k.bounds = *p.clip
	}
	for name, into := range map[string]*float64{keyLow: &k.lo, keyHigh: &k.hi, keyBeta: &k.beta} {
		v, given := config[name]
		if !given {
			continue
		}
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return k, api.Errorf(api.BadRequest, "loss_fn_config: %s is %v, wanted a finite number", name, v)
		}
		*into = v
	}
	_, given := config[keyBeta]
	switch {
	case p.beta && !given:
		return k, api.Errorf(api.BadRequest, "loss_fn_config: %s needs %q; it has no default", p.name, keyBeta)
	case p.beta && k.beta < 0:
		return k, api.Errorf(api.BadRequest, "loss_fn_config: beta is %v, wanted at least 0", k.beta)
	}
	return k, nil
}

// at is k with a datum's own bounds for position j, when it has them.
func (k constants) at(d api.Datum, j int) constants {
	if lo, ok := d.LossInputs[keyLow]; ok {
		k.lo = float64(lo.Floats[j])
	}
	if hi, ok := d.LossInputs[keyHigh]; ok {
		k.hi = float64(hi.Floats[j])
	}
	return k
}

// Eval implements Loss.
func (p policy) Eval(_ context.Context, in Input) (Output, error) {
	k, err := p.constants(in.Config)
	if err != nil {
		return Output{}, err
	}
	out := Output{Weights: make([][]float32, len(in.Data))}
	sum := 0.0
	for i, lp := range in.LogProbs {
		d := in.Data[i]
		q, a := d.LossInputs["logprobs"].Floats, d.LossInputs["advantages"].Floats
		w := make([]float32, len(lp))
		for j, t := range lp {
			if a[j] == 0 && !p.beta { // a masked position, whose log-probabilities may be anything
				continue
			}
			l, weight := p.term(float64(t), float64(q[j]), float64(a[j]), k.at(d, j))
			sum += l
			w[j] = float32(weight)
		}
		out.Weights[i] = w
	}
	out.Metrics = map[string]float64{"loss:sum": sum}
	return out, nil
}

// perPosition wants datum i's float input of that name to hold n finite values.
func perPosition(d api.Datum, i int, name string, n int, required bool) error {
	v, ok := d.LossInputs[name]
	switch {
	case !ok && required:
		return api.Errorf(api.BadRequest, "datum %d: %s is missing", i, name)
	case !ok:
		return nil
	case v.Ints != nil:
		return api.Errorf(api.BadRequest, "datum %d: %s is int64, wanted float32", i, name)
	case v.Len() != n:
		return api.Errorf(api.BadRequest, "datum %d: %s has %d entries, target_tokens has %d", i, name, v.Len(), n)
	}
	if j := slices.IndexFunc(v.Floats, notFinite); j >= 0 {
		return api.Errorf(api.BadRequest, "datum %d: %s[%d] is %v, wanted a finite number", i, name, j, v.Floats[j])
	}
	return nil
}

func notFinite(v float32) bool { return v-v != 0 }
