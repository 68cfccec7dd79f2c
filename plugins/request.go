package plugins

import (
	"encoding/binary"
	"math"

	"tinkerlocal/engine/api"
)

// layout says where everything in a request is: see ABI.md, request. Offsets count from the request's first byte.
type layout struct {
	columns []column
	fixed   []byte // the part in front of the columns' data, complete but for the metrics' and the error's bytes, which are zero
	weights int    // offset
	metrics int
	text    int // of the error
	total   int
}

// column is one named tensor of all datums of the chunk.
type column struct {
	in    *Input // nil: the current log-probabilities
	elems int
	size  int // bytes of an element
	data  int // offset
	spans int // offset
	own   bool
}

// present finds datum d's tensor for the column.
func (c *column) present(d *api.Datum) (api.TensorData, bool) {
	t, ok := d.LossInputs[c.in.Name]
	return t, ok
}

const logProbsName = "$logprobs"

func align(n int) int { return (n + 15) &^ 15 }

// plan lays a chunk's request out.
func (m *Meta) plan(b *batch, c *chunk) (*layout, error) {
	n := c.hi - c.lo
	l := &layout{columns: make([]column, 1, len(m.Inputs)+1)}
	l.columns[0] = column{elems: c.elems, size: 4, own: true}
	names := len(logProbsName)
	for i := range m.Inputs {
		in := &m.Inputs[i]
		col := column{in: in, size: 4, own: in.Like == "" || in.Optional}
		if in.DType == "int64" {
			col.size = 8
		}
		if !col.own {
			col.elems = c.elems
		} else {
			for j := c.lo; j < c.hi; j++ {
				if t, ok := col.present(&b.data[j]); ok {
					col.elems += t.Len()
				}
			}
		}
		l.columns = append(l.columns, col)
		names += len(in.Name)
	}

	at := headerSize
	take := func(bytes int) int {
		start := at
		at = align(at + bytes)
		return start
	}
	columns := take(columnSize * len(l.columns))
	for i := range l.columns {
		if l.columns[i].own {
			l.columns[i].spans = take(spanSize * n)
		} else {
			l.columns[i].spans = l.columns[0].spans
		}
	}
	groups := 0
	if b.groups != nil {
		groups = take(4 * n)
	}
	params, config, nameAt := take(8*len(b.params)), take(len(b.config)), take(names)
	l.metrics, l.text = take(metricSize*maxMetrics), take(maxErrorText)
	fixed := at
	for i := range l.columns {
		l.columns[i].data = take(l.columns[i].elems * l.columns[i].size)
	}
	l.weights = take(4 * c.elems)
	l.total = at
	if at > math.MaxInt32 {
		return nil, bad("the request would have %d bytes", at)
	}

	f := make([]byte, fixed)
	l.fixed = f
	put := func(off, v int) { binary.LittleEndian.PutUint32(f[off:], uint32(v)) }
	put(offMagic, magic)
	put(offVersion, abiMajor<<16|abiMinor)
	put(offTotal, l.total)
	if b.evaluate {
		put(offFlags, flagEvaluate)
	}
	put(offDatums, n)
	put(offColumns, len(l.columns))
	put(offColumnsAt, columns)
	put(offGroupsAt, groups)
	put(offParamsAt, params)
	put(offParams, len(b.params))
	put(offConfigAt, config)
	put(offConfigLen, len(b.config))
	put(offWeightsAt, l.weights)
	put(offElems, c.elems)
	put(offMetricsAt, l.metrics)
	put(offMetricsCap, maxMetrics)
	put(offErrorAt, l.text)
	put(offErrorCap, maxErrorText)
	put(offGroups, c.groups)
	put(offChunk, c.index)
	put(offBatchDatums, len(b.data))
	binary.LittleEndian.PutUint64(f[offBatchElems:], uint64(b.elems))
	put(offBatchGroups, b.nGroups)
	binary.LittleEndian.PutUint64(f[offOutLoss:], math.Float64bits(math.NaN()))

	for i := range l.columns {
		col := &l.columns[i]
		name, dtype := logProbsName, dtypeFloat
		if col.in != nil {
			name = col.in.Name
			if col.size == 8 {
				dtype = dtypeInt
			}
		}
		copy(f[nameAt:], name)
		for j, v := range []int{nameAt, len(name), dtype, col.spans, col.data, col.elems} {
			put(columns+columnSize*i+4*j, v)
		}
		nameAt += len(name)
		if col.own {
			col.putSpans(f[col.spans:], b, c)
		}
	}
	if b.groups != nil {
		for i := c.lo; i < c.hi; i++ {
			put(groups+4*(i-c.lo), int(b.groups[i]-c.first))
		}
	}
	for i, v := range b.params {
		binary.LittleEndian.PutUint64(f[params+8*i:], math.Float64bits(v))
	}
	copy(f[config:], b.config)
	return l, nil
}

func (col *column) putSpans(f []byte, b *batch, c *chunk) {
	start := uint32(0)
	for i := c.lo; i < c.hi; i++ {
		dims, ok := b.dims[i], true
		if col.in != nil {
			var t api.TensorData
			if t, ok = col.present(&b.data[i]); ok {
				dims, _ = twoDims(t) // checked before
			}
		}
		s := f[spanSize*(i-c.lo):]
		binary.LittleEndian.PutUint32(s, start)
		if ok {
			binary.LittleEndian.PutUint32(s[4:], dims[0])
			binary.LittleEndian.PutUint32(s[8:], dims[1])
			binary.LittleEndian.PutUint32(s[12:], flagPresent)
			start += dims[0] * dims[1]
		}
	}
}

// fill writes the request into guest memory, all of it: what the host does not set is zeroed.
func (l *layout) fill(view []byte, b *batch, c *chunk) {
	copy(view, l.fixed)
	for i := range l.columns {
		col := &l.columns[i]
		at := col.data
		for j := c.lo; j < c.hi; j++ {
			switch {
			case col.in == nil:
				at += putFloats(view[at:], b.logProbs[j])
			case col.size == 8:
				if t, ok := col.present(&b.data[j]); ok {
					at += putInts(view[at:], t.Ints)
				}
			default:
				if t, ok := col.present(&b.data[j]); ok {
					at += putFloats(view[at:], t.Floats)
				}
			}
		}
		clear(view[at:align(at)])
	}
	clear(view[l.weights:l.total])
}
