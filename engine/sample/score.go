package sample

import (
	"math"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/model"
)

// scores are a prompt's log-probabilities. They are filled while the prompt is read, in any number of pieces:
// no bit depends on the cuts. A prompt that has to be read again overwrites them with the same values.
type scores struct {
	logProbs api.PromptLogProbs
	top      [][]api.TokenLogProb
}

// openScores makes room for what r asks for.
func (r *Request) openScores() {
	n := len(r.Prompt)
	if r.PromptLogProbs || r.TopKPromptLogProbs > 0 {
		r.scores.logProbs = make(api.PromptLogProbs, n)
		r.scores.logProbs[0] = api.NoLogProb()
	}
	if r.TopKPromptLogProbs > 0 {
		r.scores.top = make([][]api.TokenLogProb, n)
	}
}

// want says what is to be scored when s reads its next n tokens: the prompt tokens that follow each of them.
func (s *sequence) want(n int) (targets []int32, top int) {
	r := s.req
	if s.index != promptReader || r.scores.logProbs == nil {
		return nil, 0
	}
	begin := s.filled() + 1
	return r.Prompt[begin:min(begin+n, len(r.Prompt))], r.TopKPromptLogProbs
}

// score keeps what was scored when s read its last n tokens. A value that is not finite is an error.
func (s *sequence) score(n int, got model.Scores) error {
	r, at := s.req, s.filled()-n+1
	for i, lp := range got.LogProbs {
		if err := finite(at+i, r.Prompt[at+i], lp); err != nil {
			return err
		}
		r.scores.logProbs[at+i] = lp
	}
	for i, list := range got.Top {
		for _, t := range list {
			if err := finite(at+i, t.Token, t.LogProb); err != nil {
				return err
			}
		}
		r.scores.top[at+i] = list
	}
	return nil
}

func finite(position int, token int32, lp float32) error {
	if d := float64(lp); math.IsNaN(d) || math.IsInf(d, 0) {
		return api.Errorf(api.BadRequest, "prompt_logprobs: at prompt position %d the log-probability of token %d is %v: the weights have diverged", position, token, lp)
	}
	return nil
}
