package model

// families lists every architecture this build knows.
var families = []family{
	{"llama", llama},
	{"mistral", mistral},
	{"qwen2", qwen2},
	{"qwen3", qwen3},
	{"qwen3_moe", qwen3MoE},
}
