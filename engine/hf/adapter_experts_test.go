package hf

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
)

// expertAdapter has the three modules of 3 experts with hidden size 5 and 4 features each, rank 2.
func expertAdapter() *Adapter {
	a := &Adapter{BaseModel: "b", Rank: 2, Alpha: 32}
	for _, x := range []struct {
		name  string
		shape []int
	}{
		{"w1.lora_A", []int{1, 2, 5}}, {"w1.lora_B", []int{3, 4, 2}}, {"w2.lora_A", []int{3, 2, 4}}, {"w2.lora_B", []int{1, 5, 2}},
		{"w3.lora_A", []int{1, 2, 5}}, {"w3.lora_B", []int{3, 4, 2}},
	} {
		v := make([]float32, x.shape[0]*x.shape[1]*x.shape[2])
		for i := range v {
			v[i] = float32(i)
		}
		a.Tensors = append(a.Tensors, AdapterTensor{Name: "base_model.model.model.layers.7.mlp.experts." + x.name + ".weight", Shape: x.shape, Values: v})
	}
	return a
}

// TestExpertAdapter: factors of experts come back as they were written.
func TestExpertAdapter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a")
	want := expertAdapter()
	if err := WriteAdapter(dir, want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadAdapter(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Tensors, want.Tensors) || strings.Join(got.Targets, " ") != "w1 w2 w3" {
		t.Errorf("targets %v, tensors %v", got.Targets, got.Tensors)
	}
}

func TestExpertAdapterRefuses(t *testing.T) {
	const p = `tensor "base_model.model.model.layers.7.mlp.experts.`
	for _, c := range []struct {
		name   string
		change func(a *Adapter)
		want   string
	}{
		{"own A of w1", func(a *Adapter) { a.Tensors[0].Shape = []int{2, 2, 5} }, p + `w1.lora_A.weight" has shape [2 2 5], wanted [1, rank, in] with rank 2`},
		{"shared B of w1", func(a *Adapter) { a.Tensors[1].Shape = []int{12, 2} }, ""}, // two dimensions are an ordinary factor here; the model knows better
		{"B of w1", func(a *Adapter) { a.Tensors[1].Shape = []int{3, 2, 4} }, p + `w1.lora_B.weight" has shape [3 2 4], wanted [experts, out, rank] with rank 2`},
		{"A of w2", func(a *Adapter) { a.Tensors[2].Shape = []int{3, 4, 2} }, p + `w2.lora_A.weight" has shape [3 4 2], wanted [experts, rank, in] with rank 2`},
		{"own B of w2", func(a *Adapter) { a.Tensors[3].Shape = []int{5, 1, 2} }, p + `w2.lora_B.weight" has shape [5 1 2], wanted [1, out, rank] with rank 2`},
		{"values", func(a *Adapter) { a.Tensors[1].Shape = []int{4, 4, 2} }, p + `w1.lora_B.weight" has 24 values, its shape is [4 4 2]`},
		{"overflow", func(a *Adapter) { a.Tensors[1].Shape = []int{1 << 62, 1 << 2, 2} }, p + `w1.lora_B.weight" has 24 values, its shape is [4611686018427387904 4 2]`},
		{"four", func(a *Adapter) { a.Tensors[1].Shape = []int{3, 2, 2, 2} }, p + `w1.lora_B.weight" has shape [3 2 2 2], wanted [out, rank] with rank 2`},
		{"another name", func(a *Adapter) {
			a.Tensors[0].Name = strings.Replace(a.Tensors[0].Name, "w1", "w4", 1)
		}, `tensor "base_model.model.model.layers.7.mlp.experts.w4.lora_A.weight" has shape [1 2 5], wanted [rank, in] with rank 2`},
		{"elsewhere", func(a *Adapter) {
			a.Tensors[0].Name = strings.Replace(a.Tensors[0].Name, "experts.", "", 1)
		}, `tensor "base_model.model.model.layers.7.mlp.w1.lora_A.weight" has shape [1 2 5], wanted [rank, in] with rank 2`},
	} {
		a := expertAdapter()
		c.change(a)
		err := a.check()
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		expect(t, c.name, err, api.BadRequest, c.want)
	}
}
