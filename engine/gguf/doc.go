// Package gguf reads and writes GGUF files as far as LoRA adapters need it, and lays our adapters out as llama.cpp reads them.
//
// # The file
//
// Little endian throughout, version 3 (version 2 differs in nothing that is used here, and is read too):
//
//	"GGUF", version u32, tensors u64, keys u64
//	per key:     name, value type u32, value            a string is its length u64, then its bytes
//	             an array is element type u32, length u64, elements
//	per tensor:  name, dimensions u32, sizes u64 …, type u32, offset u64
//	padding to the alignment, then each tensor's bytes, each padded to the alignment
//
// Sizes stand in the file innermost first; [Tensor.Shape] is outermost first, as everywhere else here. Offsets count from
// the first tensor, and each tensor begins where the padding of the one before ends. The alignment is the key general.alignment
// (u32), or 32. Bool is one byte, 0 or 1.
//
// # An adapter
//
// llama.cpp's loader wants general.type "adapter", general.architecture equal to the base's, adapter.type "lora" and adapter.lora.alpha
// (f32). A module's factors are named after the base's weight, with .lora_a and .lora_b behind it: A [rank, in], B [out, rank], stored
// unscaled; llama.cpp computes y = W·x + alpha/rank · B·(A·x), rank being that of the tensor, and takes alpha 0 for a scale of 1.
//
//	Hugging Face                    GGUF                         families
//	model.layers.N.self_attn.q_proj blk.N.attn_q.weight          all; rows permuted for llama and mistral
//	model.layers.N.self_attn.k_proj blk.N.attn_k.weight          all; rows permuted for llama and mistral
//	model.layers.N.self_attn.v_proj blk.N.attn_v.weight          all
//	model.layers.N.self_attn.o_proj blk.N.attn_output.weight     all
//	model.layers.N.mlp.gate_proj    blk.N.ffn_gate.weight        dense
//	model.layers.N.mlp.up_proj      blk.N.ffn_up.weight          dense
//	model.layers.N.mlp.down_proj    blk.N.ffn_down.weight        dense
//	model.layers.N.mlp.experts.w1   blk.N.ffn_gate_exps.weight   qwen3_moe
//	model.layers.N.mlp.experts.w3   blk.N.ffn_up_exps.weight     qwen3_moe
//	model.layers.N.mlp.experts.w2   blk.N.ffn_down_exps.weight   qwen3_moe
//	lm_head                         output.weight                all, where the base's GGUF has an output.weight
//
// Architectures are llama (families llama and mistral), qwen2, qwen3 and qwen3moe.
//
// Permuted rows: llama.cpp rotates the neighbours 2i and 2i+1 of a head in the architecture llama, and Hugging Face i and i+C/2. The
// rows of q and k are therefore interleaved within each head in the base, and the rows of their B likewise. Its qwen architectures rotate as
// Hugging Face does. (With the rows left as they are, log-probabilities of the tiny llama in engine/model/testdata are off by 3.)
//
// Experts: both factors must be there for every expert ([experts, rank, in] and [experts, out, rank]), because the graph picks
// them by the expert's id; the loader does not check, and a shorter one ends llama.cpp's process. Our shared factor is repeated; [Size] tells the
// length beforehand.
//
// A tied head has no tensor of its own in llama.cpp: its matrix is token_embd.weight. The loader refuses output.weight on such a base, and takes
// factors of token_embd.weight, in another shape, for those of the input embedding. An adapter of lm_head is therefore refused here; a
// caller may leave that module out, which changes what the adapter computes. Nothing is lost on a base whose GGUF was made with an
// output.weight of its own, a copy of the embedding: for llama.cpp that head is not tied.
//
// Values are written as float32, so that an adapter keeps its bits. llama.cpp reads F16, BF16 and Q8_0 as well; of these F16 and BF16 are read here.
//
// Sources: docs/gguf.md of ggml-org/ggml; of ggml-org/llama.cpp as in llama-cpp-python 0.3.36: ggml/src/gguf.cpp,
// src/llama-adapter.cpp, src/llama-graph.cpp (build_lora_mm, build_lora_mm_id, build_inp_embd), src/models/{llama,qwen2,qwen3,qwen3moe}.cpp,
// convert_lora_to_gguf.py and conversion/{llama,qwen}.py. What they say is held by testdata/converted, which the converter made, and by
// testdata/check_llamacpp.py, which runs llama.cpp.
package gguf
