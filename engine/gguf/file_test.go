package gguf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/gguf"
)

// meta has every type of value.
var meta = []gguf.KV{
	{Key: "general.architecture", Value: "llama"},
	{Key: "u8", Value: uint8(255)}, {Key: "i8", Value: int8(-128)}, {Key: "u16", Value: uint16(65535)}, {Key: "i16", Value: int16(-32768)},
	{Key: "u32", Value: uint32(math.MaxUint32)}, {Key: "i32", Value: int32(math.MinInt32)}, {Key: "u64", Value: uint64(math.MaxUint64)},
	{Key: "i64", Value: int64(math.MinInt64)}, {Key: "f32", Value: float32(-0.1)}, {Key: "f64", Value: math.Pi}, {Key: "yes", Value: true}, {Key: "no", Value: false},
	{Key: "text", Value: "ünïcode\x00and zeros"}, {Key: "none", Value: ""},
	{Key: "u8s", Value: []uint8{1, 2, 3}}, {Key: "i8s", Value: []int8{-1, 0, 1}}, {Key: "u16s", Value: []uint16{1, 65535}}, {Key: "i16s", Value: []int16{-2}},
	{Key: "u32s", Value: []uint32{7, 8}}, {Key: "i32s", Value: []int32{-7}}, {Key: "u64s", Value: []uint64{1 << 63}}, {Key: "i64s", Value: []int64{-1}},
	{Key: "f32s", Value: []float32{1, float32(math.Inf(1))}}, {Key: "f64s", Value: []float64{}}, {Key: "bools", Value: []bool{true, false, true}},
	{Key: "texts", Value: []string{"a", "", "ccc"}},
}

// ofBytes is a tensor of given bytes.
func ofBytes(name string, t gguf.Type, b []byte, shape ...int) gguf.Tensor {
	return gguf.Tensor{Name: name, Type: t, Shape: shape, Write: func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}}
}

// many has every type of element, sizes around the alignment, a scalar and nothing.
var many = []gguf.Tensor{
	ofBytes("f32", gguf.F32, bytes.Repeat([]byte{1, 2, 3, 4}, 24), 4, 1, 3, 2),
	ofBytes("f16", gguf.F16, []byte{0, 0x3c, 0, 0xc0}, 2),
	ofBytes("nothing", gguf.F32, nil, 3, 0),
	ofBytes("bf16", gguf.BF16, bytes.Repeat([]byte{0x80, 0x3f}, 16), 4, 4), // fills the alignment
	ofBytes("scalar", gguf.F64, make([]byte, 8)),
	ofBytes("i8", gguf.I8, []byte{1, 2, 3}, 3), ofBytes("i16", gguf.I16, make([]byte, 6), 3),
	ofBytes("i32", gguf.I32, make([]byte, 12), 3), ofBytes("i64", gguf.I64, make([]byte, 24), 3),
}

// TestRoundTrip: what is written comes back equal, and what is read is written again bit for bit.
func TestRoundTrip(t *testing.T) {
	for _, c := range []struct {
		name    string
		meta    []gguf.KV
		tensors []gguf.Tensor
		unit    int
	}{
		{"all types", meta, many, 32},
		{"nothing", nil, nil, 1},
		{"keys alone", meta, nil, 1},
		{"tensors alone", nil, many, 32},
		{"alignment 8", append(slices.Clone(meta), gguf.KV{Key: gguf.KeyAlignment, Value: uint32(8)}), many, 8},
		{"alignment 4096", []gguf.KV{{Key: gguf.KeyAlignment, Value: uint32(4096)}}, many, 4096},
	} {
		b := write(t, c.meta, c.tensors)
		if len(b)%c.unit != 0 {
			t.Errorf("%s: %d bytes, wanted a multiple of %d", c.name, len(b), c.unit)
		}
		f := parse(t, b)
		if len(f.Meta) != len(c.meta) || len(f.Tensors) != len(c.tensors) {
			t.Fatalf("%s: %d keys and %d tensors, want %d and %d", c.name, len(f.Meta), len(f.Tensors), len(c.meta), len(c.tensors))
		}
		for i, kv := range c.meta {
			if !reflect.DeepEqual(f.Meta[i], kv) || !reflect.DeepEqual(f.Value(kv.Key), kv.Value) {
				t.Errorf("%s: key %s is %T %v, want %T %v", c.name, f.Meta[i].Key, f.Meta[i].Value, f.Meta[i].Value, kv.Value, kv.Value)
			}
		}
		for i, x := range c.tensors {
			y := f.Tensors[i]
			if x.Name != y.Name || x.Type != y.Type || !slices.Equal(x.Shape, y.Shape) || !bytes.Equal(raw(t, x), raw(t, y)) {
				t.Errorf("%s: tensor %s %v%v differs from %s %v%v", c.name, y.Name, y.Type, y.Shape, x.Name, x.Type, x.Shape)
			}
		}
		if !bytes.Equal(write(t, f.Meta, f.Tensors), b) {
			t.Errorf("%s: written again, the bytes differ", c.name)
		}
	}
}

// TestForeignRoundTrip writes files of llama.cpp's Python code again, bit for bit, through a file on disk.
func TestForeignRoundTrip(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join("testdata", "converted", "*.gguf"))
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	for _, path := range paths {
		f, err := gguf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(write(t, f.Meta, f.Tensors), want) {
			t.Errorf("%s: written again, the bytes differ", path)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestFloat32s(t *testing.T) {
	for _, c := range []struct {
		x    gguf.Tensor
		want []float32
	}{
		{ofBytes("f32", gguf.F32, []byte{0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0}, 2), []float32{1, -2}},
		{ofBytes("f16", gguf.F16, []byte{0, 0x3c, 1, 0}, 2), []float32{1, 1.0 / (1 << 24)}},
		{ofBytes("bf16", gguf.BF16, []byte{0x80, 0x3f, 0, 0xc0}, 2), []float32{1, -2}},
		{ofBytes("nothing", gguf.F32, nil, 0), []float32{}},
	} {
		if got, err := c.x.Float32s(); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s is %v (%v), want %v", c.x.Name, got, err, c.want)
		}
	}
	_, err := ofBytes("i8", gguf.I8, []byte{1}, 1).Float32s()
	expect(t, "i8", err, api.Unsupported, `tensor "i8" is I8, wanted F32, F16 or BF16`)
	_, err = ofBytes("short", gguf.F32, []byte{1}, 1).Float32s()
	expect(t, "short", err, api.BadRequest, `tensor "short": 1 bytes, wanted 4 for F32[1]`)
}

// failing is a full disk after n bytes.
type failing struct{ n int }

var errFull = errors.New("disk full")

func (f *failing) Write(b []byte) (int, error) {
	if f.n -= len(b); f.n < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestWriteRefuses(t *testing.T) {
	long := strings.Repeat("x", 64)
	one := []byte{1, 2, 3, 4}
	for _, c := range []struct {
		name    string
		meta    []gguf.KV
		tensors []gguf.Tensor
		code    api.Code
		want    string
	}{
		{"no key", []gguf.KV{{Key: "", Value: "x"}}, nil, api.BadRequest, `key "" has 0 bytes, wanted 1 to 65535`},
		{"key", []gguf.KV{{Key: "ü", Value: "x"}}, nil, api.BadRequest, `key "ü" is not printable ASCII`},
		{"twice", []gguf.KV{{Key: "a", Value: "x"}, {Key: "a", Value: "y"}}, nil, api.BadRequest, `key "a" appears twice`},
		{"no value", []gguf.KV{{Key: "a"}}, nil, api.BadRequest, `key "a" has no value`},
		{"int", []gguf.KV{{Key: "a", Value: 1}}, nil, api.BadRequest, `key "a": a Go value of type int cannot be in a file`},
		{"lists", []gguf.KV{{Key: "a", Value: [][]string{}}}, nil, api.BadRequest, `key "a": a Go value of type [][]string cannot be in a file`},
		{"alignment", []gguf.KV{{Key: gguf.KeyAlignment, Value: uint32(24)}}, nil, api.BadRequest,
			`key "general.alignment" is uint32 24, wanted an uint32 that is a power of 2 from 8 to 65536`},
		{"alignment type", []gguf.KV{{Key: gguf.KeyAlignment, Value: int32(32)}}, nil, api.BadRequest,
			`key "general.alignment" is int32 32, wanted an uint32 that is a power of 2 from 8 to 65536`},
		{"no name", nil, []gguf.Tensor{ofBytes("", gguf.F32, one, 1)}, api.BadRequest, `tensor "": a name of 0 bytes, wanted 1 to 63`},
		{"long name", nil, []gguf.Tensor{ofBytes(long, gguf.F32, one, 1)}, api.BadRequest, `tensor "` + long + `": a name of 64 bytes, wanted 1 to 63`},
		{"two tensors", nil, []gguf.Tensor{ofBytes("a", gguf.F32, one, 1), ofBytes("a", gguf.F32, one, 1)}, api.BadRequest, `tensor "a" appears twice`},
		{"quantised", nil, []gguf.Tensor{ofBytes("a", 8, nil, 32)}, api.Unsupported, `tensor "a": type 8 is quantised or unknown, wanted F32, F16 or BF16`},
		{"dimensions", nil, []gguf.Tensor{ofBytes("a", gguf.F32, one, 1, 1, 1, 1, 1)}, api.BadRequest, `tensor "a": 5 dimensions, wanted at most 4`},
		{"negative", nil, []gguf.Tensor{ofBytes("a", gguf.F32, one, -1)}, api.BadRequest, `tensor "a": shape [-1] is negative or too large`},
		{"overflow", nil, []gguf.Tensor{ofBytes("a", gguf.F32, one, 1<<31, 1<<31, 0)}, api.BadRequest, `tensor "a": shape [2147483648 2147483648 0] is negative or too large`},
		{"sum", nil, []gguf.Tensor{ofBytes("a", gguf.I8, one, 1<<61), ofBytes("b", gguf.I8, one, 1<<61)}, api.BadRequest, `tensor "b": the file is too large`},
		{"too few bytes", nil, []gguf.Tensor{ofBytes("a", gguf.F32, one, 2)}, api.BadRequest, `tensor "a": 4 bytes were written, wanted 8 for F32[2]`},
		{"too many bytes", nil, []gguf.Tensor{ofBytes("a", gguf.F16, one, 1)}, api.BadRequest, `tensor "a": 4 bytes were written, wanted 2 for F16[1]`},
	} {
		expect(t, c.name, gguf.Write(io.Discard, c.meta, c.tensors), c.code, c.want)
	}
	whole := len(write(t, meta, many))
	for n := range whole {
		if err := gguf.Write(&failing{n}, meta, many); !errors.Is(err, errFull) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
	if err := gguf.Write(&failing{whole}, meta, many); err != nil {
		t.Error(err)
	}
}

// TestSizeOnly: a file that is larger than memory is laid out without a byte of it.
func TestSizeOnly(t *testing.T) {
	size, err := gguf.Size(nil, []gguf.Tensor{{Name: "a", Type: gguf.F32, Shape: []int{1 << 20, 1 << 20}}})
	if err != nil || size != 4<<40+96 {
		t.Errorf("%d, %v", size, err)
	}
}

// text builds files by hand, so that a fault shared by reader and writer shows.
type text []byte

func begin(tensors, keys uint64) text { return text("GGUF\x03\x00\x00\x00").u64(tensors).u64(keys) }

func (b text) u32(v uint32) text { return binary.LittleEndian.AppendUint32(b, v) }
func (b text) u64(v uint64) text { return binary.LittleEndian.AppendUint64(b, v) }
func (b text) s(s string) text   { return append(b.u64(uint64(len(s))), s...) }

// tensor adds an entry with sizes innermost first.
func (b text) tensor(name string, kind uint32, offset uint64, sizes ...uint64) text {
	b = b.s(name).u32(uint32(len(sizes)))
	for _, n := range sizes {
		b = b.u64(n)
	}
	return b.u32(kind).u64(offset)
}

// data pads to 32 and adds n bytes.
func (b text) data(n int) text {
	for len(b)%32 != 0 {
		b = append(b, 0)
	}
	return append(b, make([]byte, n)...)
}

// hostile are files with what is wrong with them; it is also the fuzzer's first corpus.
var hostile = []struct {
	name string
	file []byte
	code api.Code
	want string // "": nothing
}{
	{"good", begin(1, 1).s("k").u32(4).u32(7).tensor("a", 0, 0, 2, 3).data(32), "", ""},
	{"version 2", append([]byte("GGUF\x02"), begin(0, 0)[5:]...), "", ""},
	{"no padding at the end", begin(1, 0).tensor("a", 0, 0, 1).data(4), "", ""},
	{"empty file", nil, api.BadRequest, `it does not begin with "GGUF": not a GGUF file`},
	{"safetensors", []byte("\x02\x00\x00\x00\x00\x00\x00\x00{}"), api.BadRequest, `it does not begin with "GGUF": not a GGUF file`},
	{"version 1", []byte("GGUF\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), api.Unsupported, "GGUF version 1, wanted 2 or 3"},
	{"big endian", []byte("GGUF\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00"), api.Unsupported, "a big-endian GGUF file, wanted little endian"},
	{"many keys", begin(0, math.MaxUint64), api.BadRequest, "the header wants 8 bytes at byte 24, but ends at 24: the file is cut off or damaged"},
	{"many tensors", begin(math.MaxUint64, 0), api.BadRequest, "the header wants 8 bytes at byte 24, but ends at 24: the file is cut off or damaged"},
	{"long key", begin(0, 1).u64(math.MaxUint64), api.BadRequest, "the header wants 18446744073709551615 bytes at byte 32, but ends at 32: the file is cut off or damaged"},
	{"empty key", begin(0, 1).s("").u32(4).u32(0), api.BadRequest, `key "" has 0 bytes, wanted 1 to 65535`},
	{"value cut off", begin(0, 1).s("k").u32(4), api.BadRequest, "the header wants 4 bytes at byte 37, but ends at 37: the file is cut off or damaged"},
	{"key twice", begin(0, 2).s("k").u32(4).u32(0).s("k"), api.BadRequest, `key "k" appears twice`},
	{"value type", begin(0, 1).s("k").u32(13), api.BadRequest, "value type 13 near byte 37 of the header is unknown"},
	{"array of arrays", begin(0, 1).s("k").u32(9).u32(9).u64(0), api.BadRequest, "value type 9 near byte 49 of the header is unknown"},
	{"long array", begin(0, 1).s("k").u32(9).u32(12).u64(1 << 61), api.BadRequest, "the header wants 2305843009213693952 bytes at byte 49, but ends at 49: the file is cut off or damaged"},
	{"many strings", begin(0, 1).s("k").u32(9).u32(8).u64(1 << 20), api.BadRequest, "the header wants 8388608 bytes at byte 49, but ends at 49: the file is cut off or damaged"},
	{"bool", append(begin(0, 1).s("k").u32(7), 2), api.BadRequest, "a bool that ends before byte 38 of the header is neither 0 nor 1"},
	{"alignment 0", begin(0, 1).s("general.alignment").u32(4).u32(0), api.BadRequest,
		`key "general.alignment" is uint32 0, wanted an uint32 that is a power of 2 from 8 to 65536`},
	{"dimensions", begin(1, 0).s("a").u32(5), api.BadRequest, `tensor "a": 5 dimensions, wanted at most 4`},
	{"dimension", begin(1, 0).tensor("a", 0, 0, math.MaxUint64).data(32), api.BadRequest, `tensor "a": dimension 0 is 18446744073709551615: too large`},
	{"overflow", begin(1, 0).tensor("a", 0, 0, 1<<40, 1<<40).data(32), api.BadRequest, `tensor "a": shape [1099511627776 1099511627776] is negative or too large`},
	{"hidden overflow", begin(1, 0).tensor("a", 0, 0, 0, 1<<40, 1<<40).data(32), api.BadRequest, `tensor "a": shape [1099511627776 1099511627776 0] is negative or too large`},
	{"type", begin(1, 0).tensor("a", 12, 0, 256).data(160), api.Unsupported, `tensor "a": type 12 is quantised or unknown, wanted F32, F16 or BF16`},
	{"name", begin(1, 0).tensor("", 0, 0, 1).data(32), api.BadRequest, `tensor "": a name of 0 bytes, wanted 1 to 63`},
	{"tensor twice", begin(2, 0).tensor("a", 0, 0, 1).tensor("a", 0, 32, 1).data(64), api.BadRequest, `tensor "a" appears twice`},
	{"overlap", begin(2, 0).tensor("a", 0, 0, 1).tensor("b", 0, 0, 1).data(64), api.BadRequest, `tensor "b" begins at 0, wanted 32: after the tensor before it and its padding`},
	{"hole", begin(2, 0).tensor("a", 0, 0, 1).tensor("b", 0, 64, 1).data(96), api.BadRequest, `tensor "b" begins at 64, wanted 32: after the tensor before it and its padding`},
	{"larger than the file", begin(1, 0).tensor("a", 0, 0, 1<<40).data(32), api.BadRequest, `tensor "a": F32[1099511627776] takes 4398046511104 bytes at 0, but the file has 96: it is cut off`},
	{"cut off", begin(1, 0).tensor("a", 0, 0, 2).data(7), api.BadRequest, "the tensors end at byte 72, but the file has 71: it is cut off"},
	{"more data", begin(1, 0).tensor("a", 0, 0, 2).data(33), api.BadRequest, "the tensors end at byte 72, but the file has 97"},
}

func TestHostile(t *testing.T) {
	for _, c := range hostile {
		_, err := gguf.Parse(c.file)
		expect(t, c.name, err, c.code, c.want)
		if c.want == "" {
			continue
		}
		path := filepath.Join(t.TempDir(), "x.gguf")
		if err := os.WriteFile(path, c.file, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = gguf.Open(path)
		expect(t, c.name, err, c.code, path+": "+c.want)
	}
	_, err := gguf.Open(filepath.Join(t.TempDir(), "none"))
	if api.CodeOf(err) != api.NotFound {
		t.Errorf("no file: %v", err)
	}
	if _, err = gguf.Open(t.TempDir()); api.CodeOf(err) != api.BadRequest {
		t.Errorf("folder: %v", err)
	}
}

// TestCutOff: no beginning of a file is a file, but for the padding of its last tensor.
func TestCutOff(t *testing.T) {
	b := write(t, meta, many[:2])
	for n := range len(b) - 28 {
		if _, err := gguf.Parse(b[:n]); api.CodeOf(err) != api.BadRequest {
			t.Fatalf("%d of %d bytes: %v", n, len(b), err)
		}
	}
}

// TestChanged: a file that shrinks while it is read says so.
func TestChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.gguf")
	b := write(t, nil, many)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Truncate(path, int64(len(b)-40)); err != nil {
		t.Skip("an open file cannot be shortened here: ", err)
	}
	err = f.Tensors[len(f.Tensors)-1].Write(io.Discard)
	expect(t, "last tensor", err, api.DataLoss, `tensor "i64": 0 of 24 bytes are there: the file was changed while it was read`)
}

// TestMemory: the densest headers, and those that announce more than they have, take a small multiple of the file's size.
func TestMemory(t *testing.T) {
	const n = 20_000
	keys, tensors, texts := begin(0, n), begin(n, 0), begin(0, 1).s("k").u32(9).u32(8).u64(n)
	for i := range n {
		name := strconv.FormatInt(int64(i), 36)
		keys = append(keys.s(name).u32(0), 1)
		tensors = tensors.tensor(name, 0, 0, 0) // of nothing, so that all begin at 0
		texts = texts.s("")
	}
	for _, c := range []struct {
		name string
		file []byte
	}{
		{"keys", keys}, {"tensors", tensors}, {"strings", texts},
		{"strings announced", append(begin(0, 1).s("k").u32(9).u32(8).u64(n), make([]byte, 8*n-1)...)},
		{"numbers announced", append(begin(0, 1).s("k").u32(9).u32(12).u64(n+1), make([]byte, 8*n)...)},
		{"string announced", append(begin(0, 1).u64(1<<40), make([]byte, 8*n)...)},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = gguf.Parse(c.file)
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > uint64(32*len(c.file)+1<<20) {
			t.Errorf("%s: %d bytes for a file of %d", c.name, took, len(c.file))
		}
	}
}

// FuzzParse: a file that is read is covered by its tensors, and comes back from the writer with the same contents.
func FuzzParse(f *testing.F) {
	for _, c := range hostile {
		f.Add(c.file)
	}
	f.Add(write(f, meta, many))
	for _, folder := range []string{"ours", "converted"} {
		paths, err := filepath.Glob(filepath.Join("testdata", folder, "q*.gguf"))
		if err != nil || len(paths) == 0 {
			f.Fatal(folder, err)
		}
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := gguf.Parse(b)
		if err != nil {
			var e *api.Error
			if !errors.As(err, &e) {
				t.Fatalf("an error without a code: %v", err)
			}
			return
		}
		total := 0
		for _, tensor := range x.Tensors {
			n, err := tensor.Size()
			if got := raw(t, tensor); err != nil || int64(len(got)) != n {
				t.Fatalf("%s: %d bytes, want %d (%v)", tensor.Name, len(got), n, err)
			}
			if v, err := tensor.Float32s(); err == nil && len(v) > len(b) {
				t.Fatalf("%s: %d values", tensor.Name, len(v))
			}
			total += int(n)
		}
		if total > len(b) {
			t.Fatalf("%d bytes of data in a file of %d", total, len(b))
		}
		again := write(t, x.Meta, x.Tensors)
		y := parse(t, again)
		if !equal(x.Meta, y.Meta) || len(x.Tensors) != len(y.Tensors) {
			t.Fatal("the file comes back with other contents")
		}
		if third := write(t, y.Meta, y.Tensors); !bytes.Equal(again, third) {
			t.Fatal("written again, the bytes differ")
		}
	})
}

// equal compares bits, so that a NaN equals itself.
func equal(a, b []gguf.KV) bool {
	one, err := gguf.Size(a, nil)
	two, err2 := gguf.Size(b, nil)
	var x, y bytes.Buffer
	return err == nil && err2 == nil && one == two && gguf.Write(&x, a, nil) == nil && gguf.Write(&y, b, nil) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}
