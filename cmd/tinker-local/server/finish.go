package server

import (
	"tinkerlocal/cmd/tinker-local/server/wire"
)

// finishSession closes a session for good: its client is done with it. The first reason stays.
func (s *Server) finishSession(c *call) (any, error) {
	var r wire.FinishSessionRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	id := c.PathValue("session")
	s.mu.Lock()
	past := s.past[id]
	s.mu.Unlock()
	if past.owner == c.owner && past.finish != nil {
		return nil, nil
	}
	sess, err := s.session(c, id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[id] == sess {
		sess.finish = r.Finish()
		s.drop(sess)
	}
	s.log.Info("session finished", "session", id, "owner", c.owner, "reason", r.Reason.Type)
	return nil, nil
}

// maxNotes bounds what is remembered of a client's own notes, in bytes, when its session is closed.
const maxNotes = 4 << 10

// remember keeps what is known of a session that is closed. Of too many, the oldest are forgotten. s.mu is held.
func (s *Server) remember(a about) {
	notes := len(a.name) + len(a.project)
	for name, v := range a.metadata {
		notes += len(name) + len(v)
	}
	if notes > maxNotes {
		a.name, a.project, a.metadata = "", "", nil
	}
	if a.finish != nil && len(a.finish.Detail) > maxNotes {
		a.finish = &wire.SessionFinish{Reason: a.finish.Reason}
	}
	s.past[a.id] = a
	if len(s.past) <= s.lim.Sessions {
		return
	}
	oldest := a
	for _, other := range s.past {
		if other.created.Before(oldest.created) {
			oldest = other
		}
	}
	delete(s.past, oldest.id)
}
