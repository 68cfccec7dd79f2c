package gguf_test

import (
	"bytes"
	"fmt"

	"tinkerlocal/engine/gguf"
)

// One module of rank 2 on a small qwen3. Values would read from a checkpoint.
func Example() {
	zeros := func(n int) func() ([]float32, error) {
		return func() ([]float32, error) { return make([]float32, n), nil }
	}
	adapter := &gguf.Adapter{
		Base: gguf.Base{Family: "qwen3", Heads: 4, KVHeads: 2},
		Rank: 2, Alpha: 32, Name: "my adapter",
		Factors: []gguf.Factor{
			{Module: "model.layers.0.self_attn.q_proj", Which: "A", Shape: []int{2, 24}, Values: zeros(48)},
			{Module: "model.layers.0.self_attn.q_proj", Which: "B", Shape: []int{40, 2}, Values: zeros(80)},
		},
	}
	meta, tensors, err := adapter.Contents()
	if err != nil {
		fmt.Println(err)
		return
	}
	size, _ := gguf.Size(meta, tensors) // before anything is written
	var file bytes.Buffer
	if err := gguf.Write(&file, meta, tensors); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(size == int64(file.Len()))

	read, err := gguf.Parse(file.Bytes())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(read.Value(gguf.KeyArchitecture), read.Value(gguf.KeyLoraAlpha))
	for _, t := range read.Tensors {
		fmt.Println(t.Name, t.Type, t.Shape)
	}
	// Output:
	// true
	// qwen3 32
	// blk.0.attn_q.weight.lora_a F32 [2 24]
	// blk.0.attn_q.weight.lora_b F32 [40 2]
}
