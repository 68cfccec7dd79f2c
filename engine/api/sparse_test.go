package api

import (
	"slices"
	"testing"
)

func TestFromCSR(t *testing.T) {
	// torch: torch.sparse_csr_tensor([0, 2, 2, 3], [0, 2, 1], [1, 2, 3]).to_dense() = [[1, 0, 2], [0, 0, 0], [0, 3, 0]]
	f, err := FromCSR([]float32{1, 2, 3}, nil, []int64{0, 2, 2, 3}, []int64{0, 2, 1}, 3, 3)
	if err != nil || !slices.Equal(f.Floats, []float32{1, 0, 2, 0, 0, 0, 0, 3, 0}) || !slices.Equal(f.Shape, []int{3, 3}) {
		t.Errorf("%v, %v", f, err)
	}
	i, err := FromCSR(nil, []int64{7}, []int64{0, 0, 1}, []int64{1}, 2, 2)
	if err != nil || !slices.Equal(i.Ints, []int64{0, 0, 0, 7}) || i.DType() != "int64" {
		t.Errorf("%v, %v", i, err)
	}
	for name, c := range map[string]struct{ rows, columns []int64 }{
		"too few rows":      {[]int64{0, 1}, []int64{0}},
		"begin":             {[]int64{1, 1, 1}, []int64{0}},
		"end":               {[]int64{0, 0, 2}, []int64{0}},
		"falling":           {[]int64{0, 5, 1}, []int64{0}},
		"no column":         {[]int64{0, 0, 1}, nil},
		"column too large":  {[]int64{0, 0, 1}, []int64{2}},
		"column negative":   {[]int64{0, 0, 1}, []int64{-1}},
		"falling from zero": {[]int64{0, -1, 1}, []int64{0}},
	} {
		if got, err := FromCSR([]float32{1}, nil, c.rows, c.columns, 2, 2); CodeOf(err) != BadRequest || err == nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := FromCSR([]float32{1, 2}, nil, []int64{0, 2}, []int64{1, 1}, 1, 2); err == nil {
		t.Error("a place is named twice")
	}
}
