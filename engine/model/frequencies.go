package model

import (
	"math"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
)

// RopeScaling says how a model's rotary frequencies differ from theta^(-2c/C). The zero value is: not at all.
type RopeScaling struct {
	Type      string  // "", "linear" or "llama3"
	Factor    float32 // low frequencies are divided by it
	Low, High float32 // llama3: low_freq_factor and high_freq_factor
	Original  float32 // llama3: original_max_position_embeddings
}

// ropeScaling reads rope_scaling (rope_parameters since transformers 5). A kind that is not computed here is refused by
// its name: with other frequencies the model would run and answer nonsense.
func ropeScaling(c *hf.Config) (RopeScaling, error) {
	if part, err := partialRotary(c); err != nil || part != 1 {
		if err == nil {
			err = api.Errorf(api.Unsupported, "config.json: partial_rotary_factor is %v, wanted 1", part)
		}
		return RopeScaling{}, err
	}
	r := c.RopeScaling
	if r == nil {
		return RopeScaling{}, nil
	}
	s := RopeScaling{Type: r.Type, Factor: float32(r.Factor)}
	switch r.Type {
	case "llama3":
		s.Low, s.High = float32(r.LowFreqFactor), float32(r.HighFreqFactor)
		s.Original = float32(r.OriginalMaxPositionEmbeddings)
		if s.Original == 0 {
			return s, api.Errorf(api.BadRequest, "config.json: rope_scaling of type llama3 has no original_max_position_embeddings")
		}
		if !(s.Low > 0 && s.High > s.Low) {
			return s, api.Errorf(api.BadRequest, "config.json: rope_scaling has low_freq_factor %v and high_freq_factor %v, wanted 0 < low < high", s.Low, s.High)
		}
	case "linear":
	default:
		return s, api.Errorf(api.Unsupported, "config.json: rope_scaling of type %q is not supported, wanted linear or llama3", r.Type)
	}
	if s.Factor < 1 {
		return s, api.Errorf(api.BadRequest, "config.json: rope_scaling has factor %v, wanted at least 1", s.Factor)
	}
	return s, nil
}

// partialRotary is the share of a head that is rotated: 1 unless the file says otherwise, at its top or in its rope settings.
func partialRotary(c *hf.Config) (float64, error) {
	one := 1.0
	said := struct {
		Part *float64 `json:"partial_rotary_factor"`
	}{&one}
	for _, place := range []struct {
		key  string
		into any
	}{{"partial_rotary_factor", &said.Part}, {"rope_scaling", &said}, {"rope_parameters", &said}} {
		if err := c.Decode(place.key, place.into); err != nil && api.CodeOf(err) != api.NotFound {
			return 0, err
		}
	}
	if said.Part == nil {
		return 1, nil // null
	}
	return *said.Part, nil
}

// ropeAngle is the rotation angle of pair c of C/2 at a position. The roundings are those of transformers, which
// computes exponent, power, reciprocal and product in float32: the models were trained with these
// angles, and at position 40,000 they differ from exact ones by up to 2e-3.
func (s *Spec) ropeAngle(pos, c int) float32 {
	return float32(pos) * s.InvFreq(c)
}

// InvFreq is the angular frequency of pair c: theta^(-2c/C), scaled as the model says.
func (s *Spec) InvFreq(c int) float32 {
	exponent := float32(2*c) / float32(s.HeadDim)
	return s.RopeScaling.apply(1 / float32(math.Pow(s.RopeTheta, float64(exponent))))
}

// apply scales one frequency f. linear is f/factor. llama3 looks at the wavelength w = 2 pi/f in positions and how often
// it fits into the original context O:
//
//	O/w > high         f
//	O/w < low          f/factor
//	otherwise          (1-t) f/factor + t f,  t = (O/w - low)/(high - low)
//
// (Dubey et al. 2024, arXiv 2407.21783, section 3.4.3; transformers 5.23 _compute_llama3_parameters.) Every operation is rounded
// to float32 as torch does it, where number/tensor is the tensor's reciprocal times the number; the conversions keep a
// processor from joining a product and a sum.
func (r RopeScaling) apply(f float32) float32 {
	switch r.Type {
	case "linear":
		return f / r.Factor
	case "llama3":
		wave := float32(1/f) * float32(2*math.Pi)
		switch {
		case wave < r.Original/r.High:
			return f
		case wave > r.Original/r.Low:
			return f / r.Factor
		}
		t := float32(float32(float32(1/wave)*r.Original)-r.Low) / (r.High - r.Low)
		return float32(float32(float32(1-t)*f)/r.Factor) + float32(t*f)
	}
	return f
}
