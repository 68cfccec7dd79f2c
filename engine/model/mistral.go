package model

import (
	"encoding/json"

	"tinkerlocal/engine/hf"
)

// mistral is the Mistral decoder: Llama's, head_dim independent of the hidden size, and in its first version a sliding window on
// every layer. The window is 4096 where the file does not name one (transformers 5.23 MistralConfig), and null is none.
func mistral(c *hf.Config) (*Spec, error) {
	s, err := decoder(c)
	if err != nil {
		return nil, err
	}
	window := c.SlidingWindow
	var said map[string]json.RawMessage
	if json.Unmarshal(c.Raw, &said) == nil && said["sliding_window"] == nil {
		window = 4096
	}
	s.limitTo(window)
	return s, nil
}
