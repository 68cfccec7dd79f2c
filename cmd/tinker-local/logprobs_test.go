package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestPromptLogprobs: each token of the prompt has a line, or an object, with its log-probability and the most
// likely ones; asking for these alone is enough.
func TestPromptLogprobs(t *testing.T) {
	args := []string{"sample", "--model", tiny, "--prompt", "the old house", "--temperature", "0", "--max-tokens", "4"}
	_, plain, _ := cli(t.Context(), args...)
	code, text, stderr := cli(t.Context(), append(args, "--prompt-logprobs")...)
	if code != exitOK || stderr != "" || !strings.HasSuffix(text, "--- sample 1 (length)\n"+plain) {
		t.Fatalf("exit code %d, %q, %q; sampled %q", code, text, stderr, plain)
	}
	lines := strings.Split(text, "\n")
	if f := strings.Fields(lines[0]); len(f) != 3 || f[1] != "-" {
		t.Errorf("the first token's line is %q", lines[0])
	}
	code, out, stderr := cli(t.Context(), append(args, "--top-logprobs", "3", "--json")...)
	var v struct {
		Samples []sampled
		Prompt  []scoredToken
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || code != exitOK || len(v.Samples) != 1 {
		t.Fatalf("exit code %d, %q, %v, %s", code, out, err, stderr)
	}
	all := ""
	for i, s := range v.Prompt {
		all += s.Text
		if !strings.Contains(lines[i], s.String()[:20]) {
			t.Errorf("token %d is %v in JSON and %q in text", i, s, lines[i])
		}
		if i == 0 {
			if s.LogProb != nil || s.Top != nil {
				t.Errorf("the first token has %v", s)
			}
			continue
		}
		if s.LogProb == nil || len(s.Top) != 3 || *s.Top[0].LogProb < *s.Top[1].LogProb || *s.LogProb > *s.Top[0].LogProb {
			t.Errorf("token %d has %v", i, s)
		}
	}
	if !strings.HasSuffix(all, "the old house") {
		t.Errorf("the prompt is %q", all)
	}
	code, _, stderr = cli(t.Context(), append(args, "--top-logprobs", "129")...)
	if code != exitFailed || !strings.Contains(stderr, "topk_prompt_logprobs is 129, wanted 0..128") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}
