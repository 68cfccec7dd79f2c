package sample

import (
	"cmp"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/model"
)

// Limits bound a Batch.
type Limits struct {
	Sequences     int // that decode together
	PrefillTokens int // prompt tokens that one step reads
	Positions     int // of the key/value pool
}

// Batch is the sequences that are being sampled from one base: they join and leave between steps, with
// adapters of their own, and every step feeds all of them to the model at once. A prompt is read once
// for all samples of its request. When the pool is full the youngest sequence loses its place and is read again
// later; since a token's bits do not depend on how it was batched, that changes no result.
// One goroutine uses a Batch.
type Batch struct {
	base    *model.Base
	kv      *model.KV
	lim     Limits
	pages   int         // of the pool
	waiting []*sequence // without a cache, in order of admission
	active  []*sequence // with a cache, oldest first
	added   int64
	pick    Picker
}

// NewBatch makes a batch with a key/value pool of its own. Free it.
func NewBatch(base *model.Base, lim Limits) (*Batch, error) {
	kv, err := base.NewKV(lim.Positions)
	if err != nil {
		return nil, err
	}
	return &Batch{base: base, kv: kv, lim: lim, pages: kv.FreePositions() / model.PageLen}, nil
}

// Busy reports whether Step has anything to do.
func (b *Batch) Busy() bool { return len(b.waiting)+len(b.active) > 0 }

// Load is how full a batch is.
type Load struct {
	Waiting   int // sequences without a place, and prompts to be read for several
	Running   int // sequences with a place
	Positions int // of the key/value pool
	Used      int // of those, in whole pages
}

// Load tells how full the batch is.
func (b *Batch) Load() Load {
	all := b.pages * model.PageLen
	return Load{Waiting: len(b.waiting), Running: len(b.active), Positions: all, Used: all - b.kv.FreePositions()}
}

// Add queues a request. When the pool could never hold it, Done is called with the reason.
func (b *Batch) Add(r *Request) {
	if err := b.limit(r); err != nil {
		r.over = true
		r.Done(api.SampleOutput{}, err)
		return
	}
	r.seqs = make([]*sequence, r.Samples)
	for i := range r.seqs {
		var d Detokenizer
		if len(r.Params.Stop) > 0 {
			d = r.Detokenizer()
		}
		ids := r.Params.StopTokens
		if r.Params.EndsAtEOS() {
			ids = slices.Concat(ids, r.EndIDs)
		}
		r.seqs[i] = &sequence{req: r, index: i, stops: newStops(ids, r.Params.Stop, d)}
	}
	r.openScores()
	r.open, r.unforked, r.age = r.Samples, r.Samples, b.added
	b.added++
	b.waiting = append(b.waiting, &sequence{req: r, index: promptReader})
}

// limit sets r's MaxTokens to what the context leaves, and to what the pool leaves when the caller did not say. One
// sequence of the length asked for must fit the pool alone.
func (b *Batch) limit(r *Request) error {
	n, pool, asked := len(r.Prompt), b.pages*model.PageLen, r.Params.MaxTokens
	if r.Samples == 0 {
		if n > pool {
			return api.Errorf(api.OutOfMemory, "prompt_logprobs: a prompt of %d tokens does not fit the key/value pool of %d positions", n, pool)
		}
		return nil // what exceeds the context, the model refuses
	}
	context := b.base.Spec.MaxPositions - n
	if asked == 0 {
		r.Params.MaxTokens = min(context, pool-n)
	} else {
		r.Params.MaxTokens = min(context, asked)
	}
	if context < 1 {
		return api.Errorf(api.BadRequest, "sample: the prompt has %d tokens, the model's context is %d", n, b.base.Spec.MaxPositions)
	}
	if r.Params.MaxTokens < 1 || n+r.Params.MaxTokens > pool {
		return api.Errorf(api.OutOfMemory, "sample: a prompt of %d tokens and max_tokens %d do not fit the key/value pool of %d positions", n, asked, pool)
	}
	return nil
}

// Step feeds every active sequence once and draws a token for those that are read to their end. When
// the model fails, the requests that took part have failed with the error that is returned; others go on.
func (b *Batch) Step() error {
	b.reap()
	b.admit()
	feeds, fed := b.compose()
	if len(feeds) == 0 {
		return nil
	}
	logits, err := b.base.Extend(feeds)
	if err != nil {
		for _, s := range fed {
			b.fail(s.req, err)
		}
		return err
	}
	for i, s := range fed {
		if s.req.over {
			continue
		}
		if err := s.score(len(feeds[i].Tokens), logits.Scores[i]); err != nil {
			b.fail(s.req, err)
			continue
		}
		if s.filled() == s.length() {
			b.draw(s, logits.Z[i], logits.LSE[i])
		}
	}
	return nil
}

// reap ends the requests that were dropped.
func (b *Batch) reap() {
	for _, s := range slices.Concat(b.active, b.waiting) { // a copy: to end one is to take it off the lists
		if why := s.req.Dropped(); why != nil {
			b.fail(s.req, why)
		}
	}
}

// admit gives caches to waiting sequences, oldest first, as long as there is room for all they have
// to read beside what the active ones have to.
func (b *Batch) admit() {
	for len(b.waiting) > 0 && len(b.active) < b.lim.Sequences {
		s := b.waiting[0]
		for !b.fits(s) {
			switch {
			case b.dropPrompt(s.req):
			case len(b.active) > 0:
				return
			default: // alone, it fits when it shares nothing
				s.req.dropPrompt()
			}
		}
		if err := b.start(s); err != nil {
			b.fail(s.req, err)
			continue
		}
		b.waiting = b.waiting[1:]
		b.active = append(b.active, s)
		byAge(b.active)
	}
}

// fits reports whether there are pages for s and its next token. Alone and without a shared prompt every sequence fits, since Add checked it.
func (b *Batch) fits(s *sequence) bool {
	need := pagesFor(s.length() + 1)
	shared := s.req.prompt != nil && s.index != promptReader
	if shared {
		need -= len(s.req.Prompt) / model.PageLen // full pages are shared, a partial one is copied
	}
	free := b.kv.FreePositions() / model.PageLen
	for _, a := range b.active {
		free -= max(0, pagesFor(a.length()+1)-pagesFor(a.filled()))
	}
	return need <= free || len(b.active) == 0 && !shared
}

// start gives s a cache: its request's prompt, a fork of it, or an empty one.
func (b *Batch) start(s *sequence) (err error) {
	r := s.req
	first := s.index != promptReader && !s.started
	switch {
	case r.prompt == nil || s.index == promptReader:
		s.cache = b.kv.NewCache()
	case first && r.unforked == 1:
		s.cache, r.prompt = r.prompt, nil
	default:
		if s.cache, err = r.prompt.Fork(); err != nil {
			return err
		}
	}
	if first {
		s.started = true
		r.unforked--
	}
	return nil
}

// dropPrompt releases the prompt that the youngest waiting request keeps for its samples, other than
// except: they will read it again. It reports whether there was one.
func (b *Batch) dropPrompt(except *Request) bool {
	for _, s := range slices.Backward(b.waiting) {
		if s.req != except && s.req.prompt != nil {
			s.req.dropPrompt()
			return true
		}
	}
	return false
}

// byAge sorts sequences in the order of their requests and, in one, of samples.
func byAge(list []*sequence) {
	slices.SortStableFunc(list, func(x, y *sequence) int {
		return cmp.Or(cmp.Compare(x.req.age, y.req.age), x.index-y.index)
	})
}

// compose chooses what the next step reads: one token of every sequence that decodes, and chunks of
// longer rests up to the limit. When pages run out the youngest sequence gives its own up.
func (b *Batch) compose() (feeds []model.Feed, fed []*sequence) {
	prefill, promised := b.lim.PrefillTokens, 0
	for i := 0; i < len(b.active); i++ {
		s := b.active[i]
		n := s.length() - s.filled()
		if n > 1 {
			n = min(n, prefill)
			if cut := s.unscored(); cut > 0 {
				n = min(n, cut)
			}
			prefill -= n
		}
		if n == 0 {
			continue
		}
		need := pagesFor(s.filled()+n) - pagesFor(s.filled())
		for b.kv.FreePositions()/model.PageLen-promised < need {
			if b.dropPrompt(nil) {
				continue
			}
			youngest := b.active[len(b.active)-1]
			b.suspend(youngest)
			if youngest == s {
				return feeds, fed
			}
		}
		promised += need
		fd := model.Feed{Cache: s.cache, Tokens: s.next(n), Adapter: s.req.Adapter}
		b.want(s, n, &fd)
		feeds = append(feeds, fd)
		fed = append(fed, s)
	}
	return feeds, fed
}

// suspend takes an active sequence's cache away and lets it wait.
func (b *Batch) suspend(s *sequence) {
	b.leave(s)
	b.waiting = append(b.waiting, s)
	byAge(b.waiting)
}

// leave releases a sequence's cache and takes it off the lists.
func (b *Batch) leave(s *sequence) {
	if s.cache != nil {
		s.cache.Release()
		s.cache = nil
	}
	same := func(x *sequence) bool { return x == s }
	b.active = slices.DeleteFunc(b.active, same)
	b.waiting = slices.DeleteFunc(b.waiting, same)
}

// draw chooses the next token of a sequence that is read to its end. A prompt's row serves the first
// token of every sample.
func (b *Batch) draw(s *sequence, z []float32, lse float32) {
	r := s.req
	if s.index != promptReader {
		b.extend(s, z, lse)
		return
	}
	r.prompt, s.cache = s.cache, nil
	b.leave(s)
	for _, each := range r.seqs {
		if r.over {
			return
		}
		b.waiting = append(b.waiting, each)
		b.extend(each, z, lse)
	}
	byAge(b.waiting)
	if r.unforked == 0 {
		r.dropPrompt()
	}
	if r.Samples == 0 {
		b.finish(r)
	}
}

// extend draws one token of one sample.
func (b *Batch) extend(s *sequence, z []float32, lse float32) {
	r := s.req
	c, err := b.pick.Pick(z, lse, r.Params, r.Seed, s.index, len(s.drawn))
	if err != nil {
		b.fail(r, err)
		return
	}
	if k := r.TopKSampledLogProbs; k > 0 {
		s.top = append(s.top, b.pick.Top(z, lse, r.Params.Temperature, k))
	}
	ended := s.add(c)
	if r.Emit != nil {
		r.Emit(s.index, c)
	}
	if !ended {
		return
	}
	b.leave(s)
	if !s.started {
		s.started = true
		r.unforked--
	}
	if r.open--; r.open == 0 {
		b.finish(r)
	}
}

// finish ends a request with its result.
func (b *Batch) finish(r *Request) {
	out := api.SampleOutput{
		Sequences: make([]api.SampledSequence, len(r.seqs)), PromptLogProbs: r.scores.logProbs, TopKPromptLogProbs: r.scores.top,
		TargetPromptLogProbs: r.scores.targets, PromptAltTokens: r.scores.alt,
	}
	for i, each := range r.seqs {
		out.Sequences[i] = each.output()
	}
	b.end(r, out, nil)
}

// fail ends a request with an error.
func (b *Batch) fail(r *Request, err error) {
	if r.over {
		return
	}
	of := func(x *sequence) bool {
		if x.req == r && x.cache != nil {
			x.cache.Release()
			x.cache = nil
		}
		return x.req == r
	}
	b.active = slices.DeleteFunc(b.active, of)
	b.waiting = slices.DeleteFunc(b.waiting, of)
	b.end(r, api.SampleOutput{}, err)
}

func (b *Batch) end(r *Request, out api.SampleOutput, err error) {
	r.dropPrompt()
	r.over, r.seqs, r.scores = true, nil, scores{}
	r.Done(out, err)
}

// FailAll ends every request with err.
func (b *Batch) FailAll(err error) {
	for _, s := range slices.Concat(b.active, b.waiting) {
		b.fail(s.req, err)
	}
}

// Free gives the pool's memory back. No request may be under way.
func (b *Batch) Free() { b.kv.Free() }

func pagesFor(positions int) int { return (positions + model.PageLen - 1) / model.PageLen }
