package engine_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// TestRecordedAtClose: an engine that closes at once still writes down when its runs were last asked for something, those that were closed
// just before, too.
func TestRecordedAtClose(t *testing.T) {
	var now atomic.Int64
	e, s := stored(t, func(o *engine.Options) {
		o.Checkpoints = unhurried{borrowed{o.Checkpoints}}
		o.Now = func() time.Time { return time.Unix(1e9+now.Load(), 0) }
	})
	sess := e.NewSession()
	var runs []*engine.Run
	for i := range int64(20) {
		runs = append(runs, ready(t)(sess.NewRun(create("small", i))))
	}
	now.Store(59)
	for _, r := range runs {
		o, err := r.OptimStep(adam(0))
		wait(t, o, err)
	}
	for _, r := range runs[:10] {
		r.Close()
	}
	e.Close()
	for i, r := range runs {
		if rec, err := s.Run(ctx, r.ID()); err != nil || rec.LastRequest.Unix() != 1e9+59 {
			t.Errorf("run %d: the record is %+v, %v", i, rec, err)
		}
	}
}

// unhurried is a store that takes its time over records.
type unhurried struct{ api.Store }

func (u unhurried) PutRun(ctx context.Context, r api.RunRecord) error {
	time.Sleep(5 * time.Millisecond)
	return u.Store.PutRun(ctx, r)
}
