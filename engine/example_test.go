package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/engine/loss"
	"tinkerlocal/kernels/cpu"
)

// openExample opens an engine on the CPU with a tiny random base model. A program would use engine/local.
func openExample() *engine.Engine {
	dev, err := cpu.Open(cpu.Options{})
	if err != nil {
		log.Fatal(err)
	}
	e, err := engine.Open(context.Background(), engine.Options{
		Device: dev,
		Models: enginetest.Models{"example/tiny": enginetest.Small},
	})
	if err != nil {
		log.Fatal(err)
	}
	return e
}

// must waits for a future whose submission gave err.
func must[T any](f *engine.Future[T], err error) T {
	if err != nil {
		log.Fatal(err)
	}
	v, err := f.Wait(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	return v
}

func newExampleRun(e *engine.Engine) *engine.Run {
	seed := int64(1)
	config := api.LoraConfig{Rank: 8, Seed: &seed, TrainAttn: true, TrainMLP: true, TrainUnembed: true}
	return must(e.NewSession().NewRun(api.CreateModelRequest{BaseModel: "example/tiny", Lora: config}))
}

// A model learns a sequence by heart: train, take a snapshot, sample from it.
func Example() {
	e := openExample()
	defer e.Close()
	run := newExampleRun(e)

	sequence := []int32{7, 3, 11, 2, 13, 5, 17, 19}
	in := api.ForwardBackwardInput{
		Data: []api.Datum{{
			ModelInput: api.FromInts(sequence[:7]),
			LossInputs: map[string]api.TensorData{"target_tokens": api.Ints([]int64{3, 11, 2, 13, 5, 17, 19})},
		}},
		LossFn: "cross_entropy",
	}
	adam := api.DefaultAdam()
	adam.LearningRate = 0.01
	for range 60 {
		// Both are queued before either is waited for.
		pass, err := run.ForwardBackward(in)
		if err != nil {
			log.Fatal(err)
		}
		step, err := run.OptimStep(adam)
		must(pass, nil)
		must(step, err)
	}

	sampler := must(run.SaveForSampler())
	params := api.DefaultSampling()
	params.Temperature, params.MaxTokens = 0, 7
	out := must(sampler.Sample(context.Background(), api.SampleRequest{Prompt: api.FromInts(sequence[:1]), Params: params}))
	fmt.Println(out.Sequences[0].Tokens, out.Sequences[0].StopReason)
	// Output: [3 11 2 13 5 17 19] length
}

// Requests that carry numbers may arrive in any order.
func ExampleRun_At() {
	e := openExample()
	defer e.Close()
	run := newExampleRun(e)
	in := api.ForwardBackwardInput{
		Data: []api.Datum{{
			ModelInput: api.FromInts([]int32{1, 2}),
			LossInputs: map[string]api.TensorData{"target_tokens": api.Ints([]int64{2, 3})},
		}},
		LossFn: "cross_entropy",
	}
	step, err := run.At(3).OptimStep(api.DefaultAdam())
	second, err2 := run.At(2).ForwardBackward(in)
	first, err3 := run.At(1).ForwardBackward(in)
	again, err4 := run.At(1).ForwardBackward(in) // a client that repeats itself
	if err := errors.Join(err, err2, err3, err4); err != nil {
		log.Fatal(err)
	}
	must(step, nil)
	must(second, nil)
	fmt.Println("one future:", first == again, "version:", run.Info().Version)
	// Output: one future: true version: 1
}

// preferFirst is a loss that is low when the first sequence is more probable than the second.
type preferFirst struct{}

func (preferFirst) Eval(_ context.Context, in loss.Input) (loss.Output, error) {
	sum := func(v []float32) (s float64) {
		for _, x := range v {
			s += float64(x)
		}
		return s
	}
	out := loss.Output{Weights: make([][]float32, len(in.LogProbs))}
	for i, lp := range in.LogProbs {
		out.Weights[i] = make([]float32, len(lp))
		for j := range lp {
			out.Weights[i][j] = float32(1 - 2*i) // -dL/dlogprob: 1 for the first sequence, -1 for the second
		}
	}
	out.Metrics = map[string]float64{"loss:sum": sum(in.LogProbs[1]) - sum(in.LogProbs[0])}
	return out, nil
}

func ExampleRun_ForwardBackwardCustom() {
	e := openExample()
	defer e.Close()
	run := newExampleRun(e)
	sequence := func(a, b int64) api.Datum {
		return api.Datum{
			ModelInput: api.FromInts([]int32{1, int32(a)}),
			LossInputs: map[string]api.TensorData{"target_tokens": api.Ints([]int64{a, b})},
		}
	}
	data := []api.Datum{sequence(2, 3), sequence(4, 5)}
	var before, after float64
	for i := range 5 {
		out := must(run.ForwardBackwardCustom(data, preferFirst{}, nil))
		if after = out.Metrics["loss:sum"]; i == 0 {
			before = after
		}
		must(run.OptimStep(api.AdamParams{LearningRate: 0.01, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8}))
	}
	fmt.Println("the loss fell:", after < before)
	// Output: the loss fell: true
}

// Tokens can be read as they are drawn.
func ExampleSampler_Stream() {
	e := openExample()
	defer e.Close()
	sampler := must(e.NewSession().NewSampler("example/tiny"))
	seed := int64(1)
	params := api.DefaultSampling()
	params.Seed, params.MaxTokens = &seed, 5
	ctx := context.Background()
	stream, err := sampler.Stream(ctx, api.SampleRequest{Prompt: api.FromInts([]int32{1, 2, 3}), Params: params})
	if err != nil {
		log.Fatal(err)
	}
	n := 0
	for {
		token, err := stream.Next(ctx)
		if err == io.EOF {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		if token.LogProb <= 0 {
			n++
		}
	}
	fmt.Println(n, "tokens")
	// Output: 5 tokens
}
