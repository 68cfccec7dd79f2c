package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
)

// writer is one checkpoint on its way into the store.
type writer struct {
	s    *Store
	c    api.Checkpoint
	o    api.SaveOptions
	size int64 // of the tensors given so far
	list table
	held map[sum]bool // pins; guarded by s.mu
	seen map[string]bool
	over bool

	slots chan struct{} // bounds the chunks under way
	work  sync.WaitGroup
	queue chan []op // batches to be written while the next one is compressed; closed by drain
	drain func()    // waits until queue is written; the first call only

	mu      sync.Mutex // guards what follows
	batch   []op
	bytes   int
	stored  int64
	written int64
	err     error // of the first chunk that failed
}

// Create is of api.Store.
func (s *Store) Create(ctx context.Context, c api.Checkpoint, o api.SaveOptions) (api.CheckpointWriter, error) {
	if err := cancelled(ctx); err != nil {
		return nil, err
	}
	if err := checkNew(c, o); err != nil {
		return nil, err
	}
	free := s.freeSpace()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writable(); err != nil {
		return nil, err
	}
	if err := s.taken(c.Path, o); err != nil {
		return nil, err
	}
	if need := c.Bytes + s.opt.Margin; free-s.reserved < need {
		return nil, fmt.Errorf("checkpoint %v: %w", c.Path, disk.NoRoom(s.dir, need, free-s.reserved, nil))
	}
	s.reserved += c.Bytes
	c.UserMetadata = maps.Clone(o.UserMetadata)
	w := &writer{
		s: s, c: c, o: o, held: map[sum]bool{}, seen: map[string]bool{},
		slots: make(chan struct{}, s.opt.Workers+1), queue: make(chan []op),
	}
	var flusher sync.WaitGroup
	w.drain = sync.OnceFunc(func() {
		close(w.queue)
		flusher.Wait()
	})
	flusher.Go(w.flushAll)
	return w, nil
}

// flushAll writes batches until drain is called.
func (w *writer) flushAll() {
	for ops := range w.queue {
		if err := w.flush(ops); err != nil {
			w.failed(err)
		}
	}
}

func checkNew(c api.Checkpoint, o api.SaveOptions) error {
	if err := c.Path.Check(); err != nil {
		return err
	}
	switch {
	case c.Path.Kind == "":
		return api.Errorf(api.BadRequest, "path %v has no kind, wanted %s, %s or %s", c.Path, api.KindState, api.KindSampler, api.KindExternal)
	case c.Owner == "" || len(c.Owner) > maxOwner:
		return api.Errorf(api.BadRequest, "checkpoint %v: the owner has %d bytes, wanted 1 to %d", c.Path, len(c.Owner), maxOwner)
	case c.Bytes < 0 || c.Bytes > 1<<56:
		return api.Errorf(api.BadRequest, "checkpoint %v: its size is %d, wanted 0 to 2^56", c.Path, c.Bytes)
	case o.TTL < 0:
		return api.Errorf(api.BadRequest, "checkpoint %v: the time to live is %v, wanted more than 0, or 0 for ever", c.Path, o.TTL)
	case o.KeepLast < 0:
		return api.Errorf(api.BadRequest, "checkpoint %v: keep_last is %d, wanted 1 or more, or 0 for all", c.Path, o.KeepLast)
	}
	if err := api.CheckMetadata(o.UserMetadata, api.MaxCheckpointMetadataBytes); err != nil {
		return fmt.Errorf("checkpoint %v: %w", c.Path, err)
	}
	return nil
}

// taken says whether p is another checkpoint's. mu is held.
func (s *Store) taken(p api.Path, o api.SaveOptions) error {
	if e, ok := s.entries[p]; ok && !o.Overwrite && !e.expired(s.opt.Now()) {
		return api.Errorf(api.BadRequest, "checkpoint %v exists since %s; wanted another name, or overwrite", p, e.Checkpoint.Created.Format("2006-01-02 15:04:05"))
	}
	return nil
}

// freeSpace is how many bytes the disk has, math.MaxInt64 when nobody knows.
func (s *Store) freeSpace() int64 {
	if s.free == nil {
		return math.MaxInt64
	}
	n, err := s.free()
	if err != nil {
		return math.MaxInt64
	}
	return n
}

// Tensor is of api.CheckpointWriter.
func (w *writer) Tensor(ctx context.Context, t api.TensorInfo, data []byte) error {
	if w.over {
		return api.Errorf(api.BadRequest, "checkpoint %v: tensor %q comes after commit or abort", w.c.Path, t.Name)
	}
	n, err := t.Bytes()
	switch {
	case err != nil:
		return w.failed(err)
	case n != int64(len(data)):
		return w.failed(api.Errorf(api.BadRequest, "tensor %q has %d bytes, wanted %d for %s%v", t.Name, len(data), n, t.DType, t.Shape))
	case w.seen[t.Name]:
		return w.failed(api.Errorf(api.BadRequest, "tensor %q is there twice", t.Name))
	case len(w.list.Tensors) == maxTensors:
		return w.failed(api.Errorf(api.BadRequest, "more than %d tensors", maxTensors))
	}
	w.seen[t.Name] = true
	t.Shape = append([]int{}, t.Shape...)
	sums, err := w.chunks(ctx, data, api.DTypeBytes(t.DType))
	if err != nil {
		return w.failed(err)
	}
	w.size += n
	w.list.Tensors = append(w.list.Tensors, tensor{t, sums})
	return nil
}

// failed keeps err as the writer's end.
func (w *writer) failed(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = fmt.Errorf("checkpoint %v: %w", w.c.Path, err)
	}
	return w.err
}

// chunks cuts data and hands the chunks to workers. The sums are filled in when w.work is done.
func (w *writer) chunks(ctx context.Context, data []byte, elem int) ([]sum, error) {
	sums := make([]sum, pieces(int64(len(data)), chunkBytes))
	for i := range sums {
		part := data[i*chunkBytes : min(len(data), (i+1)*chunkBytes)]
		select {
		case w.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-w.s.stop:
			return nil, errClosed
		}
		w.mu.Lock()
		err := w.err
		w.mu.Unlock()
		if err != nil {
			<-w.slots
			return nil, err
		}
		w.work.Go(func() {
			defer func() { <-w.slots }()
			sums[i] = hash(part)
			if err := w.chunk(sums[i], part, elem); err != nil {
				w.failed(err)
			}
		})
	}
	return sums, nil
}

// chunk puts one chunk into the store, unless it is there.
func (w *writer) chunk(id sum, content []byte, elem int) error {
	if first := w.pin(id); !first {
		return nil // this writer has it already
	}
	n, err := w.s.db.size(id.key())
	if err == nil {
		w.mu.Lock()
		w.stored += int64(n)
		w.mu.Unlock()
		return nil
	}
	if !errors.Is(err, errAbsent) {
		return fmt.Errorf("look for chunk %v: %w", id, err)
	}
	value := w.s.codec.encode(content, elem)
	w.mu.Lock()
	w.stored += int64(len(value))
	w.written += int64(len(value))
	w.batch = append(w.batch, op{id.key(), value})
	w.bytes += len(value)
	var full []op
	if w.bytes >= batchBytes-chunkBytes || len(w.batch) >= 256 {
		full, w.batch, w.bytes = w.batch, nil, 0
	}
	w.mu.Unlock()
	if full != nil {
		w.queue <- full
	}
	return nil
}

func (w *writer) flush(ops []op) error {
	if len(ops) == 0 {
		return nil
	}
	if err := w.s.db.apply(ops); err != nil {
		return fmt.Errorf("write %d chunks: %w", len(ops), err)
	}
	return nil
}

// pin keeps a chunk from being collected. It waits if that is under way.
func (w *writer) pin(id sum) (first bool) {
	s := w.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.held[id] {
		return false
	}
	w.held[id] = true
	s.pins[id]++
	for s.deleting[id] && !s.closed {
		s.wake.Wait()
	}
	return true
}

// release ends the writer: its reservation and its pins. mu is held.
func (w *writer) release() {
	w.s.reserved -= w.c.Bytes
	w.s.unpin(w.held)
	w.held = nil
}

// unpin gives pins back. mu is held.
func (s *Store) unpin(held map[sum]bool) {
	for id := range held {
		if s.pins[id]--; s.pins[id] == 0 {
			delete(s.pins, id)
		}
	}
}

// Commit is of api.CheckpointWriter.
func (w *writer) Commit(ctx context.Context) (api.Checkpoint, error) {
	if w.over {
		return api.Checkpoint{}, api.Errorf(api.BadRequest, "checkpoint %v: commit after commit or abort", w.c.Path)
	}
	r, err := w.finish(ctx)
	if err == nil {
		err = w.commit(r)
	}
	if err != nil {
		w.Abort()
		return api.Checkpoint{}, err
	}
	return r.Checkpoint, nil
}

// finish writes all chunks, those of the table too, and makes them durable.
func (w *writer) finish(ctx context.Context) (*record, error) {
	w.work.Wait()
	text, err := json.Marshal(w.list)
	if err != nil {
		return nil, err
	}
	if len(text) > maxTableBytes {
		return nil, api.Errorf(api.BadRequest, "checkpoint %v: its table of tensors has %d bytes, wanted at most %d", w.c.Path, len(text), maxTableBytes)
	}
	sums, err := w.chunks(ctx, text, 1)
	w.work.Wait()
	w.drain()
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	err, last := w.err, w.batch
	w.batch = nil
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := w.flush(last); err != nil {
		return nil, fmt.Errorf("checkpoint %v: %w", w.c.Path, err)
	}
	if err := w.s.sync(); err != nil {
		return nil, fmt.Errorf("checkpoint %v: %w", w.c.Path, err)
	}
	c := w.c
	c.Bytes, c.Tensors, c.Stored, c.Written = w.size, len(w.list.Tensors), w.stored, w.written
	c.SHA256 = hash(text).String()
	return &record{Checkpoint: c, ChunkBytes: chunkBytes, TableBytes: len(text), Table: sums}, nil
}

// commit writes the record, and deletes what the options say in the same transaction.
func (w *writer) commit(r *record) error {
	s := w.s
	s.recording.Lock()
	defer s.recording.Unlock()
	s.mu.Lock()
	err := s.writable()
	if err == nil {
		err = s.taken(w.c.Path, w.o)
	}
	if err != nil {
		s.mu.Unlock()
		return err
	}
	c := &r.Checkpoint
	c.Created, c.Expires, c.Public = s.opt.Now().UTC(), w.expiry(), false
	r.Seq = s.seq + 1
	old := s.older(c.Path, w.o.KeepLast)
	s.mu.Unlock()
	value, err := seal(r)
	if err != nil {
		return err
	}
	if len(value) > maxRecordBytes {
		return api.Errorf(api.BadRequest, "checkpoint %v: its record has %d bytes, wanted at most %d", c.Path, len(value), maxRecordBytes)
	}
	ops := []op{{checkpointKey(c.Path), value}}
	for _, p := range old {
		ops = append(ops, op{key: checkpointKey(p)})
	}
	if err := s.record(ops); err != nil {
		return fmt.Errorf("checkpoint %v: %w", c.Path, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, replaced := s.entries[c.Path]; replaced || len(old) > 0 {
		s.dirty = true
	}
	s.seq = r.Seq
	s.entries[c.Path] = &entry{record: *r}
	delete(s.damaged, checkpointKey(c.Path))
	for _, p := range old {
		delete(s.entries, p)
	}
	for id := range w.held {
		if s.live != nil {
			s.live[id] = true
		}
	}
	w.over = true
	w.release()
	return nil
}

// expiry is when the checkpoint expires, if it does.
func (w *writer) expiry() (t time.Time) {
	if w.o.TTL > 0 {
		t = w.s.opt.Now().UTC().Add(w.o.TTL)
	}
	return t
}

// older lists what has to go so that, with a new checkpoint p, keep are left of p's run and kind. mu is held.
func (s *Store) older(p api.Path, keep int) []api.Path {
	if keep <= 0 {
		return nil
	}
	now := s.opt.Now()
	var all []*entry
	for q, e := range s.entries {
		if q.Run == p.Run && q.Kind == p.Kind && q != p && !e.Checkpoint.Public && !e.expired(now) {
			all = append(all, e)
		}
	}
	if len(all) < keep {
		return nil
	}
	slices.SortFunc(all, newestFirst)
	var out []api.Path
	for _, e := range all[keep-1:] {
		out = append(out, e.Checkpoint.Path)
	}
	return out
}

// Abort is of api.CheckpointWriter.
func (w *writer) Abort() {
	if w.over {
		return
	}
	w.over = true
	w.failed(api.Errorf(api.Cancelled, "aborted"))
	w.work.Wait()
	w.drain()
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.dirty = true // chunks without a record
	w.release()
}
