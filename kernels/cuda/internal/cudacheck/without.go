//go:build !cuda || !linux || !cgo

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "cudacheck: built without CUDA: make build/gpu/cudacheck")
	os.Exit(1)
}
