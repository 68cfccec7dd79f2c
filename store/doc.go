// Package store keeps checkpoints and run records: in one folder, in an embedded Badger database with zstd, or in
// memory. Both are the same code above a small key-value interface.
//
// # Layout, format version 1
//
//	format             "tinker-local store 1"
//	c + SHA-256        a chunk: at most 960 KiB of a tensor, under the hash of its content
//	k/RUN/KIND/NAME    a checkpoint's record: api.Checkpoint, and which chunks hold its table of tensors
//	r/RUN              a run record
//
// A chunk that is there already is not written again: sampler weights of a saved state, or a state saved twice, cost
// their records. A chunk is byte-shuffled (all first bytes of its elements, then all second ones, ...) and
// compressed where that makes it smaller; its hash is verified at every read. Records carry a hash of their own.
//
// # Order of writes
//
// chunks, sync, record, sync, success. The record is one key in a transaction of its own, so a checkpoint exists
// whole or not at all; what has no record is collected later. Badger is opened with SyncWrites, because its Sync alone
// misses logs that were rotated; the explicit Sync is there because SyncWrites only logs a failure of the value log's.
//
// # Space
//
// A new checkpoint is refused, with numbers, when the disk has less than it needs. Badger writes through memory
// maps, where a full disk kills the process; so on Linux the blocks of its logs are reserved before they are written, and a disk that
// fills up meanwhile is an error, too. Elsewhere the check at the beginning is all there is.
package store
