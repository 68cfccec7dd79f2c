// Package record keeps what a training run reports: a file of JSON lines for plotting tools, and loss curves for people.
package record

import (
	"bufio"
	"encoding/json"
	"io"
	"math"
	"os"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/sft"
)

// Step is one line of the file. Times are in seconds.
type Step struct {
	Step            int     `json:"step"`              // from 1
	Loss            Number  `json:"loss"`              // of the step's batch, before the step
	Tokens          int64   `json:"tokens"`            // input tokens trained on so far
	LearningRate    Number  `json:"learning_rate"`     // of this step
	GradNorm        Number  `json:"grad_norm"`         // before clipping
	Seconds         Number  `json:"seconds"`           // since training began, evaluations included
	TokensPerSecond Number  `json:"tokens_per_second"` // mean since training began, evaluations excluded
	Accuracy        *Number `json:"accuracy,omitempty"`
	Margin          *Number `json:"margin,omitempty"`
	EvalLoss        *Number `json:"eval_loss,omitempty"` // after the step; only in steps with an evaluation
	EvalAccuracy    *Number `json:"eval_accuracy,omitempty"`
}

// Number is a float64 that JSON can always hold: what is not finite is null.
type Number float64

// MarshalJSON writes the number, or null.
func (n Number) MarshalJSON() ([]byte, error) {
	if v := float64(n); math.IsNaN(v) || math.IsInf(v, 0) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(n))
}

// UnmarshalJSON reads null as NaN.
func (n *Number) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*n = Number(math.NaN())
		return nil
	}
	return json.Unmarshal(b, (*float64)(n))
}

// Of is the line of a step.
func Of(p sft.Progress) Step {
	s := Step{
		Step: p.Step, Loss: Number(p.Loss), Tokens: p.Tokens, LearningRate: Number(p.LearningRate), GradNorm: Number(p.GradNorm),
		Seconds: Number(p.Elapsed.Seconds()), TokensPerSecond: Number(p.TokensPerSecond),
		Accuracy: metric(p, "accuracy:mean"), Margin: metric(p, "margin:mean"),
	}
	if e := p.Eval; e != nil {
		loss := Number(e.Loss)
		s.EvalLoss = &loss
		if e.Pairs > 0 {
			right := Number(e.Accuracy)
			s.EvalAccuracy = &right
		}
	}
	return s
}

func metric(p sft.Progress, name string) *Number {
	v, ok := p.Metrics[name]
	if !ok {
		return nil
	}
	n := Number(v)
	return &n
}

// Log is an open file of steps. A line is in the file when Write returns, so that a run that is killed keeps
// what it had. After an error nothing more is written: training goes on without its log.
type Log struct {
	file *os.File
	err  error
}

// Open opens the file of a run that has done some steps already: the lines of those stay, and are returned, and what stands behind them
// goes. Without such steps the file is made, or the one that is there is emptied.
func Open(path string, done int) (*Log, []Step, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, nil, api.Errorf(api.BadRequest, "%w", err)
	}
	before, end, err := earlier(f, done)
	if err == nil {
		err = f.Truncate(end)
	}
	if err == nil {
		_, err = f.Seek(end, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, nil, api.Errorf(api.BadRequest, "%w", err)
	}
	return &Log{file: f}, before, nil
}

// earlier reads the lines of the first steps, up to done, and tells where they end.
func earlier(r io.Reader, done int) (before []Step, end int64, err error) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return nil, 0, err
		}
		var s Step
		if err != nil || json.Unmarshal(line, &s) != nil || s.Step > done || s.Step < 1 {
			return before, end, nil
		}
		before = append(before, s)
		end += int64(len(line))
	}
}

// Write appends a line.
func (l *Log) Write(s Step) {
	if l.err != nil {
		return
	}
	line, err := json.Marshal(s)
	if err == nil {
		_, err = l.file.Write(append(line, '\n'))
	}
	l.err = err
}

// Close closes the file and returns the first error that there was.
func (l *Log) Close() error {
	if err := l.file.Close(); l.err == nil {
		l.err = err
	}
	return l.err
}
