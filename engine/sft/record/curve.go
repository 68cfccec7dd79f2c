package record

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/guptarohit/asciigraph"

	"tinkerlocal/engine/api"
)

// Curve is a run's steps as they are drawn.
type Curve struct{ steps []Step }

// Add appends a step.
func (c *Curve) Add(s Step) { c.steps = append(c.steps, s) }

// Len is the number of steps.
func (c *Curve) Len() int { return len(c.steps) }

// CheckFile refuses the name of a curve file that Save would not know how to write.
func CheckFile(path string) error {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".png", ".csv":
		return nil
	}
	return fmt.Errorf("%s: wanted a name that ends in .png or .csv", path)
}

// Save writes the curve as a picture or as a table, by the name's ending.
func (c *Curve) Save(path string) error {
	if err := CheckFile(path); err != nil {
		return api.Errorf(api.BadRequest, "%w", err)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	if strings.EqualFold(filepath.Ext(path), ".csv") {
		err = c.CSV(w)
	} else {
		err = c.PNG(w)
	}
	if err == nil {
		err = w.Flush()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// CSV writes a table: one line per step under a line of names. What a step does not have is empty.
func (c *Curve) CSV(w io.Writer) error {
	if _, err := fmt.Fprintln(w, "step,loss,eval_loss,learning_rate,grad_norm,tokens,seconds"); err != nil {
		return err
	}
	for _, s := range c.steps {
		fields := []string{strconv.Itoa(s.Step), cell(&s.Loss), cell(s.EvalLoss), cell(&s.LearningRate), cell(&s.GradNorm),
			strconv.FormatInt(s.Tokens, 10), cell(&s.Seconds)}
		if _, err := fmt.Fprintln(w, strings.Join(fields, ",")); err != nil {
			return err
		}
	}
	return nil
}

func cell(n *Number) string {
	if n == nil || !finite(float64(*n)) {
		return ""
	}
	return strconv.FormatFloat(float64(*n), 'g', -1, 64)
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// Text draws the curve with characters, for a terminal of this many columns; "" when there are not two points.
// With more steps than columns each column is the mean of its steps.
func (c *Curve) Text(columns int) string {
	const axis = 12 // columns that labels take
	width := min(max(columns-axis, 16), len(c.steps))
	loss, eval := make([]float64, width), make([]float64, width)
	drawn, evals := 0, 0
	for k := range width {
		lo, hi := k*len(c.steps)/width, (k+1)*len(c.steps)/width
		loss[k], eval[k] = mean(c.steps[lo:hi])
		if finite(loss[k]) {
			drawn++
		}
		if finite(eval[k]) {
			evals++
		}
	}
	if drawn < 2 {
		return ""
	}
	series, names := [][]float64{loss}, []string{"loss"}
	if evals > 1 {
		series, names = append(series, between(eval)), append(names, "evaluation")
	}
	options := []asciigraph.Option{
		asciigraph.Height(10), asciigraph.Precision(4),
		asciigraph.Caption(fmt.Sprintf("steps %d to %d", c.steps[0].Step, c.steps[len(c.steps)-1].Step)),
	}
	if most := min(columns-axis, 48); width < most && evals < 2 && drawn == width {
		options = append(options, asciigraph.Width(most)) // a few steps are spread out
	}
	if len(names) > 1 {
		// Two lines are told apart by their characters, not by colours, so that the text is the same in a file.
		options = append(options, asciigraph.SeriesChars(asciigraph.DefaultCharSet, asciigraph.CreateCharSet("o")))
		options = append(options, asciigraph.Caption(fmt.Sprintf("steps %d to %d; o: evaluation", c.steps[0].Step, c.steps[len(c.steps)-1].Step)))
	}
	return asciigraph.PlotMany(series, options...)
}

// mean is that of the finite losses of steps; NaN when there are none.
func mean(steps []Step) (loss, eval float64) {
	var l, e, n, m float64
	for _, s := range steps {
		if v := float64(s.Loss); finite(v) {
			l += v
			n++
		}
		if s.EvalLoss != nil && finite(float64(*s.EvalLoss)) {
			e += float64(*s.EvalLoss)
			m++
		}
	}
	return l / n, e / m
}

// between fills the gaps between values with straight lines; the ends stay empty.
func between(v []float64) []float64 {
	last := -1
	for i := range v {
		if !finite(v[i]) {
			continue
		}
		for k := last + 1; last >= 0 && k < i; k++ {
			v[k] = v[last] + (v[i]-v[last])*float64(k-last)/float64(i-last)
		}
		last = i
	}
	return v
}
