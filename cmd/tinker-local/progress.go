package main

import (
	"fmt"
	"io"
	"time"

	"github.com/schollz/progressbar/v3"

	"tinkerlocal/engine/sft"
)

// trainBar draws a training run on a terminal; on anything else it draws nothing.
type trainBar struct {
	bar *progressbar.ProgressBar
}

func newTrainBar(w io.Writer, steps int) *trainBar {
	if !terminal(w) {
		return &trainBar{}
	}
	return &trainBar{progressbar.NewOptions(steps,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetWidth(28),
		progressbar.OptionShowCount(),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionSetElapsedTime(true),
		progressbar.OptionThrottle(65*time.Millisecond),
		progressbar.OptionSetDescription("training"),
		progressbar.OptionOnCompletion(func() { fmt.Fprintln(w) }),
	)}
}

func (b *trainBar) report(p sft.Progress) {
	if b.bar == nil {
		return
	}
	b.bar.Describe(fmt.Sprintf("training  loss %.4f  %s tok/s", p.Loss, thousands(p.TokensPerSecond)))
	_ = b.bar.Set(p.Step)
}

// end leaves the terminal's cursor on a fresh line after a run that stopped early.
func (b *trainBar) end() {
	if b.bar != nil && !b.bar.IsFinished() {
		_ = b.bar.Exit()
	}
}

// countBar draws plain counting work (sampling an evaluation set, loading weights).
func countBar(w io.Writer, total int64, what string) *progressbar.ProgressBar {
	if !terminal(w) {
		w = io.Discard
	}
	return progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetWidth(28),
		progressbar.OptionSetDescription(what),
		progressbar.OptionThrottle(65*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)
}

// thousands prints 12345.6 as 12,346.
func thousands(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// byteBar draws work that is counted in bytes, on a terminal only.
type byteBar struct{ bar *progressbar.ProgressBar }

func newByteBar(w io.Writer, what string) *byteBar {
	if !terminal(w) {
		w = io.Discard
	}
	return &byteBar{progressbar.NewOptions64(1,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetWidth(28),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(true),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(65*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)}
}

func (b *byteBar) set(done, total int64) {
	if b.bar.GetMax64() != total {
		b.bar.ChangeMax64(total)
	}
	_ = b.bar.Set64(done)
}

// end takes the bar away.
func (b *byteBar) end() { _ = b.bar.Clear() }
