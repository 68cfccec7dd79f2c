package model

// families lists every architecture this build knows.
var families = []family{
	{"qwen3", qwen3},
	{"qwen3_moe", qwen3MoE},
}
