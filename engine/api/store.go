package api

import (
	"context"
	"io"
	"time"
)

// Store keeps checkpoints and run records. A checkpoint is there whole or not at all: one that was not
// committed does not exist. All methods are safe for concurrent use. Errors are *Error: NotFound for what is not
// there or has expired, DataLoss for what is damaged, NoSpace, BadRequest, Closed.
//
// A store does not judge who asks: callers compare [Checkpoint.ReadableBy] and the owner.
type Store interface {
	// Create begins a checkpoint. Path needs all three parts; Path, Owner, BaseModel, Lora, Version, Step,
	// Optimizer and Bytes are the caller's to fill in. A name that is taken is refused unless o.Overwrite is set: the
	// old checkpoint stays until the new one is committed.
	Create(ctx context.Context, c Checkpoint, o SaveOptions) (CheckpointWriter, error)

	// Open opens a checkpoint for reading. It can be read to its end even when it is deleted or replaced
	// meanwhile. Close the reader.
	Open(ctx context.Context, p Path) (CheckpointReader, error)

	// Info describes a checkpoint. A path of two parts gets its kind.
	Info(ctx context.Context, p Path) (Checkpoint, error)

	// List lists checkpoints, the newest first.
	List(ctx context.Context, q CheckpointQuery) (CheckpointPage, error)

	// Delete removes a checkpoint. Its disk space is given back later.
	Delete(ctx context.Context, p Path) error

	// SetTTL lets a checkpoint expire ttl from now on; ttl must be positive. ClearTTL lets it live for ever.
	SetTTL(ctx context.Context, p Path, ttl time.Duration) error
	ClearTTL(ctx context.Context, p Path) error

	// Publish lets everybody read a checkpoint, Unpublish its owner alone. To repeat either is no error.
	Publish(ctx context.Context, p Path) error
	Unpublish(ctx context.Context, p Path) error

	// PutRun writes a run's record; one that is there is replaced and keeps its Created.
	PutRun(ctx context.Context, r RunRecord) error
	Run(ctx context.Context, id string) (RunRecord, error)

	// Runs lists runs, those with the latest requests first.
	Runs(ctx context.Context, q RunQuery) (RunPage, error)

	// Close ends the store. Writers that are not committed are lost; readers fail.
	Close() error
}

// SaveOptions say how a checkpoint is saved.
type SaveOptions struct {
	Overwrite bool          // replace a checkpoint of the same path
	TTL       time.Duration // 0: it never expires
	// KeepLast, if positive, deletes the run's older checkpoints of this kind in the same transaction, so that at
	// most KeepLast are left. Published ones are not counted and not deleted.
	KeepLast int
	// UserMetadata is kept with the checkpoint, for people: see CheckMetadata and MaxCheckpointMetadataBytes. It is
	// copied. One that replaces another keeps nothing of the other's.
	UserMetadata map[string]string
}

// CheckpointWriter takes the tensors of one checkpoint. It is used by one goroutine.
type CheckpointWriter interface {
	// Tensor adds a tensor. It may return before data was read: do not change data until Commit or Abort
	// has returned. It waits when the store is behind.
	Tensor(ctx context.Context, t TensorInfo, data []byte) error
	// Commit makes the checkpoint exist. When it returns without an error, the checkpoint survives a loss
	// of power. The writer is used up either way.
	Commit(ctx context.Context) (Checkpoint, error)
	// Abort gives the checkpoint up. After Commit it does nothing.
	Abort()
}

// CheckpointReader gives the tensors of one checkpoint. Every byte is verified before it is handed out; an
// error names the tensor and the chunk that is damaged. It may be used by several goroutines.
type CheckpointReader interface {
	Checkpoint() Checkpoint
	Tensors() []TensorInfo // in the order they were written; do not change
	// Read fills dst, which must have the tensor's size.
	Read(ctx context.Context, name string, dst []byte) error
	// Stream writes the tensor to w, a piece at a time.
	Stream(ctx context.Context, name string, w io.Writer) error
	Close() error
}

// CheckpointQuery chooses checkpoints. An empty field matches all.
type CheckpointQuery struct {
	Run       string
	Owner     string
	Reader    string // only what this one may read
	Kind      string
	BaseModel string // the whole name, or the part after its last slash; upper and lower case are the same
	Name      string // a part of the checkpoint's name; upper and lower case are the same
	Page
}

// RunQuery chooses runs. An empty field matches all.
type RunQuery struct {
	Owner     string
	BaseModel string // as in CheckpointQuery
	Page
}

// Page asks for part of a list. A Cursor goes on behind the entry that it was given with, also when
// entries were added or removed since; Offset counts from there, or from the beginning.
type Page struct {
	Limit  int // 0: all
	Offset int
	Cursor string
}

// Window is which of n entries p asks for, when its cursor says that from of them were seen.
func (p Page) Window(from, n int) (lo, hi int, err error) {
	if p.Limit < 0 || p.Offset < 0 {
		return 0, 0, Errorf(BadRequest, "limit is %d and offset is %d, wanted 0 or more", p.Limit, p.Offset)
	}
	lo = from + min(p.Offset, n-from)
	hi = n
	if p.Limit > 0 {
		hi = lo + min(p.Limit, n-lo)
	}
	return lo, hi, nil
}

// CheckpointPage is part of a list of checkpoints.
type CheckpointPage struct {
	Checkpoints []Checkpoint // not nil: the JSON of an empty list is []
	Total       int          // entries of the whole list
	Next        string       // cursor behind the last entry; "": there are no more
}

// RunPage is part of a list of runs.
type RunPage struct {
	Runs  []RunRecord // not nil
	Total int
	Next  string
}
