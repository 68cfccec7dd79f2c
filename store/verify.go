package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"tinkerlocal/engine/api"
)

// Verify is of api.StateStore.
func (s *Store) Verify(ctx context.Context, paths ...api.Path) (found []api.Damage, err error) {
	if len(paths) == 0 {
		s.mu.Lock()
		err := s.usable()
		now := s.opt.Now()
		for p, e := range s.entries {
			if !e.expired(now) {
				paths = append(paths, p)
			}
		}
		for key, err := range s.damaged {
			name := strings.TrimPrefix(key, runPrefix)
			if rest, ok := strings.CutPrefix(key, checkpointPrefix); ok {
				name = "tinker://" + rest
			}
			found = append(found, api.Damage{Checkpoint: name, Err: err, Msg: "the record " + err.Error()})
		}
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
		slices.SortFunc(paths, func(a, b api.Path) int { return strings.Compare(a.String(), b.String()) })
		slices.SortFunc(found, func(a, b api.Damage) int { return strings.Compare(a.Checkpoint, b.Checkpoint) })
	}
	good := map[sum]bool{}
	for _, p := range paths {
		bad, err := s.verify(ctx, p, good)
		if err != nil {
			return found, err
		}
		found = append(found, bad...)
	}
	return found, nil
}

// verify reads one checkpoint. Chunks in good were read before.
func (s *Store) verify(ctx context.Context, p api.Path, good map[sum]bool) (found []api.Damage, err error) {
	r, err := s.open(p)
	if api.CodeOf(err) == api.DataLoss && err != nil {
		return []api.Damage{{Checkpoint: p.String(), Err: err, Msg: err.Error()}}, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	buf := make([]byte, r.rec.ChunkBytes)
	for i := range r.list {
		t := &r.list[i]
		n, err := t.Bytes()
		if err != nil {
			return found, err
		}
		for j, id := range t.Chunks {
			if err := cancelled(ctx); err != nil {
				return found, err
			}
			part := buf[:min(int64(len(buf)), n-int64(j)*int64(len(buf)))]
			if good[id] {
				continue
			}
			err := r.piece(t, j, part)
			if errors.Is(err, errClosed) {
				return found, err
			}
			if err != nil {
				found = append(found, api.Damage{Checkpoint: p.String(), Tensor: t.Name, Chunk: j + 1, Err: err, Msg: err.Error()})
				continue
			}
			good[id] = true
		}
	}
	if got := r.rec.Checkpoint.Bytes; got != r.bytes() {
		err := fmt.Errorf("checkpoint %v: its tensors have %d bytes, its record says %d", p, r.bytes(), got)
		found = append(found, api.Damage{Checkpoint: p.String(), Err: err, Msg: err.Error()})
	}
	return found, nil
}

// bytes is the size of all tensors.
func (r *reader) bytes() (total int64) {
	for _, t := range r.infos {
		n, _ := t.Bytes() // parseTable has checked it
		total += n
	}
	return total
}
