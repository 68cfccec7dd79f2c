package wire

import (
	"encoding/binary"
	"encoding/json"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"tinkerlocal/engine/api"
)

// Targets are the tokens of target_prompt_logprobs as the client has written them down: an int64 tensor of a row for each token of the prompt
// but the first, dense with -1 where nothing is asked for, or in CSR form. The result has the same form.
type Targets struct {
	dims       []int64
	crow, cols []int64 // of CSR
	sparse     bool
	ids        [][]int32 // the stored ones of each row
}

// UnmarshalJSON reads a tensor.
func (t *Targets) UnmarshalJSON(b []byte) error {
	var j tensorJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	if err := t.read(j); err != nil {
		return at(err, "target_prompt_logprobs")
	}
	return nil
}

func (t *Targets) read(j tensorJSON) error {
	if j.DType != "int64" || len(j.Shape) != 2 {
		return api.Errorf(api.BadRequest, "it has the dtype %q and the shape %v, wanted \"int64\" and two dimensions", clip(j.DType), j.Shape)
	}
	ids, err := parseArray(j.Data, parseTarget)
	if err != nil {
		return at(err, "data")
	}
	*t = Targets{dims: j.Shape, sparse: !absent(j.Crow) || !absent(j.Cols)}
	if !t.sparse {
		if _, err := shape(j.Shape, len(ids)); err != nil {
			return err
		}
		t.ids = make([][]int32, j.Shape[0])
		for i := range t.ids {
			t.ids[i] = ids[i*int(j.Shape[1]):][:j.Shape[1]]
		}
		return nil
	}
	if t.crow, err = parseArray(j.Crow, parseInt64); err != nil {
		return at(err, "sparse_crow_indices")
	}
	if t.cols, err = parseArray(j.Cols, parseInt64); err != nil {
		return at(err, "sparse_col_indices")
	}
	if err := checkCSR(int64(len(ids)), t.crow, t.cols, t.dims); err != nil {
		return err
	}
	t.ids = make([][]int32, j.Shape[0])
	for i := range t.ids {
		t.ids[i] = ids[t.crow[i]:t.crow[i+1]]
	}
	return nil
}

// parseTarget reads a token, or -1 for any number below 0.
func parseTarget(s string) (int32, error) {
	v, err := parseInt64(s)
	switch {
	case err != nil:
		return 0, err
	case v > math.MaxInt32:
		return 0, api.Errorf(api.BadRequest, "wanted a token")
	}
	return int32(max(v, -1)), nil
}

// API is the engine's form of t; nil is none.
func (t *Targets) API() [][]int32 {
	if t == nil {
		return nil
	}
	return t.ids
}

// check says whether rows have the form of what was asked for.
func (t *Targets) check(rows [][]float32) error {
	if (t == nil) != (rows == nil) {
		return api.Errorf(api.Internal, "target_prompt_logprobs: asked for %t, there %t", t != nil, rows != nil)
	}
	if t != nil && len(rows) != len(t.ids) {
		return api.Errorf(api.Internal, "target_prompt_logprobs: %d rows, wanted %d", len(rows), len(t.ids))
	}
	for i, row := range rows {
		if len(row) != len(t.ids[i]) {
			return api.Errorf(api.Internal, "target_prompt_logprobs: row %d has %d values, wanted %d", i, len(row), len(t.ids[i]))
		}
	}
	return nil
}

// append writes rows as a Tensor in t's form.
func (t *Targets) append(b []byte, num protowire.Number, rows [][]float32) []byte {
	n := 0
	for _, row := range rows {
		n += 4 * len(row)
	}
	values := func(b []byte) []byte {
		for _, row := range rows {
			b = appendFloats(b, row)
		}
		return b
	}
	if !t.sparse {
		return appendTensor(b, num, float32Type, t.dims, n, values)
	}
	csr := sizeMessage(csrValues, n) + sizeMessage(csrRows, 8*len(t.crow)) + sizeMessage(csrCols, 8*len(t.cols))
	head := tensorHead(float32Type, t.dims)
	b = appendHeader(b, num, sizeMessage(tensorCSR, csr)+len(head))
	b = appendHeader(b, tensorCSR, csr)
	b = values(appendHeader(b, csrValues, n))
	b = appendInt64s(appendHeader(b, csrRows, 8*len(t.crow)), t.crow)
	b = appendInt64s(appendHeader(b, csrCols, 8*len(t.cols)), t.cols)
	return append(b, head...)
}

// appendTensor writes a dense Tensor whose n bytes values appends.
func appendTensor(b []byte, num protowire.Number, kind dtype, dims []int64, n int, values func([]byte) []byte) []byte {
	head := tensorHead(kind, dims)
	b = appendHeader(b, num, sizeMessage(tensorDense, n)+len(head))
	return append(values(appendHeader(b, tensorDense, n)), head...)
}

// tensorHead is a Tensor without its values.
func tensorHead(kind dtype, dims []int64) []byte {
	n := 0
	for _, d := range dims {
		n += protowire.SizeVarint(uint64(d))
	}
	b := appendHeader(appendVarint(nil, tensorDType, int(kind)), tensorShape, n)
	for _, d := range dims {
		b = protowire.AppendVarint(b, uint64(d))
	}
	return b
}

func appendInt64s(b []byte, v []int64) []byte {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint64(b, uint64(x))
	}
	return b
}
