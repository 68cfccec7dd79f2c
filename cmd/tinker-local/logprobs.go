package main

import (
	"fmt"
	"strings"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/token"
)

// scoredToken is a token of the prompt with its log-probability, as --json prints it, or one of
// those that were most likely in its place.
type scoredToken struct {
	Token   int32         `json:"token"`
	Text    string        `json:"text"`
	LogProb *float32      `json:"logprob"` // nil: the first token has none
	Top     []scoredToken `json:"top,omitempty"`
}

// scorePrompt lists the prompt's tokens with what out has about them; nil when it was not asked for.
func scorePrompt(t *token.Tokenizer, prompt []int32, out api.SampleOutput) []scoredToken {
	if out.PromptLogProbs == nil {
		return nil
	}
	scored := func(id int32, lp float32) scoredToken {
		s := scoredToken{Token: id, Text: t.Decode([]int32{id}, false)}
		if lp == lp {
			s.LogProb = &lp
		}
		return s
	}
	list := make([]scoredToken, len(prompt))
	for i, id := range prompt {
		list[i] = scored(id, out.PromptLogProbs[i])
		if out.TopKPromptLogProbs == nil {
			continue
		}
		for _, x := range out.TopKPromptLogProbs[i] {
			list[i].Top = append(list[i].Top, scored(x.Token, x.LogProb))
		}
	}
	return list
}

// String is one line: id, log-probability and text, then text and log-probability of the most likely ones.
func (s scoredToken) String() string {
	var b strings.Builder
	lp := "-"
	if s.LogProb != nil {
		lp = fmt.Sprintf("%.6f", *s.LogProb)
	}
	fmt.Fprintf(&b, "%8d  %10s  %-12q", s.Token, lp, s.Text)
	for _, x := range s.Top {
		fmt.Fprintf(&b, "  %q %.4f", x.Text, *x.LogProb)
	}
	return strings.TrimRight(b.String(), " ")
}
