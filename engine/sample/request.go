package sample

import (
	"sync/atomic"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/model"
)

// Request asks a Batch for Samples continuations of one prompt, for the prompt's log-probabilities, or both. The caller leaves its fields alone once it is
// added. Emit and Done are called by Step, in its goroutine, and must not block.
type Request struct {
	Prompt  []int32
	Params  api.SamplingParams // as Check wants them
	Seed    int64
	Samples int           // 0: only the prompt is read
	Adapter *lora.Weights // nil: the bare base
	EndIDs  []int32       // the model's end-of-sequence ids

	// As in api.SampleRequest.
	PromptLogProbs       bool
	TopKPromptLogProbs   int
	PromptLogProbsLast   int
	TargetPromptLogProbs [][]int32
	PromptAltTokens      int
	TopKSampledLogProbs  int

	Detokenizer func() Detokenizer                    // makes one per sample; needed for stop strings only
	Emit        func(sample int, c Choice)            // each token as it is drawn; may be nil
	Done        func(out api.SampleOutput, err error) // exactly once

	dropped  atomic.Pointer[error] // why it is to end
	age      int64                 // order of Add
	seqs     []*sequence
	prompt   *model.Cache // the prompt's keys and values, while samples that have none of their own may fork it
	unforked int          // samples that have not had a cache
	open     int          // samples that have not ended
	scores   scores       // of the prompt, as far as it was read
	over     bool         // Done was called
}

// Drop makes the request fail with why at the next Step; the first reason counts. Any goroutine may call it.
func (r *Request) Drop(why error) { r.dropped.CompareAndSwap(nil, &why) }

// Dropped is why the request was dropped, or nil. Any goroutine may call it.
func (r *Request) Dropped() error {
	if why := r.dropped.Load(); why != nil {
		return *why
	}
	return nil
}

// dropPrompt releases the prompt kept for samples.
func (r *Request) dropPrompt() {
	if r.prompt != nil {
		r.prompt.Release()
		r.prompt = nil
	}
}

// sequence is one sample, or, with index -1, a prompt that is being read for all samples of its request.
type sequence struct {
	req     *Request
	index   int
	drawn   []Choice
	top     [][]api.TokenLogProb // of each that was drawn, if that is wanted
	reason  string
	stops   *stops
	cache   *model.Cache // nil while it waits
	started bool         // it has had a cache, or needs none
}

// promptReader marks the sequence that reads the prompt for a request's samples.
const promptReader = -1

// length is how many tokens the sequence has.
func (s *sequence) length() int { return len(s.req.Prompt) + len(s.drawn) }

// filled is how many of them are in the cache.
func (s *sequence) filled() int {
	if s.cache == nil {
		return 0
	}
	return s.cache.Len()
}

// next lists at most n tokens that the cache lacks, in order. A token drawn on another pass through the cache is
// fed again after a sequence lost its place.
func (s *sequence) next(n int) []int32 {
	out := make([]int32, 0, n)
	for i := s.filled(); len(out) < n && i < s.length(); i++ {
		if i < len(s.req.Prompt) {
			out = append(out, s.req.Prompt[i])
		} else {
			out = append(out, s.drawn[i-len(s.req.Prompt)].Token)
		}
	}
	return out
}

// add appends a drawn token and reports whether the sequence has ended.
func (s *sequence) add(c Choice) bool {
	s.drawn = append(s.drawn, c)
	switch {
	case s.stops.push(c.Token):
		s.reason = api.StopReasonStop
	case len(s.drawn) >= s.req.Params.MaxTokens:
		s.reason = api.StopReasonLength
	}
	return s.reason != ""
}

func (s *sequence) output() api.SampledSequence {
	out := api.SampledSequence{
		Tokens: make([]int32, len(s.drawn)), LogProbs: make([]float32, len(s.drawn)),
		RawLogProbs: make([]float32, len(s.drawn)), StopReason: s.reason, TopKLogProbs: s.top,
	}
	for i, c := range s.drawn {
		out.Tokens[i], out.LogProbs[i], out.RawLogProbs[i] = c.Token, c.LogProb, c.Raw
	}
	return out
}
