package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// Options say what a server works with. Engine is required.
type Options struct {
	Engine *engine.Engine // stays the caller's

	// Describe tells what the folder of a base model says; nil: nothing is known of any.
	Describe func(model string) (ModelFacts, error)

	Keys      *Keys  // who may come in; nil: whoever has a key that begins with KeyPrefix is engine.LocalOwner
	Admin     string // the key of this program's own command line; "": it is not served
	Secret    []byte // signs ids of sessions and download links; those of an earlier server with the same one stay good. Nil: a fresh one
	Hosts     []string
	PublicURL string // where clients reach the server, for download links; "": as each client's request says

	// AddPlugin checks a loss module and keeps it; nil: modules cannot be uploaded.
	AddPlugin func(ctx context.Context, name string, module []byte) (any, error)

	Limits Limits
	Log    *slog.Logger     // nil: nothing is logged. Keys and bodies never are
	Now    func() time.Time // nil: time.Now
}

// ModelFacts are what clients want to know about a base model.
type ModelFacts struct {
	Arch      string // as its config.json has it
	Context   int    // tokens
	Tokenizer string // folder with its tokenizer, as the client's own library opens it; "": the model's name is all there is
}

// Server is an [http.Handler]. Close it before its engine.
type Server struct {
	opt     Options
	lim     Limits
	log     *slog.Logger
	engine  *engine.Engine
	handler http.Handler
	bodies  *semaphore.Weighted
	ready   atomic.Bool
	started time.Time

	stopping chan struct{} // closed when polls are to answer at once
	stop     context.CancelFunc
	janitor  sync.WaitGroup

	mu       sync.Mutex // guards what follows
	stopped  bool
	sessions map[string]*session
	runs     map[string]*run
	samplers map[string]*sampler
	ops      map[string]*op
}

// New makes a server. It is not ready until [Server.Ready] is called.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Secret == nil {
		o.Secret = make([]byte, sha256.Size)
		rand.Read(o.Secret) // never fails
	}
	if o.Describe == nil {
		o.Describe = func(string) (ModelFacts, error) { return ModelFacts{}, nil }
	}
	lim := o.Limits.withDefaults()
	s := &Server{
		opt: o, lim: lim, log: o.Log, engine: o.Engine, bodies: semaphore.NewWeighted(lim.Bodies), started: o.Now(),
		stopping: make(chan struct{}),
		sessions: map[string]*session{}, runs: map[string]*run{}, samplers: map[string]*sampler{}, ops: map[string]*op{},
	}
	s.handler = s.guarded(s.routes())
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.janitor.Go(func() { s.sweepUntil(ctx) })
	return s
}

// Ready makes readyz say so: the models that were asked for are loaded.
func (s *Server) Ready() { s.ready.Store(true) }

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Drain takes no more work and waits until what was taken has ended, or ctx has. Clients that wait for results can still fetch them, and
// are given a moment to.
func (s *Server) Drain(ctx context.Context) error {
	s.mu.Lock()
	s.stopped = true
	var open []*op
	for _, o := range s.ops {
		open = append(open, o)
	}
	s.mu.Unlock()
	for _, o := range open {
		select {
		case <-o.work.Done():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	for s.expected() && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(fetchTime / 100):
		}
	}
	return nil
}

// fetchTime is the moment that clients have for their results when the server is stopped.
const fetchTime = 3 * time.Second

// expected says whether there are results that a client has asked for lately and not got.
func (s *Server) expected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.ops {
		if o.asked && o.fetched.IsZero() && s.opt.Now().Sub(o.polled) < s.lim.SamplePatience {
			return true
		}
	}
	return false
}

// Close ends waiting polls and closes all sessions. It does not wait for the engine. It is called once.
func (s *Server) Close() {
	s.stop()
	close(s.stopping)
	s.janitor.Wait()
	s.mu.Lock()
	s.stopped = true
	for _, sess := range s.sessions {
		s.drop(sess)
	}
	s.mu.Unlock()
}

// sweepUntil looks after what clients have left until ctx ends.
func (s *Server) sweepUntil(ctx context.Context) {
	tick := time.NewTicker(min(10*time.Second, s.lim.SamplePatience/4, s.lim.Keep/4, s.lim.SessionIdle/4))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.sweep(s.opt.Now())
		}
	}
}

// sweep forgets results that were fetched, cancels samples that nobody waits for, and closes sessions that are silent.
func (s *Server) sweep(now time.Time) {
	var abandoned []*op
	s.mu.Lock()
	for id, o := range s.ops {
		switch {
		case o.forgotten(now, s.lim):
			delete(s.ops, id)
		case o.abandoned(now, s.lim):
			abandoned = append(abandoned, o)
		}
	}
	for _, sess := range s.sessions {
		if now.Sub(sess.seen) > s.lim.SessionIdle {
			s.log.Info("session closed: its client is silent", "session", sess.id, "owner", sess.owner, "since", sess.seen)
			s.drop(sess)
		}
	}
	s.mu.Unlock()
	for _, o := range abandoned {
		s.log.Info("sample cancelled: nobody waits for it", "request", o.id)
		o.work.Cancel()
	}
}

// errStopping refuses work while the server is being stopped.
var errStopping = api.Errorf(api.Closed, "the server is being stopped")
