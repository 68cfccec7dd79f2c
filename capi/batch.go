//go:build cgo && unix

package main

/*
#include "tinker.h"
*/
import "C"

import (
	"sync"
	"unsafe"

	"tinkerlocal/capi/handle"
	"tinkerlocal/engine/api"
)

// batch is what a tinker_batch stands for. Datums that an operation has are never changed: adding makes new ones behind them, setting a
// tensor copies the last one's map first.
type batch struct {
	mu     sync.Mutex
	data   []api.Datum
	shared int // data[:shared] belong to operations, too
}

// take is the batch as it is, for an operation.
func (b *batch) take() []api.Datum {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shared = len(b.data)
	return b.data[:len(b.data):len(b.data)]
}

//export tinkergo_batch_create
func tinkergo_batch_create(out *C.uint64_t) C.int32_t {
	return guard(func() error { return give(out, kindBatch, &batch{}, nil, nil) })
}

//export tinkergo_batch_free
func tinkergo_batch_free(h C.uint64_t) C.int32_t { return drop(h, kindBatch) }

// withBatch is with for a batch, locked.
func withBatch(h C.uint64_t, f func(b *batch) error) C.int32_t {
	return guard(func() error {
		return with(h, kindBatch, func(_ *handle.Ref, b *batch) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			return f(b)
		})
	})
}

//export tinkergo_batch_clear
func tinkergo_batch_clear(h C.uint64_t) C.int32_t {
	return withBatch(h, func(b *batch) error { b.data, b.shared = nil, 0; return nil })
}

//export tinkergo_batch_count
func tinkergo_batch_count(h C.uint64_t, n *C.int64_t) C.int32_t {
	return withBatch(h, func(b *batch) error { *n = C.int64_t(len(b.data)); return nil })
}

// columnOf is a tensor of all datums, copied.
type columnOf struct {
	name    string
	floats  []float32
	ints    []int64
	columns int
	offsets []int64
}

//export tinkergo_batch_add
func tinkergo_batch_add(h C.uint64_t, p *C.tinker_datums) C.int32_t {
	return withBatch(h, func(b *batch) error {
		var d C.tinker_datums
		if p == nil {
			return bad("datums is NULL")
		}
		if err := lent("datums", p, &d, firstDatums); err != nil {
			return err
		}
		data, err := readDatums(&d)
		if err == nil {
			b.data = append(b.data, data...)
		}
		return err
	})
}

func readDatums(d *C.tinker_datums) ([]api.Datum, error) {
	if d.count < 0 || d.count > maxDatums {
		return nil, bad("datums: the count is %d, wanted 0..%d", int64(d.count), maxDatums)
	}
	n := int(d.count)
	at, err := offsets("token_offsets", d.token_offsets, n, -1)
	if err != nil {
		return nil, err
	}
	lent, err := array("tokens", (*int32)(d.tokens), C.int64_t(at[n]), maxValues)
	if err != nil {
		return nil, err
	}
	tokens := append([]int32(nil), lent...)
	columns, err := readColumns(d, n, at)
	if err != nil {
		return nil, err
	}
	data := make([]api.Datum, n)
	for i := range data {
		inputs := make(map[string]api.TensorData, len(columns))
		for _, c := range columns {
			lo, hi := c.offsets[i], c.offsets[i+1]
			var t api.TensorData
			if c.floats != nil {
				t.Floats = c.floats[lo:hi:hi]
			} else {
				t.Ints = c.ints[lo:hi:hi]
			}
			if c.columns > 0 {
				t.Shape = []int{int(hi-lo) / c.columns, c.columns}
			}
			inputs[c.name] = t
		}
		data[i] = api.Datum{ModelInput: api.FromInts(tokens[at[i]:at[i+1]:at[i+1]]), LossInputs: inputs}
	}
	return data, nil
}

func readColumns(d *C.tinker_datums, n int, at []int64) ([]columnOf, error) {
	size := uintptr(d.tensor_size)
	known := min(size, unsafe.Sizeof(C.tinker_tensor{}))
	switch {
	case d.tensor_count < 0 || d.tensor_count > 1024:
		return nil, bad("tensor_count is %d, wanted 0..1024", int64(d.tensor_count))
	case d.tensor_count > 0 && d.tensors == nil:
		return nil, bad("tensors is NULL and tensor_count %d", int64(d.tensor_count))
	case size < firstTensor || size > 4096:
		return nil, bad("tensor_size is %d, wanted sizeof(tinker_tensor): begin with TINKER_DATUMS_INIT", size)
	}
	var out []columnOf
	for k := range int(d.tensor_count) {
		p := unsafe.Add(unsafe.Pointer(d.tensors), uintptr(k)*size)
		var t C.tinker_tensor
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&t)), known), unsafe.Slice((*byte)(p), known))
		for _, b := range unsafe.Slice((*byte)(p), size)[known:] {
			if b != 0 {
				return nil, api.Errorf(api.Unsupported, "tensor %d has fields set that this version of the library does not know", k)
			}
		}
		c, err := readColumn(t, n, at)
		if err != nil {
			return nil, bad("tensor %d: %w", k, err)
		}
		for _, other := range out {
			if other.name == c.name {
				return nil, bad("tensor %d: there are two with the name %.100q", k, c.name)
			}
		}
		out = append(out, c)
	}
	return out, nil
}

func readColumn(t C.tinker_tensor, n int, at []int64) (c columnOf, err error) {
	if c.name, err = text("name", t.name); err != nil {
		return c, err
	}
	if t.columns < 0 || t.columns > maxValues {
		return c, bad("columns is %d, wanted 0..%d", int64(t.columns), maxValues)
	}
	c.columns = int(t.columns)
	if c.floats, c.ints, err = values(t.dtype, t.values, t.count); err != nil {
		return c, err
	}
	if t.offsets != nil {
		if c.offsets, err = offsets("offsets", t.offsets, n, int64(t.count)); err != nil {
			return c, err
		}
	} else {
		c.offsets = at
		if w := int64(max(c.columns, 1)); w > 1 {
			c.offsets = make([]int64, n+1)
			for i, v := range at {
				c.offsets[i] = v * w
			}
		}
		if want := c.offsets[n]; want != int64(t.count) {
			return c, bad("%.100q has %d values, wanted %d: one row per token", c.name, int64(t.count), want)
		}
	}
	if c.columns > 1 {
		for i := range n {
			if rest := (c.offsets[i+1] - c.offsets[i]) % int64(c.columns); rest != 0 {
				return c, bad("%.100q: datum %d has %d values, wanted rows of %d", c.name, i, c.offsets[i+1]-c.offsets[i], c.columns)
			}
		}
	}
	return c, nil
}

// offsets copies a caller's offsets [n + 1] and checks that they rise from 0 on, to total unless that is negative.
func offsets(what string, p *C.int64_t, n int, total int64) ([]int64, error) {
	src, err := array(what, (*int64)(p), C.int64_t(n+1), maxDatums+1)
	if err != nil {
		return nil, err
	}
	out := append([]int64(nil), src...)
	if out[0] != 0 {
		return nil, bad("%s begin with %d, wanted 0", what, out[0])
	}
	for i, v := range out[1:] {
		if v < out[i] || v > maxValues {
			return nil, bad("%s[%d] is %d, wanted %d..%d", what, i+1, v, out[i], maxValues)
		}
	}
	if total >= 0 && out[n] != total {
		return nil, bad("%s end with %d, wanted the count %d", what, out[n], total)
	}
	return out, nil
}

// values copies a caller's values, once. Exactly one of the results is not nil.
func values(dtype C.int32_t, p unsafe.Pointer, count C.int64_t) (floats []float32, ints []int64, err error) {
	switch dtype {
	case C.TINKER_FLOAT32:
		src, err := array("values", (*float32)(p), count, maxValues)
		return append(make([]float32, 0, len(src)), src...), nil, err
	case C.TINKER_INT32:
		src, err := array("values", (*int32)(p), count, maxValues)
		ints = make([]int64, len(src))
		for i, v := range src {
			ints[i] = int64(v)
		}
		return nil, ints, err
	case C.TINKER_INT64:
		src, err := array("values", (*int64)(p), count, maxValues)
		return nil, append(make([]int64, 0, len(src)), src...), err
	}
	return nil, nil, bad("dtype is %d, wanted TINKER_FLOAT32, TINKER_INT32 or TINKER_INT64", int32(dtype))
}

//export tinkergo_batch_datum
func tinkergo_batch_datum(h C.uint64_t, tokens *C.int32_t, count C.int64_t) C.int32_t {
	return withBatch(h, func(b *batch) error {
		src, err := array("tokens", (*int32)(tokens), count, maxValues)
		if err != nil {
			return err
		}
		b.data = append(b.data, api.Datum{ModelInput: api.FromInts(append([]int32(nil), src...)), LossInputs: map[string]api.TensorData{}})
		return nil
	})
}

// set gives the last datum a tensor.
func (b *batch) set(name *C.char, read func() (api.TensorData, error)) error {
	n := len(b.data)
	if n == 0 {
		return bad("the batch is empty: add a datum first")
	}
	key, err := text("name", name)
	if err != nil {
		return err
	}
	t, err := read()
	if err != nil {
		return bad("%.100q: %w", key, err)
	}
	if b.shared == n { // an operation has it: the batch gets its own
		inputs := make(map[string]api.TensorData, len(b.data[n-1].LossInputs)+1)
		for k, v := range b.data[n-1].LossInputs {
			inputs[k] = v
		}
		b.data = append(append([]api.Datum(nil), b.data[:n-1]...), api.Datum{ModelInput: b.data[n-1].ModelInput, LossInputs: inputs})
		b.shared = 0
	}
	b.data[n-1].LossInputs[key] = t
	return nil
}

//export tinkergo_batch_set
func tinkergo_batch_set(h C.uint64_t, name *C.char, dtype C.int32_t, p unsafe.Pointer, shape *C.int64_t, rank C.int32_t) C.int32_t {
	return withBatch(h, func(b *batch) error {
		return b.set(name, func() (t api.TensorData, err error) {
			if rank != 1 && rank != 2 {
				return t, bad("rank is %d, wanted 1 or 2", int32(rank))
			}
			dims, err := array("shape", (*int64)(shape), C.int64_t(rank), 2)
			if err != nil {
				return t, err
			}
			count := int64(1)
			for _, d := range dims {
				if d < 0 || d > maxValues {
					return t, bad("shape is %v, wanted 0..%d", dims, maxValues)
				}
				count *= d
				t.Shape = append(t.Shape, int(d))
			}
			t.Floats, t.Ints, err = values(dtype, p, C.int64_t(count))
			return t, err
		})
	})
}

//export tinkergo_batch_set_csr
func tinkergo_batch_set_csr(h C.uint64_t, name *C.char, dtype C.int32_t, p unsafe.Pointer, rowOffsets, columnIndices *C.int64_t, rows, columns C.int64_t) C.int32_t {
	return withBatch(h, func(b *batch) error {
		return b.set(name, func() (api.TensorData, error) {
			const most = 4 << 20
			if rows < 1 || columns < 1 || rows > most || columns > most/rows {
				return api.TensorData{}, bad("the sparse tensor has shape (%d, %d), wanted 1 to %d places", int64(rows), int64(columns), most)
			}
			crow, err := array("row_offsets", (*int64)(rowOffsets), rows+1, most+1)
			if err != nil {
				return api.TensorData{}, err
			}
			nnz := C.int64_t(crow[rows])
			if nnz < 0 || nnz > rows*columns {
				return api.TensorData{}, bad("row_offsets end with %d, wanted 0..%d", int64(nnz), int64(rows*columns))
			}
			cols, err := array("column_indices", (*int64)(columnIndices), nnz, most)
			if err != nil {
				return api.TensorData{}, err
			}
			floats, ints, err := values(dtype, p, nnz)
			if err != nil {
				return api.TensorData{}, err
			}
			return api.FromCSR(floats, ints, crow, cols, int(rows), int(columns))
		})
	})
}
