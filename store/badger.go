package store

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"tinkerlocal/engine/api"
)

// Sizes of Badger's files. Small ones: the blocks of the logs in use are reserved, and dead space is given back a file at a time.
const (
	valueLogBytes  = 64 << 20 // see Options.valueLog
	memTableBytes  = 16 << 20
	valueThreshold = 4 << 10  // larger values go to the value log
	batchBytes     = 64 << 20 // about what one transaction of chunks holds: each ends with a sync, which takes as long as 50 MB
	discardRatio   = 0.3      // of dead bytes, from which a value log file is rewritten
)

// badgerKV is a kv in a folder.
type badgerKV struct {
	db      *badger.DB
	dir     string
	reserve *reserver

	life    sync.RWMutex // read: the database is in use; write: it is being closed
	closed  bool
	writing sync.RWMutex // read: a transaction is being written; write: memory tables are being flushed, which refuses writes
}

func badgerOptions(dir string, log *slog.Logger, valueLog int64) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(logger{log}).
		WithMetricsEnabled(false). // they are global variables
		WithSyncWrites(true).
		WithValueLogFileSize(valueLog).
		WithMemTableSize(memTableBytes).
		WithNumMemtables(2).
		WithNumCompactors(2).
		WithNumLevelZeroTables(1).
		WithNumLevelZeroTablesStall(4).
		WithValueThreshold(valueThreshold).
		WithCompression(options.None). // values are compressed already
		WithBlockCacheSize(0).
		WithDetectConflicts(false) // one writer per key: see Store.recording and the pins
}

func openBadger(dir string, log *slog.Logger, valueLog int64) (_ *badgerKV, err error) {
	defer func() {
		if p := recover(); p != nil { // Badger asserts what a damaged file can break
			err = api.Errorf(api.DataLoss, "state directory %s: Badger: %v", dir, p)
		}
	}()
	db, err := badger.Open(badgerOptions(dir, log, valueLog))
	if err != nil {
		return nil, err
	}
	d := &badgerKV{db: db, dir: dir, reserve: newReserver(dir, valueLog)}
	if err := d.reserve.ahead(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return d, nil
}

// use says whether the database is open, and keeps it so until the function it returns is called.
func (d *badgerKV) use() (func(), error) {
	d.life.RLock()
	if d.closed {
		d.life.RUnlock()
		return nil, errClosed
	}
	return d.life.RUnlock, nil
}

func (d *badgerKV) view(fn func(t *badger.Txn) error) error {
	release, err := d.use()
	if err != nil {
		return err
	}
	defer release()
	return d.db.View(fn)
}

func (d *badgerKV) item(key string, fn func(i *badger.Item) error) error {
	return d.view(func(t *badger.Txn) error {
		i, err := t.Get([]byte(key))
		if errors.Is(err, badger.ErrKeyNotFound) {
			return errAbsent
		}
		if err != nil {
			return err
		}
		return fn(i)
	})
}

func (d *badgerKV) get(key string, fn func([]byte) error) error {
	return d.item(key, func(i *badger.Item) error {
		called := false
		err := i.Value(func(v []byte) error { called = true; return fn(v) })
		if err != nil && !called {
			return fmt.Errorf("cannot be read from the value log: %w", err)
		}
		return err
	})
}

func (d *badgerKV) size(key string) (n int, err error) {
	err = d.item(key, func(i *badger.Item) error { n = int(i.ValueSize()); return nil })
	return n, err
}

func (d *badgerKV) apply(ops []op) error {
	release, err := d.use()
	if err != nil {
		return err
	}
	defer release()
	d.writing.RLock()
	defer d.writing.RUnlock()
	d.reserve.mu.Lock() // one transaction at a time: what was reserved must not be used by another one
	defer d.reserve.mu.Unlock()
	if err := d.reserve.ahead(); err != nil {
		return err
	}
	t := d.db.NewTransaction(true)
	defer t.Discard()
	for _, o := range ops {
		if o.value == nil {
			err = t.Delete([]byte(o.key))
		} else {
			err = t.Set([]byte(o.key), o.value)
		}
		if err != nil {
			return err
		}
	}
	return t.Commit()
}

func (d *badgerKV) sync() error {
	release, err := d.use()
	if err != nil {
		return err
	}
	defer release()
	return d.db.Sync()
}

func (d *badgerKV) scan(prefix string, values bool, fn func(string, []byte) error) error {
	return d.view(func(t *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.Prefix, o.PrefetchValues, o.PrefetchSize = []byte(prefix), values, 16
		it := t.NewIterator(o)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			i := it.Item()
			var v []byte
			if values {
				var err error
				if v, err = i.ValueCopy(nil); err != nil {
					v = nil // the record's hash finds it out
				}
			}
			if err := fn(string(i.Key()), v); err != nil {
				return err
			}
		}
		return nil
	})
}

// reclaim rewrites value log files that are mostly dead. Badger learns what is dead when it compacts, so the
// memory table, where the deletions lie, is flushed and compacted first.
func (d *badgerKV) reclaim() error {
	if err := d.flush(); err != nil {
		return err
	}
	release, err := d.use()
	if err != nil {
		return err
	}
	defer release()
	// With NumLevelZeroTables 1, Badger's own compactors take the new table.
	for wait := time.Now().Add(10 * time.Second); len(d.db.Levels()) > 0 && d.db.Levels()[0].NumTables > 0 && time.Now().Before(wait); {
		time.Sleep(5 * time.Millisecond)
	}
	if err := d.db.Flatten(1); err != nil {
		return err
	}
	for {
		err := d.rewrite()
		if errors.Is(err, badger.ErrNoRewrite) || errors.Is(err, badger.ErrRejected) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// flush writes the memory table out. Dropping a prefix is Badger's only way to do that, and the prefix must exist.
func (d *badgerKV) flush() error {
	const key = "~flush"
	if err := d.apply([]op{{key, []byte{1}}}); err != nil {
		return err
	}
	release, err := d.use()
	if err != nil {
		return err
	}
	defer release()
	d.writing.Lock()
	defer d.writing.Unlock()
	return d.db.DropPrefix([]byte(key))
}

// rewrite collects one value log file. What is alive in it is written again, so the blocks are reserved first and nobody else writes.
func (d *badgerKV) rewrite() error {
	d.writing.RLock()
	defer d.writing.RUnlock()
	d.reserve.mu.Lock()
	defer d.reserve.mu.Unlock()
	if err := d.reserve.bytes(2 * d.reserve.valueLog); err != nil {
		return badger.ErrNoRewrite // no room to move: what is there stays
	}
	return d.db.RunValueLogGC(discardRatio)
}

func (d *badgerKV) close() error {
	d.life.Lock()
	defer d.life.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	return d.db.Close()
}

// logger is a slog.Logger in Badger's words.
type logger struct{ log *slog.Logger }

func (l logger) Errorf(f string, a ...any)   { l.log.Error("badger: " + line(f, a)) }
func (l logger) Warningf(f string, a ...any) { l.log.Warn("badger: " + line(f, a)) }
func (l logger) Infof(string, ...any)        {} // of its files, which are nobody's business
func (l logger) Debugf(string, ...any)       {}

func line(f string, a []any) string { return strings.TrimSpace(fmt.Sprintf(f, a...)) }
