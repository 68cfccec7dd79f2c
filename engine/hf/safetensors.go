package hf

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"tinkerlocal/kernels"
)

// The safetensors format: an 8-byte little-endian header length, a JSON header, then the tensors' bytes.
// The header gives each tensor its dtype, shape and half-open byte range behind the header. The rules
// checked here are those of the published reference implementation (huggingface/safetensors): the ranges
// cover everything behind the header exactly once, and each is as long as dtype and shape say. Beyond
// them, a repeated name and what is over the limits below are refused.
const (
	maxHeader   = 100_000_000 // bytes, as the reference implementation
	maxRank     = 8
	maxTensors  = 1 << 20 // per file: the largest published files have some thousands
	maxMetadata = 1 << 16 // members
)

// dtypes lists the element types of the format by their names, with their sizes in bits and what the
// device contract calls them (0: it has no such type).
var dtypes = map[string]struct {
	bits  int
	dtype kernels.DType
}{
	"F32": {32, kernels.F32}, "BF16": {16, kernels.BF16}, "F16": {16, kernels.F16},
	"F64": {64, kernels.F64}, "I32": {32, kernels.I32},
	"BOOL": {8, 0}, "U8": {8, 0}, "I8": {8, 0}, "I16": {16, 0}, "U16": {16, 0}, "U32": {32, 0}, "I64": {64, 0}, "U64": {64, 0},
	"F8_E5M2": {8, 0}, "F8_E4M3": {8, 0}, "F8_E8M0": {8, 0}, "F8_E5M2FNUZ": {8, 0}, "F8_E4M3FNUZ": {8, 0},
	"F6_E2M3": {6, 0}, "F6_E3M2": {6, 0}, "F4": {4, 0}, "C64": {64, 0},
}

// Tensor is one tensor of a file. Data is row-major and little-endian. It aliases the mapped file: it is
// read-only (writing to it crashes), its values need not be aligned in memory, and it is valid until
// Close.
type Tensor struct {
	Name   string
	DType  kernels.DType // 0 when the device contract has no such type: see Stored
	Shape  []int         // read-only
	Data   []byte
	Stored string // the element type in the file's words, e.g. "BF16" or "F8_E4M3"
	File   string // the file's name within the folder, e.g. "model-00001-of-00002.safetensors"
}

// Len is the number of elements.
func (t Tensor) Len() int {
	n := 1
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

// header is a parsed file: its tensors in the order of their bytes, and its free-form metadata.
type header struct {
	tensors  []Tensor
	metadata map[string]string
}

// parseSafetensors reads a whole file. The tensors' Data aliases b.
func parseSafetensors(b []byte) (*header, error) {
	if len(b) < 8 {
		return nil, bad("%d bytes, wanted at least the 8 of a header length: not a safetensors file, or cut off", len(b))
	}
	n := binary.LittleEndian.Uint64(b)
	if n > maxHeader {
		return nil, bad("header length %d, wanted at most %d: not a safetensors file", n, maxHeader)
	}
	if n > uint64(len(b)-8) {
		return nil, bad("header length %d, but only %d bytes follow: the file is cut off", n, len(b)-8)
	}
	text, data := b[8:8+n], b[8+n:]
	if n == 0 || text[0] != '{' {
		return nil, bad("the header does not begin with {: not a safetensors file")
	}
	h := &header{}
	var spans []span
	err := object(text, func(name string, value json.RawMessage) error {
		if name == "__metadata__" {
			m, err := stringMap(value)
			h.metadata = m
			return in("__metadata__", err)
		}
		if len(spans) == maxTensors {
			return bad("more than %d tensors", maxTensors)
		}
		s, err := parseEntry(value)
		if err != nil {
			return in("tensor "+quote(name), err)
		}
		s.Name = name
		spans = append(spans, s)
		return nil
	})
	if err != nil {
		return nil, in("header", err)
	}
	slices.SortFunc(spans, func(a, b span) int {
		return cmp.Or(cmp.Compare(a.begin, b.begin), cmp.Compare(a.end, b.end), cmp.Compare(a.Name, b.Name))
	})
	at := uint64(0)
	h.tensors = make([]Tensor, 0, len(spans))
	for _, s := range spans {
		switch {
		case s.begin < at:
			return nil, bad("tensor %s: data_offsets [%d, %d] overlap the tensor before, which ends at %d", quote(s.Name), s.begin, s.end, at)
		case s.begin > at:
			return nil, bad("tensor %s: data_offsets [%d, %d] leave a hole after %d", quote(s.Name), s.begin, s.end, at)
		case s.end > uint64(len(data)):
			return nil, bad("tensor %s: data_offsets [%d, %d], but the file has %d bytes of data: it is cut off", quote(s.Name), s.begin, s.end, len(data))
		}
		at = s.end
		s.Data = data[s.begin:s.end:s.end]
		h.tensors = append(h.tensors, s.Tensor)
	}
	if at != uint64(len(data)) {
		return nil, bad("the tensors end at byte %d of the data, but it has %d bytes", at, len(data))
	}
	return h, nil
}

// span is a tensor with its byte range behind the header.
type span struct {
	Tensor
	begin, end uint64
}

// parseEntry reads {"dtype": …, "shape": …, "data_offsets": …} and checks that they agree.
func parseEntry(value []byte) (span, error) {
	var s span
	var shape, offsets []uint64
	err := object(value, func(name string, v json.RawMessage) (err error) {
		switch name {
		case "dtype":
			err = json.Unmarshal(v, &s.Stored)
		case "shape":
			shape, err = naturals(v)
		case "data_offsets":
			offsets, err = naturals(v)
		default:
			return bad("unknown key %s", quote(name))
		}
		if err != nil {
			return bad("%s is %s, wanted %s", name, clip(string(v)), entryKeys[name])
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	for _, missing := range []struct {
		key  string
		gone bool
	}{{"dtype", s.Stored == ""}, {"shape", shape == nil}, {"data_offsets", offsets == nil}} {
		if missing.gone {
			return s, bad("%s is missing", missing.key)
		}
	}
	kind, known := dtypes[s.Stored]
	if !known {
		return s, unsupported("dtype %s is unknown", quote(s.Stored))
	}
	if len(shape) > maxRank {
		return s, bad("shape has %d dimensions, wanted at most %d", len(shape), maxRank)
	}
	if len(offsets) != 2 || offsets[0] > offsets[1] {
		return s, bad("data_offsets is %v, wanted [begin, end]", offsets)
	}
	s.begin, s.end, s.DType = offsets[0], offsets[1], kind.dtype
	size, err := byteSize(kind.bits, shape)
	if err != nil {
		return s, err
	}
	if size != s.end-s.begin {
		return s, bad("%s%v takes %d bytes, but data_offsets [%d, %d] are %d", s.Stored, shape, size, s.begin, s.end, s.end-s.begin)
	}
	s.Shape = make([]int, len(shape))
	for i, d := range shape {
		s.Shape[i] = int(d)
	}
	return s, nil
}

// entryKeys says what each member of a header entry has to be.
var entryKeys = map[string]string{
	"dtype": "a string", "shape": "a list of sizes", "data_offsets": "a list of two offsets",
}

// byteSize multiplies a shape out. Every partial product is checked, so that a zero cannot hide an
// overflow from code that multiplies in another order.
func byteSize(bitsEach int, shape []uint64) (uint64, error) {
	n := uint64(bitsEach)
	zero := false
	for _, d := range shape {
		if d > math.MaxInt {
			return 0, bad("shape %v is too large", shape)
		}
		if d == 0 {
			zero = true
			continue
		}
		high, low := bits.Mul64(n, d)
		if high != 0 || low > math.MaxInt {
			return 0, bad("shape %v is too large", shape)
		}
		n = low
	}
	if zero {
		return 0, nil
	}
	if n%8 != 0 {
		return 0, bad("shape %v of %d-bit values does not fill whole bytes", shape, bitsEach)
	}
	return n / 8, nil
}

// naturals reads a list of integers from 0. The result is not nil unless there is an error.
func naturals(b []byte) ([]uint64, error) {
	var list []*uint64
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	if list == nil {
		return nil, fmt.Errorf("null")
	}
	out := make([]uint64, len(list))
	for i, n := range list {
		if n == nil {
			return nil, fmt.Errorf("null")
		}
		out[i] = *n
	}
	return out, nil
}

func stringMap(b []byte) (map[string]string, error) {
	m := map[string]string{}
	err := object(b, func(name string, value json.RawMessage) error {
		if len(value) == 0 || value[0] != '"' {
			return bad("%s is %s, wanted a string", quote(name), clip(string(value)))
		}
		var s string
		if err := json.Unmarshal(value, &s); err != nil {
			return bad("%s is %s, wanted a string", quote(name), clip(string(value)))
		}
		if len(m) == maxMetadata {
			return bad("more than %d members", maxMetadata)
		}
		m[name] = s
		return nil
	})
	return m, err
}
