package model

import "tinkerlocal/engine/hf"

// qwen3 is the dense Qwen3 decoder: no biases, per-head RMSNorm on q and k before the rotation,
// head_dim independent of the hidden size.
func qwen3(c *hf.Config) (*Spec, error) {
	s, err := decoder(c)
	if err != nil {
		return nil, err
	}
	s.QKNorm = true
	return s, nil
}
