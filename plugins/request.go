package plugins

import (
	"encoding/binary"
	"math"
)

// layout says where everything in a request is: see ABI.md, request. Offsets count from the request's first byte.
type layout struct {
	columns []column
	fixed   []byte // what is in front of the metrics
	metrics int    // offset; behind them come the error's text and the columns' data
	text    int    // of the error
	weights int
	total   int
}

// column is one named tensor of all datums of the chunk.
type column struct {
	in    *Input  // nil: the current log-probabilities
	of    *values // nil likewise
	elems int
	size  int // bytes of an element
	data  int // offset
	spans int // offset
	own   bool
}

// ownSpans says that a datum may lack the input, or have it in another shape than its log-probabilities.
func (i *Input) ownSpans() bool { return i.Like == "" || i.Optional }

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
		col := column{in: in, of: &b.inputs[i], elems: c.elems, size: 4, own: in.ownSpans()}
		if in.DType == "int64" {
			col.size = 8
		}
		if col.own {
			col.elems = col.of.elems(c.lo, c.hi)
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
	for i := range l.columns {
		l.columns[i].data = take(l.columns[i].elems * l.columns[i].size)
	}
	l.weights = take(4 * c.elems)
	l.total = at
	if at > math.MaxInt32 {
		return nil, bad("the request would have %d bytes", at)
	}

	f := make([]byte, l.metrics)
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
		x := extent{b.dims[i], true}
		if col.of != nil {
			x = col.of.spans[i]
		}
		s := (*[spanSize]byte)(f[spanSize*(i-c.lo):])
		binary.LittleEndian.PutUint32(s[0:], start)
		if x.present {
			binary.LittleEndian.PutUint32(s[4:], x.dims[0])
			binary.LittleEndian.PutUint32(s[8:], x.dims[1])
			binary.LittleEndian.PutUint32(s[12:], flagPresent)
			start += x.dims[0] * x.dims[1]
		}
	}
}

// fill writes the request into guest memory, all of it: what the host does not set is zeroed.
func (l *layout) fill(view []byte, b *batch, c *chunk) {
	copy(view, l.fixed)
	clear(view[l.metrics:l.columns[0].data])
	for i := range l.columns {
		col := &l.columns[i]
		at, floats := col.data, b.logProbs
		if col.of != nil {
			floats = col.of.floats
		}
		if col.size == 8 {
			for _, v := range col.of.ints[c.lo:c.hi] {
				at += putInts(view[at:], v)
			}
		} else {
			for _, v := range floats[c.lo:c.hi] {
				at += putFloats(view[at:], v)
			}
		}
		clear(view[at:align(at)])
	}
	clear(view[l.weights:l.total])
}
