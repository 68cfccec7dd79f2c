package model

import (
	"fmt"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
	"tinkerlocal/kernels"
)

// PageLen is the number of positions in one page of a KV pool. It divides the key blocks of every
// attention kernel, so paging never changes an order of summation.
const PageLen = 64

// KV is a pool of key/value pages for generation, shared by many sequences.
type KV struct {
	base *Base
	k, v []kernels.Tensor // per layer [pages*PageLen, K*C]
	refs []int            // per page: how many sequences hold it
	free []int32
}

// Cache is one sequence's keys and values: pages of a pool. Full pages may be shared with forks.
type Cache struct {
	kv    *KV
	pages []int32
	n     int // positions filled
}

// KVBytes is the device memory of a pool for that many positions. Any goroutine may call it.
func (b *Base) KVBytes(positions int) int64 {
	return b.Spec.KVBytes(b.act, positions)
}

func pagesFor(positions int) int { return (positions + PageLen - 1) / PageLen }

// NewKV makes a pool for at least that many positions.
func (b *Base) NewKV(positions int) (*KV, error) {
	n := pagesFor(positions)
	kv := &KV{base: b, refs: make([]int, n), free: make([]int32, n)}
	for i := range kv.free {
		kv.free[i] = int32(n - 1 - i)
	}
	for range 2 * b.Spec.Layers {
		t, err := kernels.NewTensor(b.dev, b.act, n*PageLen, b.Spec.KVWidth())
		if err != nil {
			kv.Free()
			return nil, fmt.Errorf("kv pool of %d positions: %w", positions, err)
		}
		if len(kv.k) <= len(kv.v) {
			kv.k = append(kv.k, t)
		} else {
			kv.v = append(kv.v, t)
		}
	}
	return kv, nil
}

// Free gives the pool's device memory back.
func (kv *KV) Free() {
	for _, t := range kv.k {
		kv.base.dev.Free(t.Buf)
	}
	for _, t := range kv.v {
		kv.base.dev.Free(t.Buf)
	}
	kv.k, kv.v = nil, nil
}

// FreePositions is how many positions the pool can still take in whole pages.
func (kv *KV) FreePositions() int { return len(kv.free) * PageLen }

// NewCache makes an empty sequence.
func (kv *KV) NewCache() *Cache { return &Cache{kv: kv} }

// Len is the number of positions filled.
func (c *Cache) Len() int { return c.n }

// Release gives the pages back. Releasing twice does nothing.
func (c *Cache) Release() {
	for _, p := range c.pages {
		if c.kv.refs[p]--; c.kv.refs[p] == 0 {
			c.kv.free = append(c.kv.free, p)
		}
	}
	c.pages, c.n = nil, 0
}

// reserve makes room for n more positions.
func (c *Cache) reserve(n int) error {
	for need := pagesFor(c.n + n); len(c.pages) < need; {
		if len(c.kv.free) == 0 {
			return api.Errorf(api.Busy, "the kv pool is full: %d positions in use", len(c.kv.refs)*PageLen)
		}
		last := len(c.kv.free) - 1
		p := c.kv.free[last]
		c.kv.free = c.kv.free[:last]
		c.kv.refs[p] = 1
		c.pages = append(c.pages, p)
	}
	return nil
}

func (c *Cache) row(pos int) int32 { return c.pages[pos/PageLen]*PageLen + int32(pos%PageLen) }

// Fork returns a sequence with the same content. Full pages are shared, the last partial one is copied.
func (c *Cache) Fork() (*Cache, error) {
	d := &Cache{kv: c.kv, n: c.n / PageLen * PageLen}
	for _, p := range c.pages[:d.n/PageLen] {
		c.kv.refs[p]++
		d.pages = append(d.pages, p)
	}
	rest := c.n - d.n
	if err := d.reserve(rest); err != nil {
		d.Release()
		return nil, err
	}
	if rest > 0 {
		src, dst := int(c.row(d.n)), int(d.row(d.n))
		ops := c.kv.base.dev.Ops()
		for _, side := range [][]kernels.Tensor{c.kv.k, c.kv.v} {
			for _, t := range side {
				if err := ops.Copy(t.RowRange(dst, dst+rest), t.RowRange(src, src+rest)); err != nil {
					d.Release()
					return nil, err
				}
			}
		}
	}
	d.n = c.n
	return d, nil
}

// Feed is one sequence's next tokens.
type Feed struct {
	Cache   *Cache
	Tokens  []int32
	Adapter *lora.Weights // nil: the bare base

	// Token i predicts Targets[i]: what is to be scored, for the first len(Targets) tokens. With Top, the Top
	// most probable tokens are listed for each of them. Look, unless it is nil, is called for each with the logits that
	// token i has, as in [Logits]; they may be kept no longer. Extend may fail after that.
	Targets []int32
	Top     int
	Look    func(i int, z []float32, lse float32)
}

// listed says whether the feed's scores go by logits.
func (f Feed) listed() bool { return f.Top > 0 || f.Look != nil }

// Logits are the next-token logits of each feed's last token, on the host. LogProb of token i is Z[s][i]-LSE[s],
// with the bits of Forward. They are valid until the next Extend. Scores has what each feed's Targets asked for.
type Logits struct {
	Z      [][]float32
	LSE    []float32
	Scores []Scores
}

// Extend appends every feed's tokens to its cache in one packed batch. All caches belong to one pool. On
// an error no cache has grown.
func (b *Base) Extend(feeds []Feed) (*Logits, error) {
	if len(feeds) == 0 {
		return nil, api.Errorf(api.BadRequest, "nothing to extend")
	}
	kv := feeds[0].Cache.kv
	sh := shape{vrows: len(feeds), cached: true}
	if err := b.scoreShape(feeds, &sh); err != nil {
		return nil, err
	}
	ends, weights := make([]int, len(feeds)), make([]*lora.Weights, len(feeds))
	seqs := make([]kernels.Seq, len(feeds))
	var ids, pos, rows []int32
	longest := 0
	for i, fd := range feeds {
		c, n := fd.Cache, len(fd.Tokens)
		switch {
		case c.kv != kv:
			return nil, fmt.Errorf("feed %d: its cache is of another pool", i)
		case n == 0:
			return nil, api.Errorf(api.BadRequest, "feed %d: no tokens", i)
		case c.n+n > b.Spec.MaxPositions:
			return nil, api.Errorf(api.BadRequest, "feed %d: %d tokens after %d, the model's context is %s", i, n, c.n, b.Spec.Context())
		}
		if err := b.CheckTokens(fd.Tokens); err != nil {
			return nil, fmt.Errorf("feed %d: %w", i, err)
		}
		if err := c.reserve(n); err != nil {
			return nil, err
		}
		ids = append(ids, fd.Tokens...)
		for p := c.n; p < c.n+n; p++ {
			pos = append(pos, int32(p))
			rows = append(rows, c.row(p))
		}
		seqs[i] = kernels.Seq{Begin: sh.tokens, End: sh.tokens + n, Pos: c.n, Pages: c.pages}
		sh.tokens += n
		ends[i], weights[i] = sh.tokens, fd.Adapter
		if fd.Adapter != nil {
			sh.rank = max(sh.rank, fd.Adapter.Rank)
		}
		longest = max(longest, c.n+n)
	}
	if err := b.rope.grow(b.dev, b.Spec, longest); err != nil {
		return nil, err
	}
	buf, err := b.take(b.Spec.bytes(b.act, sh))
	if err != nil {
		return nil, err
	}
	defer b.give(buf)
	f := b.Spec.layout(&arena{buf: buf, act: b.act}, sh)
	for _, u := range []struct {
		dst kernels.Tensor
		src []int32
	}{{f.ids, ids}, {f.pos, pos}, {f.rows, rows}} {
		if err := kernels.WriteInts(b.dev, u.dst, u.src); err != nil {
			return nil, err
		}
	}
	sites := make([][]kernels.Span, len(b.Sites))
	for s := range b.Sites {
		sites[s] = spans(s, ends, weights)
	}
	if err := b.decode(f, seqs, sites, kv); err != nil {
		return nil, err
	}
	lg, err := b.logits(f, ends, weights)
	if err != nil {
		return nil, err
	}
	if lg.Scores, err = b.score(f, feeds); err != nil {
		return nil, err
	}
	for _, fd := range feeds {
		fd.Cache.n += len(fd.Tokens)
	}
	return lg, nil
}

// logits runs the head on the last row of every sequence.
func (b *Base) logits(f *frame, ends []int, weights []*lora.Weights) (*Logits, error) {
	ops, S := b.dev.Ops(), len(ends)
	zs := f.z.RowRange(0, S)
	rows := make([]int, S)
	for i, end := range ends {
		rows[i] = i + 1
		if err := ops.Copy(f.last.RowRange(i, i+1), f.xn.RowRange(end-1, end)); err != nil {
			return nil, err
		}
	}
	err := ops.Logits(kernels.LogitsArgs{
		Z: zs, LSE: f.lse.RowRange(0, S), V: f.vHead.RowRange(0, S), H: f.last.RowRange(0, S),
		W: b.head, Spans: spans(len(b.Sites)-1, rows, weights),
	})
	if err != nil {
		return nil, err
	}
	b.work[len(b.layers)].add(sampleUse, S, b.head)
	z, err := kernels.ReadFloats(b.dev, zs)
	if err != nil {
		return nil, err
	}
	lse, err := kernels.ReadFloats(b.dev, f.lse.RowRange(0, S))
	if err != nil {
		return nil, err
	}
	lg := &Logits{Z: make([][]float32, S), LSE: lse}
	for i := range lg.Z {
		lg.Z[i] = z[i*b.Spec.Vocab : (i+1)*b.Spec.Vocab]
	}
	return lg, nil
}
