package model

// families lists every architecture this build knows.
var families = []family{
	{"qwen3", qwen3},
}
