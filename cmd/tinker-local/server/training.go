package server

import (
	"crypto/rand"
	"fmt"
	"net/http"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// operation is a request for an operation of a run, at the client's number for it.
type operation struct {
	model string
	seq   int64
	bytes int   // of its body, if they are many
	bad   error // why the request cannot be done, or nil: its number is used up all the same, so that what follows does not wait for it
}

// readOperation reads a request for an operation. One that cannot be decoded still says which it is, if it says that much.
func (s *Server) readOperation(c *call, r wire.Operation) (o operation, err error) {
	err = s.withBody(c, s.lim.SmallBody, func(body []byte) error {
		o.model, o.seq, o.bad = wire.DecodeOperation(body, r)
		return nil
	})
	return o, err
}

// train submits an operation.
func (s *Server) train(c *call, o operation, submit func(p engine.Place) (*op, error)) (any, error) {
	if o.model == "" && o.bad != nil {
		return nil, o.bad // it could not be read so far
	}
	model, run, err := s.run(c, o.model)
	if err != nil {
		return nil, err
	}
	id := fmt.Sprintf("%s:%d", run.ID(), o.seq)
	if o.seq == 0 { // old clients give none
		id = fmt.Sprintf("%s:%s", run.ID(), rand.Text())
	}
	place := run.At(o.seq)
	// Numbers and ids take about twice their bytes when they are decoded.
	return s.submit(order{id: id, session: model.session, bytes: 2 * int64(o.bytes), waited: place.Awaited, start: func() (*op, error) {
		if o.bad != nil {
			place.Refuse(o.bad)
			return nil, o.bad
		}
		out, err := submit(place)
		if api.CodeOf(err) == api.Closed && !s.isStopped() { // between finding the run and now
			return nil, s.noRun(c, o.model)
		}
		return out, err
	}})
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
	var o operation
	if err := s.withBody(c, s.lim.TrainingBody, func(body []byte) error {
		r, o.bad = decode(body)
		o.model, o.seq, o.bytes = r.ModelID, r.SeqID, len(body)
		return nil
	}); err != nil {
		return nil, err
	}
	return s.train(c, o, func(p engine.Place) (*op, error) {
		do := p.ForwardBackward
		if r.ForwardOnly {
			do = p.Forward
		}
		f, err := do(r.Input)
		if err != nil {
			return nil, err
		}
		return newOp(f, sizeOfOutput, encodeOutput), nil
	})
}

// sizeOfOutput is about what a result takes: four bytes for each log-probability, and what holds them together.
func sizeOfOutput(out api.ForwardBackwardOutput) int64 {
	n := int64(0)
	for _, datum := range out.LossFnOutputs {
		for _, t := range datum {
			n += 200 + 8*int64(t.Len())
		}
	}
	return n
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
	o, err := s.readOperation(c, &r)
	if err != nil {
		return nil, err
	}
	return s.train(c, o, func(p engine.Place) (*op, error) {
		f, err := p.OptimStep(r.API())
		if err != nil {
			return nil, err
		}
		return newOp(f, nil, asJSON(func(out api.OptimStepOutput) any { return wire.OptimStepOf(out) })), nil
	})
}

func (s *Server) saveWeights(c *call) (any, error) {
	var r wire.SaveWeightsRequest
	o, err := s.readOperation(c, &r)
	if err != nil {
		return nil, err
	}
	return s.train(c, o, func(p engine.Place) (*op, error) {
		f, err := p.SaveState(saveName(r.Name, r.SeqID), r.Options())
		if err != nil {
			return nil, err
		}
		return newOp(f, nil, asJSON(func(k api.Checkpoint) any { return wire.WeightsSaved(k.Path) })), nil
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
	o, err := s.readOperation(c, &r)
	if err != nil {
		return nil, err
	}
	if o.bad == nil && r.SessionSeqID != nil {
		return s.saveSamplingSession(c, o, *r.SessionSeqID, r.Inflight())
	}
	return s.train(c, o, func(p engine.Place) (*op, error) {
		f, err := p.SaveWeightsForSampler(r.Name, r.Options())
		if err != nil {
			return nil, err
		}
		return newOp(f, nil, asJSON(func(k api.Checkpoint) any { return wire.WeightsSaved(k.Path) })), nil
	})
}

// saveSamplingSession binds a copy of a run's weights to a sampling session with a number of the client's. A client that repeats the request draws
// another number: the operation's own number tells that it is the same. shared: later saves of that kind replace the weights.
func (s *Server) saveSamplingSession(c *call, o operation, n int64, shared bool) (any, error) {
	model, open, err := s.run(c, o.model)
	if err != nil {
		return nil, err
	}
	sess := model.session
	sess.placing.Lock()
	defer sess.placing.Unlock()
	return s.train(c, o, func(p engine.Place) (*op, error) {
		name := samplerID(sess, n)
		if err := s.placeForSampler(sess, name); err != nil {
			if api.CodeOf(err) != api.Busy {
				p.Refuse(err)
			}
			return nil, err
		}
		f, err := p.SaveForSampler()
		if err != nil {
			s.samplerPlaces.give(sess.owner, 1)
			return nil, err
		}
		made := &sampler{id: name, session: sess, made: f, base: open.Base().Name}
		if shared {
			s.share(model, made, o.seq)
		}
		s.addSampler(made)
		return newOp(f, nil, asJSON(func(*engine.Sampler) any { return wire.SamplerSaved(name) })), nil
	})
}
