package lora

import (
	"math"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/kernels/ref"
)

// TestExpertSites: a mixture's factors have the names, shapes, initial values and places that the kernels and the
// archives of the hosted service want.
func TestExpertSites(t *testing.T) {
	const E, D, F, R = 3, 7, 5, 2
	moe := []Site{
		{Kind: MLP, In: D, Experts: E, Parts: []Part{{"m.experts.w1", F}, {"m.experts.w3", F}}},
		{Kind: MLP, In: F, Experts: E, OwnA: true, Parts: []Part{{"m.experts.w2", D}}},
	}
	c := api.LoraConfig{Rank: R, TrainMLP: true}
	a, err := New(ref.Open(), moe, c, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Free()
	if got, want := Params(moe, c), R*3*(D+E*F); got != want || a.flat.Len() != want {
		t.Errorf("%d parameters counted, %d laid out, wanted %d", got, a.flat.Len(), want)
	}
	ts, err := a.Weights.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []Tensor{
		{Name: "m.experts.w1.lora_A.weight", Shape: []int{1, R, D}}, {Name: "m.experts.w3.lora_A.weight", Shape: []int{1, R, D}},
		{Name: "m.experts.w1.lora_B.weight", Shape: []int{E, F, R}}, {Name: "m.experts.w3.lora_B.weight", Shape: []int{E, F, R}},
		{Name: "m.experts.w2.lora_A.weight", Shape: []int{E, R, F}}, {Name: "m.experts.w2.lora_B.weight", Shape: []int{1, D, R}},
	} {
		if got := ts[i]; got.Name != want.Name || !slices.Equal(got.Shape, want.Shape) {
			t.Fatalf("factor %d is %s %v, wanted %s %v", i, got.Name, got.Shape, want.Name, want.Shape)
		}
		bound := 0.0
		if strings.Contains(want.Name, "lora_A") {
			bound = 1 / math.Sqrt(float64(want.Shape[2]))
		}
		for j, v := range ts[i].Values {
			if math.Abs(float64(v)) > bound || bound > 0 && v == 0 {
				t.Errorf("%s[%d] is %v, wanted within %v", want.Name, j, v, bound)
			}
		}
	}
	up, down := a.Weights.Sites[0], a.Weights.Sites[1]
	for i, x := range []struct{ got, want [2]int }{
		{[2]int(up.A.Shape[:2]), [2]int{2 * R, D}}, {[2]int(up.B.Shape[:2]), [2]int{2 * E * F, R}},
		{[2]int(down.A.Shape[:2]), [2]int{E * R, F}}, {[2]int(down.B.Shape[:2]), [2]int{D, R}},
		{[2]int(up.DB.Shape[:2]), [2]int{2 * E * F, R}}, {[2]int(down.DA.Shape[:2]), [2]int{E * R, F}},
	} {
		if x.got != x.want {
			t.Errorf("view %d has shape %v, wanted %v", i, x.got, x.want)
		}
	}
	if down.A.Off != up.B.Off+up.B.Bytes() || down.B.Off != down.A.Off+down.A.Bytes() {
		t.Error("the factors are not one after another")
	}
	ts[2].Shape = []int{E * F, R}
	if err := a.Load(ts, 1); err == nil || !strings.Contains(err.Error(), "w1.lora_B.weight has shape [15 2], wanted [3 5 2]") {
		t.Errorf("two dimensions instead of three: got %v", err)
	}
}
