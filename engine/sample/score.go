package sample

import (
	"math"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/model"
)

// scores are what is asked of a prompt. They are filled while the prompt is read, in any number of pieces: no bit depends on
// the cuts. A prompt that has to be read again overwrites them with the same values.
type scores struct {
	plain int // the first token whose log-probability is wanted
	begin int // the first token of which anything is wanted; the length of the prompt: none

	logProbs api.PromptLogProbs
	top      [][]api.TokenLogProb
	targets  [][]float32          // a row per token but the first
	alt      [][]api.TokenLogProb // a row per token but the first
	err      error                // the first that looking at logits met
}

// openScores makes room for what r asks for.
func (r *Request) openScores() {
	n := len(r.Prompt)
	s := scores{plain: n, begin: n}
	if r.PromptLogProbs || r.TopKPromptLogProbs > 0 {
		s.plain = 1
		if r.PromptLogProbsLast > 0 {
			s.plain = n - r.PromptLogProbsLast
		}
		s.begin = s.plain
		s.logProbs = make(api.PromptLogProbs, n)
		for i := range min(s.plain, n) {
			s.logProbs[i] = api.NoLogProb()
		}
	}
	if r.TopKPromptLogProbs > 0 {
		s.top = make([][]api.TokenLogProb, n)
	}
	if r.TargetPromptLogProbs != nil {
		s.targets = make([][]float32, len(r.TargetPromptLogProbs))
		for i, row := range r.TargetPromptLogProbs {
			s.targets[i] = make([]float32, len(row))
			if asks(row) {
				s.begin = min(s.begin, i+1)
			}
		}
	}
	if r.PromptAltTokens > 0 {
		s.alt = make([][]api.TokenLogProb, n-1)
		s.begin = 1
	}
	r.scores = s
}

// asks says whether a row names a token.
func asks(row []int32) bool {
	for _, id := range row {
		if id >= 0 {
			return true
		}
	}
	return false
}

// unscored is how many of the next tokens of s are read for nothing but their keys and values: a piece ends there.
func (s *sequence) unscored() int {
	begin := s.req.scores.begin
	if s.index != promptReader || begin == len(s.req.Prompt) {
		return 0
	}
	return max(0, begin-1-s.filled())
}

// want says what is to be scored when s reads the next n tokens: the prompt tokens that follow each of them.
func (b *Batch) want(s *sequence, n int, fd *model.Feed) {
	r := s.req
	at := s.filled() + 1
	if s.index != promptReader || at < r.scores.begin || at >= len(r.Prompt) {
		return
	}
	fd.Targets, fd.Top = r.Prompt[at:min(at+n, len(r.Prompt))], r.TopKPromptLogProbs
	if r.scores.targets != nil || r.scores.alt != nil {
		fd.Look = func(i int, z []float32, lse float32) { b.look(r, at+i, z, lse) }
	}
}

// look takes what is wanted from the logits that the prompt's token at a place had.
func (b *Batch) look(r *Request, at int, z []float32, lse float32) {
	s := &r.scores
	if s.targets != nil {
		for j, id := range r.TargetPromptLogProbs[at-1] {
			if id >= 0 {
				s.targets[at-1][j] = z[id] - lse
				s.note(finite("target_prompt_logprobs", at, id, z[id]-lse))
			}
		}
	}
	if s.alt != nil {
		row, err := b.pick.alternatives(z, lse, r.Params.Temperature, r.Seed, at, r.PromptAltTokens)
		s.alt[at-1] = row
		s.note(err)
	}
}

// note keeps the first error.
func (s *scores) note(err error) {
	if s.err == nil {
		s.err = err
	}
}

// score keeps what was scored when s read its last n tokens. A value that is not finite is an error.
func (s *sequence) score(n int, got model.Scores) error {
	r, at := s.req, s.filled()-n+1
	if r.scores.err != nil {
		return r.scores.err
	}
	for i, lp := range got.LogProbs {
		if at+i < r.scores.plain {
			continue
		}
		if err := finite("prompt_logprobs", at+i, r.Prompt[at+i], lp); err != nil {
			return err
		}
		r.scores.logProbs[at+i] = lp
	}
	for i, list := range got.Top {
		if at+i < r.scores.plain {
			continue
		}
		for _, t := range list {
			if err := finite("prompt_logprobs", at+i, t.Token, t.LogProb); err != nil {
				return err
			}
		}
		r.scores.top[at+i] = list
	}
	return nil
}

func finite(what string, position int, token int32, lp float32) error {
	if d := float64(lp); math.IsNaN(d) || math.IsInf(d, 0) {
		return api.Errorf(api.BadRequest, "%s: at prompt position %d the log-probability of token %d is %v: the weights have diverged", what, position, token, lp)
	}
	return nil
}
