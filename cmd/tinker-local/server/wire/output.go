package wire

import (
	"encoding/binary"
	"maps"
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"tinkerlocal/engine/api"
)

// recordType is the class name of loss outputs; clients show it and do nothing else with it.
const recordType = "ArrayRecord"

// EncodeForwardBackwardOutput writes the protobuf form of a result of forward_backward. Equal results give equal bytes. An
// error is Internal: the engine made something that clients would refuse.
func EncodeForwardBackwardOutput(out api.ForwardBackwardOutput) ([]byte, error) {
	metrics, err := reduced(out.Metrics)
	if err != nil {
		return nil, err
	}
	var records []record
	size := 64
	for lo := 0; lo < len(out.LossFnOutputs); {
		r, err := newRecord(out.LossFnOutputs, lo)
		if err != nil {
			return nil, err
		}
		if lo > 0 && !slices.Equal(r.names, records[0].names) {
			return nil, api.Errorf(api.Internal, "datum %d has the loss outputs %q, wanted %q, as datum 0 has", lo, r.names, records[0].names)
		}
		records = append(records, r)
		size += r.bytes + 16
		lo += len(r.datums)
	}
	kind := out.LossFnOutputType
	if kind == "" {
		kind = recordType
	}
	b := make([]byte, 0, size+32*len(metrics))
	b = appendString(b, outputType, kind)
	for _, r := range records {
		b = appendHeader(b, outputRecords, r.bytes)
		b = r.append(b)
	}
	for _, name := range slices.Sorted(maps.Keys(metrics)) {
		b = appendHeader(b, outputMetrics, sizeString(mapKey, name)+protowire.SizeTag(mapValue)+8)
		b = appendString(b, mapKey, name)
		b = protowire.AppendTag(b, mapValue, protowire.Fixed64Type)
		b = protowire.AppendFixed64(b, math.Float64bits(metrics[name]))
	}
	return b, nil
}

// reduced is metrics as clients demand them: name:reduction, with one colon. They merge the parts of a call by it. A plugin's
// metric may have no reduction; "unique" keeps the value of every part.
func reduced(metrics map[string]float64) (map[string]float64, error) {
	out := make(map[string]float64, len(metrics))
	for name, v := range metrics {
		switch n := strings.Count(name, ":"); n {
		case 0:
			name += ":unique"
		case 1:
		default:
			return nil, api.Errorf(api.Internal, "the metric %q has %d colons, wanted name:reduction", name, n)
		}
		out[name] = v
	}
	return out, nil
}

// record is a run of datums whose outputs agree in name, type and trailing dimensions.
type record struct {
	datums []map[string]api.TensorData
	names  []string // sorted
	fields []batched
	bytes  int // of the message
}

// batched is one output of all datums of a record.
type batched struct {
	kind       dtype
	trailing   []int // all dimensions but the first
	data       int   // bytes
	dimensions int   // bytes of the packed trailing_shape, without its header
}

// newRecord takes as many datums from lo on as fit together.
func newRecord(all []map[string]api.TensorData, lo int) (record, error) {
	r := record{names: slices.Sorted(maps.Keys(all[lo]))}
	r.fields = make([]batched, len(r.names))
	for i, name := range r.names {
		t := all[lo][name]
		f := &r.fields[i]
		f.kind = float32Type
		if t.Ints != nil {
			f.kind = int64Type
		}
		if dims := t.Dims(); len(dims) > 1 {
			f.trailing = dims[1:]
		}
		for _, d := range f.trailing {
			f.dimensions += protowire.SizeVarint(uint64(d))
		}
	}
	hi := lo
	for ; hi < len(all) && r.fits(all[hi]); hi++ {
		for i, name := range r.names {
			t := all[hi][name]
			if err := checkTensor(t); err != nil {
				return r, at(err, "datum %d: loss output %q", hi, name)
			}
			r.fields[i].data += t.Len() * r.fields[i].kind.bytes()
		}
	}
	r.datums = all[lo:hi]
	for i, name := range r.names {
		r.bytes += sizeMessage(recordFields, r.entryBytes(i, name))
	}
	r.bytes += sizeVarint(recordDatums, len(r.datums))
	return r, nil
}

// fits says whether a datum's outputs belong into r.
func (r record) fits(outputs map[string]api.TensorData) bool {
	if len(outputs) != len(r.names) {
		return false
	}
	for i, name := range r.names {
		t, ok := outputs[name]
		dims := t.Dims()
		if !ok || (t.Ints != nil) != (r.fields[i].kind == int64Type) || !slices.Equal(dims[min(1, len(dims)):], r.fields[i].trailing) {
			return false
		}
	}
	return true
}

// checkTensor compares a tensor's shape with its values.
func checkTensor(t api.TensorData) error {
	n := 1
	for _, d := range t.Dims() {
		n *= d
	}
	if n != t.Len() {
		return api.Errorf(api.Internal, "shape %v has %d values, the tensor has %d", t.Shape, n, t.Len())
	}
	return nil
}

// entryBytes is the size of field i as an entry of the map.
func (r record) entryBytes(i int, name string) int {
	return sizeString(mapKey, name) + sizeMessage(mapValue, r.batchedBytes(i))
}

func (r record) batchedBytes(i int) int {
	f := r.fields[i]
	n := sizeMessage(batchedData, f.data) + sizeMessage(batchedOffsets, 8*(len(r.datums)+1)) + sizeVarint(batchedDType, int(f.kind))
	if f.dimensions > 0 {
		n += sizeMessage(batchedTrailing, f.dimensions)
	}
	return n
}

func (r record) append(b []byte) []byte {
	for i, name := range r.names {
		f := r.fields[i]
		b = appendHeader(b, recordFields, r.entryBytes(i, name))
		b = appendString(b, mapKey, name)
		b = appendHeader(b, mapValue, r.batchedBytes(i))
		b = appendHeader(b, batchedData, f.data)
		for _, d := range r.datums {
			b = appendFloats(b, d[name].Floats)
			for _, v := range d[name].Ints {
				b = binary.LittleEndian.AppendUint64(b, uint64(v))
			}
		}
		b = appendHeader(b, batchedOffsets, 8*(len(r.datums)+1))
		offset := 0
		b = binary.LittleEndian.AppendUint64(b, 0)
		for _, d := range r.datums {
			offset += d[name].Len() * f.kind.bytes()
			b = binary.LittleEndian.AppendUint64(b, uint64(offset))
		}
		b = appendVarint(b, batchedDType, int(f.kind))
		if f.dimensions > 0 {
			b = appendHeader(b, batchedTrailing, f.dimensions)
			for _, d := range f.trailing {
				b = protowire.AppendVarint(b, uint64(d))
			}
		}
	}
	return appendVarint(b, recordDatums, len(r.datums))
}

func appendFloats(b []byte, v []float32) []byte {
	b = slices.Grow(b, 4*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return b
}

func appendInt32s(b []byte, v []int32) []byte {
	b = slices.Grow(b, 4*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, uint32(x))
	}
	return b
}

// appendHeader begins a field of the wire type of bytes; n bytes must follow.
func appendHeader(b []byte, num protowire.Number, n int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.BytesType), uint64(n))
}

func appendString(b []byte, num protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
}

func appendVarint(b []byte, num protowire.Number, v int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), uint64(v))
}

func sizeMessage(num protowire.Number, n int) int {
	return protowire.SizeTag(num) + protowire.SizeBytes(n)
}

func sizeString(num protowire.Number, s string) int { return sizeMessage(num, len(s)) }

func sizeVarint(num protowire.Number, v int) int {
	return protowire.SizeTag(num) + protowire.SizeVarint(uint64(v))
}
