package hf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"tinkerlocal/engine/api"
)

// file puts a header and n bytes of data together.
func file(header string, n int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, n)...)
}

// entry is a header's member for one tensor.
func entry(name, dtype, shape string, begin, end uint64) string {
	return fmt.Sprintf(`%q:{"dtype":%q,"shape":%s,"data_offsets":[%d,%d]}`, name, dtype, shape, begin, end)
}

func expect(t *testing.T, name string, err error, code api.Code, want string) {
	t.Helper()
	var e *api.Error
	switch {
	case want == "" && err == nil:
	case err == nil:
		t.Errorf("%s: no error, want %q", name, want)
	case want == "":
		t.Errorf("%s: %v", name, err)
	case strings.HasSuffix(want, "*") && strings.HasPrefix(err.Error(), strings.TrimSuffix(want, "*")): // the rest is encoding/json's
	case err.Error() != want:
		t.Errorf("%s:\n got %s\nwant %s", name, err, want)
	case !errors.As(err, &e) || e.Code != code:
		t.Errorf("%s: code %s, want %s", name, api.CodeOf(err), code)
	}
}

// hostileFiles are weights files with what is wrong with them; it is also the fuzzer's first corpus.
var hostileFiles = []struct {
	name string
	file []byte
	want string // "": nothing
}{
	{"good", file("{"+entry("a", "F32", "[2,3]", 0, 24)+","+entry("b", "F16", "[]", 24, 26)+"}  ", 26), ""},
	{"no tensors", file("{}", 0), ""},
	{"out of order", file("{"+entry("a", "F32", "[1]", 4, 8)+","+entry("b", "F32", "[1]", 0, 4)+"}", 8), ""},
	{"empty tensors", file("{"+entry("a", "F32", "[0,9]", 0, 0)+","+entry("c", "F32", "[1]", 0, 4)+","+entry("b", "F32", "[0]", 4, 4)+"}", 4), ""},
	{"no file", nil, "0 bytes, wanted at least the 8 of a header length: not a safetensors file, or cut off"},
	{"short", []byte{1, 2, 3}, "3 bytes, wanted at least the 8 of a header length: not a safetensors file, or cut off"},
	{"huge header", []byte("\xff\xff\xff\xff\xff\xff\xff\x7f{}"), "header length 9223372036854775807, wanted at most 100000000: not a safetensors file"},
	{"header over the limit", binary.LittleEndian.AppendUint64(nil, maxHeader+1), "header length 100000001, wanted at most 100000000: not a safetensors file"},
	{"header cut off", file("{}", 0)[:9], "header length 2, but only 1 bytes follow: the file is cut off"},
	{"empty header", file("", 4), "the header does not begin with {: not a safetensors file"},
	{"leading space", file(" {}", 0), "the header does not begin with {: not a safetensors file"},
	{"git lfs pointer", []byte("version https://git-lfs.github.com/spec/v1\n"), "header length 2336927755350992246, wanted at most 100000000: not a safetensors file"},
	{"bad json", file(`{"a"}`, 0), "header: invalid json near byte *"},
	{"json ends", file(`{"a":`, 0), "header: invalid json: it ends too early"},
	{"trailing comma", file(`{`+entry("a", "F32", "[1]", 0, 4)+`,}`, 4), "header: invalid json near byte *"},
	{"more text", file(`{}x`, 0), "header: invalid json: more text after the object"},
	{"not utf-8", file("{\"\xff\":1}", 0), "header: invalid json: not UTF-8"},
	{"twice", file("{"+entry("a", "F32", "[1]", 0, 4)+","+entry("a", "F32", "[1]", 4, 8)+"}", 8), `header: "a" appears twice`},
	{"twice, escaped", file("{"+entry("a", "F32", "[1]", 0, 4)+`,"\u0061":{}}`, 8), `header: "a" appears twice`},
	{"metadata number", file(`{"__metadata__":{"n":1}}`, 0), `header: __metadata__: "n" is 1, wanted a string`},
	{"metadata null", file(`{"__metadata__":{"n":null}}`, 0), `header: __metadata__: "n" is null, wanted a string`},
	{"metadata list", file(`{"__metadata__":[]}`, 0), "header: __metadata__: wanted a json object, got []"},
	{"entry is null", file(`{"a":null}`, 0), `header: tensor "a": wanted a json object, got null`},
	{"unknown key", file(`{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"x":1}}`, 4), `header: tensor "a": unknown key "x"`},
	{"other spelling", file(`{"a":{"DType":"F32","shape":[],"data_offsets":[0,4]}}`, 4), `header: tensor "a": unknown key "DType"`},
	{"key twice", file(`{"a":{"dtype":"F32","dtype":"F16","shape":[],"data_offsets":[0,4]}}`, 4), `header: tensor "a": "dtype" appears twice`},
	{"no dtype", file(`{"a":{"shape":[],"data_offsets":[0,4]}}`, 4), `header: tensor "a": dtype is missing`},
	{"no shape", file(`{"a":{"dtype":"F32","data_offsets":[0,4]}}`, 4), `header: tensor "a": shape is missing`},
	{"no offsets", file(`{"a":{"dtype":"F32","shape":[]}}`, 4), `header: tensor "a": data_offsets is missing`},
	{"unknown dtype", file("{"+entry("a", "F128", "[1]", 0, 16)+"}", 16), `header: tensor "a": dtype "F128" is unknown`},
	{"dtype is a number", file(`{"a":{"dtype":4,"shape":[],"data_offsets":[0,4]}}`, 4), `header: tensor "a": dtype is 4, wanted a string`},
	{"negative size", file("{"+entry("a", "F32", "[-1]", 0, 4)+"}", 4), `header: tensor "a": shape is [-1], wanted a list of sizes`},
	{"fraction", file("{"+entry("a", "F32", "[1.5]", 0, 4)+"}", 4), `header: tensor "a": shape is [1.5], wanted a list of sizes`},
	{"null size", file("{"+entry("a", "F32", "[null]", 0, 4)+"}", 4), `header: tensor "a": shape is [null], wanted a list of sizes`},
	{"shape null", file("{"+entry("a", "F32", "null", 0, 4)+"}", 4), `header: tensor "a": shape is null, wanted a list of sizes`},
	{"overflow", file("{"+entry("a", "F32", "[4294967296,4294967296]", 0, 0)+"}", 0), `header: tensor "a": shape [4294967296 4294967296] is too large`},
	{"overflow behind zero", file("{"+entry("a", "F32", "[4294967296,0,4294967296]", 0, 0)+"}", 0), `header: tensor "a": shape [4294967296 0 4294967296] is too large`},
	{"past int64", file("{"+entry("a", "U8", "[9223372036854775808]", 0, 0)+"}", 0), `header: tensor "a": shape [9223372036854775808] is too large`},
	{"past uint64", file("{"+entry("a", "U8", "[18446744073709551616]", 0, 0)+"}", 0), `header: tensor "a": shape is [18446744073709551616], wanted a list of sizes`},
	{"rank", file("{"+entry("a", "U8", "[1,1,1,1,1,1,1,1,1]", 0, 1)+"}", 1), `header: tensor "a": shape has 9 dimensions, wanted at most 8`},
	{"half a byte", file("{"+entry("a", "F4", "[3]", 0, 2)+"}", 2), `header: tensor "a": shape [3] of 4-bit values does not fill whole bytes`},
	{"one offset", file(`{"a":{"dtype":"F32","shape":[],"data_offsets":[4]}}`, 4), `header: tensor "a": data_offsets is [4], wanted [begin, end]`},
	{"backwards", file("{"+entry("a", "F32", "[1]", 4, 0)+"}", 4), `header: tensor "a": data_offsets is [4 0], wanted [begin, end]`},
	{"wrong size", file("{"+entry("a", "F32", "[2,3]", 0, 20)+"}", 20), `header: tensor "a": F32[2 3] takes 24 bytes, but data_offsets [0, 20] are 20`},
	{"overlap", file("{"+entry("a", "F32", "[2]", 0, 8)+","+entry("b", "F32", "[2]", 4, 12)+"}", 12), `tensor "b": data_offsets [4, 12] overlap the tensor before, which ends at 8`},
	{"same bytes", file("{"+entry("a", "F32", "[2]", 0, 8)+","+entry("b", "F32", "[2]", 0, 8)+"}", 8), `tensor "b": data_offsets [0, 8] overlap the tensor before, which ends at 8`},
	{"hole", file("{"+entry("a", "F32", "[2]", 0, 8)+","+entry("b", "F32", "[1]", 12, 16)+"}", 16), `tensor "b": data_offsets [12, 16] leave a hole after 8`},
	{"hole at the start", file("{"+entry("a", "F32", "[1]", 4, 8)+"}", 8), `tensor "a": data_offsets [4, 8] leave a hole after 0`},
	{"data cut off", file("{"+entry("a", "F32", "[2]", 0, 8)+"}", 7), `tensor "a": data_offsets [0, 8], but the file has 7 bytes of data: it is cut off`},
	{"more data", file("{"+entry("a", "F32", "[2]", 0, 8)+"}", 9), "the tensors end at byte 8 of the data, but it has 9 bytes"},
	{"far offsets", file("{"+entry("a", "U8", "[1]", 18446744073709551614, 18446744073709551615)+"}", 1), `tensor "a": data_offsets [18446744073709551614, 18446744073709551615] leave a hole after 0`},
	{"long name", file(`{"`+strings.Repeat("x", 5000)+`":1}`, 0), `header: tensor "` + strings.Repeat("x", 80) + `…": wanted a json object, got 1`},
}

func TestHostileSafetensors(t *testing.T) {
	for _, c := range hostileFiles {
		_, err := parseSafetensors(c.file)
		code := api.BadRequest
		if c.name == "unknown dtype" {
			code = api.Unsupported
		}
		expect(t, c.name, err, code, c.want)
	}
}

// TestTruncated cuts a good file at every byte: never a panic, never success.
func TestTruncated(t *testing.T) {
	whole, err := os.ReadFile("testdata/dtypes.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if _, err := parseSafetensors(whole[:n:n]); api.CodeOf(err) != api.BadRequest {
			t.Errorf("cut to %d of %d bytes: %v", n, len(whole), err)
		}
	}
}

const tinyConfig = `{"model_type":"qwen3","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,"vocab_size":16}`

// TestHostileFolders opens folders that are not what they should be.
func TestHostileFolders(t *testing.T) {
	good := file("{"+entry("a", "F32", "[1]", 0, 4)+"}", 4)
	index := func(s string) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte(`{"weight_map":` + s + `}`)}
	}
	config, weights := &fstest.MapFile{Data: []byte(tinyConfig)}, &fstest.MapFile{Data: good}
	for _, c := range []struct {
		name  string
		files fstest.MapFS
		code  api.Code
		want  string
	}{
		{"good", fstest.MapFS{"config.json": config, "model.safetensors": weights}, "", ""},
		{"good shards", fstest.MapFS{"config.json": config, indexName: index(`{"a":"x.safetensors"}`), "x.safetensors": weights}, "", ""},
		{"nothing", fstest.MapFS{}, api.NotFound, "m/config.json: file does not exist"},
		{"no weights", fstest.MapFS{"config.json": config}, api.NotFound, "m: neither model.safetensors nor model.safetensors.index.json is there"},
		{"old weights", fstest.MapFS{"config.json": config, "pytorch_model.bin": weights}, api.Unsupported,
			"m: the weights are in pytorch_model.bin, wanted model.safetensors or model.safetensors.index.json; convert them first"},
		{"config is a folder", fstest.MapFS{"config.json/x": config}, api.BadRequest, "m/config.json: is a folder, wanted a regular file"},
		{"config is huge", fstest.MapFS{"config.json": {Data: make([]byte, maxConfigBytes+1)}}, api.BadRequest, "m/config.json: is 1048577 bytes, wanted at most 1048576"},
		{"config is empty", fstest.MapFS{"config.json": {}}, api.BadRequest, "m/config.json: invalid json: it ends too early"},
		{"bad generation", fstest.MapFS{"config.json": config, "model.safetensors": weights, "generation_config.json": {Data: []byte(`{"top_p":2}`)}}, api.BadRequest,
			"m/generation_config.json: top_p is 2, wanted a number of 0 to 1"},
		{"bad weights", fstest.MapFS{"config.json": config, "model.safetensors": {Data: good[:20]}}, api.BadRequest,
			"m/model.safetensors: header length 54, but only 12 bytes follow: the file is cut off"},
		{"no weight_map", fstest.MapFS{"config.json": config, indexName: {Data: []byte(`{"metadata":{}}`)}}, api.BadRequest,
			"m/model.safetensors.index.json: weight_map is missing"},
		{"empty weight_map", fstest.MapFS{"config.json": config, indexName: index(`{}`)}, api.BadRequest, "m/model.safetensors.index.json: weight_map is empty"},
		{"file is a number", fstest.MapFS{"config.json": config, indexName: index(`{"a":7}`)}, api.BadRequest,
			`m/model.safetensors.index.json: weight_map: tensor "a": file is 7, wanted a string`},
		{"tensor twice", fstest.MapFS{"config.json": config, indexName: index(`{"a":"x.safetensors","a":"y.safetensors"}`)}, api.BadRequest,
			`m/model.safetensors.index.json: weight_map: "a" appears twice`},
		{"shard is missing", fstest.MapFS{"config.json": config, indexName: index(`{"a":"x.safetensors"}`)}, api.NotFound,
			"m/model.safetensors.index.json: m/x.safetensors: file does not exist"},
		{"tensor is missing", fstest.MapFS{"config.json": config, indexName: index(`{"a":"x.safetensors","b":"x.safetensors"}`), "x.safetensors": weights}, api.BadRequest,
			`m/model.safetensors.index.json: tensor "b" should be in x.safetensors, which does not have it`},
		{"other format", fstest.MapFS{"config.json": config, indexName: index(`{"a":"x.bin"}`)}, api.Unsupported,
			`m/model.safetensors.index.json: weight_map: tensor "a": file is "x.bin", wanted a name that ends in .safetensors`},
		{"escape", fstest.MapFS{"config.json": config, indexName: index(`{"a":"../x.safetensors"}`)}, api.BadRequest,
			`m/model.safetensors.index.json: weight_map: tensor "a": "../x.safetensors" is not a plain file name`},
	} {
		ck, err := OpenFS("m", c.files)
		expect(t, c.name, err, c.code, c.want)
		if err == nil {
			if x, err := ck.Want("a", 1); err != nil || len(x.Data) != 4 {
				t.Errorf("%s: %v", c.name, err)
			}
			_, err := ck.Want("b", 1)
			expect(t, "missing", err, api.NotFound, `m: tensor "b" is missing`)
			_, err = ck.Want("a", 2, 3)
			expect(t, "shape", err, api.BadRequest, "m/"+tensorFile(ck)+`: tensor "a" has shape [1], wanted [2 3]`)
		}
	}
	for _, name := range []string{"", ".", "..", "/x", "a/b", `a\b`, "c:x", "x\x00", "../x", strings.Repeat("x", 256)} {
		if err := plainName(name); api.CodeOf(err) != api.BadRequest {
			t.Errorf("%q passes for a plain name: %v", name, err)
		}
	}
}

func tensorFile(c *Checkpoint) string {
	x, _ := c.Tensor("a")
	return x.File
}

// TestUnsupportedType lists an 8-bit tensor, hands out its bytes, and refuses it as weights.
func TestUnsupportedType(t *testing.T) {
	c, err := OpenFS("m", fstest.MapFS{"config.json": {Data: []byte(tinyConfig)},
		"model.safetensors": {Data: file("{"+entry("a", "F8_E4M3", "[3]", 0, 3)+"}", 3)}})
	if err != nil {
		t.Fatal(err)
	}
	if x, ok := c.Tensor("a"); !ok || x.DType != 0 || x.Stored != "F8_E4M3" || len(x.Data) != 3 {
		t.Errorf("got %+v", x)
	}
	_, err = c.Want("a", 3)
	expect(t, "F8", err, api.Unsupported, `m/model.safetensors: tensor "a" is F8_E4M3, wanted F32, BF16 or F16`)
}

// TestOpenOnDisk has the cases that need a real folder.
func TestOpenOnDisk(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	_, err := Open(filepath.Join(dir, "none"))
	if api.CodeOf(err) != api.NotFound || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	_, err = Open(write("file", nil))
	expect(t, "a file", err, api.BadRequest, filepath.Join(dir, "file")+": is a file, wanted a model folder with a config.json")

	write("config.json", []byte(tinyConfig))
	path := write("model.safetensors", nil)
	_, err = Open(dir)
	expect(t, "empty weights", err, api.BadRequest, path+": 0 bytes, wanted at least the 8 of a header length: not a safetensors file, or cut off")

	write("model.safetensors", file("{"+entry("a", "F32", "[50000]", 0, 200000)+"}", 200000))
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Want("a", 50000); err != nil {
		t.Error(err)
	}
	c.Release("a")
	if err := os.Truncate(path, 100); err != nil {
		t.Skipf("the system does not let a mapped file be cut: %v", err)
	}
	_, err = c.Want("a", 50000)
	expect(t, "cut while open", err, api.BadRequest, path+": was 200071 bytes when it was opened and is 100 now: it must not change while it is in use")

	// A link out of the folder, as in hub caches.
	blob := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(blob, file("{"+entry("a", "F32", "[1]", 0, 4)+"}", 4), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), os.Symlink(blob, path)); err != nil {
		t.Skipf("no links here: %v", err)
	}
	linked, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := linked.Close(); err != nil {
		t.Error(err)
	}
}
