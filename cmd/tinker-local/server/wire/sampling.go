package wire

import (
	"encoding/json"
	"strconv"

	"tinkerlocal/engine/api"
)

// CreateSamplingSessionRequest binds weights to a session that is sampled from. Both a base model and a path may be given:
// the base model is a hint then.
type CreateSamplingSessionRequest struct {
	SessionID    string   `json:"session_id"`
	SessionSeqID int64    `json:"sampling_session_seq_id"`
	BaseModel    string   `json:"base_model"`
	ModelPath    string   `json:"model_path"`
	Path         api.Path `json:"-"` // ModelPath, read, if there is one
}

func (*CreateSamplingSessionRequest) name() string { return "create_sampling_session" }

func (r *CreateSamplingSessionRequest) check() (err error) {
	if err := required("session_id", r.SessionID); err != nil {
		return err
	}
	if r.BaseModel == "" && r.ModelPath == "" {
		return api.Errorf(api.BadRequest, "wanted base_model or model_path")
	}
	if r.ModelPath != "" {
		if r.Path, err = api.ParsePath(r.ModelPath); err != nil {
			return err
		}
	}
	return sequence("sampling_session_seq_id", r.SessionSeqID, 0)
}

// CreateSamplingSessionResponse answers create_sampling_session at once.
type CreateSamplingSessionResponse struct {
	SamplingSessionID string `json:"sampling_session_id"`
}

// SamplerResponse answers samplers/ID. BaseModel is wanted also when ModelPath is there.
type SamplerResponse struct {
	SamplerID string `json:"sampler_id"`
	BaseModel string `json:"base_model"`
	ModelPath string `json:"model_path,omitempty"`
}

// SampleRequest is the body of asample.
type SampleRequest struct {
	SamplingSessionID string         `json:"sampling_session_id"`
	SeqID             int64          `json:"seq_id"` // from 0; an identity, not an order
	BaseModel         string         `json:"base_model"`
	ModelPath         string         `json:"model_path"`
	NumSamples        *int           `json:"num_samples"`
	Prompt            inputChunks    `json:"prompt"`
	Params            samplingParams `json:"sampling_params"`
	PromptLogProbs    bool           `json:"prompt_logprobs"`
	TopK              int            `json:"topk_prompt_logprobs"`

	// since 0.38
	TopKSampled int      `json:"topk_sample_logprobs"`
	Targets     *Targets `json:"target_prompt_logprobs"`
	AltTokens   int      `json:"prompt_alt_tokens_k"`
	LastN       *int     `json:"prompt_logprobs_last_n"`
	Stability   bool     `json:"record_stability_info"`

	prompt api.ModelInput
}

type samplingParams struct {
	MaxTokens   *int     `json:"max_tokens"`
	Seed        *seed    `json:"seed"`
	Stop        stops    `json:"stop"`
	Temperature *float64 `json:"temperature"`
	TopK        *int     `json:"top_k"`
	TopP        *float64 `json:"top_p"`
}

func (*SampleRequest) name() string { return "asample" }

func (r *SampleRequest) check() (err error) {
	if r.SamplingSessionID == "" {
		return api.Errorf(api.Unsupported, "sampling_session_id is missing: a model is sampled in a session of create_sampling_session")
	}
	if err := sequence("seq_id", r.SeqID, 0); err != nil {
		return err
	}
	switch {
	case r.Stability:
		return api.Errorf(api.Unsupported, "record_stability_info is not supported: no loss here reads what it would record")
	case r.LastN != nil && *r.LastN < 1:
		return api.Errorf(api.BadRequest, "prompt_logprobs_last_n is %d, wanted 1 or more", *r.LastN)
	case r.LastN != nil && !r.PromptLogProbs:
		return api.Errorf(api.BadRequest, "prompt_logprobs_last_n is given without prompt_logprobs")
	case r.NumSamples != nil && *r.NumSamples < 1:
		return api.Errorf(api.BadRequest, "num_samples is %d, wanted 1 or more", *r.NumSamples)
	case r.TopK < 0 || r.TopKSampled < 0 || r.AltTokens < 0:
		return api.Errorf(api.BadRequest, "topk_prompt_logprobs is %d, topk_sample_logprobs %d and prompt_alt_tokens_k %d, wanted 0 or more", r.TopK, r.TopKSampled, r.AltTokens)
	case r.Params.MaxTokens != nil && *r.Params.MaxTokens < 1:
		return api.Errorf(api.BadRequest, "sampling_params.max_tokens is %d, wanted 1 or more", *r.Params.MaxTokens)
	}
	if r.prompt, err = r.Prompt.decoded(); err != nil {
		return at(err, "prompt")
	}
	return nil
}

// API is the engine's form of r, with the client's defaults. A stop that was given as an empty list, which since 0.38 means
// to go on after the end of the text, is an empty StopTokens that is not nil.
func (r *SampleRequest) API() api.SampleRequest {
	p := api.DefaultSampling()
	p.Stop, p.StopTokens, p.Seed = r.Params.Stop.texts, r.Params.Stop.tokens, (*int64)(r.Params.Seed)
	set(&p.MaxTokens, r.Params.MaxTokens)
	set(&p.Temperature, r.Params.Temperature)
	set(&p.TopK, r.Params.TopK)
	set(&p.TopP, r.Params.TopP)
	out := api.SampleRequest{
		Prompt: r.prompt, Params: p, NumSamples: 1, PromptLogProbs: r.PromptLogProbs, TopKPromptLogProbs: r.TopK,
		TargetPromptLogProbs: r.Targets.API(), PromptAltTokens: r.AltTokens, TopKSampledLogProbs: r.TopKSampled,
	}
	set(&out.NumSamples, r.NumSamples)
	set(&out.PromptLogProbsLast, r.LastN)
	return out
}

func set[T any](dst *T, v *T) {
	if v != nil {
		*dst = *v
	}
}

// seed is any integer of 64 bits, with or without a sign.
type seed int64

// UnmarshalJSON reads an integer; those from 2^63 on are taken modulo 2^64.
func (s *seed) UnmarshalJSON(b []byte) error {
	if v, err := strconv.ParseInt(string(b), 10, 64); err == nil {
		*s = seed(v)
		return nil
	}
	v, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil {
		return api.Errorf(api.BadRequest, "seed is %s, wanted an integer of 64 bits", clip(string(b)))
	}
	*s = seed(v)
	return nil
}

// stops is one text, a list of texts or a list of token ids.
type stops struct {
	texts  []string
	tokens []int32
}

// UnmarshalJSON tells the three apart by the first character, and lists by their first entry.
func (s *stops) UnmarshalJSON(b []byte) error {
	*s = stops{}
	if absent(b) {
		return nil
	}
	if b[0] == '"' {
		s.texts = make([]string, 1)
		return json.Unmarshal(b, &s.texts[0])
	}
	tokens, err := parseArray(b, parseInt32)
	if err == nil {
		s.tokens = tokens
		return nil
	}
	var list []*string
	if json.Unmarshal(b, &list) != nil {
		return api.Errorf(api.BadRequest, "stop is %s, wanted a text, a list of texts or a list of token ids", clip(string(b)))
	}
	for _, text := range list {
		if text == nil {
			return api.Errorf(api.BadRequest, "stop has a null, wanted texts")
		}
		s.texts = append(s.texts, *text)
	}
	return nil
}
