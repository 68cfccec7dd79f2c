package server

import (
	"context"
	"net/http"
	"slices"
	"time"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// op is work that a client was given a request id for. It stays until its result has been fetched, and a while longer.
type op struct {
	id      string
	owner   string
	session *session // it is alive when the op is asked for
	work    work
	sample  bool     // it is cancelled when nobody waits for it
	sampler *sampler // that a sample is of
	client  int64    // of the sampling session, that a sample is for
	reply   wire.Future

	// result is the answer to retrieve_future, and size about how many bytes it takes here, once the work is done.
	result func(protobuf bool) (reply, error)
	size   func() int64
	failed func() bool // the work has, once it is done

	// guarded by Server.mu
	held      int64     // bytes of Server.held that are its
	settled   bool      // it is known that the work is done
	polled    time.Time // last asked for; at first, when it was submitted
	asked     bool      // a client has asked for it
	fetched   time.Time // first answered; zero: not yet
	announced bool      // its size was told
	spare     bool      // it is among its owner's kept
}

// opKey is how an op is found: others' ops are not there.
type opKey struct{ owner, id string }

// work is a future of the engine, whatever its result is.
type work interface {
	Done() <-chan struct{}
	State() engine.State
	Cancel()
}

// smallResult is about what an op takes whose result is a few lines.
const smallResult = 1 << 10

// newOp is the op of a future whose result encode writes; size is about how many bytes a result takes, nil: few.
func newOp[T any](f *engine.Future[T], size func(T) int64, encode func(v T, protobuf bool) (reply, error)) *op {
	return &op{
		work: f,
		result: func(protobuf bool) (reply, error) {
			v, err := f.Wait(context.Background()) // it is done
			if err != nil {
				return reply{}, err
			}
			return encode(v, protobuf)
		},
		size: func() int64 {
			v, err := f.Wait(context.Background())
			if err != nil || size == nil {
				return smallResult
			}
			return smallResult + size(v)
		},
		failed: func() bool {
			_, err := f.Wait(context.Background())
			return err != nil
		},
	}
}

// asJSON makes an encoder of a result that is JSON for every client.
func asJSON[T any](convert func(T) any) func(T, bool) (reply, error) {
	return func(v T, _ bool) (reply, error) { return jsonReply(http.StatusOK, convert(v)) }
}

// endedOp is the op of work that is done at once.
func endedOp(result func() (reply, error)) *op {
	return &op{
		work: ended{}, result: func(bool) (reply, error) { return result() }, size: func() int64 { return smallResult },
		failed: func() bool {
			_, err := result()
			return err != nil
		},
	}
}

// ended is work that is done from the beginning.
type ended struct{}

var closedChannel = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (ended) Done() <-chan struct{} { return closedChannel }
func (ended) State() engine.State   { return engine.Ended }
func (ended) Cancel()               {}

// order asks for work.
type order struct {
	id      string
	session *session // whose it is
	bytes   int64    // that it will hold
	sample  bool
	sampler *sampler    // of a sample
	client  int64       // that a sample is for
	waited  func() bool // others wait for it and hold what it needs; nil: none do
	start   func() (*op, error)
}

// find is the op with an id, if it is owner's.
func (s *Server) find(id, owner string) (*op, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.ops[opKey{owner, id}]
	return o, ok
}

// submit answers with the op that has the order's id, or with one that it starts.
func (s *Server) submit(w order) (any, error) {
	owner := w.session.owner
	w.bytes = min(w.bytes+smallResult, s.lim.Held) // one that asks for more than there is gets all
	if o, ok := s.find(w.id, owner); ok {
		return o.reply, nil
	}
	if err := s.admit(w); err != nil {
		return nil, err
	}
	o, err := w.start()
	switch code := api.CodeOf(err); {
	case err == nil:
	case code == api.Busy, code == api.Closed:
		s.release(w.sample, owner, w.bytes)
		return nil, err // nothing is used up: the client comes again
	default:
		o = endedOp(func() (reply, error) { return reply{}, err })
	}
	o.id, o.owner, o.session, o.sample, o.held = w.id, owner, w.session, w.sample, w.bytes
	o.sampler, o.client = w.sampler, w.client
	o.reply.RequestID = w.id
	s.mu.Lock()
	defer s.mu.Unlock()
	key := opKey{owner, w.id}
	if first, ok := s.ops[key]; ok { // a repeat was quicker; the engine has taken both for one
		s.release(w.sample, owner, w.bytes)
		return first.reply, nil
	}
	o.polled = s.opt.Now()
	s.ops[key], s.open[o] = o, true
	if o.sampler != nil {
		o.sampler.ops[o] = true
	}
	return o.reply, nil
}

// admit takes what an order holds from its owner's share.
func (s *Server) admit(w order) error {
	owner := w.session.owner
	if s.isStopped() {
		return errStopping
	}
	err := s.reserve(w, owner)
	if err != nil && s.clear(owner, w.bytes) {
		err = s.reserve(w, owner)
	}
	if err != nil && s.reap(owner) && s.clear(owner, w.bytes) {
		err = s.reserve(w, owner)
	}
	return err
}

// reserve is admit without making room.
func (s *Server) reserve(w order, owner string) error {
	if !s.places.take(owner, 1) {
		return api.Errorf(api.Busy, "%d requests of %s wait for their results to be fetched, the limit is %d for all owners", s.places.of(owner), owner, s.lim.Ops)
	}
	if w.sample && !s.samples.take(owner, 1) {
		s.places.give(owner, 1)
		return api.Errorf(api.Busy, "%d samples of %s are under way, the limit is %d for all owners", s.samples.of(owner), owner, s.samples.limit)
	}
	if s.held.take(owner, w.bytes) || w.waited != nil && w.waited() && s.held.force(owner, w.bytes) {
		return nil
	}
	s.places.give(owner, 1)
	if w.sample {
		s.samples.give(owner, 1)
	}
	return api.Errorf(api.Busy, "requests of %s hold %d bytes, this one needs %d and the limit is %d for all owners", owner, s.held.of(owner), w.bytes, s.lim.Held)
}

// release is the opposite of reserve. running: the op is a sample that has not ended, as far as is known.
func (s *Server) release(running bool, owner string, bytes int64) {
	s.places.give(owner, 1)
	s.held.give(owner, bytes)
	if running {
		s.samples.give(owner, 1)
	}
}

// settle notes that the op's work is done: from now on it holds its result, no more. s.mu is held.
func (s *Server) settle(o *op) {
	if o.settled || !o.done() {
		return
	}
	o.settled = true
	delete(s.open, o)
	if o.sample {
		s.samples.give(o.owner, 1)
	}
	now := o.size()
	s.held.give(o.owner, o.held-now)
	o.held = now
}

// forget removes an op. s.mu is held.
func (s *Server) forget(o *op) {
	key := opKey{o.owner, o.id}
	if s.ops[key] != o {
		return
	}
	delete(s.ops, key)
	delete(s.open, o)
	if o.sampler != nil {
		delete(o.sampler.ops, o)
	}
	if o.spare {
		k := s.kept[o.owner]
		k.bytes -= o.held
		k.n--
	}
	s.release(o.sample && !o.settled, o.owner, o.held)
}

// kept are an owner's results that can go when there is need: those that were fetched, and of those that were not, the ones that nobody seems to wait for.
type kept struct {
	n, bytes int64
	line     []*op // the oldest first; some are forgotten already
}

// keep puts a result that can go in line. s.mu is held.
func (s *Server) keep(o *op) {
	if o.spare || s.ops[opKey{o.owner, o.id}] != o {
		return
	}
	o.spare = true
	k := s.kept[o.owner]
	if k == nil {
		k = &kept{}
		s.kept[o.owner] = k
	}
	k.line = append(k.line, o)
	k.bytes += o.held
	k.n++
}

// tidy drops the head of the line as far as it is forgotten. s.mu is held.
func (s *Server) tidy(k *kept) {
	for len(k.line) > 0 && s.ops[opKey{k.line[0].owner, k.line[0].id}] != k.line[0] {
		k.line = k.line[1:]
	}
}

// clear forgets what an owner can spare, the oldest first, until there is room for one op that holds so many bytes. Nothing goes, and it reports false, if
// that would not be enough.
func (s *Server) clear(owner string, bytes int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kept[owner]
	if k == nil || !s.places.fits(owner, 1, k.n) || !s.held.fits(owner, bytes, k.bytes) {
		return false
	}
	for !s.places.fits(owner, 1, 0) || !s.held.fits(owner, bytes, 0) {
		if s.tidy(k); len(k.line) == 0 {
			return false
		}
		s.forget(k.line[0])
	}
	return true
}

// reapEvery bounds how often an owner who has too much makes the server look at everything.
const reapEvery = 100 * time.Millisecond

// spareAge is how long nobody must have asked for a result that can go without having been fetched.
const spareAge = 75 * time.Second

// reap looks for what has ended, failed or been left behind. It reports whether it did: not all the time.
func (s *Server) reap(owner string) bool {
	now := s.opt.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.reaped[owner]).Abs() < reapEvery {
		return false
	}
	s.reaped[owner] = now
	for o := range s.open {
		s.settle(o)
	}
	s.dropFailed()
	var left []*op
	for key, o := range s.ops {
		if key.owner == owner && o.settled && now.Sub(o.polled) > spareAge {
			left = append(left, o)
		}
	}
	slices.SortFunc(left, func(a, b *op) int { return a.polled.Compare(b.polled) })
	for _, o := range left {
		s.keep(o)
	}
	return true
}

// done reports whether the work has ended.
func (o *op) done() bool {
	select {
	case <-o.work.Done():
		return true
	default:
		return false
	}
}

// forgotten says whether nobody will ask for the op again. Server.mu is held.
func (o *op) forgotten(now time.Time, l Limits) bool {
	keep := l.Unclaimed
	if o.sample || !o.fetched.IsZero() {
		keep = l.Keep
	}
	return o.settled && now.Sub(o.fetched) > keep && now.Sub(o.polled) > keep
}

// abandoned says whether the op is a sample whose client is gone. Server.mu is held.
func (o *op) abandoned(now time.Time, l Limits) bool {
	return o.sample && !o.settled && now.Sub(o.polled) > l.SamplePatience
}
