// Package remote is a checkpoint store at the other end of a connection: a [Handler] serves the store of a process that has a
// state directory open, and a [Store] is that store for another process on the same machine. Only this program speaks to itself
// so: both ends are of one protocol version, or nothing is done.
//
//	protocol.go  what goes over the connection
//	handler.go   the serving end: sessions
//	calls.go     the serving end: what is done when it is answered
//	holding.go   the serving end: readers and writers
//	store.go     the asking end
//	connect.go   the asking end: one session's connections
//	transfer.go  the asking end: readers and writers
//
// # Sessions
//
// A Store holds one answer open as long as it lives: its session. The readers and writers that it opens are the session's, and
// when the connection of that answer breaks, because the Store was closed or its process has died, readers are closed
// and writers aborted. When the serving end goes away, the answer ends, too, and the Store knows at once.
//
// # Tensors
//
// A tensor goes up as one body and is whole in the serving process once, because a store's writer keeps it until its chunks are
// compressed; it comes down in chunks, each verified before it is sent. An error in the middle is told in a trailer.
package remote
