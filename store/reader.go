package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"tinkerlocal/engine/api"
)

// reader reads one checkpoint. It pins the chunks, so that they outlive the record.
type reader struct {
	s     *Store
	rec   record
	list  []tensor
	infos []api.TensorInfo
	index map[string]int
	once  sync.Once
	held  map[sum]bool
}

// Open is of api.Store.
func (s *Store) Open(ctx context.Context, p api.Path) (api.CheckpointReader, error) {
	if err := cancelled(ctx); err != nil {
		return nil, err
	}
	return s.open(p)
}

func (s *Store) open(p api.Path) (*reader, error) {
	for {
		s.mu.Lock()
		e, err := s.find(p)
		if err != nil {
			s.mu.Unlock()
			return nil, err
		}
		r := &reader{s: s, rec: e.record, held: map[sum]bool{}, index: map[string]int{}}
		s.hold(r.held, r.rec.Table)
		s.mu.Unlock()
		list, err := s.readTable(&r.rec)
		r.list = list
		s.mu.Lock()
		now, there := s.entries[r.rec.Checkpoint.Path]
		stale := !there || now.Seq != r.rec.Seq // its chunks may have been collected
		for i, t := range list {
			r.index[t.Name] = i
			r.infos = append(r.infos, t.TensorInfo)
			s.hold(r.held, t.Chunks)
		}
		s.mu.Unlock()
		if err == nil && !stale {
			return r, nil
		}
		r.Close()
		if !stale {
			return nil, err
		}
	}
}

// hold pins chunks. mu is held.
func (s *Store) hold(held map[sum]bool, ids []sum) {
	for _, id := range ids {
		if !held[id] {
			held[id] = true
			s.pins[id]++
		}
	}
}

// readTable reads a checkpoint's table of tensors.
func (s *Store) readTable(r *record) ([]tensor, error) {
	text := make([]byte, r.TableBytes)
	for i, id := range r.Table {
		if err := s.readChunk(text[i*r.ChunkBytes:min(len(text), (i+1)*r.ChunkBytes)], id); err != nil {
			return nil, fmt.Errorf("checkpoint %v: table of tensors: chunk %d of %d (%v): %w", r.Checkpoint.Path, i+1, len(r.Table), id, err)
		}
	}
	t, err := parseTable(text, r.ChunkBytes)
	if err != nil {
		return nil, api.Errorf(api.DataLoss, "checkpoint %v: table of tensors: %w", r.Checkpoint.Path, err)
	}
	return t.Tensors, nil
}

// readChunk fills dst with a chunk's content.
func (s *Store) readChunk(dst []byte, id sum) error {
	err := s.db.get(id.key(), func(v []byte) error {
		if err := s.codec.decode(dst, v, id); err != nil {
			return api.Errorf(api.DataLoss, "is damaged: it %w", err)
		}
		return nil
	})
	switch {
	case err == nil, api.CodeOf(err) == api.Closed, api.CodeOf(err) == api.DataLoss:
		return err
	case errors.Is(err, errAbsent):
		return api.Errorf(api.DataLoss, "is missing")
	}
	return api.Errorf(api.DataLoss, "%w", err)
}

func (r *reader) Checkpoint() api.Checkpoint { return r.rec.Checkpoint }

func (r *reader) Tensors() []api.TensorInfo { return r.infos }

// piece reads chunk i of t into dst.
func (r *reader) piece(t *tensor, i int, dst []byte) error {
	if err := r.s.readChunk(dst, t.Chunks[i]); err != nil {
		return fmt.Errorf("checkpoint %v: tensor %q: chunk %d of %d (%v): %w", r.rec.Checkpoint.Path, t.Name, i+1, len(t.Chunks), t.Chunks[i], err)
	}
	return nil
}

func (r *reader) find(name string) (*tensor, int64, error) {
	i, ok := r.index[name]
	if !ok {
		return nil, 0, api.Errorf(api.NotFound, "checkpoint %v has no tensor %.200q", r.rec.Checkpoint.Path, name)
	}
	n, err := r.list[i].Bytes()
	return &r.list[i], n, err
}

func (r *reader) Read(ctx context.Context, name string, dst []byte) error {
	t, n, err := r.find(name)
	if err != nil {
		return err
	}
	if n != int64(len(dst)) {
		return api.Errorf(api.BadRequest, "checkpoint %v: tensor %q has %d bytes, the buffer %d", r.rec.Checkpoint.Path, name, n, len(dst))
	}
	var work sync.WaitGroup
	slots := make(chan struct{}, r.s.opt.Workers)
	errs := make([]error, len(t.Chunks))
	for i := range t.Chunks {
		if err = cancelled(ctx); err != nil {
			break
		}
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			errs[i] = r.piece(t, i, dst[i*r.rec.ChunkBytes:min(len(dst), (i+1)*r.rec.ChunkBytes)])
		})
	}
	work.Wait()
	for _, e := range errs {
		if e != nil {
			return e
		}
	}
	return err
}

func (r *reader) Stream(ctx context.Context, name string, w io.Writer) error {
	t, n, err := r.find(name)
	if err != nil {
		return err
	}
	buf := make([]byte, min(n, int64(r.rec.ChunkBytes)))
	for i := range t.Chunks {
		if err := cancelled(ctx); err != nil {
			return err
		}
		part := buf[:min(n, int64(len(buf)))]
		if err := r.piece(t, i, part); err != nil {
			return err
		}
		if _, err := w.Write(part); err != nil {
			return err
		}
		n -= int64(len(part))
	}
	return nil
}

func (r *reader) Close() error {
	r.once.Do(func() {
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		r.s.unpin(r.held)
	})
	return nil
}
