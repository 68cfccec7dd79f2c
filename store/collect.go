package store

import (
	"context"
	"fmt"
	"time"

	"tinkerlocal/engine/api"
)

// Collect deletes chunks that no checkpoint refers to and gives their space back. It may run while checkpoints are
// saved and read: chunks that a writer or reader holds are pinned, and those of a checkpoint that is committed
// meanwhile are kept. When a checkpoint's table cannot be read, nobody knows what it refers to; then nothing is deleted.
func (s *Store) Collect(ctx context.Context) (out api.Collected, err error) {
	s.collecting.Lock()
	defer s.collecting.Unlock()
	if err := s.mark(ctx); err != nil {
		s.endCollect(true)
		return out, fmt.Errorf("collect: %w", err)
	}
	defer func() { s.endCollect(err != nil) }()
	var batch []sum
	err = s.db.scan(chunkPrefix, false, func(key string, _ []byte) error {
		if len(key) != 1+len(sum{}) {
			return nil
		}
		out.Kept++
		batch = append(batch, sum([]byte(key[1:])))
		if len(batch) < 512 {
			return nil
		}
		n, err := s.sweep(ctx, batch)
		out.Deleted += n
		batch = batch[:0]
		return err
	})
	if err == nil {
		var n int
		n, err = s.sweep(ctx, batch)
		out.Deleted += n
	}
	out.Kept -= out.Deleted
	if err != nil {
		return out, fmt.Errorf("collect: %w", err)
	}
	if err := s.db.reclaim(); err != nil {
		return out, fmt.Errorf("give space back: %w", err)
	}
	return out, nil
}

// mark begins a collection: live becomes what the checkpoints refer to.
func (s *Store) mark(ctx context.Context) error {
	s.mu.Lock()
	if err := s.writable(); err != nil {
		s.mu.Unlock()
		return err
	}
	if len(s.damaged) > 0 {
		for key, err := range s.damaged {
			if key[:2] == checkpointPrefix {
				s.mu.Unlock()
				return api.Errorf(api.DataLoss, "checkpoint record %.300q is damaged: it %w; delete the checkpoint first", key[2:], err)
			}
		}
	}
	s.live, s.dirty = map[sum]bool{}, false
	var records []record
	for _, e := range s.entries {
		records = append(records, e.record)
		for _, id := range e.Table {
			s.live[id] = true
		}
	}
	s.mu.Unlock()
	for i := range records {
		if err := cancelled(ctx); err != nil {
			return err
		}
		select {
		case <-s.stop:
			return errClosed
		default:
		}
		list, err := s.readTable(&records[i])
		if err != nil {
			return err
		}
		s.mu.Lock()
		for _, t := range list {
			for _, id := range t.Chunks {
				s.live[id] = true
			}
		}
		s.mu.Unlock()
	}
	return nil
}

func (s *Store) endCollect(again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = nil
	s.dirty = s.dirty || again
}

// sweep deletes those of ids that nobody needs. A writer that wants one of them waits until they are gone.
func (s *Store) sweep(ctx context.Context, ids []sum) (int, error) {
	if err := cancelled(ctx); err != nil {
		return 0, err
	}
	s.mu.Lock()
	if err := s.writable(); err != nil {
		s.mu.Unlock()
		return 0, err
	}
	var ops []op
	for _, id := range ids {
		if !s.live[id] && s.pins[id] == 0 {
			s.deleting[id] = true
			ops = append(ops, op{key: id.key()})
		}
	}
	s.mu.Unlock()
	if len(ops) == 0 {
		return 0, nil
	}
	err := s.db.apply(ops)
	s.mu.Lock()
	clear(s.deleting)
	s.wake.Broadcast()
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return len(ops), nil
}

// Expire deletes the checkpoints that have been expired for longer than Options.Grace, counted in time that passed
// while this store was open and not by a clock that may jump.
func (s *Store) Expire(ctx context.Context) (deleted []api.Path, err error) {
	return s.expire(ctx, func(e *entry, clock time.Duration) bool {
		if e.overdue == 0 {
			e.overdue = clock
		}
		return clock-e.overdue >= s.opt.Grace
	})
}

// DeleteExpired deletes the checkpoints that have expired by the clock of this moment, for somebody who has looked at it.
func (s *Store) DeleteExpired(ctx context.Context) (deleted []api.Path, err error) {
	return s.expire(ctx, func(*entry, time.Duration) bool { return true })
}

// expire deletes those of the expired checkpoints that are due.
func (s *Store) expire(ctx context.Context, due func(e *entry, clock time.Duration) bool) (deleted []api.Path, err error) {
	if err := cancelled(ctx); err != nil {
		return nil, err
	}
	s.recording.Lock()
	defer s.recording.Unlock()
	s.mu.Lock()
	err = s.writable()
	now, clock := s.opt.Now(), s.uptime()
	for p, e := range s.entries {
		switch {
		case !e.expired(now):
			e.overdue = 0
		case due(e, clock):
			deleted = append(deleted, p)
		}
	}
	s.mu.Unlock()
	if err != nil || len(deleted) == 0 {
		return nil, err
	}
	if err := s.remove(deleted); err != nil {
		return nil, err
	}
	s.log.Info("expired checkpoints deleted", "count", len(deleted))
	return deleted, nil
}

// keep is the goroutine that expires and collects until Close.
func (s *Store) keep() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.work.Go(func() { // a collection under way ends when the store is closed
		select {
		case <-s.stop:
			cancel()
		case <-ctx.Done():
		}
	})
	tick := time.NewTicker(s.opt.Interval)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		if _, err := s.Expire(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("delete expired checkpoints", "err", err)
		}
		s.mu.Lock()
		dirty := s.dirty
		s.mu.Unlock()
		if !dirty {
			continue
		}
		out, err := s.Collect(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("collect unused chunks", "err", err)
			continue
		}
		s.log.Debug("unused chunks collected", "deleted", out.Deleted, "kept", out.Kept)
	}
}
