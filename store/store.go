package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"tinkerlocal/engine/api"
)

// Options of a store. The zero value is fine.
type Options struct {
	Log *slog.Logger     // nil: nothing is logged
	Now func() time.Time // nil: time.Now

	// Interval is how often expired checkpoints are looked for, and unused space is given back if something was
	// deleted. 0: every minute. Negative: only when Expire and Collect are called.
	Interval time.Duration

	// Grace is how long a checkpoint stays on the disk after it was first seen to be expired, in time that passed while
	// this store was open. Until then a clock that was wrong may be put right. 0: ten minutes. Expired
	// checkpoints cannot be listed or read, whatever Grace is.
	Grace time.Duration

	// Margin is how many bytes of the disk must be left when a checkpoint has been written. 0: 256 MiB.
	Margin int64

	// Workers is how many goroutines hash and compress. 0: as many as there are processors.
	Workers int

	valueLog int64 // size of Badger's value log files; 0: valueLogBytes
}

// Store is an api.Store. See [Open] and [OpenMemory].
type Store struct {
	db     kv
	opt    Options
	log    *slog.Logger
	codec  *codec
	free   func() (int64, error) // bytes free on the disk; nil: nobody knows
	dir    string                // "": in memory
	gone   func()                // removes the note of who has the folder
	unlock func()

	uptime func() time.Duration // the store's age, never 0; unlike opt.Now it cannot jump
	stop   chan struct{}        // closed by Close
	work   sync.WaitGroup

	// recording is held by whoever changes records: one at a time, from reading the index to the sync.
	recording sync.Mutex
	// collecting is held by whoever collects.
	collecting sync.Mutex

	mu       sync.Mutex // guards what follows; never held during input or output
	wake     *sync.Cond // of mu: deleting has changed
	entries  map[api.Path]*entry
	runs     map[string]api.RunRecord
	damaged  map[string]error // keys of records that cannot be read
	seq      int64            // of the last commit
	pins     map[sum]int      // chunks that writers and readers hold
	deleting map[sum]bool     // chunks that are being deleted
	live     map[sum]bool     // while a collection runs: chunks that it must keep
	reserved int64            // bytes that writers may yet write
	dirty    bool             // something may be collected
	closed   bool
	fault    error // a failed write of a record: what is on the disk is not known
}

var discard = slog.New(slog.DiscardHandler)

// entry is a checkpoint in the index.
type entry struct {
	record
	overdue time.Duration // the store's age when it was first seen to be expired; 0: it is not
}

// OpenMemory returns an empty store in memory.
func OpenMemory(o Options) *Store {
	s, err := open(newMemory(), o)
	if err != nil {
		panic(err) // an empty map always opens
	}
	return s
}

// open starts a store on db, which it owns unless it fails.
func open(db kv, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = discard
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Interval == 0 {
		o.Interval = time.Minute
	}
	if o.Grace <= 0 {
		o.Grace = 10 * time.Minute
	}
	if o.Margin <= 0 {
		o.Margin = 256 << 20
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	c, err := newCodec(o.Workers)
	if err != nil {
		return nil, err
	}
	s := &Store{
		db: db, opt: o, log: o.Log, codec: c, stop: make(chan struct{}),
		entries: map[api.Path]*entry{}, runs: map[string]api.RunRecord{}, damaged: map[string]error{},
		pins: map[sum]int{}, deleting: map[sum]bool{}, dirty: true,
	}
	s.wake = sync.NewCond(&s.mu)
	born := time.Now()
	s.uptime = func() time.Duration { return time.Since(born) + 1 } // monotonic
	if err := s.load(); err != nil {
		c.close()
		return nil, err
	}
	if o.Interval > 0 {
		s.work.Go(s.keep)
	}
	return s, nil
}

// load reads all records.
func (s *Store) load() error {
	if err := s.checkFormat(); err != nil {
		return err
	}
	err := s.db.scan(checkpointPrefix, true, func(key string, value []byte) error {
		r, err := parseRecord(key, value)
		if err != nil {
			s.damage(key, err)
			return nil
		}
		s.entries[r.Checkpoint.Path] = &entry{record: r}
		s.seq = max(s.seq, r.Seq)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read checkpoint records: %w", err)
	}
	err = s.db.scan(runPrefix, true, func(key string, value []byte) error {
		var r api.RunRecord
		if err := unseal(value, &r); err != nil {
			s.damage(key, err)
			return nil
		}
		s.runs[r.ID] = r
		return nil
	})
	if err != nil {
		return fmt.Errorf("read run records: %w", err)
	}
	return nil
}

func (s *Store) damage(key string, err error) {
	s.damaged[key] = err
	s.log.Error("damaged record", "key", key, "err", err)
}

// checkFormat compares the format's version and writes it into an empty store.
func (s *Store) checkFormat() error {
	var got string
	err := s.db.get(formatKey, func(v []byte) error { got = string(v); return nil })
	switch want := fmt.Sprintf("%s%d", formatPrefix, format); {
	case errors.Is(err, errAbsent):
		if err := s.db.apply([]op{{formatKey, []byte(want)}}); err != nil {
			return err
		}
		return s.db.sync()
	case err != nil:
		return fmt.Errorf("read the format's version: %w", err)
	case got == want:
		return nil
	case strings.HasPrefix(got, formatPrefix):
		return api.Errorf(api.Unsupported, "the store has format version %.20s, this program reads up to version %d: use a newer program", got[len(formatPrefix):], format)
	default:
		return api.Errorf(api.DataLoss, "the store's format is %.40q, wanted %q", got, want)
	}
}

// Close ends the store. Writers that have not committed fail, and so do readers.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.wake.Broadcast()
	s.mu.Unlock()
	close(s.stop)
	s.work.Wait()
	s.collecting.Lock()
	defer s.collecting.Unlock()
	s.recording.Lock()
	defer s.recording.Unlock()
	if s.gone != nil {
		s.gone() // while the folder is still locked
	}
	err := s.db.close()
	if s.unlock != nil {
		s.unlock()
	}
	s.codec.close()
	return err
}

var errClosed = api.Errorf(api.Closed, "the store is closed")

// usable says why nothing can be read, or nil. mu is held.
func (s *Store) usable() error {
	if s.closed {
		return errClosed
	}
	return nil
}

// writable says why nothing can be written, or nil. mu is held.
func (s *Store) writable() error {
	if s.fault != nil {
		return api.Errorf(api.Closed, "the store takes no more writes until it is opened again: %w", s.fault)
	}
	return s.usable()
}

// find returns the entry of p, which may lack its kind. mu is held.
func (s *Store) find(p api.Path) (*entry, error) {
	if err := s.usable(); err != nil {
		return nil, err
	}
	if err := p.Check(); err != nil {
		return nil, err
	}
	now := s.opt.Now()
	for _, kind := range []string{api.KindState, api.KindSampler, api.KindExternal} {
		q := p
		if p.Kind == "" {
			q.Kind = kind
		} else if p.Kind != kind {
			continue
		}
		if e, ok := s.entries[q]; ok {
			if !e.expired(now) {
				return e, nil
			}
			if p.Kind != "" {
				return nil, api.Errorf(api.NotFound, "checkpoint %v expired at %s", q, e.Checkpoint.Expires.Format(time.RFC3339))
			}
		}
		if err, ok := s.damaged[checkpointKey(q)]; ok {
			return nil, api.Errorf(api.DataLoss, "checkpoint %v: its record is damaged: it %w", q, err)
		}
	}
	return nil, api.Errorf(api.NotFound, "there is no checkpoint %v", p)
}

func (e *entry) expired(now time.Time) bool {
	return !e.Checkpoint.Expires.IsZero() && !now.Before(e.Checkpoint.Expires)
}

// record applies changes of records and makes them durable. recording is held.
func (s *Store) record(ops []op) error {
	err := s.db.apply(ops)
	if err != nil && api.CodeOf(err) != api.NoSpace { // no space: nothing was applied
		s.fail(err)
	}
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return s.sync()
}

// sync makes everything written so far durable.
func (s *Store) sync() error {
	err := s.db.sync()
	if err != nil {
		s.fail(err)
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// fail ends all writing. After a failed write of a record or a failed sync nobody knows what is on the disk: the system may
// have dropped the pages, so a chunk that seems to be there may be lost. Opening the store again tells.
func (s *Store) fail(err error) {
	s.log.Error("store failed; it must be opened again before it takes writes", "err", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault == nil {
		s.fault = err
	}
}

var _ api.StateStore = (*Store)(nil)

// cancelled says whether ctx has ended.
func cancelled(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}
