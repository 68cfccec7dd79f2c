package wire

import (
	"time"

	"tinkerlocal/engine/api"
)

// OptimStepRequest is one step of the optimiser. Clients before 0.38 say adam_params; later ones, too, for Adam.
type OptimStepRequest struct {
	ModelID   string         `json:"model_id"`
	SeqID     int64          `json:"seq_id"` // from 1; 0: none
	Adam      *adamParams    `json:"adam_params"`
	Optimizer *optimizerStep `json:"optimizer_params"` // since 0.38: of another family
}

// adamParams has pointers where absent is not 0.
type adamParams struct {
	LearningRate *float64 `json:"learning_rate"`
	Beta1        *float64 `json:"beta1"`
	Beta2        *float64 `json:"beta2"`
	Eps          *float64 `json:"eps"`
	WeightDecay  float64  `json:"weight_decay"`
	GradClipNorm float64  `json:"grad_clip_norm"`
}

type optimizerStep struct {
	Type string `json:"type"`
}

func (*OptimStepRequest) name() string             { return "optim_step" }
func (r *OptimStepRequest) place() (string, int64) { return r.ModelID, r.SeqID }

func (r *OptimStepRequest) check() error {
	if err := required("model_id", r.ModelID); err != nil {
		return err
	}
	if r.Optimizer != nil {
		return api.Errorf(api.Unsupported, "optimizer_params are of %q, wanted adam_params", clip(r.Optimizer.Type))
	}
	if r.Adam == nil {
		return api.Errorf(api.BadRequest, "adam_params is missing")
	}
	return sequence("seq_id", r.SeqID, 0)
}

// API is the parameters with the defaults of those that are absent.
func (r *OptimStepRequest) API() api.AdamParams {
	p := api.DefaultAdam()
	for _, f := range []struct {
		from *float64
		to   *float64
	}{{r.Adam.LearningRate, &p.LearningRate}, {r.Adam.Beta1, &p.Beta1}, {r.Adam.Beta2, &p.Beta2}, {r.Adam.Eps, &p.Eps}} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	p.WeightDecay, p.GradClipNorm = r.Adam.WeightDecay, r.Adam.GradClipNorm
	return p
}

// OptimStepResponse is a result.
type OptimStepResponse struct {
	Metrics map[string]number `json:"metrics,omitempty"`
}

// OptimStepOf is the result of a step. Metrics that are NaN or infinite become strings, which clients read as such.
func OptimStepOf(out api.OptimStepOutput) OptimStepResponse {
	return OptimStepResponse{Metrics: numbers(out.Metrics)}
}

// SaveWeightsRequest saves the training state.
type SaveWeightsRequest struct {
	ModelID      string `json:"model_id"`
	SeqID        int64  `json:"seq_id"`
	Name         string `json:"path"` // of the checkpoint; "": the server chooses
	TTLSeconds   *int64 `json:"ttl_seconds"`
	Overwrite    bool   `json:"overwrite"`
	UserMetadata texts  `json:"user_metadata"` // of the checkpoint; since 0.38
}

func (*SaveWeightsRequest) name() string             { return "save_weights" }
func (r *SaveWeightsRequest) place() (string, int64) { return r.ModelID, r.SeqID }

func (r *SaveWeightsRequest) check() error {
	return checkSave(r.ModelID, r.SeqID, r.Name, r.TTLSeconds)
}

// Options are the store's.
func (r *SaveWeightsRequest) Options() api.SaveOptions {
	return api.SaveOptions{Overwrite: r.Overwrite, TTL: ttl(r.TTLSeconds), UserMetadata: r.UserMetadata}
}

// SaveWeightsForSamplerRequest saves what sampling needs: under a name, or for a sampling session of its own.
type SaveWeightsForSamplerRequest struct {
	ModelID      string `json:"model_id"`
	SeqID        int64  `json:"seq_id"`
	Name         string `json:"path"`                    // of the checkpoint; "": a sampling session is wanted
	SessionSeqID *int64 `json:"sampling_session_seq_id"` // clients draw it anew when they repeat a request: it is no part of its identity
	TTLSeconds   *int64 `json:"ttl_seconds"`
	Kind         string `json:"kind"`          // since 0.38: "snapshot", the default, or "inflight"; see Inflight
	UserMetadata texts  `json:"user_metadata"` // since 0.38
}

func (*SaveWeightsForSamplerRequest) name() string             { return "save_weights_for_sampler" }
func (r *SaveWeightsForSamplerRequest) place() (string, int64) { return r.ModelID, r.SeqID }

func (r *SaveWeightsForSamplerRequest) check() error {
	switch {
	case r.Kind == "", r.Kind == "snapshot", r.Inflight() && r.SessionSeqID != nil && r.SeqID > 0:
	case r.Inflight():
		return api.Errorf(api.BadRequest, "kind is \"inflight\", wanted a sampling session and a seq_id with it")
	default:
		return api.Errorf(api.Unsupported, "kind is %q, wanted \"snapshot\" or \"inflight\"", clip(r.Kind))
	}
	if (r.Name == "") == (r.SessionSeqID == nil) {
		return api.Errorf(api.BadRequest, "wanted one of path and sampling_session_seq_id")
	}
	if r.SessionSeqID != nil {
		if err := sequence("sampling_session_seq_id", *r.SessionSeqID, 0); err != nil {
			return err
		}
	}
	return checkSave(r.ModelID, r.SeqID, r.Name, r.TTLSeconds)
}

// Inflight says whether the sampling session shares its weights with others of the run: a later save of this kind replaces them for all.
func (r *SaveWeightsForSamplerRequest) Inflight() bool { return r.Kind == "inflight" }

// Options are the store's.
func (r *SaveWeightsForSamplerRequest) Options() api.SaveOptions {
	return api.SaveOptions{TTL: ttl(r.TTLSeconds), UserMetadata: r.UserMetadata}
}

func checkSave(model string, seq int64, name string, ttlSeconds *int64) error {
	if err := required("model_id", model); err != nil {
		return err
	}
	if err := sequence("seq_id", seq, 0); err != nil {
		return err
	}
	if name != "" {
		if err := api.CheckName("path", name); err != nil {
			return err
		}
	}
	return checkTTL(ttlSeconds)
}

// maxTTL is where clients' seconds would no longer fit a time.Duration.
const maxTTL = 100 * 365 * 24 * time.Hour

func checkTTL(seconds *int64) error {
	if seconds != nil && (*seconds < 1 || *seconds > int64(maxTTL/time.Second)) {
		return api.Errorf(api.BadRequest, "ttl_seconds is %d, wanted 1 to %d, or none for a checkpoint that is kept", *seconds, int64(maxTTL/time.Second))
	}
	return nil
}

func ttl(seconds *int64) time.Duration {
	if seconds == nil {
		return 0
	}
	return time.Duration(*seconds) * time.Second
}

// PathResponse is the result of both kinds of saving under a name.
type PathResponse struct {
	Path api.Path `json:"path"`
	Type string   `json:"type"`
}

// WeightsSaved is the result of save_weights or, when p is of the sampler's kind, of save_weights_for_sampler.
func WeightsSaved(p api.Path) PathResponse {
	if p.Kind == api.KindSampler {
		return PathResponse{p, "save_weights_for_sampler"}
	}
	return PathResponse{p, "save_weights"}
}

// SamplerSessionResponse is the result of save_weights_for_sampler without a name.
type SamplerSessionResponse struct {
	SamplingSessionID string `json:"sampling_session_id"`
	Type              string `json:"type"`
}

// SamplerSaved is the result of save_weights_for_sampler without a name.
func SamplerSaved(session string) SamplerSessionResponse {
	return SamplerSessionResponse{session, "save_weights_for_sampler"}
}

// SaveWeightsExternalRequest saves weights for other programs; since 0.38.
type SaveWeightsExternalRequest struct {
	ModelID    string   `json:"model_id"`
	SeqID      int64    `json:"seq_id"`
	Name       string   `json:"path"` // of the checkpoint
	TTLSeconds *int64   `json:"ttl_seconds"`
	Recipients []string `json:"age_encryption_recipients"` // who alone can read the files
}

func (*SaveWeightsExternalRequest) name() string             { return "save_weights_external" }
func (r *SaveWeightsExternalRequest) place() (string, int64) { return r.ModelID, r.SeqID }

func (r *SaveWeightsExternalRequest) check() error {
	if err := required("path", r.Name); err != nil {
		return err
	}
	if len(r.Recipients) > 0 {
		return api.Errorf(api.Unsupported, "age_encryption_recipients has %d entries, wanted none: files are not encrypted here; encrypt them when they have been downloaded", len(r.Recipients))
	}
	return checkSave(r.ModelID, r.SeqID, r.Name, r.TTLSeconds)
}

// Options are the store's.
func (r *SaveWeightsExternalRequest) Options() api.SaveOptions {
	return api.SaveOptions{TTL: ttl(r.TTLSeconds)}
}

// ExternalSavedResponse is the result of save_weights_external.
type ExternalSavedResponse struct {
	Path  api.Path `json:"path"`
	Bytes int64    `json:"size_bytes"` // of the tensors
	Type  string   `json:"type"`
}

// ExternalSaved is the result of save_weights_external.
func ExternalSaved(c api.Checkpoint) ExternalSavedResponse {
	return ExternalSavedResponse{c.Path, c.Bytes, "save_weights_external"}
}

// LoadWeightsRequest loads a checkpoint into a model: one that is there, or a new one of a session.
type LoadWeightsRequest struct {
	ModelID string `json:"model_id"`
	SeqID   int64  `json:"seq_id"`

	SessionID    string `json:"session_id"` // a new model, the ModelSeqID-th of the session, instead of ModelID
	ModelSeqID   int64  `json:"model_seq_id"`
	BaseModel    string `json:"base_model"` // of the new model; "": the checkpoint's
	UserMetadata texts  `json:"user_metadata"`

	TinkerPath      string           `json:"path"`
	Path            api.Path         `json:"-"` // TinkerPath, read
	Optimizer       bool             `json:"optimizer"`
	OptimizerConfig *optimizerFamily `json:"optimizer_config"` // since 0.38
	AccessToken     string           `json:"weights_access_token"`
}

func (*LoadWeightsRequest) name() string             { return "load_weights" }
func (r *LoadWeightsRequest) place() (string, int64) { return r.ModelID, r.SeqID }

func (r *LoadWeightsRequest) check() (err error) {
	if (r.ModelID == "") == (r.SessionID == "") {
		return api.Errorf(api.BadRequest, "wanted one of model_id and session_id")
	}
	if r.Path, err = api.ParsePath(r.TinkerPath); err != nil {
		return err
	}
	if err := sequence("seq_id", r.SeqID, 0); err != nil {
		return err
	}
	if err := sequence("model_seq_id", r.ModelSeqID, 0); err != nil {
		return err
	}
	return r.OptimizerConfig.check()
}

// LoadWeightsResponse is a result.
type LoadWeightsResponse struct {
	Path    api.Path `json:"path"`
	ModelID string   `json:"model_id,omitempty"`
	Type    string   `json:"type"`
}

// WeightsLoaded is the result of load_weights.
func WeightsLoaded(p api.Path, model string) LoadWeightsResponse {
	return LoadWeightsResponse{p, model, "load_weights"}
}
