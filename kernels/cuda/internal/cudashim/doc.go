// Package cudashim lets a program that calls the CUDA driver start where there is none. It defines every
// driver function that the program is linked against; each jumps through a table that Load fills from
// libcuda.so.1. Until then, and where Load fails, they answer "no device". cuInit alone does nothing and
// answers success: gorgonia.org/cu calls it before main and ends the process on any other answer.
//
// The package is empty without the build tag cuda.
package cudashim

//go:generate go run gen.go
