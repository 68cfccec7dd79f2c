package sft

import (
	"context"
	"fmt"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// Options of a training loop.
type Options struct {
	Steps     int
	BatchSize int
	Warmup    int            // steps over which the learning rate rises from 0
	FinalLR   float64        // the learning rate falls linearly to this share of the peak at the last step; 1: constant
	Adam      api.AdamParams // LearningRate is the peak
	Seed      int64          // order of examples
}

// Progress is what one step did.
type Progress struct {
	Step, Steps     int           // Step counts from 1
	Loss            float64       // mean negative log-likelihood per target token, before the step
	GradNorm        float64       // before clipping
	LearningRate    float64       // of this step
	Tokens          int64         // input tokens trained on so far
	Elapsed         time.Duration // since the loop began
	TokensPerSecond float64       // over the whole loop
}

// Check says what is wrong with examples and options.
func Check(examples []Example, o Options) error {
	switch {
	case len(examples) == 0:
		return api.Errorf(api.BadRequest, "no training examples")
	case o.Steps < 1:
		return api.Errorf(api.BadRequest, "steps is %d, wanted at least 1", o.Steps)
	case o.BatchSize < 1:
		return api.Errorf(api.BadRequest, "batch size is %d, wanted at least 1", o.BatchSize)
	case o.Warmup < 0:
		return api.Errorf(api.BadRequest, "warmup is %d, wanted at least 0", o.Warmup)
	case o.FinalLR < 0 || o.FinalLR > 1:
		return api.Errorf(api.BadRequest, "final learning rate share is %v, wanted 0..1", o.FinalLR)
	}
	for i, e := range examples {
		if e.targets() < 1 {
			return api.Errorf(api.BadRequest, "example %d: %d tokens, of them %d prompt: nothing to predict", i, len(e.Tokens), e.Prompt)
		}
	}
	return nil
}

// rate is the learning rate of step (from 0): linear warm-up, then linear decay.
func (o Options) rate(step int) float64 {
	lr := o.Adam.LearningRate
	if step < o.Warmup {
		return lr * float64(step+1) / float64(o.Warmup+1)
	}
	span := max(o.Steps-1-o.Warmup, 1)
	return lr * (1 - (1-o.FinalLR)*float64(step-o.Warmup)/float64(span))
}

// inFlight is a submitted step whose results are not read yet.
type inFlight struct {
	step   int
	tokens int
	lr     float64
	pass   *engine.Future[api.ForwardBackwardOutput]
	optim  *engine.Future[api.OptimStepOutput]
}

// Train runs the loop and calls report after every step. It submits step n+1 before it waits for step n.
// When ctx ends it stops after the step that is running and returns ctx's error; the run then holds a
// whole number of steps, which the last report tells.
func Train(ctx context.Context, run *engine.Run, examples []Example, o Options, report func(Progress)) error {
	if err := Check(examples, o); err != nil {
		return err
	}
	deal := &sampler{examples: examples, seed: uint64(o.Seed)}
	begin := time.Now()
	var tokens int64
	finish := func(f *inFlight) error {
		// A step that was submitted is always read to its end: dropping it would leave the adapter in a
		// state that no report describes.
		pass, err := f.pass.Wait(context.Background())
		if err != nil {
			return fmt.Errorf("step %d: %w", f.step+1, err)
		}
		opt, err := f.optim.Wait(context.Background())
		if err != nil {
			return fmt.Errorf("step %d: %w", f.step+1, err)
		}
		tokens += int64(f.tokens)
		elapsed := time.Since(begin)
		if report != nil {
			report(Progress{
				Step: f.step + 1, Steps: o.Steps, Loss: pass.Metrics["loss:sum"], GradNorm: opt.Metrics["grad_norm"],
				LearningRate: f.lr, Tokens: tokens, Elapsed: elapsed, TokensPerSecond: float64(tokens) / elapsed.Seconds(),
			})
		}
		return nil
	}
	var last *inFlight
	for step := 0; step < o.Steps && ctx.Err() == nil; step++ {
		now, err := submit(run, deal.next(o.BatchSize), step, o)
		if err != nil {
			return fmt.Errorf("step %d: %w", step+1, err)
		}
		if last != nil {
			if err := finish(last); err != nil {
				return err
			}
		}
		last = now
	}
	if last != nil {
		if err := finish(last); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func submit(run *engine.Run, examples []Example, step int, o Options) (*inFlight, error) {
	data, tokens := batch(examples)
	adam := o.Adam
	adam.LearningRate = o.rate(step)
	pass, err := run.ForwardBackward(api.ForwardBackwardInput{Data: data, LossFn: "cross_entropy"})
	if err != nil {
		return nil, err
	}
	optim, err := run.OptimStep(adam)
	if err != nil {
		return nil, err
	}
	return &inFlight{step: step, tokens: tokens, lr: adam.LearningRate, pass: pass, optim: optim}, nil
}
