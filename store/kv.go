package store

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"sync"
)

// kv is what the store needs of a database. Writes are atomic per apply, in order, and durable after sync.
type kv interface {
	// get calls fn with the value, which is valid until fn returns; errAbsent when there is none.
	get(key string, fn func(value []byte) error) error
	// size is the value's length, about; errAbsent when there is none.
	size(key string) (int, error)
	// apply does all of ops or none. Values may not be changed afterwards.
	apply(ops []op) error
	sync() error
	// scan calls fn with the keys that begin with prefix, in order, and their values if values is set.
	scan(prefix string, values bool, fn func(key string, value []byte) error) error
	// reclaim gives the space of deleted values back to the system.
	reclaim() error
	close() error
}

// op sets a key, or deletes it when value is nil.
type op struct {
	key   string
	value []byte
}

var errAbsent = errors.New("no such key")

// memory is a kv in memory.
type memory struct {
	mu     sync.RWMutex
	m      map[string][]byte
	closed bool
}

func newMemory() *memory { return &memory{m: map[string][]byte{}} }

func (d *memory) get(key string, fn func([]byte) error) error {
	d.mu.RLock()
	v, ok := d.m[key]
	closed := d.closed
	d.mu.RUnlock()
	if closed {
		return errClosed
	}
	if !ok {
		return errAbsent
	}
	return fn(v) // values are never changed in place
}

func (d *memory) size(key string) (n int, err error) {
	err = d.get(key, func(v []byte) error { n = len(v); return nil })
	return n, err
}

func (d *memory) apply(ops []op) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	for _, o := range ops {
		if o.value == nil {
			delete(d.m, o.key)
		} else {
			d.m[o.key] = bytes.Clone(o.value)
		}
	}
	return nil
}

func (d *memory) scan(prefix string, values bool, fn func(string, []byte) error) error {
	d.mu.RLock()
	var keys []string
	for k := range d.m {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	d.mu.RUnlock()
	slices.Sort(keys)
	for _, k := range keys {
		d.mu.RLock()
		v, ok := d.m[k]
		d.mu.RUnlock()
		if !ok {
			continue
		}
		if err := fn(k, v); err != nil {
			return err
		}
	}
	return nil
}

func (d *memory) sync() error    { return nil }
func (d *memory) reclaim() error { return nil }

func (d *memory) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return nil
}
