//go:build cgo && unix

package main

/*
#include "tinker.h"
*/
import "C"

import (
	"context"
	"errors"
	"io"
	"math"
	"sync"
	"time"

	"tinkerlocal/capi/handle"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// withSampler is with for a sampler.
func withSampler(h C.uint64_t, f func(ref *handle.Ref, p *engine.Sampler) error) C.int32_t {
	return guard(func() error { return with(h, kindSampler, f) })
}

//export tinkergo_sampler_info
func tinkergo_sampler_info(h C.uint64_t, out **C.char) C.int32_t {
	return withSampler(h, func(_ *handle.Ref, p *engine.Sampler) error {
		b := p.Base()
		return giveJSON(out, map[string]any{
			"base_model": b.Name, "version": p.Version(), "max_context_length": b.Spec.MaxPositions, "vocabulary": b.Spec.Vocab,
			"eos_token_ids": append([]int32{}, b.EosTokenIDs...),
		})
	})
}

//export tinkergo_sampler_close
func tinkergo_sampler_close(h C.uint64_t) C.int32_t {
	return withSampler(h, func(_ *handle.Ref, p *engine.Sampler) error { p.Close(); return nil })
}

//export tinkergo_sampler_free
func tinkergo_sampler_free(h C.uint64_t) C.int32_t { return drop(h, kindSampler) }

// readRequest reads a request. Its prompt is the caller's memory: the engine copies it before the call returns.
func readRequest(prompt *C.int32_t, count C.int64_t, p *C.tinker_sampling) (r api.SampleRequest, err error) {
	d := api.DefaultSampling()
	c := C.tinker_sampling{
		num_samples: 1, max_tokens: C.int64_t(d.MaxTokens), temperature: C.double(d.Temperature), top_k: C.int32_t(d.TopK), top_p: C.double(d.TopP),
	}
	if err := lent("sampling", p, &c, firstSampling); err != nil {
		return r, err
	}
	tokens, err := array("prompt", (*int32)(prompt), count, maxValues)
	if err != nil {
		return r, err
	}
	if c.num_samples < 1 {
		return r, bad("num_samples is %d, wanted at least 1", int32(c.num_samples))
	}
	if c.max_tokens < 0 || c.max_tokens > math.MaxInt32 {
		return r, bad("max_tokens is %d, wanted 0 (no limit) to %d", int64(c.max_tokens), math.MaxInt32)
	}
	d.MaxTokens, d.Temperature, d.TopK, d.TopP = int(c.max_tokens), float64(c.temperature), int(c.top_k), float64(c.top_p)
	seeded, err := toggle("has_seed", c.has_seed)
	if err != nil {
		return r, err
	}
	if seeded {
		d.Seed = new(int64(c.seed))
	}
	stops, err := array("stop", c.stop, c.stop_count, 1024)
	if err != nil {
		return r, err
	}
	for _, s := range stops {
		str, err := text("a stop string", s)
		if err != nil {
			return r, err
		}
		d.Stop = append(d.Stop, str)
	}
	ids, err := array("stop_tokens", (*int32)(c.stop_tokens), c.stop_token_count, 1024)
	if err != nil {
		return r, err
	}
	d.StopTokens = append(d.StopTokens, ids...) // nil when there are none
	endless, err := toggle("no_stop_tokens", c.no_stop_tokens)
	switch {
	case err != nil:
		return r, err
	case endless && len(ids) > 0:
		return r, bad("no_stop_tokens is 1 and stop_token_count is %d, wanted 0", len(ids))
	case endless:
		d.StopTokens = []int32{}
	}
	r = api.SampleRequest{Prompt: api.FromInts(tokens), Params: d, NumSamples: int(c.num_samples), TopKPromptLogProbs: int(c.topk_prompt_logprobs)}
	r.PromptLogProbs, err = toggle("prompt_logprobs", c.prompt_logprobs)
	return r, err
}

//export tinkergo_sample
func tinkergo_sample(h C.uint64_t, prompt *C.int32_t, count C.int64_t, p *C.tinker_sampling, out *C.uint64_t) C.int32_t {
	return withSampler(h, func(ref *handle.Ref, s *engine.Sampler) error {
		r, err := readRequest(prompt, count, p)
		if err != nil {
			return err
		}
		f, err := s.Sample(context.Background(), r)
		return giveFuture(out, ref, f, err)
	})
}

//export tinkergo_compute_logprobs
func tinkergo_compute_logprobs(h C.uint64_t, prompt *C.int32_t, count C.int64_t, out *C.uint64_t) C.int32_t {
	return withSampler(h, func(ref *handle.Ref, s *engine.Sampler) error {
		tokens, err := array("prompt", (*int32)(prompt), count, maxValues)
		if err != nil {
			return err
		}
		f, err := s.ComputeLogProbs(context.Background(), api.FromInts(tokens))
		return giveFuture(out, ref, f, err)
	})
}

// stream is what a tinker_stream stands for.
type stream struct {
	*engine.Stream
	mu sync.Mutex // held by the one that takes tokens
}

//export tinkergo_sample_stream
func tinkergo_sample_stream(h C.uint64_t, prompt *C.int32_t, count C.int64_t, p *C.tinker_sampling, out *C.uint64_t) C.int32_t {
	return withSampler(h, func(ref *handle.Ref, s *engine.Sampler) error {
		r, err := readRequest(prompt, count, p)
		if err != nil {
			return err
		}
		st, err := s.Stream(context.Background(), r)
		if err != nil {
			return err
		}
		return give(out, kindStream, &stream{Stream: st}, ref, st.Future().Cancel)
	})
}

//export tinkergo_stream_next
func tinkergo_stream_next(h C.uint64_t, ms C.int64_t, tokens *C.tinker_token, capacity C.int64_t, count *C.int64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindStream, func(_ *handle.Ref, s *stream) error {
			dst, err := array("tokens", tokens, capacity, maxValues)
			if err != nil {
				return err
			}
			if len(dst) == 0 {
				return bad("the capacity is 0, wanted at least 1")
			}
			if !s.mu.TryLock() {
				return api.Errorf(api.Busy, "another thread is taking tokens from this stream")
			}
			defer s.mu.Unlock()
			n := 0
			for n < len(dst) {
				wait := C.int64_t(0)
				if n == 0 {
					wait = ms
				}
				t, err := s.take(wait)
				if err != nil {
					if n > 0 {
						break // it comes again at the next call
					}
					return err
				}
				dst[n] = C.tinker_token{sample: C.int64_t(t.Sample), id: C.int32_t(t.ID), logprob: C.float(t.LogProb), raw_logprob: C.float(t.Raw)}
				n++
			}
			*count = C.int64_t(n)
			return nil
		})
	})
}

// expired is a context that has ended: Next then answers with what is there, or at once.
var expired = func() context.Context {
	ctx, cancel := context.WithDeadline(context.Background(), time.Unix(0, 0))
	cancel()
	return ctx
}()

// take waits for a token for so many milliseconds; negative: for ever.
func (s *stream) take(ms C.int64_t) (engine.Token, error) {
	ctx := context.Background()
	switch {
	case ms == 0:
		ctx = expired
	case ms > 0:
		c, cancel := context.WithTimeout(ctx, milliseconds(ms))
		defer cancel()
		ctx = c
	}
	t, err := s.Next(ctx)
	switch {
	case errors.Is(err, io.EOF):
		return t, errEnd
	case errors.Is(err, context.DeadlineExceeded):
		return t, errPending
	}
	return t, err
}

//export tinkergo_stream_future
func tinkergo_stream_future(h C.uint64_t, out *C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindStream, func(ref *handle.Ref, s *stream) error { return giveFuture(out, ref, s.Future(), nil) })
	})
}

//export tinkergo_stream_free
func tinkergo_stream_free(h C.uint64_t) C.int32_t { return drop(h, kindStream) }
