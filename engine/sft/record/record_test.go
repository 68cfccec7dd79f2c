package record

import (
	"bytes"
	"encoding/json"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine/sft"
)

// run is a curve of n falling losses, with an evaluation at every tenth step when eval is set.
func run(n int, eval bool) *Curve {
	c := &Curve{}
	for i := range n {
		p := sft.Progress{Step: i + 1, Steps: n, Loss: 3 * math.Exp(-float64(i)/20), LearningRate: 1e-3, GradNorm: 0.5, Tokens: int64(10 * i), Elapsed: time.Second}
		if eval && i%10 == 9 {
			p.Eval = &sft.Eval{Loss: 0.2 + p.Loss, Targets: 4}
		}
		c.Add(Of(p))
	}
	return c
}

// TestLog: a line is in the file as soon as it is written; fields that a step lacks are not there; what is not
// finite is null.
func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.jsonl")
	l, _, err := Open(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		p    sft.Progress
		want string
	}{
		{sft.Progress{Step: 1, Loss: 2.5, GradNorm: 0.25, LearningRate: 1e-4, Tokens: 7, Elapsed: 1500 * time.Millisecond, TokensPerSecond: 5},
			`{"step":1,"loss":2.5,"tokens":7,"learning_rate":0.0001,"grad_norm":0.25,"seconds":1.5,"tokens_per_second":5}`},
		{sft.Progress{Step: 2, Loss: math.NaN(), Eval: &sft.Eval{Loss: math.Inf(1)}, Metrics: map[string]float64{"other:sum": 3}},
			`{"step":2,"loss":null,"tokens":0,"learning_rate":0,"grad_norm":0,"seconds":0,"tokens_per_second":0,"eval_loss":null}`},
		{sft.Progress{Step: 3, Eval: &sft.Eval{Loss: 1, Accuracy: 0.75, Pairs: 4}, Metrics: map[string]float64{"accuracy:mean": 0.5, "margin:mean": -1}},
			`{"step":3,"loss":0,"tokens":0,"learning_rate":0,"grad_norm":0,"seconds":0,"tokens_per_second":0,"accuracy":0.5,"margin":-1,"eval_loss":1,"eval_accuracy":0.75}`},
	} {
		l.Write(Of(c.p))
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		if len(lines) != i+1 || lines[i] != c.want || !json.Valid([]byte(lines[i])) {
			t.Errorf("after step %d the file is %q, wanted %s", c.p.Step, text, c.want)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := Open(filepath.Join(t.TempDir(), "no", "m.jsonl"), 0); err == nil {
		t.Error("a file in a folder that is not there was made")
	}
	var s Step
	if err := json.Unmarshal([]byte(`{"step": 2, "loss": null}`), &s); err != nil || !math.IsNaN(float64(s.Loss)) {
		t.Errorf("read %+v, %v", s, err)
	}
}

func TestCSV(t *testing.T) {
	c := &Curve{}
	c.Add(Of(sft.Progress{Step: 1, Loss: 0.5, LearningRate: 1e-4, GradNorm: 2, Tokens: 3, Elapsed: time.Second}))
	c.Add(Of(sft.Progress{Step: 2, Loss: math.NaN(), Eval: &sft.Eval{Loss: 0.25}}))
	var b strings.Builder
	if err := c.CSV(&b); err != nil || b.String() != "step,loss,eval_loss,learning_rate,grad_norm,tokens,seconds\n1,0.5,,0.0001,2,3,1\n2,,0.25,0,0,0,0\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
}

// TestText: the drawing falls from the top left to the bottom right, fits the terminal, and has no colours.
func TestText(t *testing.T) {
	for _, n := range []int{2, 30, 500} {
		text := run(n, n > 20).Text(80)
		lines := strings.Split(text, "\n")
		if len(lines) < 11 {
			t.Fatalf("%d steps: %d lines:\n%s", n, len(lines), text)
		}
		for _, l := range lines {
			if len([]rune(l)) > 80 || strings.ContainsRune(l, '\x1b') {
				t.Errorf("%d steps: line %q", n, l)
			}
		}
		if (n > 20) != strings.Contains(text, "o: evaluation") {
			t.Errorf("%d steps: legend in\n%s", n, text)
		}
	}
	for _, c := range []*Curve{{}, run(1, false)} {
		if got := c.Text(80); got != "" {
			t.Errorf("%d steps: %q", len(c.steps), got)
		}
	}
	bad := &Curve{}
	for i := range 5 {
		bad.Add(Of(sft.Progress{Step: i + 1, Loss: math.NaN()}))
	}
	if got := bad.Text(80); got != "" {
		t.Errorf("nothing finite gives %q", got)
	}
	bad.Add(Of(sft.Progress{Step: 6, Loss: 1}))
	bad.Add(Of(sft.Progress{Step: 7, Loss: 1}))
	if got := bad.Text(80); got == "" {
		t.Error("a level line gives nothing")
	}
}

// TestPNG: the picture has both lines where the losses are, and stands any data.
func TestPNG(t *testing.T) {
	var b bytes.Buffer
	c := run(100, true)
	if err := c.PNG(&b); err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(&b)
	if err != nil {
		t.Fatal(err)
	}
	// The first loss is 3 and the last 0.02: blue at the top left, and at the bottom right.
	count := func(x0, y0, x1, y1 int) (blue, orange int) {
		for x := x0; x < x1; x++ {
			for y := y0; y < y1; y++ {
				r, _, b, _ := img.At(x, y).RGBA()
				switch {
				case b > r+0x4000:
					blue++
				case r > b+0x8000:
					orange++
				}
			}
		}
		return blue, orange
	}
	if blue, _ := count(left, top-2, left+60, top+60); blue < 20 {
		t.Errorf("%d blue pixels at the top left", blue)
	}
	blue, orange := count(pictureWidth-right-100, pictureHeight-bottom-60, pictureWidth-right, pictureHeight-bottom)
	if blue < 50 || orange < 50 {
		t.Errorf("%d blue and %d orange pixels at the bottom right", blue, orange)
	}
	if blue, orange := count(pictureWidth/2, top, pictureWidth-right, pictureHeight/2); blue+orange > 0 {
		t.Errorf("%d pixels at the top right", blue+orange)
	}
	for _, c := range []*Curve{{}, run(1, false), run(2, false), run(100000, true)} {
		b.Reset()
		if err := c.PNG(&b); err != nil {
			t.Errorf("%d steps: %v", len(c.steps), err)
		}
	}
}

func TestSave(t *testing.T) {
	dir := t.TempDir()
	for name, begin := range map[string]string{"c.png": "\x89PNG", "c.CSV": "step,loss"} {
		path := filepath.Join(dir, name)
		if err := run(3, false).Save(path); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(text), begin) {
			t.Errorf("%s begins with %.12q, %v", name, text, err)
		}
	}
	if err := run(3, false).Save(filepath.Join(dir, "c.pdf")); err == nil || !strings.Contains(err.Error(), "c.pdf: wanted a name that ends in .png or .csv") {
		t.Errorf("got %v", err)
	}
}

func TestTick(t *testing.T) {
	for span, want := range map[float64]float64{6: 1, 1: 0.2, 3: 0.5, 0.06: 0.01, 1000: 200} {
		if got := tick(span); math.Abs(got-want) > 1e-12 {
			t.Errorf("span %v has ticks of %v, wanted %v", span, got, want)
		}
	}
}

// TestOpenLater: a run that goes on keeps the lines of its earlier steps, and loses those of steps that are done again and what a
// killed program left half-written.
func TestOpenLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.jsonl")
	text := "{\"step\":1,\"loss\":3}\n{\"step\":2,\"loss\":2}\n{\"step\":3,\"loss\":1}\n{\"step\":4,\"lo"
	for _, c := range []struct{ done, kept int }{{0, 0}, {1, 1}, {3, 3}, {9, 3}} {
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		l, before, err := Open(path, c.done)
		if err != nil || len(before) != c.kept {
			t.Fatalf("%d steps done: %d lines, %v; wanted %d", c.done, len(before), err, c.kept)
		}
		l.Write(Step{Step: c.done + 1})
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(b), "\n")
		if len(lines) != c.kept+2 || !strings.HasPrefix(lines[c.kept], "{\"step\":"+strconv.Itoa(c.done+1)+",") || !strings.HasPrefix(text, strings.Join(lines[:c.kept], "\n")) {
			t.Errorf("%d steps done: the file is %q", c.done, b)
		}
	}
}
