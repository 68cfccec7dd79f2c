package server

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine/api"
)

// found is a session of a list.
type found struct {
	about
	open           bool
	runs, samplers []string
}

// sessionOf is the session that a run's id begins with.
func sessionOf(run string) string {
	id, _, _ := strings.Cut(run, ":train:")
	return id
}

// sessionsOf lists an owner's sessions, the newest first: those that are open, those that were closed, and those of earlier servers
// that have left runs in the store.
func (s *Server) sessionsOf(ctx context.Context, owner string) ([]found, error) {
	all := map[string]*found{}
	s.mu.Lock()
	for id, past := range s.past {
		all[id] = &found{about: past}
	}
	for id, sess := range s.sessions {
		all[id] = &found{sess.about, true, slices.Collect(maps.Keys(sess.runs)), slices.Sorted(maps.Keys(sess.samplers))}
	}
	s.mu.Unlock()
	maps.DeleteFunc(all, func(_ string, f *found) bool { return f.owner != owner })
	if st := s.engine.Checkpoints(); st != nil {
		page, err := st.Runs(ctx, api.RunQuery{Owner: owner})
		if err != nil {
			return nil, err
		}
		for _, r := range page.Runs {
			id := sessionOf(r.ID)
			f := all[id]
			if f == nil {
				f = &found{about: about{id: id, owner: owner, created: r.Created}}
				all[id] = f
			}
			if r.Created.Before(f.created) {
				f.created = r.Created
			}
			f.runs = append(f.runs, r.ID)
		}
	}
	out := make([]found, 0, len(all))
	for _, f := range all {
		slices.Sort(f.runs)
		f.runs = slices.Compact(f.runs)
		f.created = f.created.UTC().Truncate(time.Microsecond) // as clients keep times, so that a cursor names a place
		out = append(out, *f)
	}
	slices.SortFunc(out, func(a, b found) int { return newer(a.created, a.id, b.created, b.id) })
	return out, nil
}

// newer compares places in a list of sessions.
func newer(at time.Time, id string, other time.Time, otherID string) int {
	return cmp.Or(other.Compare(at), strings.Compare(id, otherID))
}

func (s *Server) listSessions(c *call) (any, error) {
	q, err := wire.DecodeListQuery(c.URL.Query())
	if err != nil {
		return nil, err
	}
	all, err := s.sessionsOf(c.Context(), c.owner)
	if err != nil {
		return nil, err
	}
	lo, hi, err := q.Page.Window(0, len(all))
	if err != nil {
		return nil, err
	}
	out := wire.SessionsResponse{Sessions: []string{}}
	for _, f := range all[lo:hi] {
		out.Sessions = append(out.Sessions, f.id)
	}
	return out, nil
}

func (s *Server) sessionInfo(c *call) (any, error) {
	id := c.PathValue("session")
	all, err := s.sessionsOf(c.Context(), c.owner)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(f found) bool { return f.id == id })
	if i < 0 {
		return nil, api.Errorf(api.NotFound, "there is no session %q", clipped(id))
	}
	f := all[i]
	return wire.SessionResponse{
		TrainingRunIDs: append([]string{}, f.runs...), SamplerIDs: append([]string{}, f.samplers...), UserMetadata: f.metadata, DisplayName: f.name,
	}, nil
}

// searchSessions lists those of the caller's sessions that match. Others' cannot be seen, whatever the request's owner is.
func (s *Server) searchSessions(c *call) (any, error) {
	var r wire.SessionSearchRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	all, err := s.sessionsOf(c.Context(), c.owner)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(f found) bool { return !matches(&r, f) })
	if r.Cursor != nil {
		all = slices.DeleteFunc(all, func(f found) bool { return newer(f.created, f.id, r.Cursor.CreatedAt, r.Cursor.SessionID) <= 0 })
	}
	kept, err := s.storageBy(c, func(k api.Checkpoint) string { return sessionOf(k.Path.Run) })
	if err != nil {
		return nil, err
	}
	out := wire.SessionSearchResponse{Sessions: []wire.SessionSummary{}}
	for _, f := range all[:min(r.PageLimit(), len(all))] {
		held := kept[f.id]
		out.Sessions = append(out.Sessions, wire.SessionSummary{
			SessionID: f.id, CreatedAt: f.created, Owner: userURN(f.owner), ProjectID: f.project, Status: f.status(),
			Checkpoints: held.count, DisplayName: f.name, UserMetadata: f.metadata, StoredBytes: held.bytes,
		})
		out.Next = &wire.SessionCursor{CreatedAt: f.created, SessionID: f.id}
	}
	if len(out.Sessions) == len(all) {
		out.Next = nil
	}
	return out, nil
}

// status is nil for a session that has neither finished nor is known to be open.
func (f found) status() *wire.SessionStatus {
	switch {
	case f.open:
		return wire.SessionActive()
	case f.finish != nil:
		return f.finish.Status()
	}
	return nil
}

// matches says whether a search of its owner wants a session.
func matches(r *wire.SessionSearchRequest, f found) bool {
	if !r.Owner.Matches(userURN(f.owner)) || r.ProjectIDs != nil && !slices.Contains(r.ProjectIDs, f.project) {
		return false
	}
	for name, v := range r.UserMetadata {
		if have, ok := f.metadata[name]; !ok || have != v {
			return false
		}
	}
	if r.Statuses != nil && !slices.ContainsFunc(r.Statuses, func(q wire.SessionStatusQuery) bool { return q.Matches(f.status()) }) {
		return false
	}
	if r.SessionID == "" && r.DisplayName == "" {
		return true
	}
	return r.SessionID != "" && r.SessionID == f.id || r.DisplayName != "" && named(r.DisplayName, f.name)
}

// named says whether every word of a query is in a name.
func named(query, name string) bool {
	name = strings.ToLower(name)
	for word := range strings.FieldsSeq(strings.ToLower(query)) {
		if !strings.Contains(name, word) {
			return false
		}
	}
	return name != ""
}
