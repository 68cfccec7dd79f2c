package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"tinkerlocal/cmd/tinker-local/server/remote"
	"tinkerlocal/engine/api"
)

// restartPatience is how long a command whose server has gone waits for the next one, before it opens the state directory itself:
// then no server can until the command has ended.
const restartPatience = 5 * time.Second

// drainPatience is how long it then waits for a server that is still ending: longer than serve's --drain.
const drainPatience = time.Minute

// following is the store of a state directory for commands that may outlive the server that has it open: when that has gone, it
// goes on with the next one, or with the directory itself. Readers and writers do not survive; a save that fails so is told.
type following struct {
	reopen func(ctx context.Context) (api.Store, error)

	mu      sync.Mutex // guards now; held while it is replaced
	now     api.Store
	stopped bool
}

// follow makes a store that a server has follow the state directory. Others stay as they are: nobody takes them away.
func (a *app) follow(s api.StateStore) api.Store {
	if _, ok := s.(*remote.Store); !ok {
		return s
	}
	return &following{now: s, reopen: a.openStateAgain}
}

func (f *following) store() api.Store {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// next replaces old, if nobody has done so yet.
func (f *following) next(ctx context.Context, old api.Store) (api.Store, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now != old || f.stopped {
		return f.now, nil
	}
	s, err := f.reopen(ctx)
	if err != nil {
		return nil, err
	}
	old.Close()
	f.now = s
	return s, nil
}

// try does something, and once more with the next store if the server has gone.
func try[T any](ctx context.Context, f *following, do func(s api.Store) (T, error)) (T, error) {
	s := f.store()
	v, err := do(s)
	if !errors.Is(err, remote.ErrGone) {
		return v, err
	}
	s, reopened := f.next(ctx, s)
	if reopened != nil {
		return v, reopened
	}
	return do(s)
}

// change is try for what has no answer.
func (f *following) change(ctx context.Context, do func(s api.Store) error) error {
	_, err := try(ctx, f, func(s api.Store) (struct{}, error) { return struct{}{}, do(s) })
	return err
}

func (f *following) Create(ctx context.Context, c api.Checkpoint, o api.SaveOptions) (api.CheckpointWriter, error) {
	return try(ctx, f, func(s api.Store) (api.CheckpointWriter, error) { return s.Create(ctx, c, o) })
}

func (f *following) Open(ctx context.Context, p api.Path) (api.CheckpointReader, error) {
	return try(ctx, f, func(s api.Store) (api.CheckpointReader, error) { return s.Open(ctx, p) })
}

func (f *following) Info(ctx context.Context, p api.Path) (api.Checkpoint, error) {
	return try(ctx, f, func(s api.Store) (api.Checkpoint, error) { return s.Info(ctx, p) })
}

func (f *following) List(ctx context.Context, q api.CheckpointQuery) (api.CheckpointPage, error) {
	return try(ctx, f, func(s api.Store) (api.CheckpointPage, error) { return s.List(ctx, q) })
}

func (f *following) Delete(ctx context.Context, p api.Path) error {
	return f.change(ctx, func(s api.Store) error { return s.Delete(ctx, p) })
}

func (f *following) SetTTL(ctx context.Context, p api.Path, ttl time.Duration) error {
	return f.change(ctx, func(s api.Store) error { return s.SetTTL(ctx, p, ttl) })
}

func (f *following) ClearTTL(ctx context.Context, p api.Path) error {
	return f.change(ctx, func(s api.Store) error { return s.ClearTTL(ctx, p) })
}

func (f *following) Publish(ctx context.Context, p api.Path) error {
	return f.change(ctx, func(s api.Store) error { return s.Publish(ctx, p) })
}

func (f *following) Unpublish(ctx context.Context, p api.Path) error {
	return f.change(ctx, func(s api.Store) error { return s.Unpublish(ctx, p) })
}

func (f *following) PutRun(ctx context.Context, r api.RunRecord) error {
	return f.change(ctx, func(s api.Store) error { return s.PutRun(ctx, r) })
}

func (f *following) Run(ctx context.Context, id string) (api.RunRecord, error) {
	return try(ctx, f, func(s api.Store) (api.RunRecord, error) { return s.Run(ctx, id) })
}

func (f *following) Runs(ctx context.Context, q api.RunQuery) (api.RunPage, error) {
	return try(ctx, f, func(s api.Store) (api.RunPage, error) { return s.Runs(ctx, q) })
}

func (f *following) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = true
	return f.now.Close()
}
