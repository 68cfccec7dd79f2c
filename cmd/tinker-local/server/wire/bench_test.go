package wire

import (
	"encoding/json"
	"math/rand/v2"
	"testing"

	"tinkerlocal/engine/api"
)

// 64 datums of 1024 tokens: the batch of one step.
const benchDatums, benchTokens = 64, 1024

func perToken(b *testing.B, bytes int) {
	b.SetBytes(int64(bytes))
	b.ReportAllocs()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(benchDatums*benchTokens), "ns/token")
}

func benchRequest() []byte {
	body := batchOf(textChunk(make([]byte, 4)))
	tokens, targets, weights := make([]byte, 4*benchTokens), make([]int64, benchTokens), make([]float32, benchTokens)
	for range benchDatums {
		for i := range targets {
			targets[i], weights[i] = rand.Int64N(150000), rand.Float32()
		}
		body = append(body, lengthField(requestData, message(textChunk(tokens),
			entryField(datumInputs, "target_tokens", lengthField(mapValue, message(lengthField(tensorDense, packed64(targets...)), ints, shapeOf(benchTokens)))),
			entryField(datumInputs, "weights", lengthField(mapValue, message(lengthField(tensorDense, packed32(weights...)), floats, shapeOf(benchTokens))))))...)
	}
	return body
}

func BenchmarkDecodeForwardBackward(b *testing.B) {
	body := benchRequest()
	for b.Loop() {
		if _, err := DecodeForwardBackward(body); err != nil {
			b.Fatal(err)
		}
	}
	perToken(b, len(body))
}

func BenchmarkDecodeForwardBackwardJSON(b *testing.B) {
	r, err := DecodeForwardBackward(benchRequest())
	if err != nil {
		b.Fatal(err)
	}
	type tensor = map[string]any
	var data []object
	for _, d := range r.Input.Data {
		inputs := object{}
		if len(d.LossInputs) > 0 {
			inputs["target_tokens"] = tensor{"data": d.LossInputs["target_tokens"].Ints, "dtype": "int64"}
			inputs["weights"] = tensor{"data": d.LossInputs["weights"].Floats, "dtype": "float32"}
		}
		data = append(data, object{"model_input": d.ModelInput, "loss_fn_inputs": inputs})
	}
	body, err := json.Marshal(object{"model_id": "m", "seq_id": 1, "forward_backward_input": object{"data": data, "loss_fn": "cross_entropy"}})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := DecodeForwardBackwardJSON(body); err != nil {
			b.Fatal(err)
		}
	}
	perToken(b, len(body))
}

func benchOutput() api.ForwardBackwardOutput {
	out := api.ForwardBackwardOutput{Metrics: map[string]float64{"loss:sum": 1}}
	for range benchDatums {
		v := make([]float32, benchTokens)
		for i := range v {
			v[i] = -rand.Float32()
		}
		out.LossFnOutputs = append(out.LossFnOutputs, map[string]api.TensorData{"logprobs": api.Floats(v)})
	}
	return out
}

func BenchmarkEncodeForwardBackwardOutput(b *testing.B) {
	out, n := benchOutput(), 0
	for b.Loop() {
		body, err := EncodeForwardBackwardOutput(out)
		if err != nil {
			b.Fatal(err)
		}
		n = len(body)
	}
	perToken(b, n)
}

func BenchmarkEncodeForwardBackwardOutputJSON(b *testing.B) {
	out, n := benchOutput(), 0
	for b.Loop() {
		body, err := EncodeForwardBackwardOutputJSON(out)
		if err != nil {
			b.Fatal(err)
		}
		n = len(body)
	}
	perToken(b, n)
}

// One request of 64 samples of 1024 tokens.
func BenchmarkEncodeSampleOutput(b *testing.B) {
	var out api.SampleOutput
	for range benchDatums {
		out.Sequences = append(out.Sequences, api.SampledSequence{Tokens: make([]int32, benchTokens), LogProbs: make([]float32, benchTokens), StopReason: "stop"})
	}
	n := 0
	for b.Loop() {
		body, err := EncodeSampleOutput(out, nil)
		if err != nil {
			b.Fatal(err)
		}
		n = len(body)
	}
	perToken(b, n)
}
