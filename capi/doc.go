// Command capi is libtinker: the C interface of the engine, built as libtinker.so and libtinker.a (make build).
//
// include/tinker.h declares it and is its manual. shim.c defines the public functions tinker_*: it refuses calls after a fork, keeps
// each thread's last error, and calls the Go function tinkergo_* of the same name, so that the C compiler checks both against
// the header. The Go functions look up handles, copy what the caller lent, call the engine and write the outputs; each
// recovers from panics. They hold no logic: what another door needs as well lies below.
//
// Without cgo the package is an empty program.
package main

func main() {}
