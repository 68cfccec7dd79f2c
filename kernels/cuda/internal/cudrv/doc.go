// Package cudrv calls what gorgonia.org/cu lacks of the CUDA driver: launches with a packed block of parameters,
// one by one and many in one call, graphs captured from a stream and replayed, pinned host memory, and modules whose
// compiler log is kept. Handles are cu's wherever cu has a type for them.
//
// Every function works on the current context of the calling thread: callers hold runtime.LockOSThread. The package
// is empty without the build tag cuda.
package cudrv
