package plugins

import (
	"context"
	"slices"
	"time"

	"tinkerlocal/engine/loss"
)

// Measurement is what calls of a plugin with one size of batch took.
type Measurement struct {
	Elements int     `json:"elements"` // log-probabilities of the batch
	Seconds  float64 `json:"seconds"`  // of a call with all copies, the median
	Fuel     float64 `json:"fuel"`     // of a call
	Calls    int     `json:"calls"`
}

// measureDatum is how many log-probabilities each datum of a measured batch has.
const measureDatum = 500

// Measure calls the plugin with a made-up batch of about that many log-probabilities, at least three times and for a third of a second.
func (m *Module) Measure(ctx context.Context, elements int) (Measurement, error) {
	in, err := m.madeUp(max(1, elements/measureDatum), min(elements, measureDatum)-1, true)
	if err != nil {
		return Measurement{}, m.named(err)
	}
	batch := loss.Input{Data: in.Data, LogProbs: in.LogProbs, Config: in.Config}
	r := Measurement{}
	for _, lp := range in.LogProbs {
		r.Elements += len(lp)
	}
	var times []float64
	for begin := time.Now(); len(times) < 3 || time.Since(begin) < time.Second/3; {
		t := time.Now()
		out, err := m.Loss().Eval(ctx, batch)
		if err != nil {
			return r, err
		}
		times = append(times, time.Since(t).Seconds())
		r.Fuel = out.Metrics["plugin/fuel:sum"]
	}
	slices.Sort(times)
	r.Seconds, r.Calls = times[len(times)/2], len(times)
	return r, nil
}
