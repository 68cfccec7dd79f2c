package remote

import (
	"context"
	"net/http"
	"time"

	"tinkerlocal/engine/api"
)

// Store is an api.StateStore that another process has open. When that process goes away, every method fails with an api.Closed
// that has ErrGone in its chain; the Store does not come back.
type Store struct{ state }

var _ api.StateStore = (*Store)(nil)

// Open connects to a store. ctx bounds the opening. Close the store.
func Open(ctx context.Context, at Address) (*Store, error) {
	s := &Store{state{at: at, http: at.Client()}}
	s.life, s.end = context.WithCancelCause(context.Background())
	if err := s.begin(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close is of api.Store. The store itself stays open where it is.
func (s *Store) Close() error {
	s.end(errClosed)
	s.watch.Wait()
	s.http.CloseIdleConnections()
	return nil
}

// do is a call with an answer.
func do[R any](ctx context.Context, s *Store, method string, v any) (R, error) {
	return askJSON[R](ctx, s, http.MethodPost, "/call/"+method, v)
}

// change is a call about a checkpoint, without an answer.
func (s *Store) change(ctx context.Context, method string, p api.Path, ttl time.Duration) error {
	if err := s.check(p); err != nil {
		return err
	}
	_, err := do[nothing](ctx, s, method, pathCall{p, ttl})
	return err
}

// check refuses a path that does not survive its way: it is sent as text.
func (s *Store) check(p api.Path) error {
	if err := s.usable(); err != nil {
		return err
	}
	return p.Check()
}

// Info is of api.Store.
func (s *Store) Info(ctx context.Context, p api.Path) (api.Checkpoint, error) {
	if err := s.check(p); err != nil {
		return api.Checkpoint{}, err
	}
	return do[api.Checkpoint](ctx, s, "info", pathCall{Path: p})
}

// List is of api.Store.
func (s *Store) List(ctx context.Context, q api.CheckpointQuery) (api.CheckpointPage, error) {
	return do[api.CheckpointPage](ctx, s, "list", q)
}

// Delete is of api.Store.
func (s *Store) Delete(ctx context.Context, p api.Path) error { return s.change(ctx, "delete", p, 0) }

// SetTTL is of api.Store.
func (s *Store) SetTTL(ctx context.Context, p api.Path, ttl time.Duration) error {
	return s.change(ctx, "set-ttl", p, ttl)
}

// ClearTTL is of api.Store.
func (s *Store) ClearTTL(ctx context.Context, p api.Path) error {
	return s.change(ctx, "clear-ttl", p, 0)
}

// Publish is of api.Store.
func (s *Store) Publish(ctx context.Context, p api.Path) error { return s.change(ctx, "publish", p, 0) }

// Unpublish is of api.Store.
func (s *Store) Unpublish(ctx context.Context, p api.Path) error {
	return s.change(ctx, "unpublish", p, 0)
}

// PutRun is of api.Store.
func (s *Store) PutRun(ctx context.Context, r api.RunRecord) error {
	r.LastCheckpoint, r.LastSamplerCheckpoint = nil, nil // the store's own business
	_, err := do[nothing](ctx, s, "put-run", r)
	return err
}

// Run is of api.Store.
func (s *Store) Run(ctx context.Context, id string) (api.RunRecord, error) {
	return do[api.RunRecord](ctx, s, "run", runCall{id})
}

// Runs is of api.Store.
func (s *Store) Runs(ctx context.Context, q api.RunQuery) (api.RunPage, error) {
	return do[api.RunPage](ctx, s, "runs", q)
}

// DeleteExpired is of api.StateStore.
func (s *Store) DeleteExpired(ctx context.Context) ([]api.Path, error) {
	return do[[]api.Path](ctx, s, "delete-expired", nothing{})
}

// Collect is of api.StateStore.
func (s *Store) Collect(ctx context.Context) (api.Collected, error) {
	return do[api.Collected](ctx, s, "collect", nothing{})
}

// Verify is of api.StateStore.
func (s *Store) Verify(ctx context.Context, paths ...api.Path) ([]api.Damage, error) {
	for _, p := range paths {
		if err := s.check(p); err != nil {
			return nil, err
		}
	}
	return do[[]api.Damage](ctx, s, "verify", pathsCall{paths})
}
