// Package model runs decoder-only transformers: a frozen Base, LoRA adapters on it, packed batches
// forward and backward, and generation with a key/value cache. It knows token ids only. Training
// and sampling run the same forward code on the same weights, so equal weights give equal bits.
package model

import (
	"fmt"
	"math"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
)

// Spec is an architecture with its sizes: what config.json says, in our words.
type Spec struct {
	Family                            string
	Layers, Hidden, Heads, KVHeads    int
	HeadDim, FFN, Vocab, MaxPositions int
	Eps                               float32
	RopeTheta                         float64
	RopeScaling                       RopeScaling
	Window                            int  // sliding window that limits MaxPositions; 0 when none does
	QKNorm                            bool // per-head RMSNorm on q and k before the rotation
	QKVBias                           bool // the q, k and v projections have biases
	Tied                              bool // the head is the embedding

	// Mixture of experts, in the layers that Sparse marks; the others have a dense feed-forward of FFN. Sparse is nil when all are dense.
	Sparse        []bool
	Experts, TopK int
	ExpertFFN     int
	NormTopK      bool // the gates of a token's experts are divided by their sum
}

// IsSparse reports whether layer i has a mixture of experts.
func (s *Spec) IsSparse(i int) bool { return s.Sparse != nil && s.Sparse[i] }

// sparseLayers counts them.
func (s *Spec) sparseLayers() int {
	n := 0
	for _, sparse := range s.Sparse {
		if sparse {
			n++
		}
	}
	return n
}

// family is one architecture: config.json → Spec. Tensor names are those of the Hugging Face Llama
// layout that all our families share.
type family struct {
	modelType string
	spec      func(c *hf.Config) (*Spec, error)
}

// NewSpec reads the architecture out of a checkpoint's configuration.
func NewSpec(c *hf.Config) (*Spec, error) {
	known := ""
	for _, f := range families {
		if f.modelType == c.ModelType {
			s, err := f.spec(c)
			if err == nil && s.FFN == 0 && s.sparseLayers() < s.Layers {
				return nil, api.Errorf(api.BadRequest, "config.json: intermediate_size is missing, and some layers are dense")
			}
			return s, err
		}
		known += " " + f.modelType
	}
	return nil, api.Errorf(api.Unsupported, "config.json: model_type is %q; this build knows:%s", c.ModelType, known)
}

// decoder fills the fields that every family reads the same way, and refuses what no family supports.
func decoder(c *hf.Config) (*Spec, error) {
	if c.HiddenAct != "silu" {
		return nil, api.Errorf(api.Unsupported, "config.json: hidden_act is %q, wanted \"silu\"", c.HiddenAct)
	}
	scaling, err := ropeScaling(c)
	if err != nil {
		return nil, err
	}
	if c.MaxPositionEmbeddings == 0 {
		return nil, api.Errorf(api.BadRequest, "config.json: max_position_embeddings is missing")
	}
	if c.AttentionBias || c.MLPBias {
		return nil, api.Errorf(api.Unsupported, "config.json: biases on linear layers are not supported by %s", c.ModelType)
	}
	s := &Spec{
		Family: c.ModelType, Layers: c.NumHiddenLayers, Hidden: c.HiddenSize,
		Heads: c.NumAttentionHeads, KVHeads: c.NumKeyValueHeads, HeadDim: c.HeadDim,
		FFN: c.IntermediateSize, Vocab: c.VocabSize, MaxPositions: c.MaxPositionEmbeddings,
		Eps: float32(c.RMSNormEps), RopeTheta: c.RopeTheta, RopeScaling: scaling, Tied: c.TieWordEmbeddings,
	}
	if s.HeadDim == 0 {
		if s.Heads == 0 || s.Hidden%s.Heads != 0 {
			return nil, api.Errorf(api.BadRequest, "config.json: hidden_size %d is not a multiple of num_attention_heads %d and head_dim is absent", s.Hidden, s.Heads)
		}
		s.HeadDim = s.Hidden / s.Heads
	}
	if s.HeadDim%2 != 0 {
		return nil, api.Errorf(api.BadRequest, "config.json: head_dim is %d, wanted an even number", s.HeadDim)
	}
	if s.KVHeads < 1 || s.Heads%s.KVHeads != 0 {
		return nil, api.Errorf(api.BadRequest, "config.json: num_attention_heads %d is not a multiple of num_key_value_heads %d", s.Heads, s.KVHeads)
	}
	if c.UseSlidingWindow {
		s.limitTo(c.SlidingWindow)
	}
	return s, nil
}

// limitTo ends the context at a sliding window: attention here has no windows, and up to the window's length a
// sequence does not notice one. Zero is no window.
func (s *Spec) limitTo(window int) {
	if window > 0 && window < s.MaxPositions {
		s.MaxPositions, s.Window = window, window
	}
}

// Context is MaxPositions for messages, with its reason where that is not the model's own number.
func (s *Spec) Context() string {
	if s.Window > 0 {
		return fmt.Sprintf("%d (its sliding window; longer texts need windowed attention, which is not supported)", s.MaxPositions)
	}
	return fmt.Sprint(s.MaxPositions)
}

// QWidth and KVWidth are the output features of the query and of the key (or value) projections.
func (s *Spec) QWidth() int  { return s.Heads * s.HeadDim }
func (s *Spec) KVWidth() int { return s.KVHeads * s.HeadDim }

func (s *Spec) attentionScale() float32 { return float32(1 / math.Sqrt(float64(s.HeadDim))) }

// Params counts the base's parameters.
func (s *Spec) Params() int64 {
	D := int64(s.Hidden)
	perLayer := D*int64(2*s.QWidth()+2*s.KVWidth()) + 2*D
	if s.QKNorm {
		perLayer += int64(2 * s.HeadDim)
	}
	if s.QKVBias {
		perLayer += int64(s.QWidth() + 2*s.KVWidth())
	}
	sparse := int64(s.sparseLayers())
	n := int64(s.Layers)*perLayer + (int64(s.Layers)-sparse)*3*D*int64(s.FFN)
	n += sparse * int64(s.Experts) * (D + 3*D*int64(s.ExpertFFN))
	n += D + int64(s.Vocab)*D
	if !s.Tied {
		n += int64(s.Vocab) * D
	}
	return n
}

// The stacked weights of one layer, in site order; the head is the last site. In a sparse layer siteGateUp and siteDown are
// those of its experts.
const (
	siteQKV = iota
	siteO
	siteGateUp
	siteDown
	sitesPerLayer
)

// Sites lists the stacked weights adapters may attach to: four per layer, then the head.
func (s *Spec) Sites() []lora.Site {
	sites := make([]lora.Site, 0, s.Layers*sitesPerLayer+1)
	for l := range s.Layers {
		p := fmt.Sprintf("model.layers.%d.", l)
		sites = append(sites,
			lora.Site{Kind: lora.Attn, In: s.Hidden, Parts: []lora.Part{
				{Module: p + "self_attn.q_proj", Out: s.QWidth()},
				{Module: p + "self_attn.k_proj", Out: s.KVWidth()},
				{Module: p + "self_attn.v_proj", Out: s.KVWidth()}}},
			lora.Site{Kind: lora.Attn, In: s.QWidth(), Parts: []lora.Part{{Module: p + "self_attn.o_proj", Out: s.Hidden}}},
		)
		if s.IsSparse(l) {
			p += "mlp.experts." // names of the hosted service's archives: w1 gate, w3 up, w2 down
			sites = append(sites,
				lora.Site{Kind: lora.MLP, In: s.Hidden, Experts: s.Experts, Parts: []lora.Part{
					{Module: p + "w1", Out: s.ExpertFFN},
					{Module: p + "w3", Out: s.ExpertFFN}}},
				lora.Site{Kind: lora.MLP, In: s.ExpertFFN, Experts: s.Experts, OwnA: true, Parts: []lora.Part{{Module: p + "w2", Out: s.Hidden}}},
			)
			continue
		}
		sites = append(sites,
			lora.Site{Kind: lora.MLP, In: s.Hidden, Parts: []lora.Part{
				{Module: p + "mlp.gate_proj", Out: s.FFN},
				{Module: p + "mlp.up_proj", Out: s.FFN}}},
			lora.Site{Kind: lora.MLP, In: s.FFN, Parts: []lora.Part{{Module: p + "mlp.down_proj", Out: s.Hidden}}},
		)
	}
	return append(sites, lora.Site{Kind: lora.Unembed, In: s.Hidden, Parts: []lora.Part{{Module: "lm_head", Out: s.Vocab}}})
}
