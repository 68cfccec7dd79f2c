package server

import (
	"context"
	"slices"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine/api"
)

// store is where checkpoints are kept.
func (s *Server) store() (api.Store, error) {
	st := s.engine.Checkpoints()
	if st == nil {
		return nil, api.Errorf(api.Unsupported, "this server keeps no checkpoints")
	}
	return st, nil
}

// readable finds a checkpoint that who may read. To others it is not there.
func (s *Server) readable(ctx context.Context, who string, p api.Path) (api.Checkpoint, error) {
	st, err := s.store()
	if err != nil {
		return api.Checkpoint{}, err
	}
	k, err := st.Info(ctx, p)
	if err == nil && !k.ReadableBy(who) {
		err = noCheckpoint(p)
	}
	return k, err
}

func noCheckpoint(p api.Path) error { return api.Errorf(api.NotFound, "there is no checkpoint %v", p) }

// noRunRecord is what the store says of a run that is not there: others' look the same.
func noRunRecord(id string) error { return api.Errorf(api.NotFound, "there is no run %q", id) }

// owned is the store and the path of a checkpoint that the call names and its caller owns.
func (s *Server) owned(c *call) (api.Store, api.Path, error) {
	p, err := pathOf(c)
	if err != nil {
		return nil, p, err
	}
	st, err := s.store()
	if err != nil {
		return nil, p, err
	}
	k, err := st.Info(c.Context(), p)
	if err == nil && k.Owner != c.owner {
		err = noCheckpoint(p)
	}
	return st, p, err
}

// pathOf is the checkpoint that the call's path names. It is checked: nothing of it reaches the file system as it came.
func pathOf(c *call) (api.Path, error) {
	p := api.Path{Run: c.PathValue("run"), Kind: c.PathValue("kind"), Name: c.PathValue("name")}
	if p.Kind == "" {
		return p, api.Errorf(api.BadRequest, "the kind of the checkpoint is empty")
	}
	return p, p.Check()
}

// listed is what the call's query asks for, and where it is.
func (s *Server) listed(c *call) (q wire.ListQuery, st api.Store, err error) {
	if q, err = wire.DecodeListQuery(c.URL.Query()); err == nil {
		st, err = s.store()
	}
	return q, st, err
}

// runNamed is the run id in the call's path, and where the run may be. Whose it is has not been looked at.
func (s *Server) runNamed(c *call) (id string, st api.Store, err error) {
	id = c.PathValue("run")
	if err = api.CheckName("run id", id); err == nil {
		st, err = s.store()
	}
	return id, st, err
}

func (s *Server) weightsInfo(c *call) (any, error) {
	var r wire.WeightsInfoRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	k, err := s.readable(c.Context(), c.owner, r.Path)
	if err != nil {
		return nil, err
	}
	return wire.WeightsInfoOf(k), nil
}

// listRuns lists the caller's runs; with access_scope=accessible there is nothing more to see: what others publish are
// checkpoints, not runs.
func (s *Server) listRuns(c *call) (any, error) {
	q, st, err := s.listed(c)
	if err != nil {
		return nil, err
	}
	if q.ProjectID != "" {
		return s.runsOfProject(c, st, q)
	}
	page, err := st.Runs(c.Context(), api.RunQuery{Owner: c.owner, Page: q.Page})
	if err != nil {
		return nil, err
	}
	return wire.TrainingRunsOf(page, q.Page), nil
}

// runsOfProject lists the runs of those sessions that this server knows to be of a project.
func (s *Server) runsOfProject(c *call, st api.Store, q wire.ListQuery) (any, error) {
	page, err := st.Runs(c.Context(), api.RunQuery{Owner: c.owner})
	if err != nil {
		return nil, err
	}
	projects := s.projects()
	runs := slices.DeleteFunc(page.Runs, func(r api.RunRecord) bool { return projects[sessionOf(r.ID)] != q.ProjectID })
	lo, hi, err := q.Page.Window(0, len(runs))
	if err != nil {
		return nil, err
	}
	return wire.TrainingRunsOf(api.RunPage{Runs: runs[lo:hi], Total: len(runs)}, q.Page), nil
}

// runInfo describes a run: the caller's, or what may be seen of one with a public checkpoint.
func (s *Server) runInfo(c *call) (any, error) {
	id, st, err := s.runNamed(c)
	if err != nil {
		return nil, err
	}
	r, err := st.Run(c.Context(), id)
	if err != nil {
		return nil, err
	}
	if r.Owner != c.owner {
		page, err := st.List(c.Context(), api.CheckpointQuery{Run: id, Reader: c.owner, Page: api.Page{Limit: 1}})
		if err != nil {
			return nil, err
		}
		if len(page.Checkpoints) == 0 {
			return nil, noRunRecord(id)
		}
		r = r.Shared()
	}
	return wire.TrainingRunOf(r), nil
}

// runCheckpoints lists all checkpoints of a run that the caller may read.
func (s *Server) runCheckpoints(c *call) (any, error) {
	id, st, err := s.runNamed(c)
	if err != nil {
		return nil, err
	}
	page, err := listFor(c, st, api.CheckpointQuery{Run: id, Reader: c.owner})
	if err != nil {
		return nil, err
	}
	if len(page.Checkpoints) == 0 {
		r, err := st.Run(c.Context(), id)
		if err != nil {
			return nil, err
		}
		if r.Owner != c.owner {
			return nil, noRunRecord(id)
		}
	}
	return wire.CheckpointsOf(page, nil), nil
}

// listCheckpoints lists the caller's checkpoints, the newest first.
func (s *Server) listCheckpoints(c *call) (any, error) {
	q, st, err := s.listed(c)
	if err != nil {
		return nil, err
	}
	page, err := listFor(c, st, api.CheckpointQuery{Owner: c.owner, Page: q.Page})
	if err != nil {
		return nil, err
	}
	return wire.CheckpointsOf(page, &q.Page), nil
}

// listFor lists checkpoints of the kinds that the caller's client knows: before 0.38 one fails on a list with external weights.
func listFor(c *call, st api.Store, q api.CheckpointQuery) (api.CheckpointPage, error) {
	if !before(c.Header.Get("X-Stainless-Package-Version"), 0, 38) {
		return st.List(c.Context(), q)
	}
	asked := q.Page
	q.Page = api.Page{}
	page, err := st.List(c.Context(), q)
	if err != nil {
		return page, err
	}
	known := slices.DeleteFunc(page.Checkpoints, func(k api.Checkpoint) bool { return k.Path.Kind == api.KindExternal })
	lo, hi, err := asked.Window(0, len(known))
	return api.CheckpointPage{Checkpoints: known[lo:hi], Total: len(known)}, err
}

// edit does something to a checkpoint that the call names and its caller owns.
func (s *Server) edit(c *call, do func(api.Store, context.Context, api.Path) error) (any, error) {
	st, p, err := s.owned(c)
	if err != nil {
		return nil, err
	}
	return nil, do(st, c.Context(), p)
}

// deleteCheckpoint deletes one. To delete again what is gone is no error to a client that has lost the first answer, but it
// may as well be a wrong name: it is told.
func (s *Server) deleteCheckpoint(c *call) (any, error) { return s.edit(c, api.Store.Delete) }

func (s *Server) publish(c *call) (any, error) { return s.edit(c, api.Store.Publish) }

func (s *Server) unpublish(c *call) (any, error) { return s.edit(c, api.Store.Unpublish) }

func (s *Server) setTTL(c *call) (any, error) {
	var r wire.TTLRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	return s.edit(c, func(st api.Store, ctx context.Context, p api.Path) error {
		if r.Seconds == nil {
			return st.ClearTTL(ctx, p)
		}
		return st.SetTTL(ctx, p, r.TTL())
	})
}
