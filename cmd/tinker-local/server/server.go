package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tinkerlocal/cmd/tinker-local/server/remote"
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

	Version string // of the program, for Report
	Limits  Limits
	Log     *slog.Logger     // nil: nothing is logged. Keys and bodies never are
	Now     func() time.Time // nil: time.Now
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
	ready   atomic.Bool

	keyOwners map[string]string // by fingerprint

	connections atomic.Int64 // open ones of Web

	remote  *remote.Handler // the store, for this program's own command line; nil: it is not served
	started time.Time

	// What owners share: requests being answered, bytes coming in and going out, downloads; sessions, runs, samplers; ops, the samples among them
	// that are under way, and the bytes that ops hold.
	calls, bodies, answers, downloads       *pool
	sessionPlaces, runPlaces, samplerPlaces *pool
	places, samples, held                   *pool

	stopping chan struct{} // closed when polls are to answer at once
	stop     context.CancelFunc
	janitor  sync.WaitGroup

	mu       sync.Mutex // guards what follows
	stopped  bool
	sessions map[string]*session
	past     map[string]about // sessions that were closed
	runs     map[string]*run
	samplers map[string]*sampler
	ops      map[opKey]*op
	open     map[*op]bool         // those that are not known to be done
	kept     map[string]*kept     // of each owner
	reaped   map[string]time.Time // when an owner's results were last looked through for what can go
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
	lim := o.Limits.WithDefaults()
	fair := o.Keys.several()
	shared := func(n int) *pool { return newPool(int64(n), fair) }
	of := o.Engine.Limits()
	s := &Server{
		opt: o, lim: lim, log: o.Log, engine: o.Engine, started: o.Now(), stopping: make(chan struct{}),
		calls: shared(lim.Connections), bodies: newPool(lim.Bodies, fair), answers: newPool(lim.Answers, fair), downloads: newPool(int64(lim.Downloads), false),
		sessionPlaces: shared(lim.Sessions), runPlaces: shared(of.Runs), samplerPlaces: shared(lim.Samplers),
		places: shared(lim.Ops), samples: shared(of.SampleRequests), held: newPool(lim.Held, fair),
		sessions: map[string]*session{}, past: map[string]about{}, runs: map[string]*run{}, samplers: map[string]*sampler{},
		ops: map[opKey]*op{}, open: map[*op]bool{}, kept: map[string]*kept{}, reaped: map[string]time.Time{},
	}
	if st, ok := o.Engine.Checkpoints().(api.StateStore); ok && o.Admin != "" {
		s.remote = remote.NewHandler(st)
	}
	s.keyOwners = s.fingerprints()
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

// Bounds of one connection, beside those in Limits.
const (
	maxHeaderBytes = 64 << 10
	idleTime       = 2 * time.Minute // between two requests
)

// Web is the standard library's server around s. Its listener is one of [Listen].
func (s *Server) Web() *http.Server {
	return &http.Server{
		Handler: s, ReadHeaderTimeout: s.lim.HeadTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), ConnState: s.countConnection,
	}
}

// Drain takes no more work and waits until what was taken has ended, or ctx has. Clients that wait for results can still fetch them, and
// are given a moment to.
func (s *Server) Drain(ctx context.Context) error {
	s.mu.Lock()
	s.stopped = true
	open := slices.Collect(maps.Keys(s.open))
	s.mu.Unlock()
	if s.remote != nil {
		if err := s.remote.Drain(ctx); err != nil {
			return err
		}
	}
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
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.stop()
	close(s.stopping) // before sessions are closed: polls then tell of the stop and not of what it does to the work
	s.janitor.Wait()
	if s.remote != nil {
		s.remote.Close()
	}
	s.mu.Lock()
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
	for _, o := range s.ops {
		s.settle(o)
		switch {
		case o.forgotten(now, s.lim):
			s.forget(o)
		case o.abandoned(now, s.lim):
			abandoned = append(abandoned, o)
			s.forget(o) // a client that comes back is told to ask anew
		}
	}
	for _, k := range s.kept {
		s.tidy(k)
	}
	s.dropFailed()
	s.dropWatches(now)
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

func (s *Server) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// isStopping says whether polls are to answer at once.
func (s *Server) isStopping() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

// errStopping refuses work while the server is being stopped.
var errStopping = api.Errorf(api.Closed, "the server is being stopped")
