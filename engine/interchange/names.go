package interchange

import (
	"fmt"
	"strconv"
	"strings"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
)

// peftRoot stands before the path of every module in the tensor names of an adapter of a causal language model.
const peftRoot = "base_model.model."

// head is the engine's name of the output projection, which is PEFT's; archives have unembed.
const (
	head    = "lm_head"
	unembed = "model.unembed_tokens"
)

// heads are the names of the output projection in adapters that exist: PEFT's, the hosted service's, and one that was seen in archives of the
// hosted service for models whose projection lies deeper.
var heads = []string{head, unembed, "model.lm_head"}

// projections are the words of the hosted service for an expert's projections, and those of its modules.
var projections = map[string]string{"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}

// archiveName is the name of a factor in an archive.
func archiveName(factor string) string {
	if rest, ok := strings.CutPrefix(factor, head+"."); ok {
		factor = unembed + "." + rest
	}
	return peftRoot + factor
}

// engineName is the engine's name of a factor in a file. For an expert's own factor, as PEFT has them, it is that of the factor of all experts,
// with the expert's number; otherwise expert is -1.
func engineName(file string) (factor string, expert int, err error) {
	name, ok := strings.CutPrefix(file, peftRoot)
	if !ok {
		return "", -1, api.Errorf(api.BadRequest, "adapter tensor %s: wanted a name that begins with %s", clip(file), peftRoot)
	}
	for _, other := range heads {
		if rest, ok := strings.CutPrefix(name, other+"."); ok {
			return head + "." + rest, -1, nil
		}
	}
	if _, known := kindOf(name); !known {
		return "", -1, api.Errorf(api.Unsupported,
			"adapter tensor %s adapts a module that cannot be adapted here; supported are attention and MLP projections and the output projection", clip(file))
	}
	layer, rest, ok := strings.Cut(name, ".experts.")
	if !ok {
		return name, -1, nil
	}
	number, rest, ok := strings.Cut(rest, ".")
	n, err := strconv.Atoi(number)
	if !ok || err != nil {
		return name, -1, nil // all experts in one
	}
	if n < 0 || n >= maxExperts || strconv.Itoa(n) != number {
		return "", -1, api.Errorf(api.BadRequest, "adapter tensor %s: the expert is %s, wanted 0 to %d", clip(file), clip(number), maxExperts-1)
	}
	for w, projection := range projections {
		if factor, ok := strings.CutPrefix(rest, projection+"."); ok {
			return fmt.Sprintf("%s.experts.%s.%s", layer, w, factor), n, nil
		}
	}
	return "", -1, api.Errorf(api.Unsupported, "adapter tensor %s adapts a part of an expert other than its gate_proj, up_proj and down_proj", clip(file))
}

// maxExperts is above what any published model has.
const maxExperts = 1 << 14

// kindOf says what a factor of the engine adapts, by its name.
func kindOf(factor string) (lora.Kind, bool) {
	switch {
	case strings.Contains(factor, ".self_attn."):
		return lora.Attn, true
	case strings.Contains(factor, ".mlp."):
		return lora.MLP, true
	case strings.HasPrefix(factor, head+"."):
		return lora.Unembed, true
	}
	return 0, false
}

// train sets the flag of a kind.
func train(c *api.LoraConfig, k lora.Kind) {
	switch k {
	case lora.Attn:
		c.TrainAttn = true
	case lora.MLP:
		c.TrainMLP = true
	default:
		c.TrainUnembed = true
	}
}

// clip shows text of a file in an error: escaped, and not longer than a line.
func clip(s string) string {
	const limit = 160
	if len(s) > limit {
		return strconv.QuoteToASCII(s[:limit]) + "..."
	}
	return strconv.QuoteToASCII(s)
}
