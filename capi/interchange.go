//go:build cgo && unix

package main

/*
#include "tinker.h"
*/
import "C"

import (
	"context"
	"errors"

	"tinkerlocal/capi/handle"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// exportOptions is the JSON of tinker_checkpoint_export.
type exportOptions struct {
	BaseModel string `json:"base_model"`
	Unembed   string `json:"unembed"`
	Optimizer bool   `json:"optimizer"`
	DType     string `json:"dtype"`
	OwnHead   bool   `json:"own_head"`
	Replace   bool   `json:"replace"`
}

//export tinkergo_checkpoint_export
func tinkergo_checkpoint_export(h C.uint64_t, path, format, dst, options *C.char, out *C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindEngine, func(ref *handle.Ref, e *engineObject) error {
			p, err := readPath(path)
			if err != nil {
				return err
			}
			kind, err := text("format", format)
			if err != nil {
				return err
			}
			name, err := text("out", dst)
			if err != nil {
				return err
			}
			var o exportOptions
			if err := readJSON("options", options, &o); err != nil {
				return err
			}
			s, err := e.checkpoints()
			if err != nil {
				return err
			}
			return giveAny(out, ref, background(func(ctx context.Context) (_ any, err error) {
				x, err := e.models.PlanExport(ctx, s, p, local.ExportOptions{
					Format: kind, BaseModel: o.BaseModel, Unembed: o.Unembed, Optimizer: o.Optimizer, DType: o.DType, OwnHead: o.OwnHead,
				})
				if err != nil {
					return nil, err
				}
				defer func() { err = errors.Join(err, x.Close()) }()
				if err := x.Write(ctx, name, local.WriteOptions{Replace: o.Replace}); err != nil {
					return nil, err
				}
				return map[string]any{"format": x.Format, "size_bytes": x.Bytes, "notes": append([]string{}, x.Notes...)}, nil
			}))
		})
	})
}

// importOptions is the JSON of tinker_checkpoint_import.
type importOptions struct {
	Path      api.Path `json:"tinker_path"`
	Owner     string   `json:"owner"`
	BaseModel string   `json:"base_model"`
	Seed      int64    `json:"seed"`
	Overwrite bool     `json:"overwrite"`
	TTL       int64    `json:"ttl_seconds"`
}

//export tinkergo_checkpoint_import
func tinkergo_checkpoint_import(h C.uint64_t, source, options *C.char, out *C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindEngine, func(ref *handle.Ref, e *engineObject) error {
			name, err := text("source", source)
			if err != nil {
				return err
			}
			var o importOptions
			if err := readJSON("options", options, &o); err != nil {
				return err
			}
			if o.Path.Kind == "" {
				return bad("options: tinker_path is %q, wanted tinker://RUN/weights/NAME or tinker://RUN/sampler_weights/NAME", o.Path)
			}
			ttl, err := seconds(C.int64_t(o.TTL))
			if err != nil {
				return err
			}
			s, err := e.checkpoints()
			if err != nil {
				return err
			}
			return giveAny(out, ref, background(func(ctx context.Context) (any, error) {
				c, notes, err := e.models.Import(ctx, name, s, local.ImportOptions{
					Path: o.Path, Owner: o.Owner, BaseModel: o.BaseModel, Seed: o.Seed, Save: api.SaveOptions{Overwrite: o.Overwrite, TTL: ttl},
				})
				if err != nil {
					return nil, err
				}
				return struct {
					api.Checkpoint
					Notes []string `json:"notes"`
				}{c, append([]string{}, notes...)}, nil
			}))
		})
	})
}
