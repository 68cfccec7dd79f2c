package losses

import (
	"encoding/binary"
	"fmt"
	"testing"
)

// BenchmarkCall times a call with the copies into and out of the module: datums of 500 tokens.
func BenchmarkCall(b *testing.B) {
	for _, name := range []string{"dpo", "bradley_terry", "kto", "grpo", "gspo", "topk_distillation", "ppo"} {
		for _, tokens := range []int{32_000, 1_000_000} {
			b.Run(fmt.Sprint(name, "/", tokens), func(b *testing.B) {
				m := load(b, all(b)[name])
				var data []datum
				for i := range tokens / 500 {
					x := func(at, by float32) tensor {
						v := make([]float32, 500)
						for j := range v {
							v[j] = at + by*float32((i*7+j*13)%101)/101
						}
						return tensor{floats: v}
					}
					data = append(data, datum{dims: [2]int{500, 1}, logprobs: x(-2, 1).floats, inputs: map[string]tensor{
						"weights": x(1, 0), "ref_logprobs": x(-2.1, 1), "logprobs": x(-2.1, 1), "advantages": x(-1, 2),
						"teacher_logprobs": x(-2.1, 1), "label": {ints: []int64{int64(i % 2)}}, "group": {ints: []int64{int64(i / 4)}}, "reward": {floats: []float32{float32(i % 3)}},
					}})
				}
				if name == "topk_distillation" {
					for i := range data {
						data[i].dims = [2]int{25, 20}
					}
				}
				req := m.encode(b, batch{data: data})
				b.SetBytes(int64(len(req)))
				out := make([]byte, 4*tokens)
				weights := binary.LittleEndian.Uint32(req[48:])
				for b.Loop() {
					at := uint32(m.call(b, "loss_alloc", uint64(len(req))))
					if !m.mod.Memory().Write(at, req) || m.call(b, "loss_call", uint64(at), uint64(len(req))) != 0 {
						b.Fatal("the call failed")
					}
					w, _ := m.mod.Memory().Read(at+weights, uint32(len(out)))
					copy(out, w)
				}
			})
		}
	}
}
