package local

import (
	"fmt"
	"maps"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/model"
	"tinkerlocal/kernels"
)

// Info describes a base model from its configuration and the headers of its weight files; no weight is read. What is not
// known is zero: of a model with a problem that can be everything but the name.
type Info struct {
	Name    string `json:"name"`
	Problem string `json:"problem,omitempty"` // why it cannot be used; "" when it can
	Source  Source `json:"source,omitempty"`
	Dir     string `json:"dir,omitempty"` // "" for the embedded model

	Family     string `json:"family,omitempty"`         // model_type of config.json
	Params     int64  `json:"parameters,omitempty"`     // tied matrices count once
	Kind       string `json:"kind,omitempty"`           // Dense or MoE
	Training   string `json:"training_type,omitempty"`  // Base, Instruction, Reasoning or Hybrid: see [TrainingType]
	Context    int    `json:"context_length,omitempty"` // positions
	Window     int    `json:"sliding_window,omitempty"` // set when it is what limits Context
	DType      string `json:"dtype,omitempty"`          // of most weight bytes, in the file's words: "BF16"
	DiskBytes  int64  `json:"disk_bytes,omitempty"`     // of the weight files
	Layers     int    `json:"layers,omitempty"`
	Hidden     int    `json:"hidden_size,omitempty"`
	Heads      int    `json:"attention_heads,omitempty"`
	KVHeads    int    `json:"key_value_heads,omitempty"`
	HeadDim    int    `json:"head_dim,omitempty"`
	FFN        int    `json:"feed_forward,omitempty"`
	Vocab      int    `json:"vocabulary,omitempty"`
	Tied       bool   `json:"tied_embeddings,omitempty"`
	Experts    int    `json:"experts,omitempty"` // of a layer that has them; 0 in a dense model
	TopK       int    `json:"experts_per_token,omitempty"`
	ExpertFFN  int    `json:"expert_feed_forward,omitempty"`
	LoraAttn   int    `json:"lora_attn_per_rank,omitempty"`
	LoraMLP    int    `json:"lora_mlp_per_rank,omitempty"`
	LoraHead   int    `json:"lora_unembed_per_rank,omitempty"`
	LoraRank32 int    `json:"lora_parameters_at_rank_32,omitempty"` // all three

	spec *model.Spec // nil with a problem
}

// Describe describes the model of that name. The error is that of [Models.Open]; a model that opens and is not supported
// has a Problem instead.
func (m Models) Describe(name string) (Info, error) {
	at, _ := m.find(name)
	src, err := m.Open(name)
	if err != nil {
		return Info{Name: name, Source: at.Source, Dir: at.Dir}, err
	}
	i := describe(name, src)
	i.Source, i.Dir = at.Source, at.Dir
	if err := src.Close(); err != nil && i.Problem == "" {
		i.Problem = err.Error()
	}
	return i, nil
}

func describe(name string, src *hf.Checkpoint) Info {
	c := src.Config
	i := Info{
		Name: name, Family: c.ModelType, Kind: "Dense", Training: TrainingType(name, src), DiskBytes: src.Bytes(), Context: c.MaxPositionEmbeddings,
		Layers: c.NumHiddenLayers, Hidden: c.HiddenSize, Heads: c.NumAttentionHeads, KVHeads: c.NumKeyValueHeads, HeadDim: c.HeadDim,
		FFN: c.IntermediateSize, Vocab: c.VocabSize, Tied: c.TieWordEmbeddings,
	}
	if isMoE(c) {
		i.Kind = "MoE"
	}
	i.Params, i.DType = stored(src)
	s, err := model.NewSpec(c)
	if err != nil {
		i.Problem = err.Error()
		return i
	}
	if want := s.Params(); i.Params < want {
		i.Problem = fmt.Sprintf("the weight files have %d parameters, config.json asks for %d", i.Params, want)
	} else {
		i.spec = s
	}
	i.Params, i.Context, i.Window, i.HeadDim = s.Params(), s.MaxPositions, s.Window, s.HeadDim
	i.Experts, i.TopK, i.ExpertFFN = s.Experts, s.TopK, s.ExpertFFN
	sites := s.Sites()
	i.LoraAttn = lora.Params(sites, api.LoraConfig{Rank: 1, TrainAttn: true})
	i.LoraMLP = lora.Params(sites, api.LoraConfig{Rank: 1, TrainMLP: true})
	i.LoraHead = lora.Params(sites, api.LoraConfig{Rank: 1, TrainUnembed: true})
	i.LoraRank32 = lora.Params(sites, usualLora)
	return i
}

// isMoE looks for a count of experts under the names that families give it.
func isMoE(c *hf.Config) bool {
	for _, key := range []string{"num_experts", "num_local_experts", "n_routed_experts"} {
		var n float64
		if c.Decode(key, &n) == nil && n > 1 {
			return true
		}
	}
	return false
}

// stored counts the values in the weight files and names the type that most of their bytes have.
func stored(src *hf.Checkpoint) (values int64, dtype string) {
	bytes := map[string]int{}
	for _, name := range src.Names() {
		if t, ok := src.Tensor(name); ok {
			values += int64(t.Len())
			bytes[t.Stored] += len(t.Data)
		}
	}
	for _, d := range slices.Sorted(maps.Keys(bytes)) {
		if dtype == "" || bytes[d] > bytes[dtype] {
			dtype = d
		}
	}
	return values, dtype
}

// What Needs is counted for.
const (
	NeedContext = 4096 // positions of the key/value pool, or the model's context if that is less
	NeedBatch   = 1024 // tokens of a micro-batch, or the model's context if that is less
)

// usualLora is the adapter that Needs and Info count: the vocabulary's default rank, everything adapted.
var usualLora = api.LoraConfig{Rank: 32, TrainAttn: true, TrainMLP: true, TrainUnembed: true}

// Needs is the memory, in bytes, that a model takes on a device.
type Needs struct {
	Weights int64 `json:"weights"`
	KV      int64 `json:"key_value_pool"` // of NeedContext positions
	Adapter int64 `json:"adapter"`        // weights, two gradient sums and two moments of an adapter of rank 32
	Batch   int64 `json:"micro_batch"`    // activations of NeedBatch tokens, by the plan that training follows

	Sample int64 `json:"sample"` // Weights + KV
	Train  int64 `json:"train"`  // Weights + Adapter + Batch

	// Free is what the device has now, 0 when that is unknown; the engine leaves an eighth of it to others.
	Free       int64 `json:"free,omitempty"`
	FitsSample *bool `json:"fits_sample,omitempty"` // nil when Free is unknown
	FitsTrain  *bool `json:"fits_train,omitempty"`
}

// Needs counts what the model takes on a device; dtype is how its weights are kept, as in [Options]. It is an error for a
// model with a problem.
func (i Info) Needs(dev kernels.Info, dtype string) (Needs, error) {
	if i.spec == nil {
		return Needs{}, api.Errorf(api.Unsupported, "%s: %s", i.Name, i.Problem)
	}
	store, err := storeType(dtype)
	if err != nil {
		return Needs{}, err
	}
	if store == 0 {
		if store = kernels.F32; i.DType == "BF16" {
			store = kernels.BF16
		}
	}
	n := Needs{
		Weights: i.spec.WeightBytes(store, dev.Act), KV: i.spec.KVBytes(dev.Act, min(NeedContext, i.Context)),
		Adapter: lora.Bytes(i.LoraRank32, dev.Act), Batch: i.spec.TrainBytes(dev.Act, min(NeedBatch, i.Context), usualLora.Rank), Free: dev.Free,
	}
	n.Sample, n.Train = n.Weights+n.KV, n.Weights+n.Adapter+n.Batch
	if n.Free > 0 {
		room := n.Free - n.Free/8
		n.FitsSample, n.FitsTrain = new(n.Sample <= room), new(n.Train <= room)
	}
	return n, nil
}
