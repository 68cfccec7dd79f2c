package local

import (
	"context"
	"math"
	"path/filepath"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/interchange"
	"tinkerlocal/kernels"
)

// TestMergedTiny: the embedded model with a trained adapter merged into it is a model of its own, which the engine opens by its path, and computes what
// the run computes.
func TestMergedTiny(t *testing.T) {
	ctx := context.Background()
	e, err := Open(ctx, Options{Device: "cpu", DType: "float32"})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	r := tinyRun(t, e)
	before := logProbs(t, r)
	for range 3 {
		if _, err := r.ForwardBackward(countingBatch()); err != nil {
			t.Fatal(err)
		}
		adam := api.DefaultAdam()
		adam.LearningRate = 1e-2
		if _, err := r.OptimStep(adam); err != nil {
			t.Fatal(err)
		}
	}
	f, err := r.Weights()
	if err != nil {
		t.Fatal(err)
	}
	w, err := f.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	base, err := Models{}.Open(TinyModel)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	x, err := interchange.PlanMerged(ctx, interchange.FromTensors(TinyModel, w.Lora, w.Scale, w.Tensors), base, interchange.MergedOptions{DType: kernels.F32})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "merged")
	if err := x.Write(ctx, dir, interchange.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	want := logProbs(t, r)
	nf, err := e.NewSession().NewRun(api.CreateModelRequest{BaseModel: dir, Lora: api.DefaultLora()})
	if err != nil {
		t.Fatal(err)
	}
	merged, err := nf.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	worst, moved := 0.0, 0.0
	for i, v := range logProbs(t, merged) {
		worst = max(worst, math.Abs(float64(v-want[i])))
		moved = max(moved, math.Abs(float64(before[i]-want[i])))
	}
	t.Logf("logprobs differ by at most %.2g; training moved them by up to %.2g", worst, moved)
	if worst > 1e-5 || moved < 0.1 {
		t.Errorf("logprobs differ by %g, wanted 1e-5; training moved them by %g", worst, moved)
	}
	if tok, err := (Models{}).Tokenizer(dir); err != nil || len(tok.Encode("abc", false)) != 3 {
		t.Errorf("the merged model's tokenizer: %v", err)
	}
}

func countingBatch() api.ForwardBackwardInput {
	var tokens []int32
	var targets []int64
	for j := range 32 {
		tokens, targets = append(tokens, int32('a'+j%20)), append(targets, int64('a'+(j+1)%20))
	}
	return api.ForwardBackwardInput{LossFn: "cross_entropy", Data: []api.Datum{{
		ModelInput: api.FromInts(tokens), LossInputs: map[string]api.TensorData{"target_tokens": api.Ints(targets)}}}}
}

func logProbs(t *testing.T, r *engine.Run) []float32 {
	t.Helper()
	f, err := r.Forward(countingBatch())
	if err != nil {
		t.Fatal(err)
	}
	out, err := f.Wait(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return out.LossFnOutputs[0]["logprobs"].Floats
}
