package wire

import (
	"tinkerlocal/engine/api"
)

// CreateModelRequest begins a training run: the ModelSeqID-th of its session.
type CreateModelRequest struct {
	SessionID       string           `json:"session_id"`
	ModelSeqID      int64            `json:"model_seq_id"`
	BaseModel       string           `json:"base_model"`
	Lora            *loraConfig      `json:"lora_config"`
	UserMetadata    texts            `json:"user_metadata"`
	OptimizerConfig *optimizerFamily `json:"optimizer_config"` // since 0.38
}

// loraConfig has pointers where absent is true.
type loraConfig struct {
	Rank         int    `json:"rank"`
	Seed         *int64 `json:"seed"`
	TrainUnembed *bool  `json:"train_unembed"`
	TrainMLP     *bool  `json:"train_mlp"`
	TrainAttn    *bool  `json:"train_attn"`
}

// optimizerFamily chooses an optimiser. There is one here.
type optimizerFamily struct {
	Type string `json:"type"`
}

func (f *optimizerFamily) check() error {
	if f != nil && f.Type != "adamw" && f.Type != "" {
		return api.Errorf(api.Unsupported, "optimizer_config asks for %q, wanted \"adamw\"", clip(f.Type))
	}
	return nil
}

func (*CreateModelRequest) name() string { return "create_model" }

func (r *CreateModelRequest) check() error {
	if err := required("session_id", r.SessionID, "base_model", r.BaseModel); err != nil {
		return err
	}
	if err := sequence("model_seq_id", r.ModelSeqID, 0); err != nil {
		return err
	}
	switch {
	case r.Lora == nil:
		return api.Errorf(api.Unsupported, "lora_config is missing: every weight of the model would be trained, wanted an adapter")
	case r.Lora.Rank < 1 || r.Lora.Rank > api.MaxRank:
		return api.Errorf(api.BadRequest, "lora_config.rank is %d, wanted 1 to %d", r.Lora.Rank, api.MaxRank)
	}
	if c := r.Lora.api(); !c.TrainUnembed && !c.TrainMLP && !c.TrainAttn {
		return api.Errorf(api.BadRequest, "lora_config trains nothing, wanted at least one of train_unembed, train_mlp and train_attn")
	}
	return r.OptimizerConfig.check()
}

func (c *loraConfig) api() api.LoraConfig {
	yes := func(p *bool) bool { return p == nil || *p }
	return api.LoraConfig{Rank: c.Rank, Seed: c.Seed, TrainUnembed: yes(c.TrainUnembed), TrainMLP: yes(c.TrainMLP), TrainAttn: yes(c.TrainAttn)}
}

// API is the engine's form of r.
func (r *CreateModelRequest) API() api.CreateModelRequest {
	return api.CreateModelRequest{BaseModel: r.BaseModel, Lora: r.Lora.api(), UserMetadata: r.UserMetadata}
}

// CreateModelResponse is a result.
type CreateModelResponse struct {
	ModelID string `json:"model_id"`
	Type    string `json:"type"`
}

// ModelCreated is the result of create_model.
func ModelCreated(id string) CreateModelResponse {
	return CreateModelResponse{ModelID: id, Type: "create_model"}
}

// GetInfoRequest asks what a model is.
type GetInfoRequest struct {
	ModelID string `json:"model_id"`
}

func (*GetInfoRequest) name() string   { return "get_info" }
func (r *GetInfoRequest) check() error { return required("model_id", r.ModelID) }

// ModelData says where a client finds a model's tokenizer: TokenizerID, or else ModelName, as a name of the model hub.
type ModelData struct {
	Arch        string `json:"arch,omitempty"`
	ModelName   string `json:"model_name,omitempty"`
	TokenizerID string `json:"tokenizer_id,omitempty"`
}

// GetInfoResponse answers get_info at once.
type GetInfoResponse struct {
	ModelID   string    `json:"model_id"`
	ModelData ModelData `json:"model_data"`
	IsLora    bool      `json:"is_lora"`
	LoraRank  int       `json:"lora_rank"`
	ModelName string    `json:"model_name,omitempty"`
}

// UnloadModelRequest gives a model up.
type UnloadModelRequest struct {
	ModelID string `json:"model_id"`
}

func (*UnloadModelRequest) name() string   { return "unload_model" }
func (r *UnloadModelRequest) check() error { return required("model_id", r.ModelID) }

// UnloadModelResponse is a result.
type UnloadModelResponse struct {
	ModelID string `json:"model_id"`
}

// WeightsInfoRequest asks what a new model needs to load a checkpoint.
type WeightsInfoRequest struct {
	TinkerPath string   `json:"tinker_path"`
	Path       api.Path `json:"-"` // TinkerPath, read
}

func (*WeightsInfoRequest) name() string { return "weights_info" }

func (r *WeightsInfoRequest) check() (err error) {
	r.Path, err = api.ParsePath(r.TinkerPath)
	return err
}

// WeightsInfoResponse answers weights_info.
type WeightsInfoResponse struct {
	BaseModel    string `json:"base_model"`
	IsLora       bool   `json:"is_lora"`
	LoraRank     int    `json:"lora_rank"`
	TrainUnembed bool   `json:"train_unembed"`
	TrainMLP     bool   `json:"train_mlp"`
	TrainAttn    bool   `json:"train_attn"`
}

// WeightsInfoOf describes a checkpoint.
func WeightsInfoOf(c api.Checkpoint) WeightsInfoResponse {
	return WeightsInfoResponse{c.BaseModel, true, c.Lora.Rank, c.Lora.TrainUnembed, c.Lora.TrainMLP, c.Lora.TrainAttn}
}
