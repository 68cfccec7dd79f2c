package api

import "context"

// StateStore is a Store with what its user needs to look after it: that of a state directory.
type StateStore interface {
	Store

	// DeleteExpired deletes the checkpoints that have expired by the clock of this moment, for somebody who has looked at it.
	DeleteExpired(ctx context.Context) (deleted []Path, err error)

	// Collect gives the space of what was deleted back, and returns when that is done. The store does so by itself later.
	Collect(ctx context.Context) (Collected, error)

	// Verify reads checkpoints and reports all that is damaged; none means that every byte is as it was saved. Without
	// paths it reads everything, run records too. The error is of the reading itself, such as a path that is not there.
	Verify(ctx context.Context, paths ...Path) ([]Damage, error)
}

// Collected says what a collection has done.
type Collected struct {
	Kept    int `json:"kept"` // chunks
	Deleted int `json:"deleted"`
}

// Damage is one thing that cannot be read.
type Damage struct {
	Checkpoint string `json:"checkpoint"` // its path, or a run's id
	Tensor     string `json:"tensor,omitempty"`
	Chunk      int    `json:"chunk,omitempty"` // from 1; 0: the record, or the table of tensors
	Err        error  `json:"-"`               // may be nil, of a store elsewhere
	Msg        string `json:"error"`
}
