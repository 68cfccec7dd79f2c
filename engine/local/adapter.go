package local

import (
	"fmt"
	"strings"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
)

// peftPrefix stands before the module path in every tensor name of a PEFT adapter of a causal language model.
const peftPrefix = "base_model.model."

// unembedNames are other names of the head's factors in adapters that exist; the first is the hosted service's.
var unembedNames = []string{"model.unembed_tokens.", "model.lm_head."}

// WriteAdapter writes a run's weights as a PEFT folder, whole or not at all; an adapter that is there is replaced.
func WriteAdapter(dir, baseModel string, w engine.Weights) error {
	return hf.WriteAdapter(dir, toPEFT(baseModel, w))
}

// ReadAdapter reads a PEFT folder for a run or a sampler.
func ReadAdapter(dir string) (engine.Weights, error) {
	a, err := hf.ReadAdapter(dir)
	if err != nil {
		return engine.Weights{}, err
	}
	w, err := fromPEFT(a)
	if err != nil {
		return w, fmt.Errorf("%s: %w", dir, err)
	}
	return w, nil
}

func toPEFT(baseModel string, w engine.Weights) *hf.Adapter {
	a := &hf.Adapter{BaseModel: baseModel, Rank: w.Lora.Rank, Alpha: w.Scale * float64(w.Lora.Rank)}
	seen := map[string]bool{}
	for _, t := range w.Tensors {
		a.Tensors = append(a.Tensors, hf.AdapterTensor{Name: peftPrefix + t.Name, Shape: t.Shape, Values: t.Values})
		module, _, _ := strings.Cut(t.Name, ".lora_")
		target := module[strings.LastIndexByte(module, '.')+1:]
		if !seen[target] {
			seen[target] = true
			a.Targets = append(a.Targets, target)
		}
	}
	return a
}

func fromPEFT(a *hf.Adapter) (engine.Weights, error) {
	w := engine.Weights{Lora: api.LoraConfig{Rank: a.Rank}, Scale: a.Scale()}
	for _, x := range a.Tensors {
		name, ok := strings.CutPrefix(x.Name, peftPrefix)
		if !ok {
			return w, api.Errorf(api.BadRequest, "adapter tensor %s: wanted a name that begins with %s", x.Name, peftPrefix)
		}
		for _, other := range unembedNames {
			if rest, ok := strings.CutPrefix(name, other); ok {
				name = "lm_head." + rest
			}
		}
		switch {
		case strings.Contains(name, ".self_attn."):
			w.Lora.TrainAttn = true
		case strings.Contains(name, ".mlp."):
			w.Lora.TrainMLP = true
		case strings.HasPrefix(name, "lm_head."):
			w.Lora.TrainUnembed = true
		default:
			return w, api.Errorf(api.Unsupported,
				"adapter tensor %s adapts a module that cannot be adapted here; supported are attention and MLP projections and the output projection", x.Name)
		}
		w.Tensors = append(w.Tensors, lora.Tensor{Name: name, Shape: x.Shape, Values: x.Values})
	}
	return w, nil
}
