package hf

import (
	"encoding/json"
	"maps"
	"math"

	"tinkerlocal/engine/api"
)

// Upper limits of config.json: far above every published model, and low enough that products of two of
// them fit an int64 and that a wrong file is caught before anything is allocated by it.
const (
	maxHidden    = 1 << 20
	maxFFN       = 1 << 22
	maxLayers    = 1 << 12
	maxHeads     = 1 << 14
	maxHeadDim   = 1 << 14
	maxVocab     = 1 << 26
	maxPositions = 1 << 30
)

// Config is config.json of a decoder model. A field that the file does not have is zero unless its
// comment says otherwise. Models with several parts keep the decoder's fields in "text_config"; they are
// read from there, and from the outside where it lacks them.
type Config struct {
	ModelType     string // of the outside, e.g. "qwen3"
	Architectures []string

	HiddenSize        int
	IntermediateSize  int
	NumHiddenLayers   int
	NumAttentionHeads int
	NumKeyValueHeads  int // NumAttentionHeads when absent
	HeadDim           int // 0 when absent: HiddenSize / NumAttentionHeads in most families
	VocabSize         int

	RMSNormEps            float64      // 1e-6 when absent
	RopeTheta             float64      // 10000 when absent
	RopeScaling           *RopeScaling // nil when absent or of type "default"
	HiddenAct             string
	AttentionBias         bool
	MLPBias               bool
	MaxPositionEmbeddings int

	TieWordEmbeddings    bool
	HasTieWordEmbeddings bool // false: the file does not say, and the family's default holds

	SlidingWindow    int // 0 when absent
	UseSlidingWindow bool
	LayerTypes       []string // one per layer, e.g. "full_attention"; nil when absent

	TorchDType  string // "dtype" or "torch_dtype", e.g. "bfloat16"
	BosTokenID  int    // -1 when absent
	EosTokenIDs []int

	Raw json.RawMessage // the whole file

	all, outer map[string]json.RawMessage // outer is nil without text_config
}

// ParseConfig reads the text of a config.json. Errors name the key, wanted and got; the caller names the
// file.
func ParseConfig(b []byte) (*Config, error) {
	all, err := members(b)
	if err != nil {
		return nil, err
	}
	f := &fields{all: all}
	c := &Config{Raw: b, all: all, ModelType: f.text("model_type"), Architectures: f.texts("architectures", 64)}
	if f.err == nil && c.ModelType == "" {
		return nil, bad("model_type is missing")
	}
	if f.has("text_config") {
		inner, err := members(f.raw("text_config"))
		if err != nil {
			return nil, in("text_config", err)
		}
		c.all, c.outer = inner, all
		f.all, f.under = inner, all
	}
	c.HiddenSize = f.integer("hidden_size", 0, 1, maxHidden)
	c.IntermediateSize = f.integer("intermediate_size", 0, 1, maxFFN)
	c.NumHiddenLayers = f.integer("num_hidden_layers", 0, 1, maxLayers)
	c.NumAttentionHeads = f.integer("num_attention_heads", 0, 1, maxHeads)
	c.NumKeyValueHeads = f.integer("num_key_value_heads", c.NumAttentionHeads, 1, maxHeads)
	c.HeadDim = f.integer("head_dim", 0, 1, maxHeadDim)
	c.VocabSize = f.integer("vocab_size", 0, 1, maxVocab)
	c.RMSNormEps = f.number("rms_norm_eps", 1e-6, 0, 1)
	c.HiddenAct = f.text("hidden_act")
	c.AttentionBias = f.boolean("attention_bias")
	c.MLPBias = f.boolean("mlp_bias")
	c.MaxPositionEmbeddings = f.integer("max_position_embeddings", 0, 1, maxPositions)
	c.TieWordEmbeddings = f.boolean("tie_word_embeddings")
	c.HasTieWordEmbeddings = f.has("tie_word_embeddings")
	c.SlidingWindow = f.integer("sliding_window", 0, 0, maxPositions)
	c.UseSlidingWindow = f.boolean("use_sliding_window")
	c.LayerTypes = f.texts("layer_types", maxLayers)
	c.TorchDType = f.text("torch_dtype")
	if f.has("dtype") {
		c.TorchDType = f.text("dtype")
	}
	c.BosTokenID = f.integer("bos_token_id", -1, -1, maxVocab)
	c.EosTokenIDs = f.ids("eos_token_id")
	c.readRope(f)
	if f.err != nil {
		return nil, f.err
	}
	return c, c.check()
}

// check refuses a configuration that is not of a decoder, or contradicts itself.
func (c *Config) check() error {
	for _, size := range []struct {
		key   string
		value int
	}{
		{"hidden_size", c.HiddenSize}, {"num_hidden_layers", c.NumHiddenLayers},
		{"num_attention_heads", c.NumAttentionHeads}, {"vocab_size", c.VocabSize},
	} {
		if size.value == 0 {
			return bad("%s is missing (model_type is %s)", size.key, quote(c.ModelType))
		}
	}
	if c.NumAttentionHeads%c.NumKeyValueHeads != 0 {
		return bad("num_attention_heads %d is not a multiple of num_key_value_heads %d", c.NumAttentionHeads, c.NumKeyValueHeads)
	}
	if c.LayerTypes != nil && len(c.LayerTypes) != c.NumHiddenLayers {
		return bad("layer_types has %d entries, num_hidden_layers is %d", len(c.LayerTypes), c.NumHiddenLayers)
	}
	return nil
}

// Decode reads a field of one family into a Go value, as json.Unmarshal does. An absent or null field
// is NotFound and leaves into as it is; one of another kind is BadRequest. Bounds are the caller's to
// check.
func (c *Config) Decode(key string, into any) error {
	f := fields{all: c.all, under: c.outer}
	raw := f.raw(key)
	if raw == nil {
		return api.Errorf(api.NotFound, "config.json: %s is missing", key)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return bad("config.json: %s is %s: %w", key, clip(string(raw)), err)
	}
	return nil
}

// RopeScaling says how rotary frequencies are changed for contexts longer than the trained one. Which
// fields count depends on Type; those that the file does not have are zero, unless the comment differs.
type RopeScaling struct {
	Type                          string // e.g. "linear", "llama3", "yarn"
	Factor                        float64
	OriginalMaxPositionEmbeddings int
	LowFreqFactor, HighFreqFactor float64 // llama3
	BetaFast, BetaSlow            float64 // yarn
	AttentionFactor               float64 // yarn, longrope
	MScale, MScaleAllDim          float64 // yarn
	Truncate                      bool    // yarn; true when absent
	Raw                           json.RawMessage
}

// readRope fills RopeTheta and RopeScaling. transformers 5 writes both into "rope_parameters"; before,
// they were "rope_theta" and "rope_scaling", whose "rope_type" was once "type".
func (c *Config) readRope(f *fields) {
	const minTheta, maxTheta = 1e-3, 1e12
	c.RopeTheta = f.number("rope_theta", 10000, minTheta, maxTheta)
	key := "rope_parameters"
	if !f.has(key) {
		key = "rope_scaling"
	}
	if f.err != nil || !f.has(key) {
		return
	}
	m, err := members(f.raw(key))
	if err != nil {
		f.err = in(key, err)
		return
	}
	for name := range maps.Keys(m) {
		if name == "full_attention" || name == "sliding_attention" {
			f.err = unsupported("%s has settings per kind of layer, wanted one for all", key)
			return
		}
	}
	r := &fields{all: m}
	s := &RopeScaling{Type: r.text("rope_type"), Raw: f.raw(key), Truncate: true}
	if s.Type == "" {
		s.Type = r.text("type")
	}
	c.RopeTheta = r.number("rope_theta", c.RopeTheta, minTheta, maxTheta)
	s.Factor = r.number("factor", 0, 1e-3, 1e6)
	s.OriginalMaxPositionEmbeddings = r.integer("original_max_position_embeddings", 0, 1, maxPositions)
	s.LowFreqFactor = r.number("low_freq_factor", 0, 0, 1e6)
	s.HighFreqFactor = r.number("high_freq_factor", 0, 0, 1e6)
	s.BetaFast = r.number("beta_fast", 0, 0, 1e6)
	s.BetaSlow = r.number("beta_slow", 0, 0, 1e6)
	s.AttentionFactor = r.number("attention_factor", 0, 0, 1e6)
	s.MScale = r.number("mscale", 0, 0, 1e6)
	s.MScaleAllDim = r.number("mscale_all_dim", 0, 0, 1e6)
	if r.has("truncate") {
		s.Truncate = r.boolean("truncate")
	}
	f.err = in(key, r.err)
	if s.Type != "" && s.Type != "default" {
		c.RopeScaling = s
	} else if s.Factor != 0 && s.Type == "" {
		f.err = bad("%s has a factor, but no rope_type", key)
	}
}

// Generation is generation_config.json: what the publisher suggests for sampling. A nil field is one
// that the file does not have.
type Generation struct {
	EosTokenIDs  []int
	DoSample     *bool
	Temperature  *float64
	TopK         *int
	TopP         *float64
	MaxNewTokens *int
}

func parseGeneration(b []byte) (Generation, error) {
	all, err := members(b)
	if err != nil {
		return Generation{}, err
	}
	f := &fields{all: all}
	g := Generation{EosTokenIDs: f.ids("eos_token_id")}
	if f.has("do_sample") {
		g.DoSample = new(f.boolean("do_sample"))
	}
	if f.has("temperature") {
		g.Temperature = new(f.number("temperature", 0, 0, 1e6))
	}
	if f.has("top_k") {
		g.TopK = new(f.integer("top_k", 0, 0, math.MaxInt32))
	}
	if f.has("top_p") {
		g.TopP = new(f.number("top_p", 0, 0, 1))
	}
	if f.has("max_new_tokens") {
		g.MaxNewTokens = new(f.integer("max_new_tokens", 0, 1, math.MaxInt32))
	}
	return g, f.err
}
