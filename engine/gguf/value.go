package gguf

import (
	"encoding/binary"
	"math/bits"
	"reflect"
	"slices"
)

// KV is one key of the metadata. Value is an uint8, int8, uint16, int16, uint32, int32, uint64, int64, float32, float64, bool or string, or
// a slice of one of these. Arrays of arrays are not supported; llama.cpp does not read them either.
type KV struct {
	Key   string
	Value any
}

// Keys of the format and of adapters.
const (
	KeyArchitecture = "general.architecture"
	KeyType         = "general.type"
	KeyName         = "general.name"
	KeyAlignment    = "general.alignment"
	KeyAdapterType  = "adapter.type"
	KeyLoraAlpha    = "adapter.lora.alpha"
)

// kinds lists the types of values by their numbers in the file; the gap is the array's.
var kinds = []reflect.Type{
	reflect.TypeFor[uint8](), reflect.TypeFor[int8](), reflect.TypeFor[uint16](), reflect.TypeFor[int16](),
	reflect.TypeFor[uint32](), reflect.TypeFor[int32](), reflect.TypeFor[float32](),
	boolKind:   reflect.TypeFor[bool](),
	stringKind: reflect.TypeFor[string](),
	arrayKind:  nil,
	10:         reflect.TypeFor[uint64](), 11: reflect.TypeFor[int64](), 12: reflect.TypeFor[float64](),
}

const (
	boolKind   = 7
	stringKind = 8
	arrayKind  = 9
)

// appendValue appends the number of a value's type, and the value.
func appendValue(b []byte, kv KV) ([]byte, error) {
	le := binary.LittleEndian
	v := reflect.ValueOf(kv.Value)
	if !v.IsValid() {
		return nil, bad("key %s has no value", quote(kv.Key))
	}
	t, array := v.Type(), v.Kind() == reflect.Slice
	if array {
		t = t.Elem()
	}
	kind := slices.Index(kinds, t)
	if kind < 0 {
		return nil, bad("key %s: a Go value of type %T cannot be in a file", quote(kv.Key), kv.Value)
	}
	if array {
		b = le.AppendUint32(b, arrayKind)
	}
	b = le.AppendUint32(b, uint32(kind))
	if array {
		b = le.AppendUint64(b, uint64(v.Len()))
	}
	switch s := kv.Value.(type) {
	case string:
		return appendString(b, s), nil
	case []string:
		for _, s := range s {
			b = appendString(b, s)
		}
		return b, nil
	}
	return binary.Append(b, le, kv.Value)
}

func appendString(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}

// value reads what appendValue writes.
func (c *cursor) value() any {
	kind := c.uint32()
	if kind != arrayKind {
		if list := c.list(kind, 1); list.IsValid() {
			return list.Index(0).Interface()
		}
		return nil
	}
	kind = c.uint32()
	if list := c.list(kind, c.uint64()); list.IsValid() {
		return list.Interface()
	}
	return nil
}

// list reads n values of a kind as a slice; after a fault it is invalid.
func (c *cursor) list(kind uint32, n uint64) (list reflect.Value) {
	if c.err == nil && (kind >= uint32(len(kinds)) || kinds[kind] == nil) {
		c.err = bad("value type %d near byte %d of the header is unknown", kind, c.at)
	}
	if c.err != nil {
		return list
	}
	width := uint64(8) // a string takes at least its length
	if kind != stringKind {
		width = uint64(kinds[kind].Size())
	}
	high, size := bits.Mul64(n, width)
	if high != 0 || !c.has(size) {
		c.short(max(size, n))
		return list
	}
	if kind == stringKind {
		texts := make([]string, n)
		for i := range texts {
			texts[i] = c.string()
		}
		list = reflect.ValueOf(texts)
	} else {
		raw := c.bytes(size)
		if kind == boolKind && c.err == nil && slices.ContainsFunc(raw, func(b byte) bool { return b > 1 }) {
			c.err = bad("a bool that ends before byte %d of the header is neither 0 nor 1", c.at)
		}
		list = reflect.MakeSlice(reflect.SliceOf(kinds[kind]), int(n), int(n))
		if c.err == nil {
			_, c.err = binary.Decode(raw, binary.LittleEndian, list.Interface())
		}
	}
	if c.err != nil {
		return reflect.Value{}
	}
	return list
}
