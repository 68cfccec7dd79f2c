//go:build cgo && unix

package main

/*
#include "tinker.h"
*/
import "C"

import (
	"context"
	"slices"
	"time"

	"tinkerlocal/capi/handle"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// withRun is with for a run.
func withRun(h C.uint64_t, f func(ref *handle.Ref, r *engine.Run) error) C.int32_t {
	return guard(func() error { return with(h, kindRun, f) })
}

//export tinkergo_run_info
func tinkergo_run_info(h C.uint64_t, out **C.char) C.int32_t {
	return withRun(h, func(_ *handle.Ref, r *engine.Run) error {
		i := r.Info()
		return giveJSON(out, struct {
			ID           string             `json:"model_id"`
			BaseModel    string             `json:"base_model"`
			Lora         api.LoraConfig     `json:"lora_config"`
			Params       int                `json:"parameters"`
			UserMetadata map[string]string  `json:"user_metadata,omitempty"`
			Version      int64              `json:"version"`
			Step         int64              `json:"step"`
			Queued       int                `json:"queued"`
			Plugins      []api.PluginRecord `json:"plugins,omitempty"`
		}(i))
	})
}

//export tinkergo_run_close
func tinkergo_run_close(h C.uint64_t) C.int32_t {
	return withRun(h, func(_ *handle.Ref, r *engine.Run) error { r.Close(); return nil })
}

//export tinkergo_run_free
func tinkergo_run_free(h C.uint64_t) C.int32_t { return drop(h, kindRun) }

// onBatch submits an operation of a run on a batch.
func onBatch[T any](run, b C.uint64_t, out *C.uint64_t, submit func(r *engine.Run, data []api.Datum) (*engine.Future[T], error)) C.int32_t {
	return withRun(run, func(ref *handle.Ref, r *engine.Run) error {
		return with(b, kindBatch, func(_ *handle.Ref, b *batch) error {
			f, err := submit(r, b.take())
			return giveFuture(out, ref, f, err)
		})
	})
}

func readConfig(p *C.tinker_pair, count C.int64_t) (map[string]float64, error) {
	pairs, err := array("config", p, count, 1024)
	if err != nil || len(pairs) == 0 {
		return nil, err
	}
	config := make(map[string]float64, len(pairs))
	for i, pair := range pairs {
		name, err := text("name", pair.name)
		if err != nil {
			return nil, bad("config %d: %w", i, err)
		}
		if _, twice := config[name]; twice {
			return nil, bad("config %d: %.100q is there twice", i, name)
		}
		config[name] = float64(pair.value)
	}
	return config, nil
}

// pass submits a pass with a loss of that name.
func pass(run, b C.uint64_t, loss *C.char, p *C.tinker_pair, count C.int64_t, out *C.uint64_t,
	submit func(r *engine.Run, in api.ForwardBackwardInput) (*engine.Future[api.ForwardBackwardOutput], error)) C.int32_t {
	return onBatch(run, b, out, func(r *engine.Run, data []api.Datum) (*engine.Future[api.ForwardBackwardOutput], error) {
		name, err := text("loss", loss)
		if err != nil {
			return nil, err
		}
		config, err := readConfig(p, count)
		if err != nil {
			return nil, err
		}
		return submit(r, api.ForwardBackwardInput{Data: data, LossFn: name, LossConfig: config})
	})
}

//export tinkergo_forward_backward
func tinkergo_forward_backward(run, b C.uint64_t, loss *C.char, p *C.tinker_pair, count C.int64_t, out *C.uint64_t) C.int32_t {
	return pass(run, b, loss, p, count, out, (*engine.Run).ForwardBackward)
}

//export tinkergo_forward
func tinkergo_forward(run, b C.uint64_t, loss *C.char, p *C.tinker_pair, count C.int64_t, out *C.uint64_t) C.int32_t {
	return pass(run, b, loss, p, count, out, (*engine.Run).Forward)
}

//export tinkergo_hold
func tinkergo_hold(run, b C.uint64_t, out *C.uint64_t) C.int32_t {
	return onBatch(run, b, out, (*engine.Run).Hold)
}

//export tinkergo_held_backward
func tinkergo_held_backward(h C.uint64_t, weights *C.float, count C.int64_t, out *C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindHeld, func(ref *handle.Ref, held *engine.Held) error {
			src, err := array("weights", (*float32)(weights), count, maxValues)
			if err != nil {
				return err
			}
			total := 0
			for _, lp := range held.LogProbs() {
				total += len(lp)
			}
			if len(src) != total {
				return bad("there are %d weights, wanted %d: one for each logprob", len(src), total)
			}
			rows := make([][]float32, len(held.LogProbs())) // into the caller's memory: Backward copies it
			for i, lp := range held.LogProbs() {
				rows[i], src = src[:len(lp)], src[len(lp):]
			}
			f, err := held.Backward(rows)
			return giveFuture(out, ref, f, err)
		})
	})
}

//export tinkergo_held_free
func tinkergo_held_free(h C.uint64_t) C.int32_t { return drop(h, kindHeld) }

//export tinkergo_optim_step
func tinkergo_optim_step(run C.uint64_t, p *C.tinker_adam, out *C.uint64_t) C.int32_t {
	return withRun(run, func(ref *handle.Ref, r *engine.Run) error {
		d := api.DefaultAdam()
		c := C.tinker_adam{
			learning_rate: C.double(d.LearningRate), beta1: C.double(d.Beta1), beta2: C.double(d.Beta2), eps: C.double(d.Eps),
			weight_decay: C.double(d.WeightDecay), grad_clip_norm: C.double(d.GradClipNorm),
		}
		if err := lent("adam", p, &c, firstAdam); err != nil {
			return err
		}
		f, err := r.OptimStep(api.AdamParams{
			LearningRate: float64(c.learning_rate), Beta1: float64(c.beta1), Beta2: float64(c.beta2), Eps: float64(c.eps),
			WeightDecay: float64(c.weight_decay), GradClipNorm: float64(c.grad_clip_norm),
		})
		return giveFuture(out, ref, f, err)
	})
}

// save submits a save under a name.
func save(run C.uint64_t, name *C.char, p *C.tinker_save_options, out *C.uint64_t,
	submit func(r *engine.Run, name string, o api.SaveOptions) (*engine.Future[api.Checkpoint], error)) C.int32_t {
	return withRun(run, func(ref *handle.Ref, r *engine.Run) error {
		s, err := text("name", name)
		if err != nil {
			return err
		}
		var c C.tinker_save_options
		if err := lent("save options", p, &c, firstSaveOptions); err != nil {
			return err
		}
		o := api.SaveOptions{KeepLast: int(c.keep_last)}
		if o.Overwrite, err = toggle("overwrite", c.overwrite); err != nil {
			return err
		}
		if c.keep_last < 0 {
			return bad("keep_last is %d, wanted 0 or more", int64(c.keep_last))
		}
		if o.TTL, err = seconds(c.ttl_seconds); err != nil {
			return err
		}
		if err := readJSON("user_metadata", c.user_metadata, &o.UserMetadata); err != nil {
			return err
		}
		f, err := submit(r, s, o)
		return giveFuture(out, ref, f, err)
	})
}

func seconds(n C.int64_t) (time.Duration, error) {
	const most = 100 * 365 * 24 * 3600
	if n < 0 || n > most {
		return 0, bad("ttl_seconds is %d, wanted 0 (for ever) to %d", int64(n), most)
	}
	return time.Duration(n) * time.Second, nil
}

//export tinkergo_save_state
func tinkergo_save_state(run C.uint64_t, name *C.char, p *C.tinker_save_options, out *C.uint64_t) C.int32_t {
	return save(run, name, p, out, (*engine.Run).SaveState)
}

//export tinkergo_save_for_sampler
func tinkergo_save_for_sampler(run C.uint64_t, name *C.char, p *C.tinker_save_options, out *C.uint64_t) C.int32_t {
	return save(run, name, p, out, (*engine.Run).SaveWeightsForSampler)
}

//export tinkergo_load_state
func tinkergo_load_state(run C.uint64_t, path *C.char, optimizer C.int32_t, out *C.uint64_t) C.int32_t {
	return withRun(run, func(ref *handle.Ref, r *engine.Run) error {
		p, err := text("path", path)
		if err != nil {
			return err
		}
		load := r.LoadState
		if optimizer != 0 {
			load = r.LoadStateWithOptimizer
		}
		f, err := load(p)
		return giveFuture(out, ref, f, err)
	})
}

//export tinkergo_run_weights
func tinkergo_run_weights(run C.uint64_t, out *C.uint64_t) C.int32_t {
	return withRun(run, func(ref *handle.Ref, r *engine.Run) error {
		f, err := r.Weights()
		return giveFuture(out, ref, f, err)
	})
}

//export tinkergo_run_load_weights
func tinkergo_run_load_weights(run C.uint64_t, p *C.tinker_weights, out *C.uint64_t) C.int32_t {
	return withRun(run, func(ref *handle.Ref, r *engine.Run) error {
		if p == nil {
			return bad("weights is NULL")
		}
		var c C.tinker_weights
		if err := lent("weights", p, &c, firstWeights); err != nil {
			return err
		}
		list, err := array("matrices", c.matrices, c.count, 1<<20)
		if err != nil {
			return err
		}
		w := engine.Weights{Lora: r.Info().Lora, Scale: float64(c.scale)}
		w.Lora.Rank = int(c.rank)
		w.Tensors = slices.Grow(w.Tensors, len(list))[:len(list)]
		for i, m := range list {
			t := &w.Tensors[i]
			if t.Name, t.Shape, t.Values, err = readMatrix(m); err != nil {
				return bad("matrix %d: %w", i, err)
			}
		}
		f, err := r.Load(w)
		return giveFuture(out, ref, f, err)
	})
}

// readMatrix copies a caller's matrix.
func readMatrix(m C.tinker_matrix) (name string, shape []int, values []float32, err error) {
	if name, err = text("name", m.name); err != nil {
		return "", nil, nil, err
	}
	dims, err := array("shape", (*int64)(m.shape), m.rank, 4)
	if err != nil {
		return "", nil, nil, err
	}
	n := int64(1)
	for _, d := range dims {
		if d < 1 || d > maxValues || n > maxValues/d {
			return "", nil, nil, bad("%.100q has shape %v, wanted at most %d values", name, dims, maxValues)
		}
		n *= d
		shape = append(shape, int(d))
	}
	src, err := array("values", (*float32)(m.values), C.int64_t(n), maxValues)
	return name, shape, slices.Clone(src), err
}

//export tinkergo_run_save_peft
func tinkergo_run_save_peft(run C.uint64_t, folder *C.char, out *C.uint64_t) C.int32_t {
	return withRun(run, func(ref *handle.Ref, r *engine.Run) error {
		dir, err := text("folder", folder)
		if err != nil {
			return err
		}
		f, err := r.Weights() // takes its place in the order now
		if err != nil {
			return err
		}
		return giveAny(out, ref, background(func(ctx context.Context) (any, error) {
			w, err := f.Wait(ctx)
			if err != nil {
				f.Cancel()
				return nil, err
			}
			return nil, local.WriteAdapter(dir, r.Base().Name, w)
		}))
	})
}

//export tinkergo_run_load_peft
func tinkergo_run_load_peft(run C.uint64_t, folder *C.char, out *C.uint64_t) C.int32_t {
	return withRun(run, func(ref *handle.Ref, r *engine.Run) error {
		dir, err := text("folder", folder)
		if err != nil {
			return err
		}
		w, err := local.ReadAdapter(dir)
		if err != nil {
			return err
		}
		f, err := r.Load(w)
		return giveFuture(out, ref, f, err)
	})
}

//export tinkergo_run_sampler
func tinkergo_run_sampler(run C.uint64_t, out *C.uint64_t) C.int32_t {
	return withRun(run, func(ref *handle.Ref, r *engine.Run) error {
		f, err := r.SaveForSampler()
		return giveFuture(out, ref, f, err)
	})
}
