package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"tinkerlocal/engine/api"
)

// Damage is one thing that cannot be read.
type Damage struct {
	Checkpoint string `json:"checkpoint"` // its path, or a run's id
	Tensor     string `json:"tensor,omitempty"`
	Chunk      int    `json:"chunk,omitempty"` // from 1; 0: the record, or the table of tensors
	Err        error  `json:"-"`
	Msg        string `json:"error"`
}

// Verify reads checkpoints from the disk and reports all that is damaged; none means that every byte is as it was
// saved. Without paths it reads everything, run records too. The error is of the reading itself, such as a path that is not there.
func (s *Store) Verify(ctx context.Context, paths ...api.Path) (found []Damage, err error) {
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
			found = append(found, Damage{Checkpoint: name, Err: err, Msg: "the record " + err.Error()})
		}
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
		slices.SortFunc(paths, func(a, b api.Path) int { return strings.Compare(a.String(), b.String()) })
		slices.SortFunc(found, func(a, b Damage) int { return strings.Compare(a.Checkpoint, b.Checkpoint) })
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
func (s *Store) verify(ctx context.Context, p api.Path, good map[sum]bool) (found []Damage, err error) {
	r, err := s.open(p)
	if api.CodeOf(err) == api.DataLoss && err != nil {
		return []Damage{{Checkpoint: p.String(), Err: err, Msg: err.Error()}}, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	buf := make([]byte, r.rec.ChunkBytes)
	for i := range r.list {
		t := &r.list[i]
		n, err := tensorBytes(t.TensorInfo)
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
				found = append(found, Damage{p.String(), t.Name, j + 1, err, err.Error()})
				continue
			}
			good[id] = true
		}
	}
	if got := r.rec.Checkpoint.Bytes; got != r.bytes() {
		err := fmt.Errorf("checkpoint %v: its tensors have %d bytes, its record says %d", p, r.bytes(), got)
		found = append(found, Damage{Checkpoint: p.String(), Err: err, Msg: err.Error()})
	}
	return found, nil
}

// bytes is the size of all tensors.
func (r *reader) bytes() (total int64) {
	for _, t := range r.infos {
		n, _ := tensorBytes(t) // parseTable has checked it
		total += n
	}
	return total
}
