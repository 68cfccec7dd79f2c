package interchange

import (
	"context"
	"fmt"
	"strings"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
)

// Factors of experts are "shared-outer" here and in archives of the hosted service: [1, …] for the one on the side of the hidden size, and
// [experts, …] for the other. PEFT has no such adapters. It has two-dimensional factors of every expert's own; those of the shared side are
// then equal. peft with transformers 5, which keeps the experts of a layer in one tensor, converts such adapters as it reads them.

// isExperts says whether a factor is of all experts of a layer.
func isExperts(t api.TensorInfo) bool {
	return len(t.Shape) == 3 && strings.Contains(t.Name, ".experts.")
}

// shares says whether the factor is one for all experts: A of w1 and w3, B of w2.
func shares(factor string) bool {
	return strings.HasSuffix(lora.Module(factor), ".w2") == strings.HasSuffix(factor, ".lora_B.weight")
}

// expertName is the name of an expert's own factor in a PEFT folder.
func expertName(factor string, expert int) string {
	layer, rest, _ := strings.Cut(factor, ".experts.")
	w, rest, _ := strings.Cut(rest, ".")
	return fmt.Sprintf("%s%s.experts.%d.%s.%s", peftRoot, layer, expert, projections[w], rest)
}

// expertCount is how many experts the layer of a factor has: the number is the first dimension of the factors that they do not share.
func expertCount(factors []api.TensorInfo, factor string) int {
	layer, _, _ := strings.Cut(factor, ".experts.")
	for _, t := range factors {
		if strings.HasPrefix(t.Name, layer+".experts.") && !shares(t.Name) {
			return t.Shape[0]
		}
	}
	return 1
}

// layerCache keeps the bytes of the factors of one layer's experts, because files have them sorted by expert.
type layerCache struct {
	a     *Adapter
	layer string
	data  map[string][]byte
}

func (c *layerCache) read(ctx context.Context, t api.TensorInfo) ([]byte, error) {
	layer, _, _ := strings.Cut(t.Name, ".experts.")
	if layer != c.layer || c.data == nil {
		c.layer, c.data = layer, map[string][]byte{}
	}
	if c.data[t.Name] == nil {
		data, err := c.a.bytes(ctx, t)
		if err != nil {
			return nil, err
		}
		c.data[t.Name] = data
	}
	return c.data[t.Name], nil
}

// slice is an expert's part of a factor.
func (c *layerCache) slice(ctx context.Context, t api.TensorInfo, expert int) ([]byte, error) {
	data, err := c.read(ctx, t)
	if err != nil || t.Shape[0] == 1 {
		return data, err
	}
	n := len(data) / t.Shape[0]
	return data[expert*n : (expert+1)*n], nil
}
