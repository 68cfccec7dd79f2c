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

	shared *inflight // the weights, which may be newer than made; nil: made are the weights
	seq    int64     // of the save that made is of, with shared

	// guarded by Server.mu
	joined  int64            // clients beside the first
	watches map[int64]*watch // by client
	ops     map[*op]bool     // samples that are not forgotten
}

func samplerID(sess *session, n int64) string { return fmt.Sprintf("%s:sample:%d", sess.id, n) }

// placeForSampler takes a place for a sampling session, or says why it cannot be made.
func (s *Server) placeForSampler(sess *session, id string) error {
	s.mu.Lock()
	_, taken := s.samplers[id]
	s.mu.Unlock()
	if taken {
		return api.Errorf(api.BadRequest, "sampling session %s is there already", id)
	}
	if !s.samplerPlaces.take(sess.owner, 1) && !(s.reap(sess.owner) && s.samplerPlaces.take(sess.owner, 1)) {
		return api.Errorf(api.Busy, "%d sampling sessions of %s are open, the limit is %d for all owners", s.samplerPlaces.of(sess.owner), sess.owner, s.lim.Samplers)
	}
	return nil
}

// addSampler takes over a place.
func (s *Server) addSampler(p *sampler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.watches, p.ops = map[int64]*watch{}, map[*op]bool{}
	if s.sessions[p.session.id] != p.session { // it was closed meanwhile
		s.samplerPlaces.give(p.session.owner, 1)
		return
	}
	p.session.samplers[p.id], s.samplers[p.id] = p, p
}

// dropSampler forgets a sampling session. s.mu is held.
func (s *Server) dropSampler(p *sampler) {
	if s.samplers[p.id] == p {
		delete(s.samplers, p.id)
		delete(p.session.samplers, p.id)
		s.samplerPlaces.give(p.session.owner, 1)
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
		s.dropSampler(p)
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
	p = &sampler{id: id, session: sess, base: r.BaseModel}
	if r.ModelPath == "" {
		if _, err := s.opt.Describe(r.BaseModel); err != nil {
			return nil, err
		}
	} else {
		// A base model that is named as well is a hint: the checkpoint knows its own.
		k, err := s.readable(context.Background(), sess.owner, r.Path)
		if err != nil {
			return nil, err
		}
		p.base, p.path = k.BaseModel, k.Path.String()
	}
	if err := s.placeForSampler(sess, id); err != nil {
		return nil, err
	}
	var err error
	if p.path == "" {
		p.made, err = sess.engine.NewSampler(p.base)
	} else {
		p.made, err = sess.engine.NewSamplerFrom(p.path)
	}
	if err != nil {
		s.samplerPlaces.give(sess.owner, 1)
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
	if err := s.readUpTo(c, s.lim.PromptBody, &r); err != nil {
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
	out, err := s.submit(order{id: id, session: p.session, sample: true, sampler: p, client: r.Client(), bytes: s.sampleBytes(p, in), start: func() (*op, error) {
		if limit := s.engine.Limits().SamplesPerRequest; in.NumSamples > limit { // also while nothing can be drawn yet: each has an id
			return nil, api.Errorf(api.BadRequest, "num_samples is %d, wanted 1..%d", in.NumSamples, limit)
		}
		o, err := s.startSample(p, in, r.Targets)
		if err != nil {
			return nil, err
		}
		for i := range in.NumSamples {
			o.reply.SequenceIDs = append(o.reply.SequenceIDs, fmt.Sprintf("%s:%d", id, i))
		}
		return o, nil
	}})
	if err == nil {
		s.watched(p, r.Client(), id)
	}
	return out, err
}

// guessedContext is the context of a model of which nothing is known yet.
const guessedContext = 32768

// sampleBytes is about the most that a sample holds: its prompt, and its result.
func (s *Server) sampleBytes(p *sampler, in api.SampleRequest) int64 {
	length := int64(guessedContext) // of the model's context
	if p.made.State() == engine.Ended {
		if m, err := p.made.Wait(context.Background()); err == nil {
			length = int64(m.Base().Spec.MaxPositions)
		}
	}
	prompt := int64(0)
	for _, chunk := range in.Prompt.Chunks {
		prompt += int64(len(chunk.Tokens))
	}
	drawn := length
	if n := int64(in.Params.MaxTokens); n > 0 {
		drawn = min(n, length)
	}
	// Saturating: num_samples is whatever the client says.
	n := min(int64(in.NumSamples), 1<<20)
	at := func(k int) int64 { return 8 * min(int64(k), 1<<10) }
	targets := int64(0)
	for _, row := range in.TargetPromptLogProbs {
		targets += 24 + 8*int64(len(row))
	}
	return 8*prompt + n*drawn*(12+at(in.TopKSampledLogProbs)) + prompt*(4+at(in.TopKPromptLogProbs)+at(in.PromptAltTokens)) + targets
}

// sizeOfSample is about what a result takes.
func sizeOfSample(out api.SampleOutput) int64 {
	n := 4 * int64(len(out.PromptLogProbs))
	pairs := func(rows [][]api.TokenLogProb) {
		for _, row := range rows {
			n += 24 + 8*int64(len(row))
		}
	}
	for _, s := range out.Sequences {
		n += 200 + 12*int64(len(s.Tokens))
		pairs(s.TopKLogProbs)
	}
	pairs(out.TopKPromptLogProbs)
	pairs(out.PromptAltTokens)
	for _, row := range out.TargetPromptLogProbs {
		n += 24 + 8*int64(len(row)) // with the places of what was asked for
	}
	return n
}

// startSample draws at once, or as soon as the weights are there. t is how other tokens of the prompt's places were asked for.
func (s *Server) startSample(p *sampler, in api.SampleRequest, t *wire.Targets) (*op, error) {
	draw := func(ctx context.Context) (*engine.Future[api.SampleOutput], error) {
		m, err := p.made.Wait(ctx)
		if err != nil {
			return nil, err
		}
		if p.shared != nil {
			return p.shared.sample(ctx, p.seq, m, in)
		}
		return m.Sample(ctx, in)
	}
	if p.made.State() == engine.Ended {
		f, err := draw(context.Background())
		if err != nil {
			return nil, err
		}
		return newOp(f, sizeOfSample, sampleEncoder(t)), nil
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
	return &op{work: w, size: func() int64 { return smallResult + sizeOfSample(w.out) }, failed: func() bool { return w.err != nil }, result: func(protobuf bool) (reply, error) {
		if w.err != nil {
			return reply{}, w.err
		}
		return sampleEncoder(t)(w.out, protobuf)
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

func sampleEncoder(t *wire.Targets) func(api.SampleOutput, bool) (reply, error) {
	return func(out api.SampleOutput, protobuf bool) (reply, error) {
		if protobuf {
			b, err := wire.EncodeSampleOutput(out, t)
			return reply{http.StatusOK, wire.Protobuf, b}, err
		}
		b, err := wire.EncodeSampleOutputJSON(out)
		return reply{http.StatusOK, wire.JSON, b}, err
	}
}
