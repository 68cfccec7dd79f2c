package model

import "tinkerlocal/engine/hf"

// qwen2 is the decoder of Qwen2 and Qwen2.5: biases on the q, k and v projections, and on no other. Some of its files name a
// sliding window that use_sliding_window turns off.
func qwen2(c *hf.Config) (*Spec, error) {
	s, err := decoder(c)
	if err != nil {
		return nil, err
	}
	s.QKVBias = true
	return s, nil
}
