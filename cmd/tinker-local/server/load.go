package server

import (
	"fmt"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// loadWeights loads a checkpoint, into a model or as the beginning of a new one: the caller's, a public one, or one whose owner
// has lent their key.
func (s *Server) loadWeights(c *call) (any, error) {
	var r wire.LoadWeightsRequest
	o, err := s.readOperation(c, &r)
	if err != nil {
		return nil, err
	}
	var reader string
	if o.bad == nil {
		reader, o.bad = s.reader(c, r.AccessToken)
	}
	if r.ModelID == "" && o.bad == nil {
		return s.createFrom(c, &r, reader)
	}
	return s.train(c, o, func(p engine.Place) (*op, error) {
		f, err := p.LoadStateAs(reader, r.Path.String(), r.Optimizer)
		if err != nil {
			return nil, err
		}
		return newOp(f, nil, asJSON(func(k api.Checkpoint) any { return wire.WeightsLoaded(k.Path, r.ModelID) })), nil
	})
}

// reader is who must be allowed to read a checkpoint that the caller asks for: the caller, or whoever has lent them a key.
func (s *Server) reader(c *call, token string) (string, error) {
	if token == "" {
		return c.owner, nil
	}
	lender, _, ok := s.credential(token)
	if !ok {
		return "", api.Errorf(api.BadRequest, "weights_access_token is not a key of this server")
	}
	return lender, nil
}

// createCustomLoss refuses a loss: see [wire.CreateCustomLossRequest].
func (s *Server) createCustomLoss(c *call) (any, error) {
	var r wire.CreateCustomLossRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	sess, err := s.session(c, r.SessionID)
	if err != nil {
		return nil, err
	}
	id := fmt.Sprintf("%s:loss:%d", sess.id, r.SeqID)
	return s.submit(order{id: id, session: sess, start: func() (*op, error) { return nil, r.Refusal() }})
}

// createFrom makes a model with the weights of a checkpoint. Its number is that of create_model: a repeat of either gets the first one's result.
// The client numbers what follows from 1 on.
func (s *Server) createFrom(c *call, r *wire.LoadWeightsRequest, reader string) (any, error) {
	sess, err := s.session(c, r.SessionID)
	if err != nil {
		return nil, err
	}
	open := func(p engine.RunPlace) (*engine.Future[*engine.Run], error) {
		return p.NewRunFrom(engine.RunSource{
			Path: r.Path.String(), Optimizer: r.Optimizer, Reader: reader, BaseModel: r.BaseModel, UserMetadata: r.UserMetadata,
		})
	}
	return s.openRun(c, sess, r.ModelSeqID, open, func(id string) any { return wire.WeightsLoaded(r.Path, id) })
}
