package token

import (
	"sync"
	"sync/atomic"
)

// bpe is the byte-pair model: the vocabulary, and the merges by rank.
type bpe struct {
	byteLevel bool
	vocab     map[string]int32 // by what the token matches: bytes if byteLevel, else its text
	odd       map[string]int32 // byteLevel: tokens whose text is not of the byte alphabet, by text
	added     map[string]int32 // added tokens that are not in the vocabulary: merging never makes them
	bytes     [256]int32       // byteLevel: the token of each single byte, or -1; else that of <0xNN>
	merges    mergeTable
	self      []uint32 // by id, atomic: 1 if the token's own text encodes to it alone, 2 if not, 0 not known yet

	unk          int32 // or -1
	fuseUnk      bool
	byteFallback bool
	ignoreMerges bool
}

// lookup finds a token by its text in the file, added tokens included.
func (m *bpe) lookup(text string) (int32, bool) {
	if id, ok := m.added[text]; ok {
		return id, true
	}
	if !m.byteLevel {
		id, ok := m.vocab[text]
		return id, ok
	}
	var buf [64]byte
	if b, ok := fromAlphabet(buf[:0], text); ok {
		id, ok := m.vocab[string(b)]
		return id, ok
	}
	id, ok := m.odd[text]
	return id, ok
}

// encode appends the ids of one piece.
func (m *bpe) encode(ids []int32, piece string, w *merger) []int32 {
	id, whole := m.vocab[piece]
	if whole {
		if m.ignoreMerges {
			return append(ids, id)
		}
		// Most words are a token that its own merges build. Whether they do is found out once per token.
		switch atomic.LoadUint32(&m.self[id]) {
		case 1:
			return append(ids, id)
		case 0:
			from := len(ids)
			ids = w.encode(m, ids, piece)
			state := uint32(2)
			if len(ids) == from+1 && ids[from] == id {
				state = 1
			}
			atomic.StoreUint32(&m.self[id], state)
			return ids
		}
	}
	return w.encode(m, ids, piece)
}

// merger is the working memory of merging one piece: a linked list of symbols and a heap of the
// merges that may apply.
type merger struct {
	sym  []symbol
	heap []candidate
}

type symbol struct {
	id         int32 // -1: merged into the one before
	prev, next int32 // -1: none
}

// candidate is a merge of the symbol at pos and the one after it. It is stale when that pair no
// longer makes id.
type candidate struct {
	key uint64 // rank<<32 | pos: lowest rank first, then leftmost
	id  int32
}

func (w *merger) release(pool *sync.Pool) {
	const keep = 1 << 14 // longer pieces are rare: their memory goes back
	if cap(w.sym) <= keep {
		pool.Put(w)
	} else {
		pool.Put(&merger{})
	}
}

// encode appends the ids of piece by merging, in O(n log n).
func (w *merger) encode(m *bpe, ids []int32, piece string) []int32 {
	w.sym = w.sym[:0]
	m.symbols(w, piece)
	if len(w.sym) > 1 {
		w.merge(m)
	}
	for _, s := range w.sym {
		if s.id >= 0 {
			ids = append(ids, s.id)
		}
	}
	return ids
}

func (w *merger) add(id int32) {
	n := int32(len(w.sym))
	w.sym = append(w.sym, symbol{id: id, prev: n - 1, next: n + 1})
}

func (w *merger) merge(m *bpe) {
	sym := w.sym
	sym[len(sym)-1].next = -1
	w.heap = w.heap[:0]
	for i := range len(sym) - 1 {
		if r, ok := m.merges.get(sym[i].id, sym[i+1].id); ok {
			w.heap = append(w.heap, candidate{uint64(r.rank)<<32 | uint64(i), r.id})
		}
	}
	for i := len(w.heap)/2 - 1; i >= 0; i-- {
		w.down(i)
	}
	for len(w.heap) > 0 {
		top := w.heap[0]
		last := len(w.heap) - 1
		w.heap[0] = w.heap[last]
		w.heap = w.heap[:last]
		w.down(0)

		pos := int32(uint32(top.key))
		cur := &sym[pos]
		if cur.id < 0 || cur.next < 0 {
			continue
		}
		right := &sym[cur.next]
		// Not the rank but the result decides whether the entry still holds: so does the reference.
		if r, ok := m.merges.get(cur.id, right.id); !ok || r.id != top.id {
			continue
		}
		cur.id, cur.next = top.id, right.next
		right.id = -1
		if cur.next >= 0 {
			sym[cur.next].prev = pos
			w.push(m, pos, top.id, sym[cur.next].id)
		}
		if cur.prev >= 0 {
			w.push(m, cur.prev, sym[cur.prev].id, top.id)
		}
	}
}

func (w *merger) push(m *bpe, pos, a, b int32) {
	r, ok := m.merges.get(a, b)
	if !ok {
		return
	}
	c := candidate{uint64(r.rank)<<32 | uint64(pos), r.id}
	w.heap = append(w.heap, c)
	i := len(w.heap) - 1
	for i > 0 {
		up := (i - 1) / 2
		if w.heap[up].key <= c.key {
			break
		}
		w.heap[i] = w.heap[up]
		i = up
	}
	w.heap[i] = c
}

func (w *merger) down(i int) {
	h := w.heap
	if i >= len(h) {
		return
	}
	c := h[i]
	for {
		k := 2*i + 1
		if k >= len(h) {
			break
		}
		if k+1 < len(h) && h[k+1].key < h[k].key {
			k++
		}
		if c.key <= h[k].key {
			break
		}
		h[i] = h[k]
		i = k
	}
	h[i] = c
}

// mergeTable maps a pair of ids to the merge of them.
type mergeTable struct {
	m map[uint64]mergeResult
}

type mergeResult struct {
	rank uint32
	id   int32
}

func (t *mergeTable) get(a, b int32) (mergeResult, bool) {
	r, ok := t.m[uint64(uint32(a))<<32|uint64(uint32(b))]
	return r, ok
}

func (t *mergeTable) put(a, b int32, r mergeResult) {
	t.m[uint64(uint32(a))<<32|uint64(uint32(b))] = r
}
