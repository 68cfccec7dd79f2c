package server

import (
	"context"
	"fmt"
	"net/http"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// run is a training run of a session.
type run struct {
	id      string
	session *session
	made    *engine.Future[*engine.Run]

	inflight *inflight // nil: there was no save of this kind; guarded by Server.mu
}

func (s *Server) createModel(c *call) (any, error) {
	var r wire.CreateModelRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	sess, err := s.session(c, r.SessionID)
	if err != nil {
		return nil, err
	}
	open := func(p engine.RunPlace) (*engine.Future[*engine.Run], error) { return p.NewRun(r.API()) }
	return s.openRun(c, sess, r.ModelSeqID, open, func(id string) any { return wire.ModelCreated(id) })
}

// runID is the name of the n-th run of a session, which clients rely on.
func runID(session string, n int64) string { return fmt.Sprintf("%s:train:%d", session, n) }

// openRun answers with the run that has a number of its session, or with one that open opens. Clients know its id before they are told.
func (s *Server) openRun(c *call, sess *session, n int64, open func(engine.RunPlace) (*engine.Future[*engine.Run], error), told func(id string) any) (any, error) {
	id := runID(sess.id, n)
	sess.placing.Lock()
	defer sess.placing.Unlock()
	return s.submit(order{id: id + ":create", session: sess, start: func() (*op, error) {
		if !s.runPlaces.take(c.owner, 1) && !(s.reap(c.owner) && s.runPlaces.take(c.owner, 1)) {
			return nil, api.Errorf(api.Busy, "%d models of %s are open, the limit is %d for all owners", s.runPlaces.of(c.owner), c.owner, s.runPlaces.limit)
		}
		f, err := open(sess.engine.At(n))
		if err != nil {
			s.runPlaces.give(c.owner, 1)
			return nil, err
		}
		s.addRun(&run{id: id, session: sess, made: f})
		return newOp(f, nil, asJSON(func(r *engine.Run) any { return told(r.ID()) })), nil
	}})
}

// addRun takes over a place.
func (s *Server) addRun(r *run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[r.session.id] != r.session { // it was closed meanwhile
		s.runPlaces.give(r.session.owner, 1)
		return
	}
	if was, ok := s.runs[r.id]; ok { // its first answer was forgotten
		s.dropRun(was)
	}
	r.session.runs[r.id], s.runs[r.id] = r, r
}

// dropRun forgets a run. s.mu is held.
func (s *Server) dropRun(r *run) {
	if s.runs[r.id] == r {
		delete(s.runs, r.id)
		delete(r.session.runs, r.id)
		s.runPlaces.give(r.session.owner, 1)
	}
}

// dropFailed forgets runs and samplers that could not be made. s.mu is held.
func (s *Server) dropFailed() {
	for _, r := range s.runs {
		if failed(r.made) {
			s.dropRun(r)
		}
	}
	for _, p := range s.samplers {
		if failed(p.made) {
			s.dropSampler(p)
		}
	}
}

// failed says whether a future ended with an error.
func failed[T any](f *engine.Future[T]) bool {
	if f.State() != engine.Ended {
		return false
	}
	_, err := f.Wait(context.Background())
	return err != nil
}

// run finds a run of the caller's that is ready.
func (s *Server) run(c *call, id string) (*run, *engine.Run, error) {
	s.mu.Lock()
	r, ok := s.runs[id]
	if ok {
		r.session.seen = s.opt.Now()
	}
	s.mu.Unlock()
	if !ok || r.session.owner != c.owner {
		return nil, nil, s.noRun(c, id)
	}
	if r.made.State() != engine.Ended {
		return nil, nil, api.Errorf(api.BadRequest, "model %s is still being made: wait for the result of create_model", id)
	}
	made, err := r.made.Wait(c.Context())
	return r, made, err
}

// noRun says that a run is not open, and how to go on with one that was.
func (s *Server) noRun(c *call, id string) error {
	if st := s.engine.Checkpoints(); st != nil && api.CheckName("model id", id) == nil {
		if rec, err := st.Run(c.Context(), id); err == nil && rec.Owner == c.owner {
			last := "it has saved nothing that is still there"
			if rec.LastCheckpoint != nil {
				last = "go on from its last state with create_training_client_from_state_with_optimizer(\"" + rec.LastCheckpoint.Path.String() + "\")"
			}
			return api.Errorf(api.NotFound, "model %s is not open any more: it was unloaded, its client was silent, or the server was started anew; %s", id, last)
		}
	}
	return api.Errorf(api.NotFound, "there is no model %q", clipped(id))
}

func (s *Server) getInfo(c *call) (any, error) {
	var r wire.GetInfoRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	_, open, err := s.run(c, r.ModelID)
	if err != nil {
		return nil, err
	}
	info := open.Info()
	facts, err := s.opt.Describe(info.BaseModel)
	if err != nil {
		s.log.Warn("model facts", "model", info.BaseModel, "err", err) // the run has its weights: the folder may have gone
	}
	return wire.GetInfoResponse{
		ModelID: info.ID, IsLora: true, LoraRank: info.Lora.Rank, ModelName: info.BaseModel,
		ModelData: wire.ModelData{Arch: facts.Arch, ModelName: info.BaseModel, TokenizerID: facts.Tokenizer},
	}, nil
}

// unloadModel closes a run. What waits in it fails; what it has saved stays.
func (s *Server) unloadModel(c *call) (any, error) {
	var r wire.UnloadModelRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	id := r.ModelID + ":unload"
	if o, ok := s.find(id, c.owner); ok {
		return o.reply, nil
	}
	model, open, err := s.run(c, r.ModelID)
	if err != nil {
		return nil, err
	}
	out, err := s.submit(order{id: id, session: model.session, start: func() (*op, error) {
		open.Close()
		return endedOp(func() (reply, error) { return jsonReply(http.StatusOK, wire.UnloadModelResponse{ModelID: model.id}) }), nil
	}})
	if err == nil { // now that a repeat finds its request
		s.mu.Lock()
		s.dropRun(model)
		s.mu.Unlock()
	}
	return out, err
}
