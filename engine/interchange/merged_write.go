package interchange

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
	"tinkerlocal/engine/hf"
	"tinkerlocal/kernels"
)

// blockValues is how many values of a tensor are computed, written or compared in one piece: enough that handing pieces around costs
// nothing, few enough that a piece stays in the cache and a cancelled export ends soon.
const blockValues = 1 << 18

// write is of Export.
func (m *merged) write(ctx context.Context, path string, o WriteOptions) error {
	p := newProgress(o, m.bytes+m.weightBytes)
	return disk.WriteFolder(o.disk, path, m.mayReplace(path, o.Replace), func(f *disk.Folder) error {
		for i := range m.small {
			if err := m.writeSmall(ctx, f, &m.small[i], p); err != nil {
				return err
			}
		}
		w := &shardWriter{m: m, ctx: ctx, progress: p, cache: factorCache{a: m.a}}
		defer func() { w.adder.free() }()
		for i := range m.shards {
			if err := w.shard(f, &m.shards[i]); err != nil {
				return fmt.Errorf("%s: %w", m.shards[i].file, err)
			}
		}
		if err := m.compare(ctx, f.Dir, p); err != nil {
			return fmt.Errorf("comparing what was written: %w", err)
		}
		return nil
	})
}

func (m *merged) writeSmall(ctx context.Context, f *disk.Folder, s *smallFile, p *progress) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	text, err := s.contents(m.base)
	if err == nil {
		err = f.Write(s.name, func(w io.Writer) error {
			_, err := w.Write(text)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	p.add(s.bytes)
	return nil
}

// shardWriter writes the files of weights, one after the other.
type shardWriter struct {
	m        *merged
	ctx      context.Context
	progress *progress
	cache    factorCache
	scratch  scratches[rowScratch]

	adder      *rowAdder
	adderPatch patch // that the adder was made for
}

func (w *shardWriter) shard(f *disk.Folder, s *shard) error {
	sources := make([]hf.Source, len(s.tensors))
	rest := s.bytes
	for i, t := range s.tensors {
		sources[i] = s.sources[i]
		sources[i].Write = func(out io.Writer) error {
			n := w.progress.done
			err := w.tensor(out, t)
			rest -= w.progress.done - n
			return err
		}
	}
	err := f.Write(s.file, func(out io.Writer) error { return hf.WriteSafetensors(out, sources, safetensorsNotes) })
	if err == nil {
		w.progress.add(rest) // its header
	}
	return err
}

// tensor writes a tensor, run by run of rows that have the same factors or none.
func (w *shardWriter) tensor(out io.Writer, t *mergedTensor) error {
	defer w.m.base.Release(t.from.Name)
	if isFloat(t.dtype) && (len(t.patches) > 0 || t.dtype != t.from.DType) {
		// Again, since the file may have been cut short since the plan was made.
		if _, err := w.m.base.Want(t.from.Name, t.from.Shape...); err != nil {
			return err
		}
	}
	at := 0
	for i := range t.patches {
		p := &t.patches[i]
		if err := w.plain(out, t, at, p.row); err != nil {
			return err
		}
		if err := w.patched(out, t, p); err != nil {
			return err
		}
		at = p.row + p.rows
	}
	return w.plain(out, t, at, -1)
}

// plain writes rows without factors up to row hi; -1 is the end.
func (w *shardWriter) plain(out io.Writer, t *mergedTensor, lo, hi int) error {
	data := t.from.Data
	if lo > 0 || hi >= 0 { // rows are only counted where there are patches, which are of whole bytes
		size := t.cols * t.from.DType.Size()
		if hi < 0 {
			hi = len(data) / size
		}
		data = data[lo*size : hi*size]
	}
	if len(data) == 0 {
		return nil
	}
	step := blockValues
	if t.dtype == t.from.DType {
		step *= 4 // bytes
		for at := 0; at < len(data); at += step {
			part := data[at:min(at+step, len(data))]
			if err := w.ctx.Err(); err != nil {
				return err
			}
			if err := w.emit(out, t, part, part); err != nil {
				return err
			}
		}
		return nil
	}
	size := t.from.DType.Size()
	return w.blocks(out, t, len(data)/size, step, func(s *rowScratch, lo, hi int) ([]byte, []byte, error) {
		from := data[lo*size : hi*size]
		s.w = widen(s.w, from, t.from.DType)
		s.product = room(s.product, len(s.w))
		for i, v := range s.w {
			s.product[i] = float64(v)
		}
		made, bad := narrow(s.out[:0], s.product, t.dtype)
		if bad >= 0 {
			return nil, nil, notFinite(t, lo+bad)
		}
		return made, from, nil
	})
}

// patched writes the rows of a patch.
func (w *shardWriter) patched(out io.Writer, t *mergedTensor, p *patch) error {
	r, err := w.adderOf(t, p)
	if err != nil {
		return err
	}
	size := t.cols * t.from.DType.Size()
	data := t.from.Data[p.row*size:][:p.rows*size]
	step := max(1, blockValues/t.cols)
	step += -step & (tileRows - 1)
	return w.blocks(out, t, p.rows, step, func(s *rowScratch, lo, hi int) ([]byte, []byte, error) {
		from := data[lo*size : hi*size]
		made, row, col, err := r.rows(s, s.out[:0], t.dtype, from, t.from.DType, lo, hi)
		if err != nil {
			return nil, nil, err
		}
		if row >= 0 {
			return nil, nil, notFinite(t, (p.row+row)*t.cols+col)
		}
		return made, from, nil
	})
}

func notFinite(t *mergedTensor, i int) error {
	return api.Errorf(api.BadRequest, "tensor %s: value %d is not finite as %s: the base or the adapter is damaged, or the training diverged", t.name, i, t.stored)
}

// emit writes a block of a tensor that was made from these bytes of the base's, and lets go of those.
func (w *shardWriter) emit(out io.Writer, t *mergedTensor, made, from []byte) error {
	if w.m.spot != nil {
		made = append([]byte{}, made...)
		w.m.spot(t.name, made)
	}
	if _, err := out.Write(made); err != nil {
		return err
	}
	w.m.base.ReleasePart(t.from.Name, from)
	w.progress.add(int64(len(made)))
	return nil
}

// blocks computes n rows (or values), step at a time, on all processors, and writes them in their order.
func (w *shardWriter) blocks(out io.Writer, t *mergedTensor, n, step int, compute func(s *rowScratch, lo, hi int) (made, from []byte, err error)) error {
	type block struct {
		s    *rowScratch
		from []byte
	}
	return inOrder(w.ctx, &w.scratch, (n+step-1)/step, func(s *rowScratch, i int) (block, error) {
		made, from, err := compute(s, i*step, min((i+1)*step, n))
		if err == nil {
			s.out = made
		}
		return block{s, from}, err
	}, func(b block) error { return w.emit(out, t, b.s.out, b.from) })
}

// adderOf returns what computes a patch. The one made last is kept, for experts of one module share it, or its part that takes time to make.
func (w *shardWriter) adderOf(t *mergedTensor, p *patch) (*rowAdder, error) {
	f, err := w.cache.get(w.ctx, p.module)
	if err != nil {
		return nil, err
	}
	a, b := f.of(p.expert)
	var dev kernels.Device
	if w.m.productsInFloat32(t) {
		dev = w.m.o.Device
	}
	if w.adder == nil || w.adderPatch.module != p.module || w.adderPatch.expert != p.expert && p.module.ownA ||
		(w.adder.device != nil) != (dev != nil) {
		w.adder.free()
		w.adder = nil
		if w.adder, err = newRowAdder(dev, p.module.in, p.module.rank, w.m.a.Scale, a, b); err != nil {
			return nil, err
		}
	}
	w.adder.b, w.adderPatch = b, *p
	return w.adder, nil
}

// scratches are what the goroutines of inOrder work in, kept from one call to the next.
type scratches[S any] []*S

// inOrder computes items 0..n-1 on all processors and gives the results to emit in their order, on the caller's goroutine. An item's
// scratch is used for another one when its emit has returned. The first error ends it. No goroutine is left when it returns.
func inOrder[S, R any](ctx context.Context, kept *scratches[S], n int, compute func(s *S, i int) (R, error), emit func(R) error) error {
	type result struct {
		value   R
		err     error
		scratch *S
	}
	workers := min(runtime.GOMAXPROCS(0), n)
	depth := 2 * workers
	for len(*kept) < depth {
		*kept = append(*kept, new(S))
	}
	free := make(chan *S, depth) // who has a scratch may take an item; so at most depth items are under way
	ready := make([]chan result, depth)
	for i := range ready {
		ready[i] = make(chan result, 1)
		free <- (*kept)[i]
	}
	stop := make(chan struct{})
	var next atomic.Int64
	var wait sync.WaitGroup
	for range workers {
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				case s := <-free:
					i := int(next.Add(1)) - 1
					if i >= n {
						return
					}
					value, err := compute(s, i)
					ready[i%depth] <- result{value, err, s}
				}
			}
		})
	}
	defer wait.Wait()
	defer close(stop)
	for i := range n {
		var r result
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r = <-ready[i%depth]:
		}
		if r.err == nil {
			r.err = ctx.Err()
		}
		if r.err == nil {
			r.err = emit(r.value)
		}
		if r.err != nil {
			return r.err
		}
		free <- r.scratch
	}
	return nil
}
