// Package loss defines what a loss is and holds the built-in ones.
//
// A loss gets the log-probabilities of the target tokens and returns one weight per log-probability. The engine always
// differentiates
//
//	L = -sum_i w_i * logprob_i    with w held constant,
//
// so every loss, built-in or custom, returns w = -dL/dlogprob. All losses are sums over tokens and
// datums: no mean, no length normalisation.
package loss

import (
	"context"
	"maps"
	"slices"
	"strings"

	"tinkerlocal/engine/api"
)

// Input is one batch as a loss sees it.
type Input struct {
	Data     []api.Datum
	LogProbs [][]float32 // [datum][position*k]
	Config   map[string]float64

	ValueOnly bool // nothing will be differentiated: Output.Weights may be left out
}

// Output is a loss's answer. Weights has the shape of Input.LogProbs. The value of the loss is
// Metrics["loss:sum"]; every metric name ends in its reduction over chunks.
type Output struct {
	Weights [][]float32
	Metrics map[string]float64
}

// Loss turns log-probabilities into weights.
type Loss interface {
	Eval(ctx context.Context, in Input) (Output, error)
}

// Checker is a Loss that can refuse inputs before the forward pass is paid for.
type Checker interface {
	Check(data []api.Datum, config map[string]float64) error
}

// PerDatum is a Loss whose weights for a datum depend on nothing but that datum. It may be evaluated on
// parts of a batch; the metrics that count are those of an evaluation of the whole.
type PerDatum interface {
	Loss
	PerDatum()
}

// Plugin is a Loss that somebody else may have replaced by the next time: what it was is kept with the weights that were trained with it.
type Plugin interface {
	Loss
	Plugin() api.PluginRecord
}

// Check asks l to check data and config, when it can.
func Check(l Loss, data []api.Datum, config map[string]float64) error {
	if c, ok := l.(Checker); ok {
		return c.Check(data, config)
	}
	return nil
}

// builtin is the table of built-in losses. Their names, inputs, defaults and keys are the hosted service's.
var builtin = map[string]Loss{
	CrossEntropy:          crossEntropy{},
	"importance_sampling": importanceSampling,
	"ppo":                 ppo,
	"cispo":               cispo,
	"dro":                 dro,
}

// Builtin finds a built-in loss by its wire name.
func Builtin(name string) (Loss, error) {
	if l, ok := builtin[name]; ok {
		return l, nil
	}
	return nil, api.Errorf(api.BadRequest, "unknown loss_fn %q, wanted one of %s", name,
		strings.Join(slices.Sorted(maps.Keys(builtin)), ", "))
}

// onlyKeys refuses configuration keys a loss does not know.
func onlyKeys(loss string, config map[string]float64, known ...string) error {
	for k := range config {
		if !slices.Contains(known, k) {
			allowed := "no keys"
			if len(known) > 0 {
				allowed = strings.Join(known, ", ")
			}
			return api.Errorf(api.BadRequest, "loss_fn_config: %s does not know %q, wanted %s", loss, k, allowed)
		}
	}
	return nil
}
