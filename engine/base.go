package engine

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/model"
	"tinkerlocal/engine/sample"
)

// BaseInfo describes a loaded base model.
type BaseInfo struct {
	Name        string
	Spec        model.Spec
	Params      int64   // of the base
	Bytes       int64   // device memory its weights take
	EosTokenIDs []int32 // end a sampled sequence
}

// AdapterParams counts the trainable parameters of an adapter on this base.
func (b BaseInfo) AdapterParams(c api.LoraConfig) int { return lora.Params(b.Spec.Sites(), c) }

// base is a loaded base model and its decode batch. The device's goroutine owns it, except where said.
type base struct {
	e         *Engine
	model     *model.Base
	info      BaseInfo // read-only
	detok     func() sample.Detokenizer
	detokErr  error // why stop strings cannot be used; read-only
	refs      int   // runs and samplers
	samplers  int   // with a request under way, or open
	batch     *sample.Batch
	kvBytes   int64 // of the pool and of one step
	stepBytes int64 // of a decode step's own buffers
	snaps     map[*lora.Snapshot]bool
	used      time.Time // see touch

	incoming []*request     // not yet in batch; guarded by e.mu
	seen     api.BaseStatus // guarded by e.mu
}

func sortedNames(m map[string]*base) []string { return slices.Sorted(maps.Keys(m)) }

// use counts a run or a sampler more, unuse one less.
func (b *base) use() {
	b.refs++
	b.touch()
}

func (b *base) unuse() {
	b.refs--
	b.touch()
}

// touch notes that the base is being used.
func (b *base) touch() { b.used = b.e.opt.Now() }

// acquire finds or loads a base and counts a reference. When memory is short, bases that nobody uses make room.
func (e *Engine) acquire(name string) (*base, error) {
	if b, ok := e.bases[name]; ok {
		b.use()
		return b, nil
	}
	b, err := e.load(name)
	for err != nil && apiError(err).Code == api.OutOfMemory && e.idlest(nil) != nil {
		e.freeBase(e.idlest(nil)) // the plan was too hopeful
		b, err = e.load(name)
	}
	if err != nil {
		return nil, err
	}
	b.use()
	e.mu.Lock()
	e.bases[name] = b
	e.mu.Unlock()
	return b, nil
}

func (e *Engine) load(name string) (*base, error) {
	src, err := e.opt.Models.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := src.Close(); err != nil {
			e.log.Warn("close checkpoint", "model", name, "err", err)
		}
	}()
	begin := e.opt.Now()
	opt := model.LoadOptions{Store: e.opt.Store, Progress: func(done, total int64) {
		e.mu.Lock()
		e.seen.loading = &api.LoadingStatus{Model: name, Done: done, Total: total}
		e.mu.Unlock()
		if e.opt.Progress != nil {
			e.opt.Progress(name, done, total)
		}
	}}
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.seen.loading = nil
	}()
	if err := e.loadRoom(src, opt); err != nil {
		return nil, err
	}
	m, err := model.Load(e.ctx, e.dev, src, opt)
	if err != nil {
		if e.ctx.Err() != nil {
			return nil, errClosed
		}
		return nil, err
	}
	b := &base{e: e, model: m, snaps: map[*lora.Snapshot]bool{}, info: BaseInfo{
		Name: name, Spec: *m.Spec, Params: m.Spec.Params(), Bytes: m.Bytes(),
	}}
	for _, id := range src.EndTokens() {
		b.info.EosTokenIDs = append(b.info.EosTokenIDs, int32(id))
	}
	b.detok, b.detokErr = e.detokenizer(name, src)
	e.used += b.info.Bytes
	e.log.Info("base loaded", "model", name, "params", b.info.Params, "bytes", b.info.Bytes, "took", e.opt.Now().Sub(begin))
	return b, nil
}

// loadRoom makes room for a base's weights, and refuses one beyond the engine's limit. What the device itself has not, it refuses
// itself: a base may take the eighth that room leaves to others.
func (e *Engine) loadRoom(src *hf.Checkpoint, o model.LoadOptions) error {
	bytes, err := model.LoadBytes(src, o)
	if err != nil {
		return err
	}
	e.makeRoom(nil, bytes)
	if left := e.lim.Memory - e.used; e.lim.Memory > 0 && bytes > left {
		return api.Errorf(api.OutOfMemory, "load %s: the weights need %d bytes of device memory, %d are free", src.Name, bytes, max(0, left))
	}
	return nil
}

func (e *Engine) detokenizer(name string, src *hf.Checkpoint) (func() sample.Detokenizer, error) {
	if e.opt.Detokenizer == nil {
		return nil, api.Errorf(api.Unsupported, "stop strings need a tokenizer; this engine was opened without one, use stop token ids")
	}
	d, err := e.opt.Detokenizer(src)
	if err != nil {
		return nil, fmt.Errorf("stop strings need the tokenizer of %s: %w", name, err)
	}
	return d, nil
}

// freeBase frees a base and what is left on it. No request may be under way.
func (e *Engine) freeBase(b *base) {
	for s := range b.snaps {
		e.freeSnapshot(b, s)
	}
	b.closeBatch()
	b.model.Free()
	e.used -= b.info.Bytes
	e.mu.Lock()
	delete(e.bases, b.info.Name)
	e.mu.Unlock()
	e.log.Info("base freed", "model", b.info.Name)
}

func (e *Engine) freeSnapshot(b *base, s *lora.Snapshot) {
	if b.snaps[s] {
		delete(b.snaps, s)
		e.used -= e.snapshotBytes(b, s.Config)
		s.Free()
	}
}

func (e *Engine) snapshotBytes(b *base, c api.LoraConfig) int64 {
	return int64(lora.Params(b.model.Sites, c)) * int64(e.info.Act.Size())
}

// decode adds new requests to the batch and runs one step of it.
func (b *base) decode(incoming []*request) error {
	if b.batch == nil {
		if err := b.openBatch(); err != nil {
			return err
		}
	}
	for _, r := range incoming {
		r.added = true
		b.batch.Add(&r.Request)
	}
	return b.batch.Step()
}

func (b *base) closeBatch() {
	if b.batch != nil {
		b.batch.Free()
		b.e.used -= b.kvBytes
		b.e.frames -= b.stepBytes
		b.batch = nil
	}
}

// openBatch makes the key/value pool: as large as the limit says, within a quarter of the free memory. What one step needs besides,
// logits included, is set aside; its size is cut to an eighth.
func (b *base) openBatch() error {
	e := b.e
	room := e.room(b)
	if room < math.MaxInt64 {
		room += e.idleBytes(b)
	}
	n := e.lim.KVPositions
	for n > model.PageLen && b.model.KVBytes(n) > room/4 {
		n /= 2
	}
	rank := api.DefaultLora().Rank
	for s := range b.snaps {
		rank = max(rank, s.Config.Rank)
	}
	lim := sample.Limits{Sequences: e.lim.DecodeSequences, PrefillTokens: e.lim.PrefillTokens, Positions: n}
	step := func() int64 { return b.model.DecodeBytes(lim.Sequences, lim.Sequences+lim.PrefillTokens, rank) }
	for lim.Sequences+lim.PrefillTokens > 2 && step() > room/8 {
		lim.Sequences, lim.PrefillTokens = max(1, lim.Sequences/2), max(1, lim.PrefillTokens/2)
	}
	bytes := b.model.KVBytes(n) + step()
	if err := e.need(fmt.Sprintf("sample: a key/value pool of %d positions and a step of %d tokens", n, lim.Sequences+lim.PrefillTokens), bytes, b); err != nil {
		return err
	}
	batch, err := sample.NewBatch(b.model, lim)
	if err != nil {
		return err
	}
	b.batch, b.kvBytes, b.stepBytes = batch, bytes, step()
	e.used += bytes
	e.frames += b.stepBytes
	e.log.Info("key/value pool", "model", b.info.Name, "positions", n, "sequences", lim.Sequences, "bytes", bytes)
	return nil
}
