package local

import (
	"path/filepath"
	"slices"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
)

// TestExpertAdapterFolder: the factors of a mixture of experts keep their names, three dimensions and values in a folder.
func TestExpertAdapterFolder(t *testing.T) {
	sites := []lora.Site{
		{Kind: lora.MLP, In: 7, Experts: 3, Parts: []lora.Part{{Module: "model.layers.0.mlp.experts.w1", Out: 5}, {Module: "model.layers.0.mlp.experts.w3", Out: 5}}},
		{Kind: lora.MLP, In: 5, Experts: 3, OwnA: true, Parts: []lora.Part{{Module: "model.layers.0.mlp.experts.w2", Out: 7}}},
	}
	dev, err := OpenDevice("cpu")
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	c := api.LoraConfig{Rank: 2, TrainMLP: true}
	a, err := lora.New(dev, sites, c, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Free()
	ts, err := a.Weights.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "a")
	if err := WriteAdapter(dir, "Org/Name", engine.Weights{Lora: c, Scale: 16, Tensors: ts}); err != nil {
		t.Fatal(err)
	}
	got, err := ReadAdapter(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.Lora != c || got.Scale != 16 || len(got.Tensors) != 6 {
		t.Errorf("read %+v with %d tensors", got.Lora, len(got.Tensors))
	}
	for _, x := range got.Tensors {
		i := slices.IndexFunc(ts, func(y lora.Tensor) bool { return x.Name == y.Name })
		if i < 0 || !slices.Equal(x.Values, ts[i].Values) || !slices.Equal(x.Shape, ts[i].Shape) {
			t.Errorf("tensor %s came back as %v", x.Name, x.Shape)
		}
	}
	s, err := lora.NewSnapshot(dev, sites, got.Lora, got.Tensors, got.Scale)
	if err != nil {
		t.Fatal(err)
	}
	s.Free()
}
