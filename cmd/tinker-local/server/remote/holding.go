package remote

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"sync"

	"tinkerlocal/engine/api"
)

// session is what one asking end has open.
type session struct {
	h  *Handler
	id string

	mu    sync.Mutex // guards what follows
	ended bool
	last  int // number of the last item
	items map[string]item
}

// item is an open reader or writer.
type item interface{ end() }

// writing is an open writer. One request at a time uses it.
type writing struct {
	mu  sync.Mutex // guards w and err
	w   api.CheckpointWriter
	err error // a tensor did not arrive
}

// end aborts a writer that was not committed.
func (w *writing) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.w.Abort()
}

// reading is an open reader.
type reading struct{ api.CheckpointReader }

func (r reading) end() { r.Close() }

// add gives an item its number, or ends it.
func (s *session) add(i item) (string, error) {
	s.mu.Lock()
	err := error(nil)
	switch {
	case s.ended:
		err = api.Errorf(api.Closed, "the session has ended")
	case len(s.items) >= maxHeld:
		err = api.Errorf(api.Busy, "the program has %d readers and writers open, the limit is %d", len(s.items), maxHeld)
	default:
		s.last++
		id := strconv.Itoa(s.last)
		s.items[id] = i
		s.mu.Unlock()
		return id, nil
	}
	s.mu.Unlock()
	i.end()
	return "", err
}

func (s *session) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.items)
}

// drop ends an item. One that is not there was dropped before.
func (s *session) drop(id string) {
	s.mu.Lock()
	i, ok := s.items[id]
	s.mu.Unlock()
	if !ok {
		return
	}
	i.end()
	s.mu.Lock()
	delete(s.items, id) // last: Drain counts it until it has ended
	s.mu.Unlock()
}

// close ends everything that is open.
func (s *session) close() {
	s.mu.Lock()
	s.ended = true
	items := s.items
	s.items = nil
	s.mu.Unlock()
	for _, i := range items {
		i.end()
	}
}

// find is the item that a request names, if it is a T.
func find[T item](s *session, r *http.Request) (T, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.items[r.PathValue("item")].(T)
	if !ok {
		return i, api.Errorf(api.Closed, "it is closed")
	}
	return i, nil
}

// mayOpen refuses what would keep the server from ending.
func (s *session) mayOpen() error {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	if s.h.draining {
		return errStopping
	}
	return nil
}

func (s *session) create(w http.ResponseWriter, r *http.Request) error {
	var c createCall
	if err := readJSON(r.Body, maxCall, &c); err != nil {
		return err
	}
	if err := s.mayOpen(); err != nil {
		return err
	}
	// The request's context ends with the request; the writer does not.
	cw, err := s.h.store.Create(context.WithoutCancel(r.Context()), c.Checkpoint, c.Options)
	if err != nil {
		return err
	}
	id, err := s.add(&writing{w: cw})
	if err == nil {
		answer(w, created{id})
	}
	return err
}

// tensor takes a tensor as the body. One that does not arrive whole spoils the checkpoint: nobody may commit it without.
func (s *session) tensor(w http.ResponseWriter, r *http.Request) error {
	x, err := find[*writing](s, r)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	err = s.take(x, r)
	if err == nil {
		answer(w, nothing{})
	}
	return err
}

// take hands a tensor to its writer. x.mu is held.
func (s *session) take(x *writing, r *http.Request) error {
	t, err := parseTensor(r.URL.Query())
	if err == nil && r.ContentLength < 0 {
		err = api.Errorf(api.BadRequest, "tensor %q comes without its length", t.Name)
	}
	var data []byte
	if err == nil {
		select {
		case s.h.tensors <- struct{}{}:
			defer func() { <-s.h.tensors }()
			data = make([]byte, r.ContentLength)
			_, err = io.ReadFull(r.Body, data)
		case <-r.Context().Done():
			err = context.Cause(r.Context())
		}
		if err != nil {
			err = api.Errorf(api.Cancelled, "tensor %q broke off: %w", t.Name, err)
		}
	}
	if err != nil {
		x.err = err
		return err
	}
	return x.w.Tensor(r.Context(), t, data)
}

func (s *session) commit(w http.ResponseWriter, r *http.Request) error {
	x, err := find[*writing](s, r)
	if err != nil {
		return err
	}
	defer s.drop(r.PathValue("item"))
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err != nil {
		return x.err
	}
	c, err := x.w.Commit(r.Context())
	if err == nil {
		answer(w, c)
	}
	return err
}

func (s *session) abort(w http.ResponseWriter, r *http.Request) error {
	s.drop(r.PathValue("item"))
	answer(w, nothing{})
	return nil
}

func (s *session) openReader(w http.ResponseWriter, r *http.Request) error {
	var c pathCall
	if err := readJSON(r.Body, maxCall, &c); err != nil {
		return err
	}
	if err := s.mayOpen(); err != nil {
		return err
	}
	x, err := s.h.store.Open(r.Context(), c.Path)
	if err != nil {
		return err
	}
	id, err := s.add(reading{x})
	if err == nil {
		answer(w, opened{id, x.Checkpoint(), x.Tensors()})
	}
	return err
}

// read sends a tensor as it is read. Once it has begun, an error comes behind it.
func (s *session) read(w http.ResponseWriter, r *http.Request) error {
	x, err := find[reading](s, r)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Trailer", errorTrailer)
	body := &begun{w: w}
	err = x.Stream(r.Context(), r.URL.Query().Get("name"), body)
	if err != nil && !body.yes {
		h.Del("Trailer")
		return err
	}
	if err != nil {
		h.Set(errorTrailer, string(errorJSON(err)))
	}
	return nil
}

// begun knows whether anything was written.
type begun struct {
	w   io.Writer
	yes bool
}

func (b *begun) Write(p []byte) (int, error) {
	b.yes = true
	return b.w.Write(p)
}

func (s *session) closeReader(w http.ResponseWriter, r *http.Request) error {
	s.drop(r.PathValue("item"))
	answer(w, nothing{})
	return nil
}
