package sft

import (
	"math"
	"strings"

	"tinkerlocal/engine/api"
)

// Schedule is the course of the learning rate after the warm-up.
type Schedule string

// The schedules. The zero value is Linear.
const (
	Linear   Schedule = "linear"   // straight down
	Cosine   Schedule = "cosine"   // half a cosine wave down (Loshchilov and Hutter 2017, equation 5, without restarts)
	Constant Schedule = "constant" // stays
)

// Schedules names them all.
var Schedules = []string{string(Linear), string(Cosine), string(Constant)}

// rate is the learning rate of step (from 0). It rises linearly over Warmup steps, is at its peak at step Warmup, and
// has come down to FinalLR of the peak at the last step.
func (o Options) rate(step int) float64 {
	lr := o.Adam.LearningRate
	if step < o.Warmup {
		return lr * float64(step+1) / float64(o.Warmup+1)
	}
	passed := float64(step-o.Warmup) / float64(max(o.Steps-1-o.Warmup, 1))
	left := 1 - passed // of the way from FinalLR to the peak
	switch o.Schedule {
	case Constant:
		left = 1
	case Cosine:
		left = (1 + math.Cos(math.Pi*passed)) / 2
	}
	return lr * (o.FinalLR + (1-o.FinalLR)*left)
}

// DefaultRate is the peak learning rate for LoRA that the official cookbook recommends
// (thinking-machines-lab/tinker-cookbook, tinker_cookbook/hyperparam_utils.py, get_lr):
//
//	5e-5 · 10 · (2000/hidden)^p    p = 0.0775 for Qwen models, 0.781 for Llama models
//
// It does not depend on the rank. names are the model's name and its family; the first that says Qwen or Llama
// decides. The cookbook has no p for other models; they get that of Qwen, which keeps the rate near 5e-4
// whatever the size.
func DefaultRate(hidden int, names ...string) float64 {
	p := 0.0775
	for _, name := range names {
		name = strings.ToLower(name)
		if strings.Contains(name, "qwen") {
			break
		}
		if strings.Contains(name, "llama") {
			p = 0.781
			break
		}
	}
	return 5e-5 * 10 * math.Pow(2000/float64(hidden), p)
}

func (o Options) checkSchedule() error {
	switch o.Schedule {
	case "", Linear, Cosine, Constant:
		return nil
	}
	return api.Errorf(api.BadRequest, "schedule is %q, wanted one of %s", o.Schedule, strings.Join(Schedules, ", "))
}
