package api

// SamplingParams are the knobs of one sampling request. The zero value is not the default: see [DefaultSampling].
type SamplingParams struct {
	MaxTokens int      `json:"max_tokens,omitempty"` // 0: up to the context limit
	Seed      *int64   `json:"seed,omitempty"`       // nil: a random seed
	Stop      []string `json:"-"`                    // stop when the decoded text contains one of these

	// StopTokens end a sequence, besides the model's own end-of-sequence tokens. Nil: those alone do. Empty but not nil: no
	// token does, not even the model's own, and a sequence goes on to MaxTokens or to a Stop.
	StopTokens []int32 `json:"-"`

	Temperature float64 `json:"temperature"` // 0: argmax
	TopK        int     `json:"top_k"`       // -1 (or 0): off
	TopP        float64 `json:"top_p"`       // 1: off
}

// EndsAtEOS says whether the model's own end-of-sequence tokens end a sequence.
func (p SamplingParams) EndsAtEOS() bool { return p.StopTokens == nil || len(p.StopTokens) > 0 }

// DefaultSampling samples from the model's own distribution.
func DefaultSampling() SamplingParams { return SamplingParams{Temperature: 1, TopK: -1, TopP: 1} }

// SampleRequest asks for NumSamples continuations of one prompt.
type SampleRequest struct {
	Prompt     ModelInput     `json:"prompt"`
	Params     SamplingParams `json:"sampling_params"`
	NumSamples int            `json:"num_samples"`

	PromptLogProbs     bool `json:"prompt_logprobs"`      // the prompt's own log-probabilities, too
	TopKPromptLogProbs int  `json:"topk_prompt_logprobs"` // and the k most probable tokens at each of its positions; 0: none

	// PromptLogProbsLast gives both of these for so many tokens at the end of the prompt only; 0: for all.
	PromptLogProbsLast int `json:"prompt_logprobs_last_n,omitempty"`

	// TargetPromptLogProbs has a row for each prompt token but the first: tokens whose log-probabilities at its place are
	// wanted. A negative one asks for nothing. Nil: none.
	TargetPromptLogProbs [][]int32 `json:"target_prompt_logprobs,omitempty"`

	// PromptAltTokens is how many tokens are drawn, each for itself, at the place of each prompt token but the first, from the
	// distribution that the temperature makes of the model's own; 0: none. Top-k and top-p do not count.
	PromptAltTokens int `json:"prompt_alt_tokens_k,omitempty"`

	// TopKSampledLogProbs lists so many of the most probable tokens at the place of each token that is drawn; 0: none.
	TopKSampledLogProbs int `json:"topk_sample_logprobs,omitempty"`
}

// The reasons why a sequence ended.
const (
	StopReasonStop   = "stop"
	StopReasonLength = "length"
)

// SampledSequence is one continuation. Tokens include the token that ended it. LogProbs are those of
// the distribution a token was drawn from, scaled by the temperature, before top-k and top-p
// filtering (at temperature 0 the value at temperature 1). RawLogProbs are the model's own, at
// temperature 1: bit for bit those that a forward pass gives with the same weights.
type SampledSequence struct {
	Tokens      []int32   `json:"tokens"`
	LogProbs    []float32 `json:"logprobs"`
	RawLogProbs []float32 `json:"raw_logprobs"`
	StopReason  string    `json:"stop_reason"`

	// TopKLogProbs lists, per token, the most probable ones at its place as TopKPromptLogProbs does, with values that are
	// what those in LogProbs are.
	TopKLogProbs [][]TokenLogProb `json:"topk_logprobs,omitempty"`
}

// SampleOutput holds the sequences of one request. The prompt's log-probabilities are the model's own, at temperature
// 1 and without filters, whatever the sampling parameters; what was not asked for is nil.
type SampleOutput struct {
	Sequences []SampledSequence `json:"sequences"`
	// PromptLogProbs is there when either kind was asked for. Those before the last that were asked for are NaN.
	PromptLogProbs PromptLogProbs `json:"prompt_logprobs"`
	// TopKPromptLogProbs lists, per prompt token, the k most probable tokens of its position, the most
	// probable first, ties by the lower id. The first token's list is nil. When a prompt token is in its
	// list, it has there the value that it has in PromptLogProbs. Lists before the last that were asked for are nil.
	TopKPromptLogProbs [][]TokenLogProb `json:"topk_prompt_logprobs"`

	// TargetPromptLogProbs has the rows that were asked for, with 0 where a token was negative.
	TargetPromptLogProbs [][]float32 `json:"target_prompt_logprobs,omitempty"`

	// PromptAltTokens has a row for each prompt token but the first: what was drawn at its place, with log-probabilities of the
	// model's own.
	PromptAltTokens [][]TokenLogProb `json:"prompt_alt_tokens,omitempty"`
}
