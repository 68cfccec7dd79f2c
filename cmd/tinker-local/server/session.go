package server

import (
	"crypto/hmac"
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"strings"
	"sync"
	"time"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// about is what is known of a session, also when it was closed.
type about struct {
	id, owner string
	created   time.Time
	sdk       string // version of the client's SDK
	metadata  map[string]string
	name      string
	project   string
	finish    *wire.SessionFinish // how its client has ended it; nil: it has not
}

// session is what one client has open.
type session struct {
	about  // guarded by Server.mu, except id and owner
	engine *engine.Session

	placing sync.Mutex // held while a run, a sampling session or a sample is looked up and, if it is new, made

	// guarded by Server.mu
	seen     time.Time // last heard of
	runs     map[string]*run
	samplers map[string]*sampler
}

// sessionMAC ties a session's id to its owner, so that a server that was started anew can tell whose it was.
func (s *Server) sessionMAC(random, owner string) string {
	return hex.EncodeToString(s.mac("session", random, owner)[:8])
}

func (s *Server) createSession(c *call) (any, error) {
	var r wire.CreateSessionRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	var b [8]byte
	rand.Read(b[:]) // never fails
	random := hex.EncodeToString(b[:])
	sess, err := s.openSession(c.owner, random+"-"+s.sessionMAC(random, c.owner))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	sess.metadata, sess.name, sess.project, sess.sdk = r.Metadata(), r.DisplayName, r.ProjectID, clipped(r.SDKVersion)
	s.mu.Unlock()
	s.log.Info("session opened", "session", sess.id, "owner", c.owner, "sdk", r.SDKVersion)
	return wire.CreateSessionResponse{SessionID: sess.id}, nil
}

func (s *Server) openSession(owner, id string) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, errStopping
	}
	if sess, ok := s.sessions[id]; ok { // another request was quicker
		return sess, nil
	}
	if !s.sessionPlaces.take(owner, 1) {
		return nil, api.Errorf(api.Busy, "%d sessions of %s are open, the limit is %d for all owners", s.sessionPlaces.of(owner), owner, s.lim.Sessions)
	}
	e, err := s.engine.NewSessionAs(owner, id)
	if err != nil {
		s.sessionPlaces.give(owner, 1)
		return nil, err
	}
	now := s.opt.Now()
	known, again := s.past[id]
	if !again {
		known = about{id: id, owner: owner, created: now}
	}
	delete(s.past, id)
	sess := &session{about: known, engine: e, seen: now, runs: map[string]*run{}, samplers: map[string]*sampler{}}
	s.sessions[id] = sess
	return sess, nil
}

// session finds a session of the caller's. One that an earlier server opened for the same owner, or that was closed because its
// client was silent, is opened again: it is empty, but its client can go on. One that its client has finished is not.
func (s *Server) session(c *call, id string) (*session, error) {
	s.mu.Lock()
	sess, ok := s.sessions[id]
	if ok && sess.owner == c.owner {
		sess.seen = s.opt.Now()
		s.mu.Unlock()
		return sess, nil
	}
	past := s.past[id]
	s.mu.Unlock()
	if past.owner == c.owner && past.finish != nil {
		return nil, refuse(http.StatusGone, api.Closed, "session %s was finished by its client (%s)", id, past.finish.Reason)
	}
	random, mac, _ := strings.Cut(id, "-")
	if ok || !hmac.Equal([]byte(mac), []byte(s.sessionMAC(random, c.owner))) {
		return nil, api.Errorf(api.NotFound, "there is no session %q", clipped(id))
	}
	s.log.Info("session opened again", "session", id, "owner", c.owner)
	return s.openSession(c.owner, id)
}

// drop closes a session and forgets what it had open. s.mu is held.
func (s *Server) drop(sess *session) {
	delete(s.sessions, sess.id)
	s.remember(sess.about)
	s.sessionPlaces.give(sess.owner, 1)
	for _, r := range sess.runs {
		s.dropRun(r)
	}
	for _, p := range sess.samplers {
		s.dropSampler(p)
	}
	sess.engine.Close()
}

func (s *Server) heartbeat(c *call) (any, error) {
	var r wire.HeartbeatRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	if _, err := s.session(c, r.SessionID); err != nil {
		return nil, err
	}
	return wire.Heartbeat(), nil
}

// assignProject notes a session's project. Nothing depends on it.
func (s *Server) assignProject(c *call) (any, error) {
	var r wire.ProjectRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	sess, err := s.session(c, c.PathValue("session"))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	sess.project = r.ProjectID
	s.mu.Unlock()
	return nil, nil
}

// exportTrace says that there are no traces.
func (s *Server) exportTrace(c *call) (any, error) {
	if _, err := s.session(c, c.PathValue("session")); err != nil {
		return nil, err
	}
	return wire.TraceResponse{Status: "failed", Error: "this server records no traces"}, nil
}
