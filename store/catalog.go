package store

import (
	"context"
	"fmt"
	"maps"
	"time"

	"tinkerlocal/engine/api"
)

// Info is of api.Store.
func (s *Store) Info(ctx context.Context, p api.Path) (api.Checkpoint, error) {
	if err := cancelled(ctx); err != nil {
		return api.Checkpoint{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(p)
	if err != nil {
		return api.Checkpoint{}, err
	}
	return e.Checkpoint, nil
}

// Delete is of api.Store. A checkpoint whose record is damaged can be deleted, too.
func (s *Store) Delete(ctx context.Context, p api.Path) error {
	if err := cancelled(ctx); err != nil {
		return err
	}
	s.recording.Lock()
	defer s.recording.Unlock()
	s.mu.Lock()
	err := s.writable()
	if err == nil {
		var e *entry
		e, err = s.find(p)
		switch {
		case err == nil:
			p = e.Checkpoint.Path
		case api.CodeOf(err) == api.DataLoss && p.Kind != "":
			err = nil
		}
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.remove([]api.Path{p})
}

// remove deletes records. recording is held.
func (s *Store) remove(paths []api.Path) error {
	var ops []op
	for _, p := range paths {
		ops = append(ops, op{key: checkpointKey(p)})
	}
	if err := s.record(ops); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range paths {
		delete(s.entries, p)
		delete(s.damaged, checkpointKey(p))
	}
	s.dirty = true
	return nil
}

// change rewrites a checkpoint's record. edit says whether there is anything to do.
func (s *Store) change(ctx context.Context, p api.Path, edit func(c *api.Checkpoint) bool) error {
	if err := cancelled(ctx); err != nil {
		return err
	}
	s.recording.Lock()
	defer s.recording.Unlock()
	s.mu.Lock()
	err := s.writable()
	var r record
	if err == nil {
		var e *entry
		if e, err = s.find(p); err == nil {
			r = e.record
		}
	}
	s.mu.Unlock()
	if err != nil || !edit(&r.Checkpoint) {
		return err
	}
	value, err := seal(r)
	if err != nil {
		return err
	}
	if err := s.record([]op{{checkpointKey(r.Checkpoint.Path), value}}); err != nil {
		return fmt.Errorf("checkpoint %v: %w", r.Checkpoint.Path, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[r.Checkpoint.Path] = &entry{record: r}
	return nil
}

// SetTTL is of api.Store.
func (s *Store) SetTTL(ctx context.Context, p api.Path, ttl time.Duration) error {
	if ttl <= 0 {
		return api.Errorf(api.BadRequest, "checkpoint %v: the time to live is %v, wanted more than 0", p, ttl)
	}
	at := s.opt.Now().UTC().Add(ttl)
	return s.change(ctx, p, func(c *api.Checkpoint) bool { c.Expires = at; return true })
}

// ClearTTL is of api.Store.
func (s *Store) ClearTTL(ctx context.Context, p api.Path) error {
	return s.change(ctx, p, func(c *api.Checkpoint) bool {
		had := !c.Expires.IsZero()
		c.Expires = time.Time{}
		return had
	})
}

// Publish is of api.Store.
func (s *Store) Publish(ctx context.Context, p api.Path) error { return s.setPublic(ctx, p, true) }

// Unpublish is of api.Store.
func (s *Store) Unpublish(ctx context.Context, p api.Path) error { return s.setPublic(ctx, p, false) }

func (s *Store) setPublic(ctx context.Context, p api.Path, public bool) error {
	return s.change(ctx, p, func(c *api.Checkpoint) bool {
		changes := c.Public != public
		c.Public = public
		return changes
	})
}

// PutRun is of api.Store.
func (s *Store) PutRun(ctx context.Context, r api.RunRecord) error {
	if err := cancelled(ctx); err != nil {
		return err
	}
	if err := api.CheckName("run id", r.ID); err != nil {
		return err
	}
	if r.Owner == "" || len(r.Owner) > maxOwner {
		return api.Errorf(api.BadRequest, "run %s: the owner has %d bytes, wanted 1 to %d", r.ID, len(r.Owner), maxOwner)
	}
	s.recording.Lock()
	defer s.recording.Unlock()
	now := s.opt.Now().UTC()
	s.mu.Lock()
	err := s.writable()
	old, known := s.runs[r.ID]
	s.mu.Unlock()
	if err != nil {
		return err
	}
	switch {
	case known:
		r.Created = old.Created
	case r.Created.IsZero():
		r.Created = now
	}
	if r.LastRequest.IsZero() {
		r.LastRequest = now
	}
	r.LastCheckpoint, r.LastSamplerCheckpoint = nil, nil
	r.UserMetadata = maps.Clone(r.UserMetadata)
	value, err := seal(r)
	if err != nil {
		return err
	}
	if len(value) > maxRecordBytes {
		return api.Errorf(api.BadRequest, "run %s: its record has %d bytes, wanted at most %d", r.ID, len(value), maxRecordBytes)
	}
	if err := s.record([]op{{runPrefix + r.ID, value}}); err != nil {
		return fmt.Errorf("run %s: %w", r.ID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs[r.ID] = r
	delete(s.damaged, runPrefix+r.ID)
	return nil
}

// Run is of api.Store.
func (s *Store) Run(ctx context.Context, id string) (api.RunRecord, error) {
	if err := cancelled(ctx); err != nil {
		return api.RunRecord{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return api.RunRecord{}, err
	}
	r, ok := s.runs[id]
	if !ok {
		if err, bad := s.damaged[runPrefix+id]; bad {
			return api.RunRecord{}, api.Errorf(api.DataLoss, "run %s: its record is damaged: it %w", id, err)
		}
		return api.RunRecord{}, api.Errorf(api.NotFound, "there is no run %.200q", id)
	}
	return s.withLast([]api.RunRecord{r})[0], nil
}

// withLast fills in the newest checkpoints of runs. mu is held.
func (s *Store) withLast(runs []api.RunRecord) []api.RunRecord {
	type key struct{ run, kind string }
	newest := map[key]*entry{}
	now := s.opt.Now()
	for p, e := range s.entries {
		if n := newest[key{p.Run, p.Kind}]; !e.expired(now) && (n == nil || n.Seq < e.Seq) {
			newest[key{p.Run, p.Kind}] = e
		}
	}
	last := func(run, kind string) *api.Checkpoint {
		if e := newest[key{run, kind}]; e != nil {
			c := e.Checkpoint
			return &c
		}
		return nil
	}
	for i := range runs {
		r := &runs[i]
		r.UserMetadata = maps.Clone(r.UserMetadata)
		r.LastCheckpoint, r.LastSamplerCheckpoint = last(r.ID, api.KindState), last(r.ID, api.KindSampler)
	}
	return runs
}
