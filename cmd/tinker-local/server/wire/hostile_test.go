package wire

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"tinkerlocal/engine/api"
)

// message builds a protobuf message out of its fields.
func message(fields ...[]byte) []byte {
	var b []byte
	for _, f := range fields {
		b = append(b, f...)
	}
	return b
}

func lengthField(num protowire.Number, b []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), b)
}

func varintField(num protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), uint64(v))
}

func entryField(num protowire.Number, key string, value []byte) []byte {
	return lengthField(num, message(lengthField(mapKey, []byte(key)), value))
}

func packed64(v ...int64) []byte {
	var b []byte
	for _, x := range v {
		b = binary.LittleEndian.AppendUint64(b, uint64(x))
	}
	return b
}

func packed32(v ...float32) []byte { return appendFloats(nil, v) }

func packedVarints(v ...int64) []byte {
	var b []byte
	for _, x := range v {
		b = protowire.AppendVarint(b, uint64(x))
	}
	return b
}

// batchOf is a request with one datum.
func batchOf(datum ...[]byte) []byte {
	return message(lengthField(requestModelID, []byte("m")), varintField(requestSeqID, 1), lengthField(requestLossFn, []byte("cross_entropy")), lengthField(requestData, message(datum...)))
}

func textChunk(tokens []byte) []byte {
	return lengthField(datumChunks, lengthField(chunkText, lengthField(textTokens, tokens)))
}

// input is a loss input "x" of the datum.
func input(tensor ...[]byte) []byte {
	return entryField(datumInputs, "x", lengthField(mapValue, message(tensor...)))
}

func csr(values, crow, cols []byte) []byte {
	return lengthField(tensorCSR, message(lengthField(csrValues, values), lengthField(csrRows, crow), lengthField(csrCols, cols)))
}

func shapeOf(v ...int64) []byte { return lengthField(tensorShape, packedVarints(v...)) }

var ints, floats = varintField(tensorDType, 2), varintField(tensorDType, 1)

// hostile are bodies that lie, with a part of the error that names the lie.
func hostile() map[string]struct {
	body []byte
	want string
} {
	one := packed64(7)
	deep := []byte{}
	for range 200 {
		deep = lengthField(requestData, deep)
	}
	return map[string]struct {
		body []byte
		want string
	}{
		"nothing":              {nil, "model_id is empty"},
		"no datum":             {message(lengthField(requestModelID, []byte("m")), lengthField(requestLossFn, []byte("l"))), "there is no datum"},
		"no loss":              {message(lengthField(requestModelID, []byte("m")), lengthField(requestData, nil)), "loss_fn is empty"},
		"no protobuf":          {[]byte("{\"forward_backward_input\":{}}"), "no protobuf at byte"},
		"field 0":              {[]byte{0, 0}, "no protobuf at byte 0"},
		"length lies":          {[]byte{byte(requestData)<<3 | 2, 0xff, 0xff, 0xff, 0xff, 0x7f}, "no protobuf at byte 1 of 6"},
		"length beyond 2^63":   {append([]byte{byte(requestData)<<3 | 2}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01), "no protobuf"},
		"a group without end":  {[]byte{9<<3 | 3, 9<<3 | 3, 9<<3 | 3}, "no protobuf at byte 1"},
		"negative seq_id":      {message(batchOf(), varintField(requestSeqID, -1)), "seq_id is -1, wanted 0 to 2147483647"},
		"large seq_id":         {message(batchOf(), varintField(requestSeqID, 1<<40)), "seq_id is 1099511627776"},
		"seq_id as text":       {message(batchOf(), lengthField(requestSeqID, []byte("1"))), "seq_id has protobuf's wire type 2, wanted an integer"},
		"model_id as number":   {message(batchOf(), varintField(requestModelID, 1)), "model_id has protobuf's wire type 0, wanted a string"},
		"model_id in latin-1":  {message(batchOf(), lengthField(requestModelID, []byte("\xfc"))), "model_id is no UTF-8"},
		"data as number":       {message(batchOf(), varintField(requestData, 1)), "datum 1: data has protobuf's wire type 0, wanted a message"},
		"NaN in the config":    {message(batchOf(), entryField(requestConfig, "beta", protowire.AppendFixed64(protowire.AppendTag(nil, mapValue, protowire.Fixed64Type), math.Float64bits(math.NaN())))), `loss_fn_config["beta"] is NaN, wanted a finite number`},
		"config as text":       {message(batchOf(), entryField(requestConfig, "beta", lengthField(mapValue, []byte("1")))), `loss_fn_config["beta"]: value has protobuf's wire type 2, wanted a double`},
		"deep":                 {deep, "model_id is empty"},
		"half a token":         {batchOf(textChunk([]byte{1, 2, 3})), "datum 0: chunk 0: tokens have 3 bytes, wanted a multiple of 4"},
		"two kinds of a chunk": {batchOf(lengthField(datumChunks, message(lengthField(chunkText, nil), lengthField(chunkText, nil)))), "chunk 0: encoded_text is given twice"},
		"unknown chunk":        {batchOf(textChunk(nil), lengthField(datumChunks, lengthField(9, nil))), "chunk 1: the chunk is of no known kind"},
		"image":                {batchOf(lengthField(datumChunks, lengthField(chunkImage, nil))), `chunk 0: the chunk is of type "image", wanted "encoded_text"`},
		"dmel":                 {batchOf(lengthField(datumChunks, lengthField(chunkDmel, nil))), `chunk 0: the chunk is of type "dmel"`},
		"input twice":          {batchOf(input(ints, lengthField(tensorDense, one)), input(ints, lengthField(tensorDense, one))), `datum 0: loss input "x": it is given twice`},
		"no dtype":             {batchOf(input(lengthField(tensorDense, one))), `loss input "x": dtype is 0, wanted 1 (float32)`},
		"dtype 5":              {batchOf(input(varintField(tensorDType, 5), lengthField(tensorDense, one))), "dtype is 5"},
		"dtype beyond 32 bits": {batchOf(input(varintField(tensorDType, 1<<32+1), lengthField(tensorDense, one))), "dtype is 4294967297"},
		"no data":              {batchOf(input(ints)), "there are no data, wanted dense or sparse_csr"},
		"data twice":           {batchOf(input(ints, lengthField(tensorDense, one), csr(nil, nil, nil))), "the data are given twice"},
		"half a value":         {batchOf(input(ints, lengthField(tensorDense, one[:7]))), "the data have 7 bytes, wanted a multiple of 8"},
		"NaN":                  {batchOf(input(floats, lengthField(tensorDense, packed32(0, nan)))), "value 1 is NaN, wanted a finite number"},
		"infinity":             {batchOf(input(floats, lengthField(tensorDense, packed32(-inf)))), "value 0 is -Inf"},
		"bfloat16 NaN":         {batchOf(input(varintField(tensorDType, 4), lengthField(tensorDense, []byte{0xc0, 0x7f}))), "value 0 is NaN"},
		"shape lies":           {batchOf(input(ints, lengthField(tensorDense, one), shapeOf(2))), "shape [2] has 2 values, the data have 1"},
		"shape negative":       {batchOf(input(ints, lengthField(tensorDense, one), shapeOf(-1, -1))), "shape is [-1 -1], wanted no negative length"},
		"shape overflows":      {batchOf(input(ints, lengthField(tensorDense, one), shapeOf(1<<32, 1<<32))), "overflows"},
		"shape wraps to 1":     {batchOf(input(ints, lengthField(tensorDense, one), shapeOf(math.MaxInt64, math.MaxInt64))), "overflows"},
		"shape of 9":           {batchOf(input(ints, lengthField(tensorDense, one), shapeOf(1, 1, 1, 1, 1, 1, 1, 1, 1))), "shape has more than 8 entries"},
		"csr without shape":    {batchOf(input(ints, csr(one, packed64(0, 1), packed64(0)))), "sparse_csr: shape is [], wanted two dimensions"},
		"csr negative shape":   {batchOf(input(ints, csr(one, packed64(0, 1), packed64(0)), shapeOf(-1, 4))), "shape is [-1 4]"},
		"csr rows":             {batchOf(input(ints, csr(one, packed64(0, 1), packed64(0)), shapeOf(2, 4))), "there are 2 crow_indices, wanted 3 for 2 rows"},
		"csr no rows":          {batchOf(input(ints, csr(one, nil, packed64(0)), shapeOf(math.MaxInt64, 4))), "there are 0 crow_indices"},
		"csr columns":          {batchOf(input(ints, csr(one, packed64(0, 1), packed64(0, 1)), shapeOf(1, 4))), "there are 2 col_indices and 1 values"},
		"csr end":              {batchOf(input(ints, csr(one, packed64(0, 2), packed64(0)), shapeOf(1, 4))), "crow_indices go from 0 to 2, wanted 0 to 1"},
		"csr start":            {batchOf(input(ints, csr(one, packed64(-1, 1), packed64(0)), shapeOf(1, 4))), "crow_indices go from -1 to 1"},
		"csr backwards":        {batchOf(input(ints, csr(packed64(7, 8), packed64(0, 2, 1, 2), packed64(0, 1)), shapeOf(3, 4))), "crow_indices go from 2 to 1 at row 1"},
		"csr jumps out":        {batchOf(input(ints, csr(packed64(7, 8), packed64(0, 1<<40, 2), packed64(0, 1)), shapeOf(2, 4))), "crow_indices go from 0 to 1099511627776 at row 0"},
		"csr column negative":  {batchOf(input(ints, csr(one, packed64(0, 1), packed64(-1)), shapeOf(1, 4))), "row 0 has column -1"},
		"csr column beyond":    {batchOf(input(ints, csr(one, packed64(0, 1), packed64(4)), shapeOf(1, 4))), "row 0 has column 4 after -1, wanted ascending columns below 4"},
		"csr column twice":     {batchOf(input(ints, csr(packed64(7, 8), packed64(0, 2), packed64(1, 1)), shapeOf(1, 4))), "row 0 has column 1 after 1"},
		"csr half an index":    {batchOf(input(ints, csr(one, packed64(0, 1)[:15], packed64(0)), shapeOf(1, 4))), "its indices have 15 bytes"},
		"csr huge":             {batchOf(input(ints, csr(nil, packed64(0, 0, 0), nil), shapeOf(2, math.MaxInt64))), "is too large for a body of this size"},
		"csr NaN":              {batchOf(input(floats, csr(packed32(nan), packed64(0, 1), packed64(2)), shapeOf(1, 4))), "value 2 is NaN"},
		"too many datums":      {message(batchOf(), repeatedData(maxDatums)), "there are 65537 datums, wanted at most 65536"},
		"65 inputs": {batchOf(repeated(65, func(i int) []byte {
			return entryField(datumInputs, fmt.Sprint(i), lengthField(mapValue, message(ints, lengthField(tensorDense, one))))
		})...), "the datum has more than 64 loss inputs"},
	}
}

// repeatedData is n empty datums.
func repeatedData(n int) []byte {
	return []byte(strings.Repeat(string(lengthField(requestData, nil)), n))
}

func repeated(n int, f func(int) []byte) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = f(i)
	}
	return out
}

// TestHostileProtobuf: every lie is named, and costs no memory.
func TestHostileProtobuf(t *testing.T) {
	for name, c := range hostile() {
		var err error
		size := allocated(func() { _, err = DecodeForwardBackward(c.body) })
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, wanted %s", name, err, c.want)
			continue
		}
		if code := api.CodeOf(err); code != api.BadRequest && code != api.Unsupported {
			t.Errorf("%s: %v has the code %s", name, err, code)
		}
		if limit := allowance(len(c.body)); size > limit {
			t.Errorf("%s: a body of %d bytes took %d, wanted at most %d", name, len(c.body), size, limit)
		}
	}
}

// allowance is what decoding n bytes may allocate: see the package comment.
func allowance(n int) uint64 { return uint64(80*n + spreadBudget(n) + 32<<10) }

// allocated is how many bytes f allocates, with whatever else runs at the time.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestAmplification: the worst small messages, as many as a request may have. What a CSR tensor may take is not in these.
func TestAmplification(t *testing.T) {
	datum := func(fields ...[]byte) []byte { return lengthField(requestData, message(fields...)) }
	one := lengthField(mapValue, message(ints, lengthField(tensorDense, nil)))
	for _, c := range []struct {
		name string
		unit []byte
	}{
		{"empty datum", datum()},
		{"empty chunk", datum(textChunk(nil))},
		{"empty input", datum(entryField(datumInputs, "", one))},
		{"unknown fields", varintField(100, 1)},
		{"config", entryField(requestConfig, "", nil)},
	} {
		body := message(lengthField(requestModelID, []byte("m")), lengthField(requestLossFn, []byte("l")))
		for n := 0; n < maxDatums && len(body) < 1<<20; n++ {
			body = append(body, c.unit...)
		}
		size := allocated(func() { _, _ = DecodeForwardBackward(body) })
		if factor := float64(size) / float64(len(body)); factor > 80 {
			t.Errorf("%s: %.0f times the body", c.name, factor)
		} else {
			t.Logf("%s: %.1f times the body", c.name, factor)
		}
	}
	for name, unit := range map[string]string{
		"empty datum": `{},`, "chunk": `{"model_input":{"chunks":[{"tokens":[]}]}},`, "input": `{"loss_fn_inputs":{"":{"data":[],"dtype":"int64"}}},`,
		"tokens": `{"model_input":{"chunks":[{"tokens":[` + strings.Repeat("0,", 500) + `0]}]}},`, "null": "null,",
	} {
		body := []byte(`{"model_id":"m","forward_backward_input":{"loss_fn":"l","data":[` + strings.Repeat(unit, 1<<20/len(unit)) + `{}]}}`)
		size := allocated(func() { _, _ = DecodeForwardBackwardJSON(body) })
		if factor := float64(size) / float64(len(body)); factor > 120 {
			t.Errorf("JSON %s: %.0f times the body", name, factor)
		} else {
			t.Logf("JSON %s: %.1f times the body", name, factor)
		}
	}
}

// TestSpread: what the official SDK would make CSR of is read at its largest, and what is larger is refused.
func TestSpread(t *testing.T) {
	const rows = 4096
	empty := csr(nil, make([]byte, 8*(rows+1)), nil)
	zeros := func(k int64) []byte {
		return batchOf(textChunk(make([]byte, 4*rows)), input(ints, empty, shapeOf(rows, k)), entryField(datumInputs, "w", lengthField(mapValue, message(floats, empty, shapeOf(rows, k)))))
	}
	r, err := DecodeForwardBackward(zeros(100))
	if err != nil {
		t.Fatal(err)
	}
	if x, w := r.Input.Data[0].LossInputs["x"], r.Input.Data[0].LossInputs["w"]; len(x.Ints) != rows*100 || len(w.Floats) != rows*100 {
		t.Errorf("%d and %d values, wanted %d", len(x.Ints), len(w.Floats), rows*100)
	}
	if _, err := DecodeForwardBackward(zeros(200)); err == nil || !strings.Contains(err.Error(), "64 times the body") {
		t.Errorf("200 columns of nothing: %v", err)
	}
	// The budget is of the request, not of each tensor: one of these fits.
	half := func(name string) []byte {
		return entryField(datumInputs, name, lengthField(mapValue, message(ints, empty, shapeOf(rows, 150))))
	}
	if _, err := DecodeForwardBackward(batchOf(half("a"), textChunk(make([]byte, 8*rows)))); err != nil {
		t.Error(err)
	}
	if _, err := DecodeForwardBackward(batchOf(half("a"), half("b"))); err == nil || !strings.Contains(err.Error(), `loss input "b"`) {
		t.Errorf("two of 150 columns: %v", err)
	}
}

// TestOtherTypes: int32 and bfloat16, that no request of the SDK has today, are read as int64 and float32.
func TestOtherTypes(t *testing.T) {
	r, err := DecodeForwardBackward(batchOf(
		input(varintField(tensorDType, 3), lengthField(tensorDense, appendInt32s(nil, []int32{-1, 5}))),
		entryField(datumInputs, "y", lengthField(mapValue, message(varintField(tensorDType, 4), lengthField(tensorDense, []byte{0x80, 0x3f, 0x20, 0xc0}), varintField(tensorShape, 2), varintField(tensorShape, 1))))))
	if err != nil {
		t.Fatal(err)
	}
	x, y := r.Input.Data[0].LossInputs["x"], r.Input.Data[0].LossInputs["y"]
	if fmt.Sprint(x.Ints, y.Floats, y.Shape) != "[-1 5] [1 -2.5] [2 1]" {
		t.Errorf("%v %v", x, y)
	}
}

// TestHostileJSON: every lie is named.
func TestHostileJSON(t *testing.T) {
	batch := func(datum string) string {
		return `{"model_id":"m","seq_id":1,"forward_backward_input":{"loss_fn":"l","data":[` + datum + `]}}`
	}
	tensor := func(s string) string { return batch(`{"loss_fn_inputs":{"x":{` + s + `}}}`) }
	for _, c := range []struct{ route, body, want string }{
		{"forward_backward", ``, "the body is no JSON at byte 0"},
		{"forward_backward", `[]`, "the body is an array, wanted an object"},
		{"forward_backward", `{}`, "wanted one of forward_backward_input and forward_input"},
		{"forward_backward", "{\"model_id\":\"\xff\"}", "the body is no UTF-8"},
		{"forward_backward", batch(`{}`) + `{}`, "no JSON at byte"},
		{"forward_backward", strings.Repeat(`[`, 20000), "no JSON"},
		{"forward_backward", batch(`3`), "forward_backward_input.data is a number, wanted an object"},
		{"forward_backward", batch(`{"model_input":{"chunks":[{"tokens":[1,2.5]}]}}`), "tokens: value 1 is 2.5"},
		{"forward_backward", batch(`{"model_input":{"chunks":[{"tokens":[1,4294967296]}]}}`), "value 1 is 4294967296"},
		{"forward_backward", batch(`{"model_input":{"chunks":[{"tokens":[1,null]}]}}`), "value 1 is null, wanted a number"},
		{"forward_backward", batch(`{"model_input":{"chunks":[{"tokens":"x"}]}}`), `tokens: it is "x", wanted an array of numbers`},
		{"forward_backward", batch(`{"model_input":{"chunks":[{}]}}`), "datum 0: chunk 0 has no tokens"},
		{"forward_backward", batch(`{"model_input":{"chunks":[{"type":"dmel","dmel":"AA=="}]}}`), `chunk 0: the chunk is of type "dmel"`},
		{"forward_backward", batch(`{"model_input":{"chunks":[{"type":"image_asset_pointer","location":"x","format":"png"}]}}`), `of type "image_asset_pointer"`},
		{"forward_backward", tensor(`"data":[1]`), `loss input "x": dtype is "", wanted "float32" or "int64"`},
		{"forward_backward", tensor(`"dtype":"int64"`), "data: it is missing, wanted an array"},
		{"forward_backward", tensor(`"data":[[1]],"dtype":"int64"`), "value 0 is [1], wanted a number"},
		{"forward_backward", tensor(`"data":[1e39],"dtype":"float32"`), "value 0 is 1e39: wanted a finite float32"},
		{"forward_backward", tensor(`"data":[1.5],"dtype":"int64"`), "value 0 is 1.5: wanted an integer"},
		{"forward_backward", tensor(`"data":[1,2],"dtype":"int64","shape":[3]`), "shape [3] has 3 values, the data have 2"},
		{"forward_backward", tensor(`"data":[],"dtype":"int64","shape":[9999999999,9999999999]`), "overflows"},
		{"forward_backward", tensor(`"data":[1],"dtype":"int64","shape":[1,4],"sparse_crow_indices":[0,1]`), "sparse_col_indices: it is missing"},
		{"forward_backward", tensor(`"data":[1],"dtype":"int64","shape":[1,4],"sparse_crow_indices":[0,1],"sparse_col_indices":[4]`), "row 0 has column 4"},
		{"forward_backward", tensor(`"data":[],"dtype":"int64","shape":[1,99999999999],"sparse_crow_indices":[0,0],"sparse_col_indices":[]`), "too large for a body of this size"},
		{"forward_backward", `{"model_id":"m","forward_backward_input":{"loss_fn":"l","data":[{}],"loss_fn_config":{"a":"x"}}}`, `loss_fn_config["a"] is "x", wanted a finite number`},
		{"forward_backward", `{"model_id":"m","forward_backward_input":{"loss_fn":"l","data":[{}],"loss_fn_config":{"a":1e999}}}`, `loss_fn_config["a"] is 1e999`},
		{"create_model", `{"session_id":"S","base_model":"b"}`, "lora_config is missing"},
		{"create_model", `{"session_id":"S","base_model":"b","lora_config":{"rank":0}}`, "lora_config.rank is 0, wanted 1 to 512"},
		{"create_model", `{"session_id":"S","base_model":"b","lora_config":{"rank":"8"}}`, "lora_config.rank is a string, wanted an integer"},
		{"create_model", `{"session_id":"S","base_model":"b","lora_config":{"rank":8,"train_mlp":false,"train_attn":false,"train_unembed":false}}`, "lora_config trains nothing"},
		{"create_model", `{"session_id":"S","base_model":"b","model_seq_id":-1,"lora_config":{"rank":8}}`, "model_seq_id is -1, wanted 0 or more"},
		{"create_model", `{"base_model":"b","lora_config":{"rank":8}}`, "create_model: session_id is missing or empty"},
		{"create_model", `{"user_metadata":[1]}`, "user_metadata is [1], wanted an object"},
		{"optim_step", `{"model_id":"m"}`, "adam_params is missing"},
		{"save_weights", `{"model_id":"m","path":"../x"}`, `the path "../x" begins with '.'`},
		{"save_weights", `{"model_id":"m","path":"x","ttl_seconds":0}`, "ttl_seconds is 0, wanted 1 to"},
		{"save_weights", `{"model_id":"m","path":"x","ttl_seconds":9223372036854775807}`, "ttl_seconds is 9223372036854775807"},
		{"save_weights_for_sampler", `{"model_id":"m"}`, "wanted one of path and sampling_session_seq_id"},
		{"save_weights_for_sampler", `{"model_id":"m","path":"x","sampling_session_seq_id":1}`, "wanted one of path and sampling_session_seq_id"},
		{"load_weights", `{"path":"tinker://r/weights/x"}`, "wanted one of model_id and session_id"},
		{"load_weights", `{"model_id":"m","path":"/etc/passwd"}`, "wanted tinker://RUN/weights/NAME"},
		{"create_sampling_session", `{"session_id":"S"}`, "wanted base_model or model_path"},
		{"asample", `{"prompt":{"chunks":[]}}`, "sampling_session_id is missing"},
		{"asample", `{"sampling_session_id":"s","num_samples":0}`, "num_samples is 0, wanted 1 or more"},
		{"asample", `{"sampling_session_id":"s","sampling_params":{"max_tokens":0}}`, "max_tokens is 0, wanted 1 or more"},
		{"asample", `{"sampling_session_id":"s","sampling_params":{"seed":1.5}}`, "seed is 1.5, wanted an integer of 64 bits"},
		{"asample", `{"sampling_session_id":"s","sampling_params":{"stop":[1,"x"]}}`, `stop is [1,"x"], wanted a text, a list of texts or a list of token ids`},
		{"asample", `{"sampling_session_id":"s","sampling_params":{"stop":["x",null]}}`, "stop has a null"},
		{"asample", `{"sampling_session_id":"s","prompt":{"chunks":[{"type":"image","data":"AA==","format":"png"}]}}`, `prompt: chunk 0: the chunk is of type "image"`},
		{"asample", `{"sampling_session_id":"s","topk_prompt_logprobs":-1}`, "topk_prompt_logprobs is -1"},
		{"retrieve_future", `{"request_id":5}`, "request_id is a number, wanted a string"},
		{"ttl", `{"ttl_seconds":-5}`, "ttl_seconds is -5"},
		{"weights_info", `{"tinker_path":"x"}`, "wanted tinker://"},
	} {
		_, err := decode(golden{Route: c.route}, []byte(c.body))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %.100s: %v, wanted %s", c.route, c.body, err, c.want)
		} else if code := api.CodeOf(err); code != api.BadRequest && code != api.Unsupported {
			t.Errorf("%v has the code %s", err, code)
		}
	}
}

// TestRefusedTargets: a tensor of tokens that cannot be one is refused by what is wrong, and a result that is not of its form as well.
func TestRefusedTargets(t *testing.T) {
	for part, text := range map[string]string{
		`it has the dtype "float32"`:                     `{"data":[1],"dtype":"float32","shape":[1,1]}`,
		`wanted "int64" and two dimensions`:              `{"data":[1],"dtype":"int64","shape":[1]}`,
		"shape [2 2] has 4 values, the data have 3":      `{"data":[1,2,3],"dtype":"int64","shape":[2,2]}`,
		"wanted no negative length":                      `{"data":[],"dtype":"int64","shape":[-1,2]}`,
		"data: value 1 is 2147483648: wanted a token":    `{"data":[1,2147483648],"dtype":"int64","shape":[1,2]}`,
		"data: value 0 is \"a\", wanted a number":        `{"data":["a"],"dtype":"int64","shape":[1,1]}`,
		"data: it is missing, wanted an array":           `{"dtype":"int64","shape":[1,1]}`,
		"sparse_col_indices: it is missing":              `{"data":[1],"dtype":"int64","shape":[1,1],"sparse_crow_indices":[0,1]}`,
		"there are 1 crow_indices, wanted 2 for 1 rows":  `{"data":[],"dtype":"int64","shape":[1,1],"sparse_crow_indices":[0],"sparse_col_indices":[]}`,
		"row 0 has column 5":                             `{"data":[1],"dtype":"int64","shape":[1,5],"sparse_crow_indices":[0,1],"sparse_col_indices":[5]}`,
		"there are 2 crow_indices, wanted 1099511627777": `{"data":[],"dtype":"int64","shape":[1099511627776,1],"sparse_crow_indices":[0,0],"sparse_col_indices":[]}`,
	} {
		body := `{"sampling_session_id":"S","seq_id":0,"prompt":{"chunks":[{"tokens":[1,2]}]},"sampling_params":{},"target_prompt_logprobs":` + text + `}`
		err := DecodeRequest([]byte(body), &SampleRequest{})
		if err == nil || api.CodeOf(err) != api.BadRequest || !strings.Contains(err.Error(), "target_prompt_logprobs: "+part) && !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v, wanted %s", text, err, part)
		}
	}
	var r SampleRequest
	body := `{"sampling_session_id":"S","prompt":{"chunks":[{"tokens":[1,2]}]},"target_prompt_logprobs":{"data":[1,-7],"dtype":"int64","shape":[1,2]}}`
	if err := DecodeRequest([]byte(body), &r); err != nil || fmt.Sprint(r.API().TargetPromptLogProbs) != "[[1 -1]]" {
		t.Fatalf("%v (%v)", r.API().TargetPromptLogProbs, err)
	}
	for want, rows := range map[string][][]float32{
		"asked for true, there false":  nil,
		"2 rows, wanted 1":             {{1, 2}, {3, 4}},
		"row 0 has 1 values, wanted 2": {{1}},
	} {
		if _, err := EncodeSampleOutput(api.SampleOutput{TargetPromptLogProbs: rows}, r.Targets); err == nil || !strings.Contains(err.Error(), want) || api.CodeOf(err) != api.Internal {
			t.Errorf("%v, wanted %s", err, want)
		}
	}
}

// TestRefusedOutputs: what clients would fail on is an error here, not there.
func TestRefusedOutputs(t *testing.T) {
	scalar := map[string]api.TensorData{"logprobs": api.Floats([]float32{1})}
	for want, out := range map[string]api.ForwardBackwardOutput{
		`the metric "a:b:c" has 2 colons`:                      {Metrics: map[string]float64{"a:b:c": 1}},
		`datum 1 has the loss outputs []`:                      {LossFnOutputs: []map[string]api.TensorData{scalar, {}}},
		`datum 0: loss output "x": shape [2 2] has 4 values`:   {LossFnOutputs: []map[string]api.TensorData{{"x": {Floats: []float32{1}, Shape: []int{2, 2}}}}},
		`datum 1: loss output "x": shape [5 1 1] has 5 values`: {LossFnOutputs: []map[string]api.TensorData{{"x": {Floats: []float32{1}, Shape: []int{1, 1, 1}}}, {"x": {Floats: []float32{1}, Shape: []int{5, 1, 1}}}}},
	} {
		if _, err := EncodeForwardBackwardOutput(out); err == nil || !strings.Contains(err.Error(), want) || api.CodeOf(err) != api.Internal {
			t.Errorf("%v, wanted %s", err, want)
		}
	}
	for want, s := range map[string]api.SampledSequence{
		`sequence 0 stopped for "eos"`:        {StopReason: "eos"},
		"sequence 0 has 1 tokens and 2 logpr": {StopReason: "stop", Tokens: []int32{1}, LogProbs: []float32{1, 2}},
		"sequence 0 has 1 tokens and 2 lists": {StopReason: "stop", Tokens: []int32{1}, TopKLogProbs: make([][]api.TokenLogProb, 2)},
	} {
		out := api.SampleOutput{Sequences: []api.SampledSequence{s}}
		protobuf := func(out api.SampleOutput) ([]byte, error) { return EncodeSampleOutput(out, nil) }
		for _, encode := range []func(api.SampleOutput) ([]byte, error){protobuf, EncodeSampleOutputJSON} {
			if _, err := encode(out); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, wanted %s", err, want)
			}
		}
	}
}
