//go:build cgo && unix

package main

/*
#include "tinker.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/metrics"
	"sync"
	"syscall"
	"unsafe"

	"tinkerlocal/capi/handle"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// engineObject is what a tinker_engine stands for.
type engineObject struct {
	*engine.Engine
	pluginHost
	models local.Models
	dtype  string
	file   *os.File // of the log; nil: nothing is logged

	progress progress
}

// loading is how far a model's loading is, in parameters.
type loading struct {
	Model string `json:"model"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
}

// progress is the loading that is under way.
type progress struct {
	mu  sync.Mutex
	now *loading // nil: none
}

func (p *progress) set(model string, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = &loading{model, done, total}
	if done >= total {
		p.now = nil
	}
}

func (p *progress) get() *loading {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

// close ends the engine, and then the modules that its runs used.
func (e *engineObject) close() error { return errors.Join(e.Close(), e.pluginHost.close()) }

func (e *engineObject) end() {
	_ = e.close() // the device's error has been seen by whoever waited for an operation
	if e.file != nil {
		e.file.Close()
	}
}

//export tinkergo_engine_open
func tinkergo_engine_open(p *C.tinker_engine_options, out *C.uint64_t) C.int32_t {
	return guard(func() error {
		var c C.tinker_engine_options
		if err := lent("engine options", p, &c, firstEngineOptions); err != nil {
			return err
		}
		e := &engineObject{}
		o := local.Options{Progress: e.progress.set}
		for _, f := range []struct {
			what string
			from *C.char
			to   *string
		}{
			{"device", c.device, &o.Device}, {"dtype", c.dtype, &o.DType}, {"models", c.models, &o.Models},
			{"state", c.state, &o.State}, {"hub_cache", c.hub_cache, &o.HubCache},
		} {
			var err error
			if *f.to, err = optional(f.what, f.from); err != nil {
				return err
			}
		}
		var err error
		if o.Limits, err = readLimits(c.limits); err != nil {
			return err
		}
		if c.log_fd < 0 {
			return bad("log_fd is %d, wanted a file descriptor, or 0 for no log", int32(c.log_fd))
		}
		if c.log_fd > 0 {
			fd, err := syscall.Dup(int(c.log_fd))
			if err != nil {
				return bad("log_fd %d: %w", int32(c.log_fd), err)
			}
			syscall.CloseOnExec(fd)
			e.file = os.NewFile(uintptr(fd), "log")
			o.Log = slog.New(slog.NewTextHandler(e.file, &slog.HandlerOptions{Level: slog.Level(c.log_level)}))
		}
		if e.Engine, err = local.Open(context.Background(), o); err != nil {
			if e.file != nil {
				e.file.Close()
			}
			return err
		}
		e.pluginHost.state, e.log = o.State, o.Log
		e.models, e.dtype = local.Models{Dir: o.Models, HubCache: o.HubCache}, o.DType
		return give(out, kindEngine, e, nil, e.end)
	})
}

func readLimits(p *C.tinker_limits) (engine.Limits, error) {
	var l engine.Limits
	var c C.tinker_limits
	if err := lent("limits", p, &c, firstLimits); err != nil {
		return l, err
	}
	l.Memory = int64(c.memory_bytes)
	for _, f := range []struct {
		what string
		from C.int64_t
		to   *int
	}{
		{"micro_batch_tokens", c.micro_batch_tokens, &l.MicroBatchTokens}, {"prefill_tokens", c.prefill_tokens, &l.PrefillTokens},
		{"decode_sequences", c.decode_sequences, &l.DecodeSequences}, {"kv_positions", c.kv_positions, &l.KVPositions},
		{"runs", c.runs, &l.Runs}, {"queued_ops", c.queued_ops, &l.QueuedOps}, {"datums_per_op", c.datums_per_op, &l.DatumsPerOp},
		{"tokens_per_op", c.tokens_per_op, &l.TokensPerOp}, {"sample_requests", c.sample_requests, &l.SampleRequests},
		{"samples_per_request", c.samples_per_request, &l.SamplesPerRequest},
		{"topk_prompt_logprobs", c.topk_prompt_logprobs, &l.TopKPromptLogProbs}, {"stop_strings", c.stop_strings, &l.StopStrings},
		{"stop_bytes", c.stop_bytes, &l.StopBytes}, {"holds", c.holds, &l.Holds},
		{"memory_bytes", c.memory_bytes, new(int)}, {"loss_ms", c.loss_ms, new(int)}, {"hold_ms", c.hold_ms, new(int)},
	} {
		if f.from < 0 {
			return l, bad("limits: %s is %d, wanted 0 or more", f.what, int64(f.from))
		}
		*f.to = int(f.from)
	}
	if c.kept_forwards < -1 {
		return l, bad("limits: kept_forwards is %d, wanted -1 (none), 0 (the default) or more", int64(c.kept_forwards))
	}
	l.KeptForwards = int(c.kept_forwards)
	l.LossTime, l.HoldWait = milliseconds(c.loss_ms), milliseconds(c.hold_ms)
	return l, nil
}

//export tinkergo_engine_close
func tinkergo_engine_close(h C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindEngine, func(_ *handle.Ref, e *engineObject) error { return e.close() })
	})
}

//export tinkergo_engine_free
func tinkergo_engine_free(h C.uint64_t) C.int32_t { return drop(h, kindEngine) }

// engineJSON answers a question about an engine with JSON.
func engineJSON(h C.uint64_t, out **C.char, ask func(e *engineObject) (any, error)) C.int32_t {
	return guard(func() error {
		return with(h, kindEngine, func(_ *handle.Ref, e *engineObject) error {
			v, err := ask(e)
			if err != nil {
				return err
			}
			return giveJSON(out, v)
		})
	})
}

//export tinkergo_engine_info
func tinkergo_engine_info(h C.uint64_t, out **C.char) C.int32_t {
	return engineJSON(h, out, func(e *engineObject) (any, error) {
		d, l := e.Device(), e.Limits()
		heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(heap)
		return map[string]any{
			"version": version,
			"device": map[string]any{
				"name": d.Name, "kind": d.Kind, "variant": d.Variant, "dtype": fmt.Sprint(d.Act), "threads": d.Threads,
				"memory_bytes": d.Memory, "free_bytes": d.Free,
			},
			"limits": map[string]any{
				"memory_bytes": l.Memory, "micro_batch_tokens": l.MicroBatchTokens, "prefill_tokens": l.PrefillTokens,
				"decode_sequences": l.DecodeSequences, "kv_positions": l.KVPositions, "runs": l.Runs, "queued_ops": l.QueuedOps,
				"datums_per_op": l.DatumsPerOp, "tokens_per_op": l.TokensPerOp, "sample_requests": l.SampleRequests,
				"samples_per_request": l.SamplesPerRequest, "topk_prompt_logprobs": l.TopKPromptLogProbs, "stop_strings": l.StopStrings,
				"stop_bytes": l.StopBytes, "loss_ms": l.LossTime.Milliseconds(), "hold_ms": l.HoldWait.Milliseconds(), "holds": l.Holds,
				"kept_forwards": max(l.KeptForwards, -1),
			},
			"bases":   e.Counters(),
			"process": map[string]any{"heap_bytes": heap[0].Value.Uint64(), "goroutines": runtime.NumGoroutine()},
			"loading": e.progress.get(),
		}, nil
	})
}

//export tinkergo_engine_capabilities
func tinkergo_engine_capabilities(h C.uint64_t, out **C.char) C.int32_t {
	return engineJSON(h, out, func(e *engineObject) (any, error) {
		type supported struct {
			Name    string `json:"model_name"`
			Context int    `json:"max_context_length,omitempty"`
		}
		list := []supported{}
		for _, i := range e.models.Catalog() {
			if i.Problem == "" {
				list = append(list, supported{i.Name, i.Context})
			}
		}
		return map[string]any{"supported_models": list}, nil
	})
}

// modelInfo is a model with the memory that it takes here.
type modelInfo struct {
	local.Info
	Needs *local.Needs `json:"needs,omitempty"`
}

func (e *engineObject) describe(i local.Info) modelInfo {
	n, err := i.Needs(e.Device(), e.dtype)
	if err != nil {
		return modelInfo{Info: i}
	}
	return modelInfo{i, &n}
}

//export tinkergo_engine_models
func tinkergo_engine_models(h C.uint64_t, out **C.char) C.int32_t {
	return engineJSON(h, out, func(e *engineObject) (any, error) {
		list := []modelInfo{}
		for _, i := range e.models.Catalog() {
			list = append(list, e.describe(i))
		}
		return list, nil
	})
}

//export tinkergo_model_info
func tinkergo_model_info(h C.uint64_t, name *C.char, out **C.char) C.int32_t {
	return engineJSON(h, out, func(e *engineObject) (any, error) {
		s, err := text("name", name)
		if err != nil {
			return nil, err
		}
		i, err := e.models.Describe(s)
		if err != nil {
			return nil, err
		}
		return e.describe(i), nil
	})
}

//export tinkergo_debug_counts
func tinkergo_debug_counts(out **C.char) C.int32_t {
	return guard(func() error {
		return giveJSON(out, map[string]any{
			"handles": handles.Live(),
			"memory":  map[string]int64{"blocks": blocks.Load(), "bytes": blockBytes.Load()},
		})
	})
}

//export tinkergo_default_folders
func tinkergo_default_folders(out **C.char) C.int32_t {
	return guard(func() error {
		return giveJSON(out, map[string]string{
			"models": local.DefaultModels(os.Getenv), "state": local.DefaultState(os.Getenv), "hub_cache": local.DefaultHubCache(os.Getenv),
		})
	})
}

//export tinkergo_free
func tinkergo_free(p unsafe.Pointer) { cFree(p) }

var version = fmt.Sprintf("%d.%d.%d", C.TINKER_VERSION_MAJOR, C.TINKER_VERSION_MINOR, C.TINKER_VERSION_PATCH)

// checkpoints is the store of what runs save.
func (e *engineObject) checkpoints() (api.Store, error) {
	if s := e.Checkpoints(); s != nil {
		return s, nil
	}
	return nil, api.Errorf(api.Unsupported, "this engine was opened without a checkpoint store")
}
