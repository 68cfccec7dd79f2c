package engine

import (
	"context"
	"fmt"
	"slices"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/sample"
)

// Sampler draws from a base model, with an adapter's weights as they were when the sampler was made, or without.
type Sampler struct {
	e       *Engine
	session *Session
	base    *base
	snap    *lora.Snapshot // nil: the bare base
	away    bool           // snap is set aside: see idle.go; the device's goroutine only

	// guarded by e.mu
	users    int // requests under way, and one while it is open
	requests map[*request]bool
	used     time.Time
	closed   bool
	lost     error // why it was closed by nobody; nil: somebody has closed it
}

// newSampler makes a sampler on the device's goroutine. w nil: of the bare base.
func (e *Engine) newSampler(s *Session, name string, w *Weights) (*Sampler, error) {
	b, err := e.acquire(name)
	if err != nil {
		return nil, err
	}
	if w == nil {
		return e.openSampler(s, b, nil)
	}
	if err := e.need("an adapter's weights", e.snapshotBytes(b, w.Lora), b); err != nil {
		b.unuse()
		return nil, err
	}
	snap, err := lora.NewSnapshot(e.dev, b.model.Sites, w.Lora, w.Tensors, w.Scale)
	if err != nil {
		b.unuse()
		return nil, err
	}
	snap.Version = w.Version
	return e.openSampler(s, b, snap)
}

// snapshot copies a run's weights into a sampler of its session.
func (e *Engine) snapshot(r *Run) (*Sampler, error) {
	if err := e.need("a copy of the adapter's weights", e.snapshotBytes(r.base, r.lora), r.base); err != nil {
		return nil, err
	}
	snap, err := r.adapter.Snapshot()
	if err != nil {
		return nil, err
	}
	r.base.use()
	return e.openSampler(r.session, r.base, snap)
}

// openSampler takes over a reference to b, and snap.
func (e *Engine) openSampler(s *Session, b *base, snap *lora.Snapshot) (*Sampler, error) {
	if snap != nil {
		b.snaps[snap] = true
		e.used += e.snapshotBytes(b, snap.Config)
	}
	b.samplers++
	p := &Sampler{e: e, session: s, base: b, snap: snap, users: 1, requests: map[*request]bool{}, used: e.opt.Now()}
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.closed {
		p.closed = true
		p.unuse()
		return nil, errSessionClosed
	}
	s.samplers[p] = true
	return p, nil
}

// unuse counts a user less; the last one's leaving frees the snapshot. e.mu is held.
func (p *Sampler) unuse() {
	p.used = p.e.opt.Now()
	if p.users--; p.users > 0 {
		return
	}
	delete(p.session.closing, p)
	p.e.post(job{name: "close sampler", do: func() {
		p.e.dropPage(p)
		if p.snap != nil {
			p.e.freeSnapshot(p.base, p.snap)
		}
		p.base.samplers--
		p.base.unuse()
	}})
}

// Base describes the base model.
func (p *Sampler) Base() BaseInfo { return p.base.info }

// Version is the version of the run's weights that the sampler has; 0 for a bare base.
func (p *Sampler) Version() int64 {
	if p.snap == nil {
		return 0
	}
	return p.snap.Version
}

// Close refuses new requests and frees the sampler when those under way have ended. It does not block; closing twice
// does nothing.
func (p *Sampler) Close() {
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	delete(p.session.samplers, p)
	p.session.closing[p] = true
	p.unuse()
}

// Abort is Close, and fails the requests under way: at their next token, or before they begin. It does not block.
func (p *Sampler) Abort() { p.abort(errSamplerClosed) }

// abort tells the requests why.
func (p *Sampler) abort(why error) {
	p.Close()
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	for q := range p.requests {
		q.Drop(why)
	}
	p.e.signal()
}

// request is a sampling request with its way back.
type request struct {
	sample.Request
	sampler *Sampler
	settle  func(api.SampleOutput, error) // the future's end
	release func() bool                   // ends the watch over the caller's ctx
	stream  *Stream                       // nil: nobody watches
	added   bool                          // it is the batch's to end; the device's goroutine only
}

// Sample draws r.NumSamples continuations of r.Prompt. A sequence ends with a stop token, with the
// token that completes a stop string, with one of the model's end-of-sequence tokens (unless StopTokens is
// empty and not nil), or after MaxTokens tokens (0: as many as the model's context and the key/value pool hold). NumSamples 0 means 1. It does not block. When ctx
// ends before the request has, the request is cancelled and gives its place up.
func (p *Sampler) Sample(ctx context.Context, r api.SampleRequest) (*Future[api.SampleOutput], error) {
	f := newFuture[api.SampleOutput]()
	q, err := p.request(r, max(r.NumSamples, 1))
	if err != nil {
		return nil, err
	}
	q.settle, f.drop = f.set, q.drop
	if err := p.submit(ctx, q); err != nil {
		return nil, err
	}
	return f, nil
}

// ComputeLogProbs gives the log-probability of every token of the prompt, given those before it: the bits of
// [Run.Forward] with the same weights. It reads the prompt, which may fill the model's context, and draws nothing. ctx
// is as for Sample.
func (p *Sampler) ComputeLogProbs(ctx context.Context, prompt api.ModelInput) (*Future[api.PromptLogProbs], error) {
	f := newFuture[api.PromptLogProbs]()
	params := api.DefaultSampling()
	params.Seed = new(int64) // nothing is drawn: no seed is used up
	q, err := p.request(api.SampleRequest{Prompt: prompt, Params: params, PromptLogProbs: true}, 0)
	if err != nil {
		return nil, err
	}
	q.settle = func(out api.SampleOutput, err error) { f.set(out.PromptLogProbs, err) }
	f.drop = q.drop
	if err := p.submit(ctx, q); err != nil {
		return nil, err
	}
	return f, nil
}

// Stream is Sample with the tokens as they are drawn. The prompt's log-probabilities are in its future's result.
func (p *Sampler) Stream(ctx context.Context, r api.SampleRequest) (*Stream, error) {
	f := newFuture[api.SampleOutput]()
	q, err := p.request(r, max(r.NumSamples, 1))
	if err != nil {
		return nil, err
	}
	q.settle, f.drop = f.set, q.drop
	q.stream = newStream(f)
	q.Emit = q.stream.emit
	if err := p.submit(ctx, q); err != nil {
		return nil, err
	}
	return q.stream, nil
}

// request checks r and makes a request of it for n samples; 0: only its prompt is read.
func (p *Sampler) request(r api.SampleRequest, n int) (*request, error) {
	lim, spec := p.e.lim, p.base.info.Spec
	prompt, err := r.Prompt.Tokens()
	if err != nil {
		return nil, err
	}
	most := min(lim.TopKPromptLogProbs, spec.Vocab)
	switch {
	case len(prompt) == 0:
		return nil, api.Errorf(api.BadRequest, "the prompt is empty")
	case n == 0 && len(prompt) > spec.MaxPositions:
		return nil, api.Errorf(api.BadRequest, "the prompt has %d tokens, the model's context is %s", len(prompt), spec.Context())
	case n > 0 && len(prompt) >= spec.MaxPositions:
		return nil, api.Errorf(api.BadRequest, "the prompt has %d tokens, the model's context is %s and needs room for one more", len(prompt), spec.Context())
	case r.NumSamples < 0 || n > lim.SamplesPerRequest:
		return nil, api.Errorf(api.BadRequest, "num_samples is %d, wanted 1..%d", r.NumSamples, lim.SamplesPerRequest)
	case r.PromptLogProbsLast < 0 || r.PromptLogProbsLast > 0 && r.PromptLogProbsLast >= len(prompt):
		return nil, api.Errorf(api.BadRequest, "prompt_logprobs_last_n is %d, wanted 1..%d: all but the first token of the prompt", r.PromptLogProbsLast, len(prompt)-1)
	}
	for _, k := range []struct {
		name string
		v    int
	}{
		{"topk_prompt_logprobs", r.TopKPromptLogProbs}, {"topk_sample_logprobs", r.TopKSampledLogProbs}, {"prompt_alt_tokens_k", r.PromptAltTokens},
	} {
		if k.v < 0 || k.v > most {
			return nil, api.Errorf(api.BadRequest, "%s is %d, wanted 0..%d", k.name, k.v, most)
		}
	}
	if err := p.checkTargets(r.TargetPromptLogProbs, len(prompt)); err != nil {
		return nil, err
	}
	if err := p.base.model.CheckTokens(prompt); err != nil {
		return nil, apiError(fmt.Errorf("prompt: %w", err))
	}
	if err := sample.Check(r.Params); err != nil {
		return nil, err
	}
	if err := p.checkStops(r.Params); err != nil {
		return nil, err
	}
	q := &request{sampler: p}
	q.Request = sample.Request{
		Prompt: slices.Clone(prompt), Params: r.Params, Samples: n, EndIDs: p.base.info.EosTokenIDs,
		PromptLogProbs: r.PromptLogProbs, TopKPromptLogProbs: r.TopKPromptLogProbs, PromptLogProbsLast: r.PromptLogProbsLast,
		TargetPromptLogProbs: r.TargetPromptLogProbs, PromptAltTokens: r.PromptAltTokens, TopKSampledLogProbs: r.TopKSampledLogProbs,
		Detokenizer: p.base.detok, Done: q.end,
	}
	if r.Params.Seed != nil {
		q.Seed = *r.Params.Seed
	} else {
		q.Seed = p.e.opt.Seed()
	}
	if p.snap != nil {
		q.Adapter = p.snap.Weights
	}
	return q, nil
}

// checkTargets says whether rows can be those of a prompt of n tokens.
func (p *Sampler) checkTargets(rows [][]int32, n int) error {
	if rows == nil {
		return nil
	}
	if len(rows) != n-1 {
		return api.Errorf(api.BadRequest, "target_prompt_logprobs has %d rows, wanted %d: one for each token of the prompt but the first", len(rows), n-1)
	}
	named, limit := 0, n*p.e.lim.TopKPromptLogProbs
	for i, row := range rows {
		for _, id := range row {
			if int(id) >= p.base.info.Spec.Vocab {
				return api.Errorf(api.BadRequest, "target_prompt_logprobs: row %d names the token %d, the vocabulary is 0..%d", i, id, p.base.info.Spec.Vocab-1)
			}
			if id >= 0 {
				named++
			}
		}
	}
	switch {
	case named == 0:
		return api.Errorf(api.BadRequest, "target_prompt_logprobs names no token")
	case named > limit:
		return api.Errorf(api.BadRequest, "target_prompt_logprobs names %d tokens, the limit is %d for each of the prompt's %d", named, p.e.lim.TopKPromptLogProbs, n)
	}
	return nil
}

func (p *Sampler) checkStops(s api.SamplingParams) error {
	lim := p.e.lim
	if len(s.Stop) > 0 && p.base.detok == nil {
		return apiError(p.base.detokErr)
	}
	if n := len(s.Stop) + len(s.StopTokens); n > lim.StopStrings {
		return api.Errorf(api.BadRequest, "%d stops, the limit is %d", n, lim.StopStrings)
	}
	for i, str := range s.Stop {
		if len(str) > lim.StopBytes {
			return api.Errorf(api.BadRequest, "stop string %d has %d bytes, the limit is %d", i, len(str), lim.StopBytes)
		}
	}
	if err := p.base.model.CheckTokens(s.StopTokens); err != nil {
		return apiError(fmt.Errorf("stop: %w", err))
	}
	return nil
}

// submit queues q.
func (p *Sampler) submit(ctx context.Context, q *request) (err error) {
	e := p.e
	e.mu.Lock()
	defer e.mu.Unlock()
	switch err = e.usable(); {
	case err != nil:
	case p.lost != nil:
		err = p.lost
	case p.closed:
		err = errSamplerClosed
	case e.sampling >= e.lim.SampleRequests:
		err = api.Errorf(api.Busy, "%d sampling requests are under way, the limit is %d", e.sampling, e.lim.SampleRequests)
	default:
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	e.sampling++
	p.users++
	p.requests[q] = true
	p.used = e.opt.Now()
	q.release = context.AfterFunc(ctx, q.drop)
	p.base.incoming = append(p.base.incoming, q)
	e.signal()
	return nil
}

// drop cancels the request wherever it is.
func (q *request) drop() {
	q.Drop(errSampleCancelled)
	q.sampler.e.signal()
}

// end is called once, on the device's goroutine.
func (q *request) end(out api.SampleOutput, err error) {
	e := q.sampler.e
	q.release()
	e.mu.Lock()
	e.sampling--
	delete(q.sampler.requests, q)
	q.sampler.unuse()
	e.retry()
	e.mu.Unlock()
	q.settle(out, err)
	if q.stream != nil {
		q.stream.finish()
	}
}

// alive ends the requests that were dropped, and returns the others. The batch has none of them.
func alive(requests []*request) []*request {
	return slices.DeleteFunc(requests, func(q *request) bool {
		why := q.Dropped()
		if why != nil {
			q.fail(why)
		}
		return why != nil
	})
}

// fail ends a request that the batch does not have.
func (q *request) fail(err error) {
	if !q.added {
		q.added = true
		q.end(api.SampleOutput{}, err)
	}
}
