package storetest

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"

	"tinkerlocal/engine/api"
)

// State8B is a training state of an adapter on all modules of Qwen3-8B: factors, and moments with the spread that training gives. At
// rank 32 it has 1.1 GB.
func State8B(rank int) (blobs []Blob, bytes int64) {
	rng := rand.New(rand.NewPCG(1, 2))
	add := func(name string, sigma float64, square bool, shape ...int) {
		n := 1
		for _, d := range shape {
			n *= d
		}
		data := make([]byte, 4*n)
		for i := 0; i < len(data); i += 4 {
			v := rng.NormFloat64() * sigma
			if square {
				v *= v
			}
			binary.LittleEndian.PutUint32(data[i:], math.Float32bits(float32(v)))
		}
		bytes += int64(len(data))
		blobs = append(blobs, Blob{TensorInfo: api.TensorInfo{Name: name, DType: "F32", Shape: shape}, Data: data})
	}
	module := func(name string, in, out int) {
		for _, f := range []struct {
			name  string
			shape []int
		}{{".lora_A.weight", []int{rank, in}}, {".lora_B.weight", []int{out, rank}}} {
			add(name+f.name, 0.01, false, f.shape...)
			add("adam_m/"+name+f.name, 1e-4, false, f.shape...)
			add("adam_v/"+name+f.name, 1e-4, true, f.shape...)
		}
	}
	const hidden, ffn, vocab = 4096, 12288, 151936
	for l := range 36 {
		at := fmt.Sprintf("model.layers.%d.", l)
		module(at+"self_attn.q_proj", hidden, 4096)
		module(at+"self_attn.k_proj", hidden, 1024)
		module(at+"self_attn.v_proj", hidden, 1024)
		module(at+"self_attn.o_proj", 4096, hidden)
		module(at+"mlp.gate_proj", hidden, ffn)
		module(at+"mlp.up_proj", hidden, ffn)
		module(at+"mlp.down_proj", ffn, hidden)
	}
	module("lm_head", hidden, vocab)
	return blobs, bytes
}
