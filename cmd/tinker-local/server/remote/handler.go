package remote

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"tinkerlocal/engine/api"
)

// Bounds of what the asking ends may take together.
const (
	maxSessions = 1024
	maxHeld     = 4096 // readers and writers of one session
	maxTensors  = 8    // on their way up: each is in memory whole
)

// Handler serves a store below a path that was cut off ([http.StripPrefix]). Who may ask is the caller's to judge. It must be
// drained or closed before the store is.
type Handler struct {
	store   api.StateStore
	mux     *http.ServeMux
	tensors chan struct{} // one for each that is on its way up
	stop    chan struct{} // closed by Close

	mu       sync.Mutex // guards what follows
	draining bool       // nothing more is opened
	closed   bool
	sessions map[string]*session
	holding  sync.WaitGroup // sessions that are open
}

// NewHandler serves s, which stays the caller's.
func NewHandler(s api.StateStore) *Handler {
	h := &Handler{
		store: s, mux: http.NewServeMux(), tensors: make(chan struct{}, maxTensors), stop: make(chan struct{}), sessions: map[string]*session{},
	}
	h.mux.HandleFunc("POST /session", h.open)
	h.mux.HandleFunc("POST /call/{method}", h.call)
	for pattern, serve := range map[string]func(*session, http.ResponseWriter, *http.Request) error{
		"POST /session/{session}/writers":               (*session).create,
		"PUT /session/{session}/writers/{item}":         (*session).tensor,
		"POST /session/{session}/writers/{item}/commit": (*session).commit,
		"DELETE /session/{session}/writers/{item}":      (*session).abort,
		"POST /session/{session}/readers":               (*session).openReader,
		"GET /session/{session}/readers/{item}":         (*session).read,
		"DELETE /session/{session}/readers/{item}":      (*session).closeReader,
	} {
		h.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			s, err := h.session(r.PathValue("session"))
			if err == nil {
				err = serve(s, w, r)
			}
			if err != nil {
				refuse(w, err)
			}
		})
	}
	return h
}

// ServeHTTP answers a request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := mismatch(r.Header.Get(protocolHeader)); err != nil {
		refuse(w, err)
		return
	}
	// The times that a server gives to clients of all kinds are not for sessions, and not for a tensor that waits for the disk. What
	// cannot be set is of a handler without a connection.
	connection := http.NewResponseController(w)
	_ = connection.SetReadDeadline(time.Time{})
	_ = connection.SetWriteDeadline(time.Time{})
	h.mux.ServeHTTP(w, r)
}

var errStopping = api.Errorf(api.Closed, "the server is being stopped")

// open begins a session and holds it until the other end, or this one, is done.
func (h *Handler) open(w http.ResponseWriter, r *http.Request) {
	s, err := h.begin()
	if err != nil {
		refuse(w, err)
		return
	}
	defer h.end(s)
	answer(w, hello{s.id})
	if http.NewResponseController(w).Flush() != nil {
		return
	}
	select {
	case <-r.Context().Done():
	case <-h.stop:
	}
}

func (h *Handler) begin() (*session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.draining:
		return nil, errStopping
	case len(h.sessions) >= maxSessions:
		return nil, api.Errorf(api.Busy, "%d programs have the store open, the limit is %d", len(h.sessions), maxSessions)
	}
	s := &session{h: h, id: rand.Text(), items: map[string]item{}}
	h.sessions[s.id] = s
	h.holding.Add(1)
	return s, nil
}

func (h *Handler) end(s *session) {
	h.mu.Lock()
	delete(h.sessions, s.id)
	h.mu.Unlock()
	s.close()
	h.holding.Done()
}

func (h *Handler) session(id string) (*session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, ok := h.sessions[id]
	if !ok {
		return nil, api.Errorf(api.Closed, "the session has ended")
	}
	return s, nil
}

// Sessions counts the programs that have the store open.
func (h *Handler) Sessions() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.sessions)
}

// Drain lets nothing more be opened and waits until what is open has been closed, or ctx has ended.
func (h *Handler) Drain(ctx context.Context) error {
	h.mu.Lock()
	h.draining = true
	h.mu.Unlock()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for h.held() > 0 {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}

// held counts the readers and writers that are open.
func (h *Handler) held() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		n += s.len()
	}
	return n
}

// Close ends all sessions, and waits until their readers are closed and their writers aborted. It may be called twice.
func (h *Handler) Close() {
	h.mu.Lock()
	h.draining = true
	if !h.closed {
		h.closed = true
		close(h.stop)
	}
	h.mu.Unlock()
	h.holding.Wait()
}

func answer(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(b, '\n')) // whoever has gone away does not miss it
}

func refuse(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(statusOf(api.CodeOf(err)))
	w.Write(errorJSON(err))
}
