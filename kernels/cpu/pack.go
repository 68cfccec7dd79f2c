package cpu

import (
	"encoding/binary"
	"math"
	"slices"
	"unsafe"

	"tinkerlocal/kernels"
)

// weight is a frozen [N, K] matrix in panels of 16 rows: element (o, k) lies at ((o/16)*K + k)*16 + o%16, rows past N are zero. A step of k
// reads one cache line (float32) or half of one (bfloat16), whatever the number of tokens; the backward transposes blocks of 16 x 16
// as it goes. So there is one copy.
type weight struct {
	dev        *Device
	rows, cols int
	parts      []int
	store      kernels.DType
	bytes      int64
	f32        []float32
	bf16       []uint16
}

func (w *weight) Rows() int            { return w.rows }
func (w *weight) Cols() int            { return w.cols }
func (w *weight) Parts() []int         { return w.parts }
func (w *weight) Bytes() int64         { return w.bytes }
func (w *weight) Store() kernels.DType { return w.store }

// Free gives the memory back; the weight has no rows from then on.
func (w *weight) Free() {
	if w.rows > 0 {
		w.dev.used.Add(-w.bytes)
		w.dev.freed.Add(w.bytes)
		w.rows, w.bytes, w.f32, w.bf16 = 0, 0, nil, nil
	}
}

func (w *weight) panels() int { return ceilDiv(w.rows, panelRows) }

// Pack stacks the parts and rearranges them. Values become float32 exactly; a bfloat16 store rounds them to the nearest.
func (d *Device) Pack(parts []kernels.Matrix, store kernels.DType) (kernels.Weight, error) {
	if err := kernels.CheckPack(parts, store); err != nil {
		return nil, err
	}
	w := &weight{dev: d, cols: parts[0].Cols, store: store}
	for i := range parts {
		w.rows += parts[i].Rows
		w.parts = append(w.parts, parts[i].Rows)
	}
	n := w.panels() * panelRows * w.cols
	w.bytes = int64(n) * int64(store.Size())
	if err := d.reserve("pack", w.bytes); err != nil {
		return nil, err
	}
	raw := aligned(w.bytes)
	if store == kernels.F32 {
		w.f32 = unsafe.Slice((*float32)(unsafe.Pointer(&raw[0])), n)
	} else {
		w.bf16 = unsafe.Slice((*uint16)(unsafe.Pointer(&raw[0])), n)
	}
	d.ops.pack = packTask{w: w, parts: parts}
	d.pool.run(&d.ops.pack, min(w.panels(), 4*d.pool.threads()))
	d.ops.pack = packTask{}
	w.parts = slices.Clip(w.parts)
	return w, nil
}

// packTask fills a range of panels per piece.
type packTask struct {
	w     *weight
	parts []kernels.Matrix
}

func (t *packTask) run(wk *worker, i int) {
	w := t.w
	pieces := min(w.panels(), 4*wk.pool.threads())
	lo, hi := w.panels()*i/pieces*panelRows, w.panels()*(i+1)/pieces*panelRows
	first := 0
	for p := range t.parts {
		m := &t.parts[p]
		for o := max(lo, first); o < min(hi, first+m.Rows); o++ {
			w.setRow(o, m, o-first)
		}
		first += m.Rows
	}
}

func (w *weight) setRow(o int, m *kernels.Matrix, row int) {
	size := m.DType.Size()
	src := m.Data[row*w.cols*size : (row+1)*w.cols*size]
	at := o/panelRows*w.cols*panelRows + o%panelRows
	for k := range w.cols {
		switch {
		case m.DType == kernels.BF16 && w.bf16 != nil:
			w.bf16[at] = binary.LittleEndian.Uint16(src[2*k:])
		default:
			var v float32
			switch m.DType {
			case kernels.F32:
				v = math.Float32frombits(binary.LittleEndian.Uint32(src[4*k:]))
			case kernels.BF16:
				v = kernels.BF16ToF32(binary.LittleEndian.Uint16(src[2*k:]))
			case kernels.F16:
				v = kernels.F16ToF32(binary.LittleEndian.Uint16(src[2*k:]))
			}
			if w.bf16 != nil {
				w.bf16[at] = kernels.F32ToBF16(v)
			} else {
				w.f32[at] = v
			}
		}
		at += panelRows
	}
}

// widened returns steps [k0, k0+n) of panel p as float32, in place or through the worker's panel.
func (w *weight) widened(wk *worker, p, k0, n int) *float32 {
	at := (p*w.cols + k0) * panelRows
	if w.f32 != nil {
		return &w.f32[at]
	}
	wk.vec.widen(&wk.panel[0], &w.bf16[at], uintptr(n*panelRows))
	return &wk.panel[0]
}

// transposed fills the worker's panel with the steps o in [o0, o0+n) of column panel q: panel[o-o0][i] = W[o, 16q+i]. o0 is a multiple of 16;
// columns past K are zero.
func (w *weight) transposed(wk *worker, q, o0, n int) *float32 {
	kn := min(panelRows, w.cols-q*panelRows)
	for o := o0; o < o0+n; o += panelRows {
		at := (o/panelRows*w.cols + q*panelRows) * panelRows
		dst := wk.panel[(o-o0)*panelRows : (o-o0+panelRows)*panelRows]
		var src *float32
		if w.f32 != nil && kn == panelRows {
			src = &w.f32[at]
		} else {
			src = &wk.block[0]
			if w.f32 != nil {
				copy(wk.block, w.f32[at:at+kn*panelRows])
			} else {
				wk.vec.widen(src, &w.bf16[at], uintptr(kn*panelRows))
			}
			clear(wk.block[kn*panelRows:])
		}
		wk.vec.transpose16(&dst[0], src, 4*panelRows, panelRows)
	}
	return &wk.panel[0]
}

// row copies row o to dst.
func (w *weight) row(dst []float32, o int) {
	at := o/panelRows*w.cols*panelRows + o%panelRows
	if w.f32 != nil {
		src := w.f32[at:]
		for k := range dst {
			dst[k] = src[k*panelRows]
		}
		return
	}
	src := w.bf16[at:]
	for k := range dst {
		dst[k] = kernels.BF16ToF32(src[k*panelRows])
	}
}
