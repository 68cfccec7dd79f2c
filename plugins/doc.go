// Package plugins runs custom losses: WebAssembly modules in a sandbox, on wazero.
//
// A [Host] loads modules. Loading validates the bytes as they are, checks them against the limits and the ABI (see
// ABI.md), rewrites them so that they pay for what they execute, compiles them, asks them to describe themselves, and tries them on a
// small made-up batch. A [Module] is the result; [Module.Loss] is a loss like any other to the engine. A [Registry] gives
// modules their names: those that a program brings along, and those of a folder.
//
// Nothing that a module does stops the server, and nothing that it gets but its inputs can change its results: there is no
// clock, no randomness, no file and no other module's memory to reach, each call runs in a fresh instance, and how a batch
// is cut into calls depends on the batch alone.
package plugins
