package api

// FromCSR makes a dense tensor of shape (rows, columns) of a sparse one in CSR form: row r has the values rowOffsets[r] to
// rowOffsets[r+1]-1, in the columns that columnIndices has at the same positions; everything else is 0. Exactly one of floats and ints is not
// nil. The caller bounds rows and columns. A row whose columns do not rise is refused: it would name one place twice.
func FromCSR(floats []float32, ints []int64, rowOffsets, columnIndices []int64, rows, columns int) (TensorData, error) {
	n := max(len(floats), len(ints))
	switch {
	case len(rowOffsets) != rows+1:
		return TensorData{}, Errorf(BadRequest, "sparse tensor: %d row offsets, wanted %d", len(rowOffsets), rows+1)
	case len(columnIndices) != n:
		return TensorData{}, Errorf(BadRequest, "sparse tensor: %d column indices, wanted one for each of %d values", len(columnIndices), n)
	case rowOffsets[0] != 0 || rowOffsets[rows] != int64(n):
		return TensorData{}, Errorf(BadRequest, "sparse tensor: the row offsets go from %d to %d, wanted 0 to %d", rowOffsets[0], rowOffsets[rows], n)
	}
	t := TensorData{Shape: []int{rows, columns}}
	if ints != nil {
		t.Ints = make([]int64, rows*columns)
	} else {
		t.Floats = make([]float32, rows*columns)
	}
	for r := range rows {
		lo, hi := rowOffsets[r], rowOffsets[r+1]
		if lo > hi || hi > int64(n) {
			return TensorData{}, Errorf(BadRequest, "sparse tensor: row %d goes from %d to %d, wanted rising offsets up to %d", r, lo, hi, n)
		}
		before := int64(-1)
		for i := lo; i < hi; i++ {
			c := columnIndices[i]
			if c <= before || c >= int64(columns) {
				return TensorData{}, Errorf(BadRequest, "sparse tensor: row %d has column %d, wanted %d..%d", r, c, before+1, columns-1)
			}
			before = c
			if ints != nil {
				t.Ints[r*columns+int(c)] = ints[i]
			} else {
				t.Floats[r*columns+int(c)] = floats[i]
			}
		}
	}
	return t, nil
}
