package plugins

import (
	"context"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/kernels/cpu"
)

func wait[T any](t *testing.T, f *engine.Future[T], err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	v, err := f.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// preferences are pairs of datums with a reference near the model.
func preferences() (data []api.Datum) {
	for i := range 4 {
		n := 5 + i
		tokens, targets := make([]int32, n), make([]int64, n)
		w, ref := make([]float32, n), make([]float32, n)
		for j := range n {
			tokens[j], targets[j] = int32((i*7+j*3)%37), int64((i*5+j*11)%37)
			w[j], ref[j] = float32(j%2), -3.6
		}
		data = append(data, api.Datum{ModelInput: api.FromInts(tokens), LossInputs: map[string]api.TensorData{
			"target_tokens": api.Ints(targets), "weights": api.Floats(w), "ref_logprobs": api.Floats(ref),
		}})
	}
	return data
}

// TestInEngine trains with plugins: one that repeats a built-in loss, to the same bits, and one that needs the whole batch.
func TestInEngine(t *testing.T) {
	ctx := context.Background()
	registry := must(NewRegistry(ctx, openHost(t, Options{}), RegistryOptions{Bundled: map[string][]byte{"ce": crossEntropy().build(), "dpo": dpo().build()}}))
	dev := must(cpu.Open(cpu.Options{}))
	e := must(engine.Open(ctx, engine.Options{Device: dev, Models: enginetest.Models{"example/tiny": enginetest.Small}, Losses: registry}))
	defer e.Close()
	train := func(lossFn string, data []api.Datum) (losses []float64, last []float32) {
		seed := int64(3)
		config := api.LoraConfig{Rank: 4, Seed: &seed, TrainAttn: true, TrainMLP: true, TrainUnembed: true}
		f, err := e.NewSession().NewRun(api.CreateModelRequest{BaseModel: "example/tiny", Lora: config})
		run := wait(t, f, err)
		adam := api.DefaultAdam()
		adam.LearningRate = 0.01
		for range 5 {
			pass, err := run.ForwardBackward(api.ForwardBackwardInput{Data: data, LossFn: lossFn})
			out := wait(t, pass, err)
			losses, last = append(losses, out.Metrics["loss:sum"]), out.LossFnOutputs[0]["logprobs"].Floats
			step, err := run.OptimStep(adam)
			wait(t, step, err)
		}
		return losses, last
	}

	data := preferences()
	plain := make([]api.Datum, len(data))
	for i, d := range data {
		plain[i] = api.Datum{ModelInput: d.ModelInput, LossInputs: map[string]api.TensorData{
			"target_tokens": d.LossInputs["target_tokens"], "weights": d.LossInputs["weights"],
		}}
	}
	want, wantLast := train("cross_entropy", plain)
	got, last := train("wasm:ce", plain)
	for i := range want {
		if d := got[i] - want[i]; d > 1e-12 || d < -1e-12 {
			t.Errorf("step %d: loss %v, built in %v", i, got[i], want[i])
		}
	}
	if !sameBits([][]float32{last}, [][]float32{wantLast}) {
		t.Errorf("after five steps the model differs from one trained by the built-in loss")
	}

	losses, _ := train("wasm:dpo@sha256:"+Digest(dpo().build()), data)
	if losses[4] >= losses[0] {
		t.Errorf("preferences are not learnt: %v", losses)
	}

	f, err := e.NewSession().NewRun(api.CreateModelRequest{BaseModel: "example/tiny", Lora: api.DefaultLora()})
	run := wait(t, f, err)
	if _, err := run.ForwardBackward(api.ForwardBackwardInput{Data: data[:3], LossFn: "wasm:dpo"}); !isInput(err) {
		t.Errorf("an odd number of datums: %v", err)
	}
	if _, err := run.ForwardBackward(api.ForwardBackwardInput{Data: data, LossFn: "wasm:nobody"}); api.CodeOf(err) != api.NotFound {
		t.Errorf("an unknown plugin: %v", err)
	}
}
