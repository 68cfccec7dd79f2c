package engine

import (
	"context"
	"time"

	"tinkerlocal/engine/api"
)

// recordEvery is how far the time of a run's last request may be behind in the store: to write it at every request would be to sync
// the disk at every request. Saves and the run's end write it, too.
const recordEvery = time.Minute

// touch notes that the run was asked for something. e.mu is held.
func (r *Run) touch() {
	r.asked = r.e.opt.Now()
	if r.asked.Sub(r.recorded).Abs() >= recordEvery {
		r.record()
	}
}

// record writes what the store keeps of the run, in the background. e.mu is held.
func (r *Run) record() {
	if rec, changed := r.entry(); changed && !r.e.closed {
		r.chain("record run", func() { r.e.putRun(rec) }, func() {})
	}
}

// whenRecorded calls end when the store has what record was asked to write: who has a run finds it in lists.
func (r *Run) whenRecorded(end func()) {
	r.e.mu.Lock()
	written := r.back.tail
	r.e.mu.Unlock()
	if written == nil {
		end()
		return
	}
	r.e.evals.Go(func() { <-written; end() })
}

// recordNow writes what has changed and waits for it.
func (r *Run) recordNow() {
	r.e.mu.Lock()
	rec, changed := r.entry()
	r.e.mu.Unlock()
	if changed {
		r.e.putRun(rec)
	}
}

// entry is what the store keeps of the run, and whether it has changed since the last call. Without a store nothing has. e.mu is held.
func (r *Run) entry() (rec api.RunRecord, changed bool) {
	if r.e.opt.Checkpoints == nil || r.asked.Equal(r.recorded) {
		return rec, false
	}
	r.recorded = r.asked
	return api.RunRecord{
		ID: r.id, Owner: r.session.owner, BaseModel: r.base.info.Name, Lora: r.lora, UserMetadata: r.metadata, LastRequest: r.asked,
	}, true
}

// putRun writes a record, also while the engine closes: that waits for it.
func (e *Engine) putRun(rec api.RunRecord) {
	if err := e.opt.Checkpoints.PutRun(context.Background(), rec); err != nil {
		e.log.Warn("record run", "run", rec.ID, "err", err)
	}
}
