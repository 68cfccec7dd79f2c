// Package wire translates between what the official Tinker SDK sends and reads over HTTP and the types of
// engine/api. It knows bytes and names; it opens no socket, keeps no state and decides nothing.
//
//	schema.go    the protobuf messages, as field numbers
//	request.go   forward_backward in protobuf: bytes to api.ForwardBackwardInput
//	tensor.go    tensors, dense and CSR, with every check that their bytes need
//	output.go    results of forward_backward in protobuf
//	sampled.go   results of sampling in protobuf
//	targets.go   tokens of a prompt's places, and their log-probabilities in the same form
//	legacy.go    forward, forward_backward and both results in JSON, as SDKs up to 0.24 have them
//	body.go      bodies: size limits, zstd
//	json.go      JSON in and out, with errors that name the place
//	session.go, model.go, training.go, sampling.go, future.go, listing.go, search.go
//	             the other bodies, by theme: plain structs with the wire's names
//
// # Protobuf by hand
//
// There is no generated code. Requests go from the body straight into api types, each array in one allocation of its final size;
// generated messages would be built first and copied then, and a body of empty messages would grow a hundredfold. What is left
// is a table of some forty field numbers and a loop per message over google.golang.org/protobuf/encoding/protowire, so that no
// protoc is needed to build or to change it. The official SDK's own converters made the goldens that hold it (testdata).
//
// # What is accepted
//
// Unknown protobuf fields and unknown JSON names are skipped: newer clients add some. Everything else is checked: an
// *api.Error says which datum, input or name is wrong, what was wanted and what came. Of a scalar field that is given twice the
// last one counts; of a name that is given twice in a map, a message or a tensor the request is refused. What a
// decoder allocates is two to three times the size of a real body. The worst body makes it eighty times as much, for at most maxDatums datums: a
// datum of a dozen bytes becomes a map in api's types. CSR tensors may spread to maxSpread times the body when they are written out.
//
// # Sources
//
// Field numbers, types and rules are facts of the SDK (Python package tinker 0.16.1, 0.25.0 and 0.38.0: the descriptors in
// tinker/proto and the pydantic models in tinker/types), observed with testdata/make_goldens.py and testdata/check_sdk.py.
package wire
