// Package api is the vocabulary of the Tinker API: plain structs with the wire's JSON names, and
// error codes. It imports nothing of the project; every door and every part of the engine speaks it.
package api
