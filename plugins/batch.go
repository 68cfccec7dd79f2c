package plugins

import (
	"encoding/json"
	"fmt"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
)

// batch is a user's call, checked and ready to be cut.
type batch struct {
	data     []api.Datum
	logProbs [][]float32
	dims     [][2]uint32 // of each datum's targets
	inputs   []values    // as declared
	elems    int
	groups   []uint32 // of each datum, numbered by first appearance; nil without grouping
	nGroups  int
	params   []float64
	config   []byte // canonical JSON
	evaluate bool   // the weights are not wanted
}

// values are one input of all datums. Each datum keeps its tensors in a map, and to look one up takes longer than to copy it: this is done once.
type values struct {
	floats [][]float32 // of each datum, if the dtype is float32
	ints   [][]int64   // likewise, int64
	spans  []extent    // likewise; nil if all datums have the input, in the shape of their targets
}

// extent is what a datum has of an input.
type extent struct {
	dims    [2]uint32
	present bool
}

// newValues has room for the inputs of n datums.
func (m *Meta) newValues(n int) []values {
	out := make([]values, len(m.Inputs))
	for i := range out {
		if in := &m.Inputs[i]; in.DType == "int64" {
			out[i].ints = make([][]int64, n)
		} else {
			out[i].floats = make([][]float32, n)
		}
		if m.Inputs[i].ownSpans() {
			out[i].spans = make([]extent, n)
		}
	}
	return out
}

// elems counts the elements of datums lo to hi.
func (v *values) elems(lo, hi int) (n int) {
	if v.ints != nil {
		for _, x := range v.ints[lo:hi] {
			n += len(x)
		}
		return n
	}
	for _, x := range v.floats[lo:hi] {
		n += len(x)
	}
	return n
}

// chunk is a part of a batch in one request.
type chunk struct {
	index  int
	lo, hi int // datums
	elems  int
	first  uint32 // group of the first datum
	groups int
}

// prepare checks a batch against the metadata, and lays out what all its chunks share. logProbs are nil before they are known; then
// the inputs' values are looked at, too.
func (m *Meta) prepare(data []api.Datum, logProbs [][]float32, config map[string]float64) (*batch, error) {
	b := &batch{data: data, logProbs: logProbs, dims: make([][2]uint32, len(data)), inputs: m.newValues(len(data))}
	var err error
	if b.params, err = m.params(config); err != nil {
		return nil, err
	}
	whole := make(map[string]float64, len(m.Params))
	for i, p := range m.Params {
		whole[p.Name] = b.params[i]
	}
	if b.config, err = json.Marshal(whole); err != nil { // keys in order, no spaces
		return nil, err
	}
	if len(data) == 0 {
		return nil, bad("the batch is empty")
	}
	if logProbs != nil && len(logProbs) != len(data) {
		return nil, api.Errorf(api.Internal, "log-probabilities of %d datums for a batch of %d", len(logProbs), len(data))
	}
	for i := range data {
		if err = m.datum(b, i); err != nil {
			return nil, bad("datum %d: %w", i, err)
		}
		n := int(b.dims[i][0]) * int(b.dims[i][1])
		if logProbs != nil && len(logProbs[i]) != n {
			return nil, api.Errorf(api.Internal, "datum %d: %d log-probabilities for %d targets", i, len(logProbs[i]), n)
		}
		b.elems += n
	}
	return b, m.group(b)
}

// datum checks one datum's tensors, and notes down where they are.
func (m *Meta) datum(b *batch, i int) (err error) {
	tensors := b.data[i].LossInputs
	targets, ok := tensors["target_tokens"]
	if !ok {
		return bad("target_tokens is missing")
	}
	dims, err := twoDims(&targets)
	if err != nil {
		return bad("target_tokens has %w", err)
	}
	b.dims[i] = dims
	met := 1 // of the datum's tensors
	for k := range m.Inputs {
		in, to := &m.Inputs[k], &b.inputs[k]
		t, ok := targets, true
		if in.Name != "target_tokens" {
			if ok = met < len(tensors); ok { // else there are no others
				t, ok = tensors[in.Name]
			}
			if !ok && in.Optional {
				continue
			} else if !ok {
				return bad("%s is missing", in.Name)
			}
			met++
		}
		got, err := in.accepts(&t, dims)
		if err != nil {
			return bad("%s %w", in.Name, err)
		}
		if b.logProbs == nil {
			if j := slices.IndexFunc(t.Floats, func(v float32) bool { return v-v != 0 }); j >= 0 {
				return bad("%s has %v at %d, wanted finite numbers", in.Name, t.Floats[j], j)
			}
		}
		if to.ints != nil {
			to.ints[i] = t.Ints
		} else {
			to.floats[i] = t.Floats
		}
		if to.spans != nil {
			to.spans[i] = extent{got, true}
		}
	}
	if met < len(tensors) {
		for _, name := range sortedNames(tensors) {
			if !slices.Contains(usualInputs, name) && !slices.ContainsFunc(m.Inputs, func(i Input) bool { return i.Name == name }) {
				return bad("%s does not know the input %q", m.Name, name)
			}
		}
	}
	return nil
}

// usualInputs are the inputs of the built-in losses, which datums have whatever the loss is. A plugin that does not declare them does not get
// them; any other name that it does not declare is refused, since it may be an optional one that is misspelt.
var usualInputs = []string{"target_tokens", "weights", "logprobs", "advantages", "mask"}

// twoDims are a tensor's dimensions as the ABI has them: one dimension is [T, 1].
func twoDims(t *api.TensorData) (dims [2]uint32, err error) {
	shape := t.Shape
	if shape == nil { // not Dims: it allocates, for each tensor of each datum
		return [2]uint32{uint32(t.Len()), 1}, nil
	}
	dims = [2]uint32{1, 1}
	n := int64(1)
	for i, v := range shape {
		if i > 1 || v < 0 || v > 1<<28 {
			return dims, fmt.Errorf("shape %v, wanted one or two dimensions", shape)
		}
		dims[i] = uint32(v)
		n *= int64(v)
	}
	if n != int64(t.Len()) {
		return dims, fmt.Errorf("shape %v, but holds %d values", shape, t.Len())
	}
	return dims, nil
}

// accepts returns a tensor's dimensions, or what is wrong with it, as the rest of a sentence that begins with its name.
func (i *Input) accepts(t *api.TensorData, targets [2]uint32) (dims [2]uint32, err error) {
	// An empty tensor has no dtype on its own.
	if t.Len() > 0 && t.DType() != i.DType {
		return dims, bad("is %s, wanted %s", t.DType(), i.DType)
	}
	if dims, err = twoDims(t); err != nil {
		return dims, bad("has %w", err)
	}
	want := dims
	switch {
	case i.Like != "":
		want = targets
	case i.Shape != nil:
		want = [2]uint32{uint32(i.Shape[0]), 1}
		if len(i.Shape) == 2 {
			want[1] = uint32(i.Shape[1])
		}
	}
	if dims != want {
		if i.Like != "" {
			return dims, bad("has shape %v, target_tokens has %v", t.Dims(), plainDims(want))
		}
		return dims, bad("has shape %v, wanted %v", t.Dims(), i.Shape)
	}
	return dims, nil
}

func plainDims(d [2]uint32) []uint32 {
	if d[1] == 1 {
		return d[:1]
	}
	return d[:]
}

// group numbers the groups by first appearance.
func (m *Meta) group(b *batch) error {
	g := m.Grouping
	if g == nil {
		return nil
	}
	b.groups = make([]uint32, len(b.data))
	if g.By == "consecutive" {
		if rest := len(b.data) % g.Size; rest != 0 {
			return bad("the batch has %d datums, %s takes them %d at a time", len(b.data), m.Name, g.Size)
		}
		for i := range b.groups {
			b.groups[i] = uint32(i / g.Size)
		}
		b.nGroups = len(b.data) / g.Size
		return nil
	}
	number := map[int64]uint32{}
	keys := b.inputs[slices.IndexFunc(m.Inputs, func(in Input) bool { return in.Name == g.Name })].ints
	for i := range b.data {
		key := keys[i][0]
		n, known := number[key]
		if !known {
			n = uint32(len(number))
			number[key] = n
		}
		b.groups[i] = n
	}
	b.nGroups = len(number)
	return nil
}

// cut divides a batch into chunks of about chunkElements log-probabilities, where the scope allows it. It depends on the batch alone.
func (m *Meta) cut(b *batch, most int) []chunk {
	if m.Scope == ScopeBatch {
		return []chunk{{hi: len(b.data), elems: b.elems, groups: b.nGroups}}
	}
	// A group may not go on in another chunk: last says where each one ends.
	last := make([]int, b.nGroups)
	for i, g := range b.groups {
		last[g] = i
	}
	var out []chunk
	c := chunk{}
	unit, groups := 0, 0 // elements and groups since the last border
	open := -1           // the last datum of the groups met so far
	for i := range b.data {
		unit += int(b.dims[i][0]) * int(b.dims[i][1])
		if b.groups != nil {
			if end := last[b.groups[i]]; end > open {
				open = end
			}
			if last[b.groups[i]] == i {
				groups++
			}
			if open > i {
				continue
			}
		}
		if c.elems > 0 && c.elems+unit > most {
			out = append(out, c)
			c = chunk{index: c.index + 1, lo: c.hi, hi: c.hi}
		}
		c.hi = i + 1
		c.elems += unit
		c.groups += groups
		unit, groups = 0, 0
	}
	out = append(out, c)
	if b.groups != nil {
		first := uint32(0)
		for i := range out {
			out[i].first = first
			first += uint32(out[i].groups)
		}
	}
	return out
}

// input is a batch as the engine gives it.
func (m *Meta) input(in loss.Input) (*batch, error) {
	return m.prepare(in.Data, in.LogProbs, in.Config)
}
