//go:build cgo && unix

package main

/*
#include "tinker.h"
*/
import "C"

import (
	"context"

	"tinkerlocal/capi/handle"
	"tinkerlocal/engine/api"
)

// query is the JSON that chooses checkpoints or runs.
type query struct {
	Run       string `json:"run"`
	Owner     string `json:"owner"`
	Reader    string `json:"reader"`
	Kind      string `json:"kind"`
	BaseModel string `json:"base_model"`
	Name      string `json:"name"`
	Limit     int    `json:"limit"`
	Offset    int    `json:"offset"`
	Cursor    string `json:"cursor"`
}

func (q query) page() api.Page { return api.Page{Limit: q.Limit, Offset: q.Offset, Cursor: q.Cursor} }

// askStore answers a question about the store of an engine with JSON.
func askStore(h C.uint64_t, out **C.char, ask func(s api.Store) (any, error)) C.int32_t {
	return engineJSON(h, out, func(e *engineObject) (any, error) {
		s, err := e.checkpoints()
		if err != nil {
			return nil, err
		}
		return ask(s)
	})
}

//export tinkergo_checkpoint_list
func tinkergo_checkpoint_list(h C.uint64_t, p *C.char, out **C.char) C.int32_t {
	return askStore(h, out, func(s api.Store) (any, error) {
		var q query
		if err := readJSON("query", p, &q); err != nil {
			return nil, err
		}
		page, err := s.List(context.Background(), api.CheckpointQuery{
			Run: q.Run, Owner: q.Owner, Reader: q.Reader, Kind: q.Kind, BaseModel: q.BaseModel, Name: q.Name, Page: q.page(),
		})
		return map[string]any{"checkpoints": page.Checkpoints, "total": page.Total, "next_cursor": page.Next}, err
	})
}

//export tinkergo_training_run_list
func tinkergo_training_run_list(h C.uint64_t, p *C.char, out **C.char) C.int32_t {
	return askStore(h, out, func(s api.Store) (any, error) {
		var q query
		if err := readJSON("query", p, &q); err != nil {
			return nil, err
		}
		if q.Run != "" || q.Reader != "" || q.Kind != "" || q.Name != "" {
			return nil, bad("query: runs are chosen by owner and base_model alone")
		}
		page, err := s.Runs(context.Background(), api.RunQuery{Owner: q.Owner, BaseModel: q.BaseModel, Page: q.page()})
		return map[string]any{"training_runs": page.Runs, "total": page.Total, "next_cursor": page.Next}, err
	})
}

//export tinkergo_training_run_info
func tinkergo_training_run_info(h C.uint64_t, id *C.char, out **C.char) C.int32_t {
	return askStore(h, out, func(s api.Store) (any, error) {
		name, err := text("id", id)
		if err != nil {
			return nil, err
		}
		return s.Run(context.Background(), name)
	})
}

//export tinkergo_checkpoint_info
func tinkergo_checkpoint_info(h C.uint64_t, path *C.char, out **C.char) C.int32_t {
	return askStore(h, out, func(s api.Store) (any, error) {
		p, err := readPath(path)
		if err != nil {
			return nil, err
		}
		return s.Info(context.Background(), p)
	})
}

func readPath(path *C.char) (api.Path, error) {
	s, err := text("path", path)
	if err != nil {
		return api.Path{}, err
	}
	return api.ParsePath(s)
}

// changeCheckpoint does something to one checkpoint.
func changeCheckpoint(h C.uint64_t, path *C.char, change func(s api.Store, p api.Path) error) C.int32_t {
	return guard(func() error {
		return with(h, kindEngine, func(_ *handle.Ref, e *engineObject) error {
			s, err := e.checkpoints()
			if err != nil {
				return err
			}
			p, err := readPath(path)
			if err != nil {
				return err
			}
			return change(s, p)
		})
	})
}

//export tinkergo_checkpoint_delete
func tinkergo_checkpoint_delete(h C.uint64_t, path *C.char) C.int32_t {
	return changeCheckpoint(h, path, func(s api.Store, p api.Path) error { return s.Delete(context.Background(), p) })
}

//export tinkergo_checkpoint_publish
func tinkergo_checkpoint_publish(h C.uint64_t, path *C.char) C.int32_t {
	return changeCheckpoint(h, path, func(s api.Store, p api.Path) error { return s.Publish(context.Background(), p) })
}

//export tinkergo_checkpoint_unpublish
func tinkergo_checkpoint_unpublish(h C.uint64_t, path *C.char) C.int32_t {
	return changeCheckpoint(h, path, func(s api.Store, p api.Path) error { return s.Unpublish(context.Background(), p) })
}

//export tinkergo_checkpoint_set_ttl
func tinkergo_checkpoint_set_ttl(h C.uint64_t, path *C.char, ttl C.int64_t) C.int32_t {
	return changeCheckpoint(h, path, func(s api.Store, p api.Path) error {
		d, err := seconds(ttl)
		switch {
		case err != nil:
			return err
		case d == 0:
			return s.ClearTTL(context.Background(), p)
		}
		return s.SetTTL(context.Background(), p, d)
	})
}
