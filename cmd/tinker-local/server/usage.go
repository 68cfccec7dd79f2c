package server

import (
	"maps"
	"slices"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine/api"
)

// held is how much of the disk checkpoints take.
type held struct {
	count int
	bytes int64
}

// storageBy adds up the caller's checkpoints by a key.
func (s *Server) storageBy(c *call, key func(api.Checkpoint) string) (map[string]held, error) {
	out := map[string]held{}
	st := s.engine.Checkpoints()
	if st == nil {
		return out, nil
	}
	page, err := st.List(c.Context(), api.CheckpointQuery{Owner: c.owner})
	if err != nil {
		return nil, err
	}
	for _, k := range page.Checkpoints {
		h := out[key(k)]
		out[key(k)] = held{h.count + 1, h.bytes + k.Stored}
	}
	return out, nil
}

// projects are those of the sessions that this server knows, by session.
func (s *Server) projects() map[string]string {
	out := map[string]string{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, past := range s.past {
		out[id] = past.project
	}
	for id, sess := range s.sessions {
		out[id] = sess.project
	}
	return out
}

// storageUsage tells what the caller's checkpoints take now, by project. It costs nothing.
func (s *Server) storageUsage(c *call) (any, error) {
	projects := s.projects()
	kept, err := s.storageBy(c, func(k api.Checkpoint) string { return projects[sessionOf(k.Path.Run)] })
	if err != nil {
		return nil, err
	}
	out := wire.StorageUsageResponse{Data: []wire.StorageUsage{}}
	only := c.URL.Query().Get("project_id")
	for _, project := range slices.Sorted(maps.Keys(kept)) {
		if only == "" || only == project {
			h := kept[project]
			out.Data = append(out.Data, wire.StorageUsageOf(project, userURN(c.owner), c.owner, h.count, h.bytes))
		}
	}
	return out, nil
}
