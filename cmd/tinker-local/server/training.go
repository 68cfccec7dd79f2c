package server

import (
	"crypto/rand"
	"fmt"
	"net/http"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// train submits an operation of a run at the client's number for it. bad is why the request cannot be done, or nil: its number
// is used up all the same, so that what follows does not wait for it.
func (s *Server) train(c *call, modelID string, seq int64, bad error, submit func(p engine.Place, id string) (*op, error)) (any, error) {
	if modelID == "" && bad != nil {
		return nil, bad // it could not be read so far
	}
	_, run, err := s.run(c, modelID)
	if err != nil {
		return nil, err
	}
	id := fmt.Sprintf("%s:%d", run.ID(), seq)
	if seq == 0 { // old clients give none
		id = fmt.Sprintf("%s:%s", run.ID(), rand.Text())
	}
	return s.submit(id, c.owner, func() (*op, error) {
		if bad != nil {
			run.At(seq).Refuse(bad)
			return nil, bad
		}
		return submit(run.At(seq), id)
	})
}

// forwardBackward takes both calls, in protobuf and, of older clients, in JSON. One that is marked as forward only never reaches
// the gradient.
func (s *Server) forwardBackward(c *call) (any, error) {
	var r wire.ForwardBackwardRequest
	decode := wire.DecodeForwardBackward
	switch {
	case c.sends(wire.Protobuf):
	case c.sends(wire.JSON):
		decode = wire.DecodeForwardBackwardJSON
	default:
		return nil, refuse(http.StatusUnsupportedMediaType, api.BadRequest, "the content type is %q, wanted %s or %s", c.Header.Get("Content-Type"), wire.Protobuf, wire.JSON)
	}
	var bad error
	if err := s.withBody(c, s.lim.TrainingBody, func(body []byte) error {
		r, bad = decode(body)
		return nil
	}); err != nil {
		return nil, err
	}
	return s.train(c, r.ModelID, r.SeqID, bad, func(p engine.Place, id string) (*op, error) {
		do := p.ForwardBackward
		if r.ForwardOnly {
			do = p.Forward
		}
		f, err := do(r.Input)
		if err != nil {
			return nil, err
		}
		return newOp(id, c.owner, f, encodeOutput), nil
	})
}

func encodeOutput(out api.ForwardBackwardOutput, protobuf bool) (reply, error) {
	if protobuf {
		b, err := wire.EncodeForwardBackwardOutput(out)
		return reply{http.StatusOK, wire.Protobuf, b}, err
	}
	b, err := wire.EncodeForwardBackwardOutputJSON(out)
	return reply{http.StatusOK, wire.JSON, b}, err
}

func (s *Server) optimStep(c *call) (any, error) {
	var r wire.OptimStepRequest
	bad := s.read(c, &r)
	return s.train(c, r.ModelID, r.SeqID, bad, func(p engine.Place, id string) (*op, error) {
		f, err := p.OptimStep(r.API())
		if err != nil {
			return nil, err
		}
		return newOp(id, c.owner, f, asJSON(func(out api.OptimStepOutput) any { return wire.OptimStepOf(out) })), nil
	})
}

func (s *Server) saveWeights(c *call) (any, error) {
	var r wire.SaveWeightsRequest
	bad := s.read(c, &r)
	return s.train(c, r.ModelID, r.SeqID, bad, func(p engine.Place, id string) (*op, error) {
		f, err := p.SaveState(saveName(r.Name, r.SeqID), r.Options())
		if err != nil {
			return nil, err
		}
		return newOp(id, c.owner, f, asJSON(func(k api.Checkpoint) any { return wire.WeightsSaved(k.Path) })), nil
	})
}

// saveName is the name of a checkpoint for which the client has none.
func saveName(name string, seq int64) string {
	switch {
	case name != "":
		return name
	case seq > 0:
		return fmt.Sprintf("%06d", seq)
	}
	return rand.Text()
}

// saveForSampler saves weights under a name, or binds a copy of them to a sampling session of its own.
func (s *Server) saveForSampler(c *call) (any, error) {
	var r wire.SaveWeightsForSamplerRequest
	bad := s.read(c, &r)
	return s.train(c, r.ModelID, r.SeqID, bad, func(p engine.Place, id string) (*op, error) {
		if r.SessionSeqID == nil {
			f, err := p.SaveWeightsForSampler(r.Name, r.Options())
			if err != nil {
				return nil, err
			}
			return newOp(id, c.owner, f, asJSON(func(k api.Checkpoint) any { return wire.WeightsSaved(k.Path) })), nil
		}
		model, _, err := s.run(c, r.ModelID)
		if err != nil {
			return nil, err
		}
		sess := model.session
		sess.placing.Lock()
		defer sess.placing.Unlock()
		name := samplerID(sess, *r.SessionSeqID)
		if err := s.roomForSampler(sess, name); err != nil {
			p.Refuse(err)
			return nil, err
		}
		f, err := p.SaveForSampler()
		if err != nil {
			return nil, err
		}
		s.addSampler(&sampler{id: name, session: sess, made: f, base: model.base})
		return newOp(id, c.owner, f, asJSON(func(*engine.Sampler) any { return wire.SamplerSaved(name) })), nil
	})
}

// loadWeights loads a checkpoint: the caller's, a public one, or one whose owner has lent their key.
func (s *Server) loadWeights(c *call) (any, error) {
	var r wire.LoadWeightsRequest
	bad := s.read(c, &r)
	if bad == nil && r.ModelID == "" {
		return nil, api.Errorf(api.Unsupported, "load_weights of a session is not served: wanted model_id (this server does not set create_model_via_load_weights)")
	}
	reader := c.owner
	if bad == nil && r.AccessToken != "" {
		lender, ok := s.opt.Keys.owner(r.AccessToken)
		if !ok {
			bad = api.Errorf(api.BadRequest, "weights_access_token is not a key of this server")
		}
		reader = lender
	}
	return s.train(c, r.ModelID, r.SeqID, bad, func(p engine.Place, id string) (*op, error) {
		f, err := p.LoadStateAs(reader, r.Path.String(), r.Optimizer)
		if err != nil {
			return nil, err
		}
		return newOp(id, c.owner, f, asJSON(func(k api.Checkpoint) any { return wire.WeightsLoaded(k.Path, r.ModelID) })), nil
	})
}
