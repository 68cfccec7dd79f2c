// Package record keeps what a training run reports: a file of JSON lines for plotting tools, and loss curves for people.
package record

import (
	"encoding/json"
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

// Create makes the file, or empties the one that is there.
func Create(path string) (*Log, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, api.Errorf(api.BadRequest, "%w", err)
	}
	return &Log{file: f}, nil
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
