// Command cudacheck tries the CUDA driver of a machine, and this project's way to it, and measures what launches and
// copies cost. It is one file that needs nothing but the driver: build it with `make build/gpu/cudacheck` and carry it
// to the machine. It ends by itself, and with 1 when something failed.
//
//	cudacheck [-json FILE] [-image FILE]... [-seconds 50]
//
// It needs the build tag cuda; without it there is only the sentence that says so.
package main
