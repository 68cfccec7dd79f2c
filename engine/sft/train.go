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
	BatchSize int            // rows per step
	Warmup    int            // steps over which the learning rate rises from 0
	Schedule  Schedule       // of the learning rate after the warm-up
	FinalLR   float64        // share of the peak that the learning rate has at the last step, unless it is constant
	Adam      api.AdamParams // LearningRate is the peak
	Seed      int64          // order of rows

	Val       Task // measured during training and after the last step; nil: nothing is
	EvalEvery int  // steps between measurements; 0: only after the last step

	// Start is how many steps were done before: training goes on with the rows and the learning rate of the step behind them, as if it
	// had never stopped. The run must hold the state that it had then.
	Start int

	// Queued is called when step (from 1) has been given to the run and nothing behind it has: what it asks of the run happens
	// between this step and the next. It must not block. May be nil.
	Queued func(step int)
}

// Progress is what one step did.
type Progress struct {
	Step, Steps     int                // Step counts from 1
	Loss            float64            // of the batch, before the step: see the Task
	Metrics         map[string]float64 // all that the loss says; do not change it
	GradNorm        float64            // before clipping
	LearningRate    float64            // of this step
	Tokens          int64              // input tokens trained on since Options.Start
	Elapsed         time.Duration      // since the loop began; measurements included
	TokensPerSecond float64            // over the whole loop, measurements excluded
	Eval            *Eval              // the measurement after this step, if there was one
}

// Check says what is wrong with a task and options.
func Check(t Task, o Options) error {
	switch {
	case t.Len() == 0:
		return api.Errorf(api.BadRequest, "no training examples")
	case o.Steps < 1:
		return api.Errorf(api.BadRequest, "steps is %d, wanted at least 1", o.Steps)
	case o.BatchSize < 1:
		return api.Errorf(api.BadRequest, "batch size is %d, wanted at least 1", o.BatchSize)
	case o.Warmup < 0:
		return api.Errorf(api.BadRequest, "warmup is %d, wanted at least 0", o.Warmup)
	case !(o.FinalLR >= 0 && o.FinalLR <= 1):
		return api.Errorf(api.BadRequest, "final learning rate share is %v, wanted 0..1", o.FinalLR)
	case o.Start < 0 || o.Start >= o.Steps:
		return api.Errorf(api.BadRequest, "%d of %d steps are done, wanted fewer", o.Start, o.Steps)
	case o.EvalEvery < 0:
		return api.Errorf(api.BadRequest, "steps between evaluations is %d, wanted at least 0", o.EvalEvery)
	case o.Val != nil && o.Val.Len() == 0:
		return api.Errorf(api.BadRequest, "no validation examples")
	}
	return o.checkSchedule()
}

// evals tells whether the model is measured after step (from 0).
func (o Options) evals(step int) bool {
	return o.Val != nil && (step+1 == o.Steps || o.EvalEvery > 0 && (step+1)%o.EvalEvery == 0)
}

// loop is one call of Train.
type loop struct {
	run    *engine.Run
	task   Task
	o      Options
	report func(Progress)

	begin     time.Time
	measuring time.Duration // spent in measurements
	tokens    int64
}

// inFlight is a submitted step whose results are not read yet.
type inFlight struct {
	step   int
	tokens int
	lr     float64
	pass   *engine.Future[api.ForwardBackwardOutput]
	optim  *engine.Future[api.OptimStepOutput]
}

// Train runs the loop and calls report after every step. It submits step n+1 before it waits for step n,
// unless a measurement stands between them. When ctx ends it stops after the step that is running and returns ctx's
// error; the run then holds a whole number of steps, which the last report tells.
func Train(ctx context.Context, run *engine.Run, t Task, o Options, report func(Progress)) error {
	if err := Check(t, o); err != nil {
		return err
	}
	if report == nil {
		report = func(Progress) {}
	}
	l := &loop{run: run, task: t, o: o, report: report, begin: time.Now()}
	rows := &deal{n: t.Len(), seed: uint64(o.Seed)}
	for range o.Start {
		rows.next(o.BatchSize)
	}
	var last *inFlight
	// A step that was submitted is always read to its end: dropping it would leave the adapter in a state that no report describes.
	finish := func() error {
		f := last
		last = nil
		if f == nil {
			return nil
		}
		if err := l.finish(ctx, f); err != nil {
			return fmt.Errorf("step %d: %w", f.step+1, err)
		}
		return nil
	}
	for step := o.Start; step < o.Steps && ctx.Err() == nil; step++ {
		now, err := l.submit(ctx, rows.next(o.BatchSize), step)
		if err != nil {
			if stopped := finish(); stopped != nil {
				return stopped
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("step %d: %w", step+1, err)
		}
		if err := finish(); err != nil {
			return err
		}
		last = now
		if o.evals(step) {
			if err := finish(); err != nil {
				return err
			}
		}
	}
	if err := finish(); err != nil {
		return err
	}
	return ctx.Err()
}

func (l *loop) submit(ctx context.Context, rows []int, step int) (*inFlight, error) {
	b, err := l.task.Batch(ctx, rows)
	if err != nil {
		return nil, err
	}
	adam := l.o.Adam
	adam.LearningRate = l.o.rate(step)
	var pass *engine.Future[api.ForwardBackwardOutput]
	if b.Loss != nil {
		pass, err = l.run.ForwardBackwardCustom(b.Data, b.Loss, b.Config)
	} else {
		pass, err = l.run.ForwardBackward(api.ForwardBackwardInput{Data: b.Data, LossFn: "cross_entropy"})
	}
	if err != nil {
		return nil, err
	}
	optim, err := l.run.OptimStep(adam)
	if err != nil {
		return nil, err
	}
	if l.o.Queued != nil {
		l.o.Queued(step + 1)
	}
	return &inFlight{step: step, tokens: b.Tokens, lr: adam.LearningRate, pass: pass, optim: optim}, nil
}

func (l *loop) finish(ctx context.Context, f *inFlight) error {
	pass, err := f.pass.Wait(context.Background())
	if err != nil {
		return err
	}
	opt, err := f.optim.Wait(context.Background())
	if err != nil {
		return err
	}
	l.tokens += int64(f.tokens)
	elapsed := time.Since(l.begin)
	p := Progress{
		Step: f.step + 1, Steps: l.o.Steps, Loss: pass.Metrics["loss:sum"], Metrics: pass.Metrics, GradNorm: opt.Metrics["grad_norm"],
		LearningRate: f.lr, Tokens: l.tokens, Elapsed: elapsed, TokensPerSecond: float64(l.tokens) / (elapsed - l.measuring).Seconds(),
	}
	var failed error
	if l.o.evals(f.step) && ctx.Err() == nil {
		e, err := evaluate(ctx, l.run, l.o.Val, l.o.BatchSize)
		switch {
		case err == nil:
			p.Eval = &e
		case ctx.Err() == nil:
			failed = fmt.Errorf("evaluation: %w", err)
		}
		l.measuring += time.Since(l.begin) - elapsed
		p.Elapsed = time.Since(l.begin)
	}
	l.report(p)
	return failed
}
