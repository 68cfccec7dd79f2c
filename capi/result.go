//go:build cgo && unix

package main

/*
#include "tinker.h"
*/
import "C"

import (
	"maps"
	"slices"
	"unsafe"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

//export tinkergo_future_output
func tinkergo_future_output(h C.uint64_t, out *unsafe.Pointer) C.int32_t {
	return guard(func() error {
		return giveView(h, out, func(a *arena, f *future) (unsafe.Pointer, error) {
			v, err := f.result()
			if err != nil {
				return nil, err
			}
			switch v := v.(type) {
			case api.ForwardBackwardOutput:
				data := make([]api.TensorData, len(v.LossFnOutputs))
				for i, o := range v.LossFnOutputs {
					data[i] = o["logprobs"]
				}
				return writeOutput(a, data, v.Metrics), nil
			case *engine.Held:
				data := make([]api.TensorData, len(v.LogProbs()))
				for i, lp := range v.LogProbs() {
					data[i] = api.TensorData{Floats: lp, Shape: v.Shapes()[i]}
				}
				return writeOutput(a, data, nil), nil
			case api.OptimStepOutput:
				return writeOutput(a, nil, v.Metrics), nil
			}
			return nil, bad("the future's result is %s, wanted an output", resultName(v))
		})
	})
}

func writeOutput(a *arena, data []api.TensorData, metrics map[string]float64) unsafe.Pointer {
	n := len(data)
	out := cMake[C.tinker_output](a, 1)
	offsets, columns := make([]int64, n+1), make([]int64, n)
	for i, d := range data {
		offsets[i+1] = offsets[i] + int64(len(d.Floats))
		if len(d.Shape) == 2 {
			columns[i] = int64(d.Shape[1])
		}
	}
	logprobs := cMake[float32](a, int(offsets[n]))
	dst := unsafe.Slice(logprobs, offsets[n])
	for i, d := range data {
		copy(dst[offsets[i]:], d.Floats)
	}
	pairs := make([]C.tinker_pair, 0, len(metrics))
	for _, name := range slices.Sorted(maps.Keys(metrics)) {
		pairs = append(pairs, C.tinker_pair{name: cText(a, name), value: C.double(metrics[name])})
	}
	*out = C.tinker_output{
		struct_size: C.uint32_t(unsafe.Sizeof(*out)), count: C.int64_t(n),
		offsets: (*C.int64_t)(cArray(a, offsets)), columns: (*C.int64_t)(cArray(a, columns)), logprobs: (*C.float)(logprobs),
		metric_count: C.int64_t(len(pairs)), metrics: cArray(a, pairs),
	}
	return unsafe.Pointer(out)
}

//export tinkergo_future_samples
func tinkergo_future_samples(h C.uint64_t, out *unsafe.Pointer) C.int32_t {
	return guard(func() error {
		return giveView(h, out, func(a *arena, f *future) (unsafe.Pointer, error) {
			v, err := f.result()
			if err != nil {
				return nil, err
			}
			switch v := v.(type) {
			case api.SampleOutput:
				return writeSamples(a, v), nil
			case api.PromptLogProbs:
				return writeSamples(a, api.SampleOutput{PromptLogProbs: v}), nil
			}
			return nil, bad("the future's result is %s, wanted samples", resultName(v))
		})
	})
}

func writeSamples(a *arena, v api.SampleOutput) unsafe.Pointer {
	out := cMake[C.tinker_samples](a, 1)
	n := len(v.Sequences)
	offsets, reasons := make([]int64, n+1), make([]int32, n)
	var tokens []int32
	var logprobs, raw []float32
	for i, s := range v.Sequences {
		tokens, logprobs, raw = append(tokens, s.Tokens...), append(logprobs, s.LogProbs...), append(raw, s.RawLogProbs...)
		offsets[i+1] = int64(len(tokens))
		reasons[i] = C.TINKER_LENGTH
		if s.StopReason == api.StopReasonStop {
			reasons[i] = C.TINKER_STOP
		}
	}
	*out = C.tinker_samples{
		struct_size: C.uint32_t(unsafe.Sizeof(*out)), count: C.int64_t(n), offsets: (*C.int64_t)(cArray(a, offsets)),
		tokens: (*C.int32_t)(cArray(a, tokens)), logprobs: (*C.float)(cArray(a, logprobs)), raw_logprobs: (*C.float)(cArray(a, raw)),
		stop_reasons: (*C.int32_t)(cArray(a, reasons)), prompt_count: C.int64_t(max(len(v.PromptLogProbs), len(v.TopKPromptLogProbs))),
	}
	if v.PromptLogProbs != nil {
		out.prompt_logprobs = (*C.float)(cArray(a, v.PromptLogProbs))
	}
	if v.TopKPromptLogProbs != nil {
		at := make([]int64, 1, len(v.TopKPromptLogProbs)+1)
		var ids []int32
		var lps []float32
		for _, list := range v.TopKPromptLogProbs {
			for _, t := range list {
				ids, lps = append(ids, t.Token), append(lps, t.LogProb)
			}
			at = append(at, int64(len(ids)))
		}
		out.topk_offsets, out.topk_tokens, out.topk_logprobs = (*C.int64_t)(cArray(a, at)), (*C.int32_t)(cArray(a, ids)), (*C.float)(cArray(a, lps))
	}
	return unsafe.Pointer(out)
}

//export tinkergo_future_weights
func tinkergo_future_weights(h C.uint64_t, out *unsafe.Pointer) C.int32_t {
	return guard(func() error {
		return giveView(h, out, func(a *arena, f *future) (unsafe.Pointer, error) {
			w, err := as[engine.Weights](f, "weights")
			if err != nil {
				return nil, err
			}
			list := make([]C.tinker_matrix, len(w.Tensors))
			for i, t := range w.Tensors {
				shape := make([]int64, len(t.Shape))
				for k, d := range t.Shape {
					shape[k] = int64(d)
				}
				list[i] = C.tinker_matrix{
					name: cText(a, t.Name), values: (*C.float)(cArray(a, t.Values)), shape: (*C.int64_t)(cArray(a, shape)), rank: C.int64_t(len(shape)),
				}
			}
			dst := cMake[C.tinker_weights](a, 1)
			*dst = C.tinker_weights{
				struct_size: C.uint32_t(unsafe.Sizeof(*dst)), rank: C.int32_t(w.Lora.Rank), scale: C.double(w.Scale), version: C.int64_t(w.Version),
				count: C.int64_t(len(list)), matrices: cArray(a, list),
			}
			return unsafe.Pointer(dst), nil
		})
	})
}
