package api_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"tinkerlocal/engine/api"
)

// TestPromptLogProbsJSON: none is null, both ways; a token and its logprob are a pair.
func TestPromptLogProbsJSON(t *testing.T) {
	for _, c := range []struct {
		out  api.SampleOutput
		want string
	}{
		{api.SampleOutput{}, `{"sequences":null,"prompt_logprobs":null,"topk_prompt_logprobs":null}`},
		{api.SampleOutput{PromptLogProbs: api.PromptLogProbs{}}, `{"sequences":null,"prompt_logprobs":[],"topk_prompt_logprobs":null}`},
		{api.SampleOutput{
			PromptLogProbs:     api.PromptLogProbs{api.NoLogProb(), -0.1, 0},
			TopKPromptLogProbs: [][]api.TokenLogProb{nil, {{Token: 7, LogProb: -0.1}, {Token: 3, LogProb: -2.5}}, {}},
		}, `{"sequences":null,"prompt_logprobs":[null,-0.1,0],"topk_prompt_logprobs":[null,[[7,-0.1],[3,-2.5]],[]]}`},
	} {
		b, err := json.Marshal(c.out)
		if err != nil || string(b) != c.want {
			t.Errorf("got %s (%v), wanted %s", b, err, c.want)
		}
		var back api.SampleOutput
		if err := json.Unmarshal(b, &back); err != nil || fmt.Sprint(back) != fmt.Sprint(c.out) {
			t.Errorf("%s was read as %v (%v)", b, back, err)
		}
	}
	for _, bad := range []string{`{"prompt_logprobs":["x"]}`, `{"topk_prompt_logprobs":[[[1]]]}`, `{"topk_prompt_logprobs":[[[1.5,0]]]}`, `{"topk_prompt_logprobs":[[[1,"x"]]]}`} {
		var out api.SampleOutput
		if err := json.Unmarshal([]byte(bad), &out); err == nil {
			t.Errorf("%s was read as %v", bad, out)
		}
	}
}
