package api

// LoraConfig says what a run trains. JSON names are the wire's.
type LoraConfig struct {
	Rank         int    `json:"rank"`
	Seed         *int64 `json:"seed,omitempty"` // nil: a random seed
	TrainUnembed bool   `json:"train_unembed"`
	TrainMLP     bool   `json:"train_mlp"`
	TrainAttn    bool   `json:"train_attn"`
}

// LoraAlpha is the alpha of every adapter: the update is scaled by LoraAlpha/rank.
const LoraAlpha = 32

// MaxRank is the largest rank a run may ask for. Beyond it the factors outgrow the matrices they adapt on
// every model that fits a workstation.
const MaxRank = 512

// DefaultLora is rank 32 on attention, MLP and unembedding: the defaults of the hosted service.
func DefaultLora() LoraConfig {
	return LoraConfig{Rank: 32, TrainUnembed: true, TrainMLP: true, TrainAttn: true}
}

// CreateModelRequest asks for a new training run.
type CreateModelRequest struct {
	BaseModel    string            `json:"base_model"`
	Lora         LoraConfig        `json:"lora_config"`
	UserMetadata map[string]string `json:"user_metadata,omitempty"`
}

// ModelInput is a prompt in chunks.
type ModelInput struct {
	Chunks []Chunk `json:"chunks"`
}

// Chunk is a piece of a ModelInput. Type is "encoded_text".
type Chunk struct {
	Type   string  `json:"type"`
	Tokens []int32 `json:"tokens"`
}

// FromInts makes a ModelInput of one text chunk.
func FromInts(tokens []int32) ModelInput {
	return ModelInput{Chunks: []Chunk{{Type: "encoded_text", Tokens: tokens}}}
}

// Tokens returns all token ids in order, or an error that names the chunk that is not text.
func (m ModelInput) Tokens() ([]int32, error) {
	if len(m.Chunks) == 1 && m.Chunks[0].Type == "encoded_text" {
		return m.Chunks[0].Tokens, nil
	}
	var out []int32
	for i, c := range m.Chunks {
		if c.Type != "encoded_text" {
			return nil, Errorf(Unsupported, "chunk %d has type %q, wanted \"encoded_text\"", i, c.Type)
		}
		out = append(out, c.Tokens...)
	}
	return out, nil
}

// TensorData is a named loss input or output: row-major values of one dtype. Exactly one of Floats and Ints is used.
type TensorData struct {
	Floats []float32 // dtype "float32"
	Ints   []int64   // dtype "int64"
	Shape  []int     // nil: one-dimensional
}

// Floats makes a one-dimensional float32 tensor.
func Floats(v []float32) TensorData { return TensorData{Floats: v} }

// Ints makes a one-dimensional int64 tensor.
func Ints(v []int64) TensorData { return TensorData{Ints: v} }

// Len is the number of values.
func (t TensorData) Len() int { return max(len(t.Floats), len(t.Ints)) }

// Dims is the shape: Shape, or the length when Shape is nil.
func (t TensorData) Dims() []int {
	if t.Shape != nil {
		return t.Shape
	}
	return []int{t.Len()}
}

// DType is "float32" or "int64".
func (t TensorData) DType() string {
	if t.Ints != nil {
		return "int64"
	}
	return "float32"
}

// Datum is one training example: position i of ModelInput predicts LossInputs["target_tokens"][i].
type Datum struct {
	ModelInput ModelInput            `json:"model_input"`
	LossInputs map[string]TensorData `json:"loss_fn_inputs"`
}

// ForwardBackwardInput is one batch with its loss.
type ForwardBackwardInput struct {
	Data       []Datum            `json:"data"`
	LossFn     string             `json:"loss_fn"`
	LossConfig map[string]float64 `json:"loss_fn_config,omitempty"`
}

// ForwardBackwardOutput carries one map of outputs per datum, in datum order, and metrics named "name:reduction".
type ForwardBackwardOutput struct {
	LossFnOutputType string                  `json:"loss_fn_output_type"`
	LossFnOutputs    []map[string]TensorData `json:"loss_fn_outputs"`
	Metrics          map[string]float64      `json:"metrics"`
}

// AdamParams are the hyper-parameters of one optim_step. They may change on every step.
type AdamParams struct {
	LearningRate float64 `json:"learning_rate"`
	Beta1        float64 `json:"beta1"`
	Beta2        float64 `json:"beta2"`
	Eps          float64 `json:"eps"`
	WeightDecay  float64 `json:"weight_decay"`
	GradClipNorm float64 `json:"grad_clip_norm"` // global norm over all trained tensors; 0 is off
}

// DefaultAdam are the defaults of the hosted service.
func DefaultAdam() AdamParams {
	return AdamParams{LearningRate: 1e-4, Beta1: 0.9, Beta2: 0.95, Eps: 1e-12}
}

// OptimStepOutput carries free metrics; "grad_norm" is the global norm before clipping.
type OptimStepOutput struct {
	Metrics map[string]float64 `json:"metrics,omitempty"`
}
