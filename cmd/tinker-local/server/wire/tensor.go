package wire

import (
	"encoding/binary"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"tinkerlocal/engine/api"
)

// maxSpread is how many times the size of their body all CSR tensors of a request may take when they are written out. The SDK
// chooses CSR where rows+1 + 2·values < rows·cols, so rows of zeros cost 8 bytes each: a batch of nothing
// else would reach 0.6·K for K columns (int64 targets with float32 weights), so this is enough for K = 100 even then.
const maxSpread = 64

// spreadBudget is in bytes. Small bodies get some more, so that none of a few hundred tokens is refused.
func spreadBudget(body int) int { return maxSpread*body + 1<<20 }

// decodeTensor reads a Tensor. What a CSR tensor takes when it is written out is taken from budget.
func decodeTensor(f field, budget *int) (api.TensorData, error) {
	var (
		t          api.TensorData
		dims       []int64
		dense, csr field
		kind       int64
	)
	if f.typ != protowire.BytesType {
		return t, f.wrongType("value", "a message")
	}
	err := eachField(f.bytes, func(f field) error {
		switch f.num {
		case tensorDense, tensorCSR:
			if f.typ != protowire.BytesType {
				return f.wrongType("data", "bytes")
			}
			if dense.num != 0 || csr.num != 0 {
				return api.Errorf(api.BadRequest, "the data are given twice")
			}
			if f.num == tensorDense {
				dense = f
			} else {
				csr = f
			}
		case tensorDType:
			return f.integer("dtype", &kind)
		case tensorShape:
			return f.integers("shape", &dims, maxRank)
		}
		return nil
	})
	if err != nil {
		return t, err
	}
	d := dtype(kind)
	if d.bytes() == 0 || int64(d) != kind {
		return t, api.Errorf(api.BadRequest, "dtype is %d, wanted 1 (float32), 2 (int64), 3 (int32) or 4 (bfloat16)", kind)
	}
	switch {
	case dense.num != 0:
		if t, err = values(dense.bytes, d); err != nil {
			return t, err
		}
		t.Shape, err = shape(dims, t.Len())
	case csr.num != 0:
		t, err = decodeCSR(csr.bytes, d, dims, budget)
	default:
		err = api.Errorf(api.BadRequest, "there are no data, wanted dense or sparse_csr")
	}
	if err == nil {
		err = finite(t.Floats)
	}
	return t, err
}

// values reads an array: integers become int64, floats become float32.
func values(b []byte, d dtype) (t api.TensorData, err error) {
	size := d.bytes()
	if len(b)%size != 0 {
		return t, api.Errorf(api.BadRequest, "the data have %d bytes, wanted a multiple of %d", len(b), size)
	}
	n := len(b) / size
	switch d {
	case float32Type:
		t.Floats = make([]float32, n)
		for i := range t.Floats {
			t.Floats[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
		}
	case bfloat16Type: // the upper half of a float32
		t.Floats = make([]float32, n)
		for i := range t.Floats {
			t.Floats[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(b[2*i:])) << 16)
		}
	case int64Type:
		t.Ints = int64s(b)
	case int32Type:
		t.Ints = make([]int64, n)
		for i := range t.Ints {
			t.Ints[i] = int64(int32(binary.LittleEndian.Uint32(b[4*i:])))
		}
	}
	return t, nil
}

func int64s(b []byte) []int64 {
	out := make([]int64, len(b)/8)
	for i := range out {
		out[i] = int64(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return out
}

// shape compares dims with a number of values. One dimension is nil, as is what was not given.
func shape(dims []int64, n int) ([]int, error) {
	if len(dims) == 0 {
		return nil, nil
	}
	total, out := int64(1), make([]int, len(dims))
	for i, d := range dims {
		if d < 0 {
			return nil, api.Errorf(api.BadRequest, "shape is %v, wanted no negative length", dims)
		}
		if d > 0 && total > math.MaxInt/d {
			return nil, api.Errorf(api.BadRequest, "shape %v overflows", dims)
		}
		total *= d
		out[i] = int(d)
	}
	if total != int64(n) {
		return nil, api.Errorf(api.BadRequest, "shape %v has %d values, the data have %d", dims, total, n)
	}
	if len(dims) == 1 {
		return nil, nil
	}
	return out, nil
}

// finite refuses NaN and infinities: a loss of them would spoil every weight.
func finite(v []float32) error {
	for i, x := range v {
		if x-x != 0 {
			return api.Errorf(api.BadRequest, "value %d is %v, wanted a finite number", i, x)
		}
	}
	return nil
}

func decodeCSR(b []byte, d dtype, dims []int64, budget *int) (t api.TensorData, err error) {
	var rows, cols []int64
	var stored api.TensorData
	err = eachField(b, func(f field) error {
		if f.typ != protowire.BytesType {
			return nil
		}
		switch f.num {
		case csrValues:
			stored, err = values(f.bytes, d)
			return err
		case csrRows, csrCols:
			if len(f.bytes)%8 != 0 {
				return api.Errorf(api.BadRequest, "its indices have %d bytes, wanted a multiple of 8 (int64)", len(f.bytes))
			}
			if f.num == csrRows {
				rows = int64s(f.bytes)
			} else {
				cols = int64s(f.bytes)
			}
		}
		return nil
	})
	if err == nil {
		t, err = spread(stored, d == float32Type || d == bfloat16Type, rows, cols, dims, budget)
	}
	if err != nil {
		return t, at(err, "sparse_csr")
	}
	return t, nil
}

// spread writes a CSR matrix out: row r has the values crow[r] to crow[r+1], at the columns that stand beside them; all else
// is 0. Every index is checked before anything is allocated. Columns of a row ascend, as torch demands.
func spread(stored api.TensorData, floats bool, crow, cols, dims []int64, budget *int) (t api.TensorData, err error) {
	if err := checkCSR(int64(stored.Len()), crow, cols, dims); err != nil {
		return t, err
	}
	size := 8
	if floats {
		size = 4
	}
	if dims[0] > 0 && dims[1] > int64(*budget/size)/dims[0] {
		return t, api.Errorf(api.BadRequest, "shape %v is too large for a body of this size: all sparse tensors of a request may take %d times the body when written out", dims, maxSpread)
	}
	total := int(dims[0] * dims[1])
	*budget -= total * size
	t.Shape = []int{int(dims[0]), int(dims[1])}
	if floats {
		t.Floats = make([]float32, total)
		scatter(t.Floats, stored.Floats, crow, cols, int(dims[1]))
	} else {
		t.Ints = make([]int64, total)
		scatter(t.Ints, stored.Ints, crow, cols, int(dims[1]))
	}
	return t, nil
}

// checkCSR says whether indices are those of a CSR matrix of n values.
func checkCSR(n int64, crow, cols, dims []int64) error {
	switch {
	case len(dims) != 2 || dims[0] < 0 || dims[1] < 0:
		return api.Errorf(api.BadRequest, "shape is %v, wanted two dimensions", dims)
	case int64(len(crow)) != dims[0]+1:
		return api.Errorf(api.BadRequest, "there are %d crow_indices, wanted %d for %d rows", len(crow), dims[0]+1, dims[0])
	case int64(len(cols)) != n:
		return api.Errorf(api.BadRequest, "there are %d col_indices and %d values", len(cols), n)
	case crow[0] != 0 || crow[len(crow)-1] != n:
		return api.Errorf(api.BadRequest, "crow_indices go from %d to %d, wanted 0 to %d, the number of values", crow[0], crow[len(crow)-1], n)
	}
	for r := range len(crow) - 1 {
		lo, hi := crow[r], crow[r+1]
		if hi < lo || hi > n {
			return api.Errorf(api.BadRequest, "crow_indices go from %d to %d at row %d, wanted %d to %d", lo, hi, r, lo, n)
		}
		last := int64(-1)
		for _, c := range cols[lo:hi] {
			if c <= last || c >= dims[1] {
				return api.Errorf(api.BadRequest, "row %d has column %d after %d, wanted ascending columns below %d", r, c, last, dims[1])
			}
			last = c
		}
	}
	return nil
}

func scatter[T any](dst, stored []T, crow, cols []int64, width int) {
	for r := range len(crow) - 1 {
		for i := crow[r]; i < crow[r+1]; i++ {
			dst[r*width+int(cols[i])] = stored[i]
		}
	}
}

// integers adds a repeated integer field to dst, packed or not.
func (f field) integers(name string, dst *[]int64, limit int) error {
	if f.typ == protowire.VarintType {
		*dst = append(*dst, int64(f.n))
	} else if f.typ != protowire.BytesType {
		return f.wrongType(name, "integers")
	}
	for b := f.bytes; len(b) > 0 && len(*dst) <= limit; {
		v, used := protowire.ConsumeVarint(b)
		if used < 0 {
			return api.Errorf(api.BadRequest, "%s: %w", name, protowire.ParseError(used))
		}
		*dst, b = append(*dst, int64(v)), b[used:]
	}
	if len(*dst) > limit {
		return api.Errorf(api.BadRequest, "%s has more than %d entries", name, limit)
	}
	return nil
}
