// Package server serves an engine over HTTP, so that the official Tinker SDK and CLI work against it unmodified. It
// translates and keeps the engine's futures until clients have fetched them; it computes nothing.
//
//	server.go     what a server is made of, its life
//	routes.go     every path
//	call.go       one request: its owner, its body, its answer
//	guard.go      what a request must pass first: hosts, origins, keys, panics, the log
//	keys.go       keys and whose they are
//	token.go      tokens that clients get for their keys
//	limits.go     what clients may take
//	status.go     error codes as HTTP status
//	client.go     what clients ask about the server
//	session.go    sessions and their heartbeats
//	finish.go     the end of a session
//	search.go     lists of sessions
//	model.go      training runs: create_model, get_info, unload_model
//	training.go   forward_backward, optim_step, saving
//	load.go       loading, into a model or as the beginning of one
//	sampling.go   sampling sessions and asample
//	inflight.go   weights that change under their sampling sessions
//	op.go         accepted work until its result has been fetched
//	retrieve.go   retrieve_future
//	completions.go retrieve_futures: which samples of a client have ended
//	listing.go    runs and checkpoints, as the REST client and the CLI read them
//	usage.go      what checkpoints take
//	copy.go       copies of checkpoints
//	archive.go    downloads of checkpoints by signed links
//	external.go   weights for other programs, and their files by signed links
//	report.go     what the server has and does
//	admin.go      what this program's own command line asks: the store, plugins
//
// # Work and its results
//
// A request for work is checked, given to the engine and answered at once with a request id. The id is made of the run's
// or sampling session's id and of the client's number for the request: a repeat finds the first one's result and
// starts nothing. Work that fails, also because its request asks for something impossible, answers retrieve_future with an
// error and a category, as the SDK wants it; HTTP errors are for requests that cannot be read, are not allowed, name
// nothing that is there, or come when there is too much to do.
//
// # Clients that go away
//
// A sample that nobody asks for in Limits.SamplePatience is cancelled. A session that has not been heard of for
// Limits.SessionIdle is closed with its runs and samplers. Training operations are never cancelled: a client that pipelines
// does not look at all its results.
package server
