package server

import (
	"context"
	"fmt"
	"net/http"
	"sync"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// sampler is a sampling session: weights that are sampled from.
type sampler struct {
	id      string
	session *session
	made    *engine.Future[*engine.Sampler]
	base    string
	path    string // of the checkpoint; "": the bare base, or a copy of a run's weights
}

func samplerID(sess *session, n int64) string { return fmt.Sprintf("%s:sample:%d", sess.id, n) }

// roomForSampler says why a sampling session cannot be made, or nil.
func (s *Server) roomForSampler(sess *session, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.samplers[id]; taken {
		return api.Errorf(api.BadRequest, "sampling session %s is there already", id)
	}
	if n := len(sess.samplers); n >= s.lim.Samplers {
		return api.Errorf(api.Busy, "%d sampling sessions of this session are open, the limit is %d", n, s.lim.Samplers)
	}
	return nil
}

func (s *Server) addSampler(p *sampler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[p.session.id] == p.session {
		p.session.samplers[p.id], s.samplers[p.id] = p, p
	}
}

// createSamplingSession binds a checkpoint or a bare base model to a sampling session. What is not there is refused at once; the
// weights may still be on their way when this answers, and samples then wait for them.
func (s *Server) createSamplingSession(c *call) (any, error) {
	var r wire.CreateSamplingSessionRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	sess, err := s.session(c, r.SessionID)
	if err != nil {
		return nil, err
	}
	p, err := s.openSampler(sess, &r)
	if err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(c.Context(), s.lim.PollWait)
	defer cancel()
	if _, err := p.made.Wait(wait); err != nil && wait.Err() == nil { // so that what is wrong is told here
		s.mu.Lock()
		delete(s.samplers, p.id)
		delete(sess.samplers, p.id)
		s.mu.Unlock()
		return nil, err
	}
	return wire.CreateSamplingSessionResponse{SamplingSessionID: p.id}, nil
}

// openSampler finds a sampling session, or makes it.
func (s *Server) openSampler(sess *session, r *wire.CreateSamplingSessionRequest) (*sampler, error) {
	sess.placing.Lock()
	defer sess.placing.Unlock()
	id := samplerID(sess, r.SessionSeqID)
	s.mu.Lock()
	p, ok := s.samplers[id]
	s.mu.Unlock()
	if ok {
		return p, nil
	}
	if err := s.roomForSampler(sess, id); err != nil {
		return nil, err
	}
	p = &sampler{id: id, session: sess, base: r.BaseModel, path: r.ModelPath}
	var err error
	if r.ModelPath == "" {
		if _, err := s.opt.Describe(r.BaseModel); err != nil {
			return nil, err
		}
		p.made, err = sess.engine.NewSampler(r.BaseModel)
	} else {
		// A base model that is named as well is a hint: the checkpoint knows its own.
		var k api.Checkpoint
		if k, err = s.readable(context.Background(), sess.owner, r.Path); err != nil {
			return nil, err
		}
		p.base, p.path = k.BaseModel, k.Path.String()
		p.made, err = sess.engine.NewSamplerFrom(p.path)
	}
	if err != nil {
		return nil, err
	}
	s.addSampler(p)
	return p, nil
}

// sampler finds a sampling session of the caller's.
func (s *Server) sampler(c *call, id string) (*sampler, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.samplers[id]
	if !ok || p.session.owner != c.owner {
		return nil, api.Errorf(api.NotFound, "there is no sampling session %q: it was closed because its client was silent, or the server was started anew; create the sampling client again", clipped(id))
	}
	p.session.seen = s.opt.Now()
	return p, nil
}

func (s *Server) samplerInfo(c *call) (any, error) {
	p, err := s.sampler(c, c.PathValue("sampler"))
	if err != nil {
		return nil, err
	}
	return wire.SamplerResponse{SamplerID: p.id, BaseModel: p.base, ModelPath: p.path}, nil
}

func (s *Server) sample(c *call) (any, error) {
	var r wire.SampleRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	p, err := s.sampler(c, r.SamplingSessionID)
	if err != nil {
		return nil, err
	}
	in := r.API()
	id := fmt.Sprintf("%s:%d", p.id, r.SeqID)
	p.session.placing.Lock() // samples have no place in an order that would tell repeats
	defer p.session.placing.Unlock()
	return s.submit(id, c.owner, func() (*op, error) {
		o, err := s.startSample(p, id, in)
		if err != nil {
			return nil, err
		}
		o.sample = true
		for i := range in.NumSamples {
			o.reply.SequenceIDs = append(o.reply.SequenceIDs, fmt.Sprintf("%s:%d", id, i))
		}
		return o, nil
	})
}

// startSample draws at once, or as soon as the weights are there.
func (s *Server) startSample(p *sampler, id string, in api.SampleRequest) (*op, error) {
	draw := func(ctx context.Context) (*engine.Future[api.SampleOutput], error) {
		m, err := p.made.Wait(ctx)
		if err != nil {
			return nil, err
		}
		return m.Sample(ctx, in)
	}
	if p.made.State() == engine.Ended {
		f, err := draw(context.Background())
		if err != nil {
			return nil, err
		}
		return newOp(id, p.session.owner, f, encodeSample), nil
	}
	w := &waiting{done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	go func() {
		defer cancel()
		f, err := draw(ctx)
		var out api.SampleOutput
		if err == nil {
			w.set(f)
			out, err = f.Wait(context.Background()) // cancelled by ctx, and then it says so
		}
		w.out, w.err = out, err
		close(w.done)
	}()
	return &op{id: id, owner: p.session.owner, work: w, reply: wire.Future{RequestID: id}, result: func(protobuf bool) (reply, error) {
		if w.err != nil {
			return reply{}, w.err
		}
		return encodeSample(w.out, protobuf)
	}}, nil
}

// waiting is a sample whose weights are not there yet.
type waiting struct {
	done   chan struct{}
	cancel context.CancelFunc
	out    api.SampleOutput // once done is closed
	err    error

	mu sync.Mutex
	f  *engine.Future[api.SampleOutput] // once it has been submitted
}

func (w *waiting) set(f *engine.Future[api.SampleOutput]) {
	w.mu.Lock()
	w.f = f
	w.mu.Unlock()
}

func (w *waiting) Done() <-chan struct{} { return w.done }
func (w *waiting) Cancel()               { w.cancel() }

func (w *waiting) State() engine.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		return engine.Queued
	}
	return w.f.State()
}

func encodeSample(out api.SampleOutput, protobuf bool) (reply, error) {
	if protobuf {
		b, err := wire.EncodeSampleOutput(out)
		return reply{http.StatusOK, wire.Protobuf, b}, err
	}
	b, err := wire.EncodeSampleOutputJSON(out)
	return reply{http.StatusOK, wire.JSON, b}, err
}
