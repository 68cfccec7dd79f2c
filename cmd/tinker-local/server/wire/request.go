package wire

import (
	"encoding/binary"
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"tinkerlocal/engine/api"
)

// ForwardBackwardRequest is one chunk of a client's forward_backward or forward call.
type ForwardBackwardRequest struct {
	ModelID     string
	SeqID       int64 // from 1; 0: the client gave none
	ForwardOnly bool  // outputs only: gradients must not change
	Input       api.ForwardBackwardInput
}

// What one request may hold, beyond the size of its body. Real ones are far below.
const (
	maxDatums     = 1 << 16 // the SDK sends 1024 at most, unless its configuration says more
	maxLossInputs = 64      // of one datum
	maxConfig     = 64      // entries of loss_fn_config
	maxRank       = 8       // dimensions of a tensor
)

// place is r without its input: what is left of a request that is refused, so that its number can be used up. An id or a number that
// makes no sense is left out.
func (r ForwardBackwardRequest) place() ForwardBackwardRequest {
	if r.ModelID == "" || r.SeqID < 0 || r.SeqID > math.MaxInt32 {
		return ForwardBackwardRequest{}
	}
	return ForwardBackwardRequest{ModelID: r.ModelID, SeqID: r.SeqID, ForwardOnly: r.ForwardOnly}
}

// DecodeForwardBackward reads a body of content type [Protobuf]. Nothing of the result points into body. With an error, the result has
// the model's id and the request's number if those could be read.
func DecodeForwardBackward(body []byte) (ForwardBackwardRequest, error) {
	var r ForwardBackwardRequest
	n, err := count(body, requestData)
	if err == nil {
		err = checkDatums(n)
	}
	if err != nil {
		return placeOf(body), at(err, "forward_backward")
	}
	r.Input.Data = make([]api.Datum, 0, n)
	budget := spreadBudget(len(body))
	err = eachField(body, func(f field) error {
		switch f.num {
		case requestModelID:
			return f.text("model_id", &r.ModelID)
		case requestSeqID:
			return f.integer("seq_id", &r.SeqID)
		case requestData:
			d, err := decodeDatum(f, &budget)
			if err != nil {
				return at(err, "datum %d", len(r.Input.Data))
			}
			r.Input.Data = append(r.Input.Data, d)
		case requestLossFn:
			return f.text("loss_fn", &r.Input.LossFn)
		case requestConfig:
			return decodeConfig(f, &r.Input, false)
		case requestConfigV2:
			return decodeConfig(f, &r.Input, true)
		case requestForwardOnly:
			var on int64
			err := f.integer("forward_only", &on)
			r.ForwardOnly = on != 0
			return err
		}
		return nil
	})
	if err == nil {
		err = r.check()
	}
	if err != nil {
		return placeOf(body), at(err, "forward_backward")
	}
	return r, nil
}

// placeOf is the place that a body names whose data cannot be read, as far as it is protobuf.
func placeOf(body []byte) ForwardBackwardRequest {
	var r ForwardBackwardRequest
	_ = eachField(body, func(f field) error {
		switch f.num {
		case requestModelID:
			_ = f.text("model_id", &r.ModelID)
		case requestSeqID:
			_ = f.integer("seq_id", &r.SeqID)
		}
		return nil
	})
	return r.place()
}

// check says what is wrong with a request that could be read.
func (r ForwardBackwardRequest) check() error {
	switch {
	case r.ModelID == "":
		return api.Errorf(api.BadRequest, "model_id is empty, wanted the id of a model")
	case r.SeqID < 0 || r.SeqID > math.MaxInt32:
		return api.Errorf(api.BadRequest, "seq_id is %d, wanted 0 to %d", r.SeqID, math.MaxInt32)
	case r.Input.LossFn == "":
		return api.Errorf(api.BadRequest, "loss_fn is empty, wanted the name of a loss")
	case len(r.Input.Data) == 0:
		return api.Errorf(api.BadRequest, "there is no datum, wanted 1 or more")
	}
	return nil
}

func checkDatums(n int) error {
	if n > maxDatums {
		return api.Errorf(api.BadRequest, "there are %d datums, wanted at most %d", n, maxDatums)
	}
	return nil
}

// decodeConfig adds one entry of loss_fn_config. Both versions of the map may have it, with one value.
func decodeConfig(f field, in *api.ForwardBackwardInput, v2 bool) error {
	key, value, err := f.entry("loss_fn_config")
	if err != nil {
		return err
	}
	bits := value.n // the absent double is 0
	if v2 {
		bits = 0
		err = eachField(value.bytes, func(g field) error {
			switch g.num {
			case configNumber:
				if g.typ != protowire.Fixed64Type {
					return g.wrongType("number", "a double")
				}
				bits = g.n
			case configText:
				return api.Errorf(api.Unsupported, "the value is a text, wanted a number")
			}
			return nil
		})
		if err == nil && value.typ != protowire.BytesType {
			err = value.wrongType("value", "a message")
		}
	} else if value.num != 0 && value.typ != protowire.Fixed64Type {
		err = value.wrongType("value", "a double")
	}
	if err != nil {
		return at(err, "loss_fn_config[%q]", clip(key))
	}
	number := math.Float64frombits(bits)
	if number-number != 0 {
		return api.Errorf(api.BadRequest, "loss_fn_config[%q] is %v, wanted a finite number", clip(key), number)
	}
	if old, twice := in.LossConfig[key]; twice && old != number {
		return api.Errorf(api.BadRequest, "loss_fn_config[%q] is given twice, as %v and as %v", clip(key), old, number)
	}
	if len(in.LossConfig) >= maxConfig {
		return api.Errorf(api.BadRequest, "loss_fn_config has more than %d entries", maxConfig)
	}
	if in.LossConfig == nil {
		in.LossConfig = map[string]float64{}
	}
	in.LossConfig[key] = number
	return nil
}

func decodeDatum(f field, budget *int) (api.Datum, error) {
	var d api.Datum
	if f.typ != protowire.BytesType {
		return d, f.wrongType("data", "a message")
	}
	n, err := count(f.bytes, datumChunks)
	if err != nil {
		return d, err
	}
	d.ModelInput.Chunks = make([]api.Chunk, 0, n)
	err = eachField(f.bytes, func(f field) error {
		switch f.num {
		case datumChunks:
			c, err := decodeChunk(f)
			if err != nil {
				return at(err, "chunk %d", len(d.ModelInput.Chunks))
			}
			d.ModelInput.Chunks = append(d.ModelInput.Chunks, c)
		case datumInputs:
			name, value, err := f.entry("loss_fn_inputs")
			if err != nil {
				return err
			}
			t, err := decodeTensor(value, budget)
			if err == nil {
				err = addInput(&d, name, t)
			}
			if err != nil {
				return at(err, "loss input %q", clip(name))
			}
		}
		return nil
	})
	return d, err
}

// addInput puts t into d under a new name.
func addInput(d *api.Datum, name string, t api.TensorData) error {
	if _, twice := d.LossInputs[name]; twice {
		return api.Errorf(api.BadRequest, "it is given twice")
	}
	if len(d.LossInputs) >= maxLossInputs {
		return api.Errorf(api.BadRequest, "the datum has more than %d loss inputs", maxLossInputs)
	}
	if d.LossInputs == nil {
		d.LossInputs = map[string]api.TensorData{}
	}
	d.LossInputs[name] = t
	return nil
}

func decodeChunk(f field) (api.Chunk, error) {
	c := api.Chunk{Type: "encoded_text"}
	if f.typ != protowire.BytesType {
		return c, f.wrongType("model_input", "a message")
	}
	found := false
	err := eachField(f.bytes, func(f field) error {
		switch f.num {
		case chunkImage:
			return unsupportedChunk("image")
		case chunkDmel:
			return unsupportedChunk("dmel")
		case chunkText:
			if f.typ != protowire.BytesType {
				return f.wrongType("encoded_text", "a message")
			}
			if found {
				return api.Errorf(api.BadRequest, "encoded_text is given twice")
			}
			found = true
			return eachField(f.bytes, func(f field) error {
				if f.num != textTokens {
					return nil
				}
				if f.typ != protowire.BytesType {
					return f.wrongType("tokens", "bytes")
				}
				if len(f.bytes)%4 != 0 {
					return api.Errorf(api.BadRequest, "tokens have %d bytes, wanted a multiple of 4 (int32)", len(f.bytes))
				}
				c.Tokens = int32s(f.bytes)
				return nil
			})
		}
		return nil
	})
	if err == nil && !found {
		err = api.Errorf(api.Unsupported, "the chunk is of no known kind, wanted encoded_text")
	}
	return c, err
}

// unsupportedChunk refuses what only a model of pictures or sound could read.
func unsupportedChunk(kind string) error {
	return api.Errorf(api.Unsupported, "the chunk is of type %q, wanted \"encoded_text\": models here read text", clip(kind))
}

func int32s(b []byte) []int32 {
	out := make([]int32, len(b)/4)
	for i := range out {
		out[i] = int32(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return out
}

// field is one field of a message. bytes is set for the wire type of bytes, n for the others.
type field struct {
	num   protowire.Number
	typ   protowire.Type
	bytes []byte // of the message's memory
	n     uint64
}

// eachField calls f for every field of the message b, and ends with its error. Groups, which proto3 has not, are skipped.
func eachField(b []byte, f func(field) error) error {
	for rest := b; len(rest) > 0; {
		var v field
		num, typ, used := protowire.ConsumeTag(rest)
		if used >= 0 {
			rest = rest[used:]
			switch typ {
			case protowire.VarintType:
				v.n, used = protowire.ConsumeVarint(rest)
			case protowire.Fixed32Type:
				var n uint32
				n, used = protowire.ConsumeFixed32(rest)
				v.n = uint64(n)
			case protowire.Fixed64Type:
				v.n, used = protowire.ConsumeFixed64(rest)
			case protowire.BytesType:
				v.bytes, used = protowire.ConsumeBytes(rest)
			default:
				used = protowire.ConsumeFieldValue(num, typ, rest)
			}
		}
		if used < 0 {
			return api.Errorf(api.BadRequest, "no protobuf at byte %d of %d: %w", len(b)-len(rest), len(b), protowire.ParseError(used))
		}
		rest = rest[used:]
		v.num, v.typ = num, typ
		if err := f(v); err != nil {
			return err
		}
	}
	return nil
}

// count says how often the message b has the field num.
func count(b []byte, num protowire.Number) (int, error) {
	n := 0
	err := eachField(b, func(f field) error {
		if f.num == num {
			n++
		}
		return nil
	})
	return n, err
}

// entry reads f as an entry of a map with text keys. A value that is not there has number 0.
func (f field) entry(name string) (key string, value field, err error) {
	if f.typ != protowire.BytesType {
		return "", value, f.wrongType(name, "a map")
	}
	err = eachField(f.bytes, func(g field) error {
		switch g.num {
		case mapKey:
			return g.text("key", &key)
		case mapValue:
			value = g
		}
		return nil
	})
	if err != nil {
		return "", value, at(err, "%s", name)
	}
	return key, value, nil
}

func (f field) text(name string, dst *string) error {
	if f.typ != protowire.BytesType {
		return f.wrongType(name, "a string")
	}
	if !utf8.Valid(f.bytes) {
		return api.Errorf(api.BadRequest, "%s is no UTF-8", name)
	}
	*dst = string(f.bytes)
	return nil
}

func (f field) integer(name string, dst *int64) error {
	if f.typ != protowire.VarintType {
		return f.wrongType(name, "an integer")
	}
	*dst = int64(f.n)
	return nil
}

func (f field) wrongType(name, wanted string) error {
	return api.Errorf(api.BadRequest, "%s has protobuf's wire type %d, wanted %s", name, f.typ, wanted)
}

// at puts a place before err's message and keeps its code.
func at(err error, format string, args ...any) error {
	return api.Errorf(api.CodeOf(err), format+": %w", append(args, err)...)
}

// clip shortens a client's text for an error.
func clip(s string) string {
	const limit = 80
	if len(s) > limit {
		return s[:limit] + "..."
	}
	return s
}
