package local

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// TestState: what was saved in a state directory is there for the next engine.
func TestState(t *testing.T) {
	dir := t.TempDir()
	ctx := context.Background()
	var path string
	for i := range 2 {
		e, err := Open(ctx, Options{Device: "cpu", State: dir})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			r := tinyRun(t, e)
			f, err := r.SaveState("first", api.SaveOptions{})
			if err != nil {
				t.Fatal(err)
			}
			c, err := f.Wait(ctx)
			if err != nil {
				t.Fatal(err)
			}
			path = c.Path.String()
			if _, err := Open(ctx, Options{Device: "cpu", State: dir}); api.CodeOf(err) != api.Busy {
				t.Errorf("a second engine on the folder: %v", err)
			}
		} else {
			f, err := e.NewSession().NewRunFrom(engine.RunSource{Path: path, Optimizer: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Wait(ctx); err != nil {
				t.Error(err)
			}
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func tinyRun(t testing.TB, e *engine.Engine) *engine.Run {
	t.Helper()
	f, err := e.NewSession().NewRun(api.CreateModelRequest{BaseModel: TinyModel, Lora: api.DefaultLora()})
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.Wait(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// BenchmarkSaveStall measures what a save in a state directory costs a training run on the embedded model: the time
// that an operation right behind the save waits, and the time until the checkpoint is durable.
func BenchmarkSaveStall(b *testing.B) {
	ctx := context.Background()
	e, err := Open(ctx, Options{Device: "cpu", State: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	r := tinyRun(b, e)
	in := api.ForwardBackwardInput{LossFn: "cross_entropy"}
	for i := range 4 {
		d := api.Datum{LossInputs: map[string]api.TensorData{}}
		var tokens []int32
		var targets []int64
		for j := range 64 {
			tokens, targets = append(tokens, int32(i+j+1)), append(targets, int64(i+j+2))
		}
		d.ModelInput = api.FromInts(tokens)
		d.LossInputs["target_tokens"] = api.Ints(targets)
		in.Data = append(in.Data, d)
	}
	step := func() {
		if _, err := r.ForwardBackward(in); err != nil {
			b.Fatal(err)
		}
		f, err := r.OptimStep(api.DefaultAdam())
		if err == nil {
			_, err = f.Wait(ctx)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	for range 3 {
		step()
	}
	var plain, behind, saved []time.Duration
	n := 0
	for b.Loop() {
		begin := time.Now()
		step()
		plain = append(plain, time.Since(begin))
		begin = time.Now()
		f, err := r.SaveState(fmt.Sprint(n), api.SaveOptions{KeepLast: 2})
		if err != nil {
			b.Fatal(err)
		}
		step()
		behind = append(behind, time.Since(begin))
		if _, err := f.Wait(ctx); err != nil {
			b.Fatal(err)
		}
		saved = append(saved, time.Since(begin))
		n++
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2].Microseconds()) / 1000
	}
	b.ReportMetric(median(plain), "ms/step")
	b.ReportMetric(median(behind)-median(plain), "ms/stall")
	b.ReportMetric(median(saved), "ms/durable")
}
