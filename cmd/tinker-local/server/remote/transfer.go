package remote

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"sync"

	"tinkerlocal/engine/api"
)

// Create is of api.Store.
func (s *Store) Create(ctx context.Context, c api.Checkpoint, o api.SaveOptions) (api.CheckpointWriter, error) {
	if err := s.check(c.Path); err != nil {
		return nil, err
	}
	x, err := askJSON[created](ctx, s, http.MethodPost, s.sessionPath("writers"), createCall{c, o})
	if err != nil {
		return nil, err
	}
	return &writer{s: s, path: c.Path, at: s.sessionPath("writers", x.Writer)}, nil
}

// writer is a checkpoint on its way to the other end.
type writer struct {
	s    *Store
	path api.Path
	at   string
	over bool
	err  error // of the first tensor that failed
}

// Tensor is of api.CheckpointWriter. It returns when the other end has the tensor.
func (w *writer) Tensor(ctx context.Context, t api.TensorInfo, data []byte) error {
	switch {
	case w.over:
		return api.Errorf(api.BadRequest, "checkpoint %v: tensor %q comes after commit or abort", w.path, t.Name)
	case w.err != nil:
		return w.err
	}
	_, w.err = readAnswer[nothing](ctx, w.s)(w.s.ask(ctx, http.MethodPut, w.at, tensorQuery(t), bytes.NewReader(data), int64(len(data))))
	return w.err
}

// Commit is of api.CheckpointWriter. A connection that breaks meanwhile leaves open whether the checkpoint is there.
func (w *writer) Commit(ctx context.Context) (c api.Checkpoint, err error) {
	if w.over {
		return c, api.Errorf(api.BadRequest, "checkpoint %v: commit after commit or abort", w.path)
	}
	if err = w.err; err == nil {
		c, err = askJSON[api.Checkpoint](ctx, w.s, http.MethodPost, w.at+"/commit", nothing{})
	}
	if err != nil {
		w.Abort()
		return api.Checkpoint{}, err
	}
	w.over = true
	return c, nil
}

// Abort is of api.CheckpointWriter.
func (w *writer) Abort() {
	if w.over {
		return
	}
	w.over = true
	w.s.giveUp(w.at)
}

// giveUp closes a reader or a writer at the other end. If that fails, it is closed with the session.
func (s *Store) giveUp(at string) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	if m, err := s.ask(ctx, http.MethodDelete, at, nil, nil, 0); err == nil {
		m.close()
	}
}

// Open is of api.Store.
func (s *Store) Open(ctx context.Context, p api.Path) (api.CheckpointReader, error) {
	if err := s.check(p); err != nil {
		return nil, err
	}
	x, err := askJSON[opened](ctx, s, http.MethodPost, s.sessionPath("readers"), pathCall{Path: p})
	if err != nil {
		return nil, err
	}
	r := &reader{s: s, c: x.Checkpoint, tensors: x.Tensors, sizes: map[string]int64{}, at: s.sessionPath("readers", x.Reader)}
	for _, t := range x.Tensors {
		if r.sizes[t.Name], err = t.Bytes(); err != nil {
			r.Close()
			return nil, err
		}
	}
	return r, nil
}

// reader reads a checkpoint at the other end.
type reader struct {
	s       *Store
	c       api.Checkpoint
	tensors []api.TensorInfo
	sizes   map[string]int64
	at      string
	once    sync.Once
}

func (r *reader) Checkpoint() api.Checkpoint { return r.c }

func (r *reader) Tensors() []api.TensorInfo { return r.tensors }

func (r *reader) Close() error {
	r.once.Do(func() { r.s.giveUp(r.at) })
	return nil
}

// Read is of api.CheckpointReader.
func (r *reader) Read(ctx context.Context, name string, dst []byte) error {
	if n, ok := r.sizes[name]; ok && n != int64(len(dst)) {
		return api.Errorf(api.BadRequest, "checkpoint %v: tensor %q has %d bytes, the buffer %d", r.c.Path, name, n, len(dst))
	}
	return r.receive(ctx, name, func(body io.Reader) (int64, error) {
		n, err := io.ReadFull(body, dst)
		return int64(n), err
	})
}

// Stream is of api.CheckpointReader.
func (r *reader) Stream(ctx context.Context, name string, w io.Writer) error {
	out := &sink{w: w}
	err := r.receive(ctx, name, func(body io.Reader) (int64, error) {
		return io.CopyBuffer(out, body, make([]byte, pipeBytes))
	})
	if out.err != nil {
		return out.err
	}
	return err
}

// sink remembers that it was w that failed.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(p []byte) (n int, err error) {
	n, s.err = s.w.Write(p)
	return n, s.err
}

// receive asks for a tensor and hands its content to take, which tells how much it took. What went wrong at the other end
// comes last.
func (r *reader) receive(ctx context.Context, name string, take func(io.Reader) (int64, error)) error {
	m, err := r.s.ask(ctx, http.MethodGet, r.at, url.Values{"name": {name}}, nil, 0)
	if err != nil {
		return err
	}
	defer m.close()
	n, err := take(m.Body)
	if err == nil || err == io.EOF || err == io.ErrUnexpectedEOF {
		_, rest := io.Copy(io.Discard, m.Body) // the trailer comes behind the body
		if text := m.Trailer.Get(errorTrailer); text != "" {
			return parseError(m.Status, []byte(text))
		}
		if rest != nil {
			err = rest
		}
	}
	switch want := r.sizes[name]; {
	case err != nil:
		return r.s.failed(ctx, err)
	case n != want:
		return api.Errorf(api.Internal, "checkpoint %v: tensor %q came with %d bytes, wanted %d", r.c.Path, name, n, want)
	}
	return nil
}
