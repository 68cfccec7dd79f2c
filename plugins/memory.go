package plugins

import (
	"sync"

	"github.com/tetratelabs/wazero/experimental"
)

// memories hands out the memory of instances. It grows by doubling, so that a module which grows by a page at a time does not
// copy its memory each time, and small ones are used again: an instance lives for a call, and a fresh
// buffer for each would be most of the work of Go's garbage collector.
type memories struct {
	mu   sync.Mutex
	free [][]byte // zeroed up to their capacity
	keep int
}

// keptMemory is the largest buffer that is used again.
const keptMemory = 8 << 20

// Allocate implements wazero's experimental.MemoryAllocator.
func (m *memories) Allocate(capacity, most uint64) experimental.LinearMemory {
	l := &linear{pool: m, most: most}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(m.free); n > 0 && uint64(cap(m.free[n-1])) <= most {
		l.b, m.free = m.free[n-1], m.free[:n-1]
	}
	return l
}

// linear is one instance's memory.
type linear struct {
	pool *memories
	b    []byte // the memory; zero between its length and its capacity
	most uint64
}

// Reallocate implements wazero's experimental.LinearMemory.
func (l *linear) Reallocate(size uint64) []byte {
	if size > l.most {
		return nil
	}
	if size > uint64(cap(l.b)) {
		b := make([]byte, size, min(max(size, 2*uint64(len(l.b))), l.most))
		copy(b, l.b)
		l.b = b
	}
	l.b = l.b[:size]
	return l.b
}

// Free implements wazero's experimental.LinearMemory.
func (l *linear) Free() {
	b := l.b
	l.b = nil
	if cap(b) == 0 || cap(b) > keptMemory {
		return
	}
	clear(b)
	m := l.pool
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.free) < m.keep {
		m.free = append(m.free, b[:0])
	}
}
