package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// saver saves a run's state now and then while it trains.
type saver struct {
	run    *engine.Run
	steps  int // of the whole training
	every  int // steps between saves
	keep   int // older states that are kept beside the newest
	saves  []*engine.Future[api.Checkpoint]
	failed error // the first save that could not even be asked for
}

// finalName is the name of the checkpoints of the last step. The others are named by their step.
const finalName = "final"

func stepName(step int) string { return fmt.Sprintf("%06d", step) }

// queued asks for a save where one is due: see sft.Options.Queued.
func (s *saver) queued(step int) {
	if step == s.steps || step%s.every == 0 {
		s.save(step)
	}
}

func (s *saver) save(step int) {
	name := stepName(step)
	if step == s.steps {
		name = finalName
	}
	s.add(s.run.SaveState(name, api.SaveOptions{KeepLast: s.keep}))
	if step == s.steps {
		s.add(s.run.SaveWeightsForSampler(name, api.SaveOptions{}))
	}
}

func (s *saver) add(f *engine.Future[api.Checkpoint], err error) {
	if err != nil {
		s.failed = errors.Join(s.failed, err)
		return
	}
	s.saves = append(s.saves, f)
}

// wait returns when all saves have ended: the newest state that was saved, and what went wrong.
func (s *saver) wait(ctx context.Context) (state api.Checkpoint, err error) {
	err = s.failed
	for _, f := range s.saves {
		c, failed := f.Wait(ctx)
		if failed == nil && c.Path.Kind == api.KindState {
			state = c
		}
		err = errors.Join(err, failed)
	}
	return state, err
}

// interrupted saves the state that a training has reached which was stopped after step.
func (s *saver) interrupted(step int) (state api.Checkpoint, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if due := step == s.steps || step%s.every == 0; step > 0 && !due {
		s.save(step)
	}
	return s.wait(ctx)
}
