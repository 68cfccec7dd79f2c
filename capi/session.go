//go:build cgo && unix

package main

/*
#include "tinker.h"
*/
import "C"

import (
	"context"

	"tinkerlocal/capi/handle"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// session is what a tinker_session stands for.
type session struct {
	*engine.Session
	owner string
}

//export tinkergo_session_open
func tinkergo_session_open(h C.uint64_t, owner *C.char, out *C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindEngine, func(ref *handle.Ref, e *engineObject) error {
			name, err := optional("owner", owner)
			if err != nil {
				return err
			}
			if name == "" {
				name = engine.LocalOwner
			}
			s := e.NewSessionFor(name)
			return give(out, kindSession, &session{s, name}, ref, s.Close)
		})
	})
}

//export tinkergo_session_close
func tinkergo_session_close(h C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindSession, func(_ *handle.Ref, s *session) error { s.Close(); return nil })
	})
}

//export tinkergo_session_free
func tinkergo_session_free(h C.uint64_t) C.int32_t { return drop(h, kindSession) }

//export tinkergo_session_info
func tinkergo_session_info(h C.uint64_t, out **C.char) C.int32_t {
	return guard(func() error {
		return with(h, kindSession, func(_ *handle.Ref, s *session) error {
			ids := []string{}
			for _, r := range s.Runs() {
				ids = append(ids, r.ID())
			}
			return giveJSON(out, map[string]any{"session_id": s.ID(), "owner": s.owner, "training_run_ids": ids})
		})
	})
}

//export tinkergo_session_create_run
func tinkergo_session_create_run(h C.uint64_t, base *C.char, l *C.tinker_lora, metadata *C.char, out *C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindSession, func(ref *handle.Ref, s *session) error {
			name, err := text("base_model", base)
			if err != nil {
				return err
			}
			r := api.CreateModelRequest{BaseModel: name}
			if r.Lora, err = readLora(l); err != nil {
				return err
			}
			if err := readJSON("metadata", metadata, &r.UserMetadata); err != nil {
				return err
			}
			f, err := s.NewRun(r)
			return giveFuture(out, ref, f, err)
		})
	})
}

func readLora(p *C.tinker_lora) (api.LoraConfig, error) {
	d := api.DefaultLora()
	c := C.tinker_lora{rank: C.int32_t(d.Rank), train_attn: 1, train_mlp: 1, train_unembed: 1}
	if err := lent("lora", p, &c, firstLora); err != nil {
		return d, err
	}
	d.Rank = int(c.rank)
	seeded := false
	for _, f := range []struct {
		what string
		from C.int32_t
		to   *bool
	}{
		{"train_attn", c.train_attn, &d.TrainAttn}, {"train_mlp", c.train_mlp, &d.TrainMLP},
		{"train_unembed", c.train_unembed, &d.TrainUnembed}, {"has_seed", c.has_seed, &seeded},
	} {
		var err error
		if *f.to, err = toggle(f.what, f.from); err != nil {
			return d, err
		}
	}
	if seeded {
		d.Seed = new(int64(c.seed))
	}
	return d, nil
}

//export tinkergo_session_resume_run
func tinkergo_session_resume_run(h C.uint64_t, path *C.char, optimizer C.int32_t, metadata *C.char, out *C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindSession, func(ref *handle.Ref, s *session) error {
			p, err := text("path", path)
			if err != nil {
				return err
			}
			var m map[string]string
			if err := readJSON("metadata", metadata, &m); err != nil {
				return err
			}
			f, err := s.NewRunFrom(engine.RunSource{Path: p, Optimizer: optimizer != 0, UserMetadata: m})
			return giveFuture(out, ref, f, err)
		})
	})
}

//export tinkergo_session_create_sampler
func tinkergo_session_create_sampler(h C.uint64_t, base *C.char, out *C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindSession, func(ref *handle.Ref, s *session) error {
			name, err := text("base_model", base)
			if err != nil {
				return err
			}
			f, err := s.NewSampler(name)
			return giveFuture(out, ref, f, err)
		})
	})
}

//export tinkergo_session_load_sampler
func tinkergo_session_load_sampler(h C.uint64_t, path *C.char, out *C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindSession, func(ref *handle.Ref, s *session) error {
			p, err := text("path", path)
			if err != nil {
				return err
			}
			f, err := s.NewSamplerFrom(p)
			return giveFuture(out, ref, f, err)
		})
	})
}

//export tinkergo_session_peft_sampler
func tinkergo_session_peft_sampler(h C.uint64_t, base, folder *C.char, out *C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindSession, func(ref *handle.Ref, s *session) error {
			name, err := text("base_model", base)
			if err != nil {
				return err
			}
			dir, err := text("folder", folder)
			if err != nil {
				return err
			}
			return giveAny(out, ref, background(func(ctx context.Context) (any, error) {
				w, err := local.ReadAdapter(dir)
				if err != nil {
					return nil, err
				}
				f, err := s.NewAdapterSampler(name, w)
				if err != nil {
					return nil, err
				}
				p, err := f.Wait(ctx)
				if err == nil {
					return p, nil
				}
				if ctx.Err() != nil { // cancelled; it may be made all the same
					f.Cancel()
					go func() {
						if p, err := f.Wait(context.Background()); err == nil {
							p.Close()
						}
					}()
				}
				return nil, err // not p: an interface that holds a nil sampler is not nil
			}))
		})
	})
}
