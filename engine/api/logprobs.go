package api

import (
	"encoding/json"
	"fmt"
	"math"
)

// PromptLogProbs holds one log-probability per token of a prompt, each given the tokens before it.
// The first token has none, and its entry is NaN, as in the protobuf form; in JSON it is null. All others are finite.
type PromptLogProbs []float32

// NoLogProb is the entry of a token that has no log-probability.
func NoLogProb() float32 { return float32(math.NaN()) }

// MarshalJSON writes NaN as null.
func (p PromptLogProbs) MarshalJSON() ([]byte, error) {
	if p == nil {
		return []byte("null"), nil
	}
	list := make([]*float32, len(p))
	for i := range p {
		if p[i] == p[i] {
			list[i] = &p[i]
		}
	}
	return json.Marshal(list)
}

// UnmarshalJSON reads null as NaN.
func (p *PromptLogProbs) UnmarshalJSON(b []byte) error {
	var list []*float32
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	*p = nil
	if list != nil {
		*p = make(PromptLogProbs, len(list))
	}
	for i, v := range list {
		(*p)[i] = NoLogProb()
		if v != nil {
			(*p)[i] = *v
		}
	}
	return nil
}

// TokenLogProb is a token with its log-probability. In JSON it is the pair [token, logprob].
type TokenLogProb struct {
	Token   int32
	LogProb float32
}

// MarshalJSON writes the pair.
func (t TokenLogProb) MarshalJSON() ([]byte, error) {
	return json.Marshal([]any{t.Token, t.LogProb})
}

// UnmarshalJSON reads the pair.
func (t *TokenLogProb) UnmarshalJSON(b []byte) error {
	var pair []json.RawMessage
	if err := json.Unmarshal(b, &pair); err != nil {
		return err
	}
	if len(pair) != 2 {
		return fmt.Errorf("a token with its logprob has %d elements, wanted [token, logprob]", len(pair))
	}
	if err := json.Unmarshal(pair[0], &t.Token); err != nil {
		return err
	}
	return json.Unmarshal(pair[1], &t.LogProb)
}
