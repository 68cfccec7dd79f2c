package lora

import (
	"math"
	"slices"
	"testing"

	"tinkerlocal/engine/api"
)

// TestInitOrder: an adapter's A factors follow one another, and those that are skipped count.
func TestInitOrder(t *testing.T) {
	sites := []Site{
		{Kind: Attn, In: 6, Parts: []Part{{"a", 3}, {"b", 2}}},
		{Kind: MLP, In: 4, Experts: 2, OwnA: true, Parts: []Part{{"c", 6}}},
	}
	c := api.LoraConfig{Rank: 3, TrainAttn: true, TrainMLP: true}
	var names []string
	var all [][]float32
	init := NewInit(11)
	for _, f := range Factors(sites, c) {
		names = append(names, f.Name)
		if f.IsA {
			v := make([]float32, f.Size)
			in := f.Shape[len(f.Shape)-1]
			init.Fill(v, in)
			all = append(all, v)
			if most := slices.Max(v); !(float64(most) <= 1/math.Sqrt(float64(in))) || most <= 0 {
				t.Errorf("%s goes up to %v", f.Name, most)
			}
		}
	}
	if want := []string{"a.lora_A.weight", "b.lora_A.weight", "a.lora_B.weight", "b.lora_B.weight", "c.lora_A.weight", "c.lora_B.weight"}; !slices.Equal(names, want) {
		t.Errorf("factors %v, wanted %v", names, want)
	}
	again := NewInit(11)
	again.Skip(len(all[0]) + len(all[1]))
	last := make([]float32, len(all[2]))
	again.Fill(last, 4)
	if !slices.Equal(last, all[2]) || Module(names[5]) != "c" {
		t.Error("skipped values are not those that were drawn")
	}
}

// TestPartial: modules that are missing are zero where that is allowed; half a module never is.
func TestPartial(t *testing.T) {
	sites := []Site{{Kind: Attn, In: 2, Parts: []Part{{"a", 1}, {"b", 1}}}}
	c := api.LoraConfig{Rank: 1, TrainAttn: true}
	slots, total := layout(sites, c)
	a, b := Tensor{"b.lora_A.weight", []int{1, 2}, []float32{1, 2}}, Tensor{"b.lora_B.weight", []int{1, 1}, []float32{3}}
	got, err := gather(slots, total, []Tensor{a, b}, 0.1, partial)
	if want := []float32{0, 0, 1, 2, 0, float32(float64(float32(3)) * 0.1)}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; wanted %v", got, err, want)
	}
	if _, err := gather(slots, total, []Tensor{a}, 1, partial); err == nil || err.Error() != "adapter has no tensor b.lora_B.weight" {
		t.Errorf("half a module: %v", err)
	}
	if _, err := gather(slots, total, []Tensor{a, b}, 1, whole); err == nil || err.Error() != "adapter has no tensor a.lora_A.weight" {
		t.Errorf("a missing module: %v", err)
	}
	b.Values[0] = math.MaxFloat32
	if _, err := gather(slots, total, []Tensor{a, b}, 2, partial); api.CodeOf(err) != api.BadRequest {
		t.Errorf("too large: %v", err)
	}
}

// TestFold: our own scale is folded by 1 for every rank, and whole alphas come back.
func TestFold(t *testing.T) {
	for rank := 1; rank <= api.MaxRank; rank++ {
		c := api.LoraConfig{Rank: rank}
		for _, alpha := range []float64{1, 6, 16, api.LoraAlpha, 64} {
			if got := Alpha(c, alpha/float64(rank)); got != alpha {
				t.Fatalf("alpha %v of rank %d comes back as %v", alpha, rank, got)
			}
		}
		if f := Fold(c, api.LoraAlpha/float64(rank)); f != 1 {
			t.Fatalf("rank %d is folded by %v", rank, f)
		}
	}
	if f := Fold(api.LoraConfig{Rank: 4}, 3.25); f != 3.25*4/32 {
		t.Errorf("folded by %v", f)
	}
}
