package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/term"

	"tinkerlocal/engine/sft"
	"tinkerlocal/engine/sft/record"
)

// recorder follows a training run: the bar on the terminal, the metrics file, the loss curve.
type recorder struct {
	path        string // of the metrics file; "": there is none
	log         *record.Log
	curve       record.Curve
	bar         *trainBar
	first, last sft.Progress
	best        *sft.Eval
	bestStep    int
	evals       *sft.Eval // the last one
}

// evalMarks are the best and the last evaluation of a run.
type evalMarks struct {
	Best         float64  `json:"best_loss"`
	BestStep     int      `json:"best_step"`
	Last         float64  `json:"last_loss"`
	LastAccuracy *float64 `json:"last_accuracy,omitempty"`
}

// noLog as a file name means that there is to be none.
const noLog = "none"

// newRecorder opens the metrics file: path, or beside the adapter. An adapter's folder holds nothing but the adapter. A run that goes on
// keeps the lines of the steps that it has done.
func (a *app) newRecorder(path, adapter string, o sft.Options) (*recorder, error) {
	if path == "" {
		path = filepath.Clean(adapter) + ".metrics.jsonl"
	}
	r := &recorder{}
	if path != noLog {
		log, before, err := record.Open(path, o.Start)
		if err != nil {
			return nil, fmt.Errorf("--log: %w", err)
		}
		r.path, r.log = path, log
		for _, s := range before {
			r.curve.Add(s)
		}
	}
	r.bar = newTrainBar(a.err, o.Steps)
	return r, nil
}

func (r *recorder) report(p sft.Progress) {
	if r.last.Step == 0 {
		r.first = p
	}
	r.last = p
	if e := p.Eval; e != nil {
		r.evals = e
		if r.best == nil || e.Loss < r.best.Loss {
			r.best, r.bestStep = e, p.Step
		}
	}
	s := record.Of(p)
	r.curve.Add(s)
	if r.log != nil {
		r.log.Write(s)
	}
	r.bar.report(p)
}

// end closes the files and writes the curves that were asked for.
func (r *recorder) end(curves []string) error {
	r.bar.end()
	var errs []error
	if r.log != nil {
		if err := r.log.Close(); err != nil {
			errs = append(errs, fmt.Errorf("--log: %w", err))
		}
	}
	for _, path := range curves {
		if err := r.curve.Save(path); err != nil {
			errs = append(errs, fmt.Errorf("--curve: %w", err))
		}
	}
	return errors.Join(errs...)
}

// discard gives up before the first step: an empty file helps nobody.
func (r *recorder) discard() error {
	if r.log == nil {
		return nil
	}
	err := r.log.Close()
	if r.curve.Len() == 0 {
		err = errors.Join(err, os.Remove(r.path))
	}
	return err
}

func (r *recorder) marks() *evalMarks {
	if r.evals == nil {
		return nil
	}
	e := &evalMarks{Best: r.best.Loss, BestStep: r.bestStep, Last: r.evals.Loss}
	if r.evals.Pairs > 0 {
		e.LastAccuracy = &r.evals.Accuracy
	}
	return e
}

// columns is the width of the terminal w, or 80.
func columns(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
			return n
		}
	}
	return 80
}
