package model

import "tinkerlocal/engine/hf"

// llama is the Llama 3.x decoder: no biases, no norm on q and k, and from 3.1 on scaled rotary frequencies (see
// [RopeScaling]).
func llama(c *hf.Config) (*Spec, error) { return decoder(c) }
