//go:build !unix

package main

// processorSeconds is not told on this system: the benchmark is for Unix.
func processorSeconds() float64 { return 0 }
