package wire

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"

	"tinkerlocal/engine/api"
)

// forwardBackwardJSON is the body of forward_backward, and of forward, that SDKs before 0.25 send.
type forwardBackwardJSON struct {
	ModelID  string     `json:"model_id"`
	SeqID    int64      `json:"seq_id"`
	Backward *inputJSON `json:"forward_backward_input"`
	Forward  *inputJSON `json:"forward_input"`
}

type inputJSON struct {
	Data   []datumJSON                `json:"data"`
	LossFn string                     `json:"loss_fn"`
	Config map[string]json.RawMessage `json:"loss_fn_config"`
}

type datumJSON struct {
	ModelInput inputChunks           `json:"model_input"`
	Inputs     map[string]tensorJSON `json:"loss_fn_inputs"`
}

// inputChunks is ModelInput with the kinds of chunks that are refused.
type inputChunks struct {
	Chunks []chunkJSON `json:"chunks"`
}

// chunkJSON has the type of a chunk and its tokens. SDKs up to 0.16 leave the type out, so the fields tell.
type chunkJSON struct {
	Type     string    `json:"type"`
	Tokens   tokenList `json:"tokens"`
	Format   present   `json:"format"`
	Location present   `json:"location"`
	Dmel     present   `json:"dmel"`
}

func (c chunkJSON) kind() string {
	switch {
	case c.Type != "":
		return c.Type
	case bool(c.Location):
		return "image_asset_pointer"
	case bool(c.Format):
		return "image"
	case bool(c.Dmel):
		return "dmel"
	}
	return "encoded_text"
}

// present says that a name was there, with whatever value.
type present bool

// UnmarshalJSON reads nothing.
func (p *present) UnmarshalJSON([]byte) error {
	*p = true
	return nil
}

type tensorJSON struct {
	Data  json.RawMessage `json:"data"` // flat
	DType string          `json:"dtype"`
	Shape []int64         `json:"shape"`
	Crow  json.RawMessage `json:"sparse_crow_indices"`
	Cols  json.RawMessage `json:"sparse_col_indices"`
}

func (r *forwardBackwardJSON) name() string {
	if r.Forward != nil {
		return "forward"
	}
	return "forward_backward"
}

func (r *forwardBackwardJSON) check() error {
	if (r.Forward == nil) == (r.Backward == nil) {
		return api.Errorf(api.BadRequest, "wanted one of forward_backward_input and forward_input")
	}
	return nil
}

// DecodeForwardBackwardJSON reads a body of content type [JSON]. With an error, the result has the model's id and the request's number if
// those could be read.
func DecodeForwardBackwardJSON(body []byte) (ForwardBackwardRequest, error) {
	var r forwardBackwardJSON
	if err := DecodeRequest(body, &r); err != nil {
		model, seq := placeOfJSON(body) // clients write them behind the data
		return ForwardBackwardRequest{ModelID: model, SeqID: seq}.place(), err
	}
	out, err := r.decoded(spreadBudget(len(body)))
	if err == nil {
		err = out.check()
	}
	if err != nil {
		return out.place(), at(err, "%s", r.name())
	}
	return out, nil
}

func (r *forwardBackwardJSON) decoded(budget int) (ForwardBackwardRequest, error) {
	out := ForwardBackwardRequest{ModelID: r.ModelID, SeqID: r.SeqID, ForwardOnly: r.Forward != nil}
	in := r.Backward
	if in == nil {
		in = r.Forward
	}
	if err := checkDatums(len(in.Data)); err != nil {
		return out, err
	}
	out.Input = api.ForwardBackwardInput{LossFn: in.LossFn, Data: make([]api.Datum, len(in.Data))}
	for key, raw := range in.Config {
		if string(raw) == "null" {
			continue
		}
		v, err := strconv.ParseFloat(string(raw), 64)
		if err != nil {
			return out, api.Errorf(api.BadRequest, "loss_fn_config[%q] is %s, wanted a finite number", clip(key), clip(string(raw)))
		}
		if len(out.Input.LossConfig) >= maxConfig {
			return out, api.Errorf(api.BadRequest, "loss_fn_config has more than %d entries", maxConfig)
		}
		if out.Input.LossConfig == nil {
			out.Input.LossConfig = map[string]float64{}
		}
		out.Input.LossConfig[key] = v
	}
	for i, d := range in.Data {
		var err error
		if out.Input.Data[i].ModelInput, err = d.ModelInput.decoded(); err != nil {
			return out, at(err, "datum %d", i)
		}
		for name, raw := range d.Inputs {
			t, err := raw.decoded(&budget)
			if err == nil {
				err = addInput(&out.Input.Data[i], name, t)
			}
			if err != nil {
				return out, at(err, "datum %d: loss input %q", i, clip(name))
			}
		}
	}
	return out, nil
}

func (in inputChunks) decoded() (api.ModelInput, error) {
	out := api.ModelInput{Chunks: make([]api.Chunk, len(in.Chunks))}
	for i, c := range in.Chunks {
		switch {
		case c.kind() != "encoded_text":
			return out, at(unsupportedChunk(c.kind()), "chunk %d", i)
		case c.Tokens == nil:
			return out, api.Errorf(api.BadRequest, "chunk %d has no tokens", i)
		}
		out.Chunks[i] = api.Chunk{Type: "encoded_text", Tokens: c.Tokens}
	}
	return out, nil
}

func (j tensorJSON) decoded(budget *int) (t api.TensorData, err error) {
	switch j.DType {
	case "float32":
		t.Floats, err = parseArray(j.Data, parseFloat32)
	case "int64":
		t.Ints, err = parseArray(j.Data, parseInt64)
	default:
		return t, api.Errorf(api.BadRequest, "dtype is %q, wanted \"float32\" or \"int64\"", clip(j.DType))
	}
	if err != nil {
		return t, at(err, "data")
	}
	if len(j.Shape) > maxRank {
		return t, api.Errorf(api.BadRequest, "shape has more than %d entries", maxRank)
	}
	if absent(j.Crow) && absent(j.Cols) {
		t.Shape, err = shape(j.Shape, t.Len())
		return t, err
	}
	crow, err := parseArray(j.Crow, parseInt64)
	if err != nil {
		return t, at(err, "sparse_crow_indices")
	}
	cols, err := parseArray(j.Cols, parseInt64)
	if err != nil {
		return t, at(err, "sparse_col_indices")
	}
	return spread(t, j.DType == "float32", crow, cols, j.Shape, budget)
}

func absent(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

// tokenList reads ids without a step through reflection for each.
type tokenList []int32

// UnmarshalJSON reads an array of integers that fit 32 bits; null is no list.
func (t *tokenList) UnmarshalJSON(b []byte) (err error) {
	if *t = nil; absent(b) {
		return nil
	}
	if *t, err = parseArray(b, parseInt32); err != nil {
		return at(err, "tokens")
	}
	return nil
}

// parseArray reads an array of numbers. raw is valid JSON, or empty.
func parseArray[T any](raw []byte, parse func(string) (T, error)) ([]T, error) {
	if len(raw) == 0 || raw[0] != '[' {
		return nil, api.Errorf(api.BadRequest, "it is %s, wanted an array of numbers", shown(raw))
	}
	rest := strings.TrimSpace(string(raw[1 : len(raw)-1])) // one copy, of which the numbers are parts
	if rest == "" {
		return []T{}, nil
	}
	out := make([]T, 0, 1+strings.Count(rest, ","))
	for more := true; more; {
		var item string
		item, rest, more = strings.Cut(rest, ",")
		item = strings.TrimSpace(item)
		if c := item[0]; c != '-' && (c < '0' || c > '9') {
			return nil, api.Errorf(api.BadRequest, "value %d is %s, wanted a number", len(out), clip(item))
		}
		v, err := parse(item)
		if err != nil {
			return nil, api.Errorf(api.BadRequest, "value %d is %s: %w", len(out), clip(item), err)
		}
		out = append(out, v)
	}
	return out, nil
}

func shown(raw []byte) string {
	if len(raw) == 0 {
		return "missing"
	}
	return clip(string(raw))
}

func parseFloat32(s string) (float32, error) {
	v, err := strconv.ParseFloat(s, 32)
	if err != nil {
		return 0, api.Errorf(api.BadRequest, "wanted a finite float32")
	}
	return float32(v), nil
}

func parseInt32(s string) (int32, error) {
	v, err := parseInt64(s)
	if err != nil || int64(int32(v)) != v {
		return 0, api.Errorf(api.BadRequest, "wanted an integer of 32 bits")
	}
	return int32(v), nil
}

// parseInt64 also reads 3.0: a client that labels floats as int64 means that.
func parseInt64(s string) (int64, error) {
	v, err := strconv.ParseInt(s, 10, 64)
	if err == nil {
		return v, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return 0, api.Errorf(api.BadRequest, "wanted an integer of 64 bits")
	}
	return int64(f), nil
}

// EncodeForwardBackwardOutputJSON writes a result of forward_backward for clients that do not accept [Protobuf].
func EncodeForwardBackwardOutputJSON(out api.ForwardBackwardOutput) ([]byte, error) {
	metrics, err := reduced(out.Metrics)
	if err != nil {
		return nil, err
	}
	result := struct {
		Type    string                   `json:"loss_fn_output_type"`
		Outputs []map[string]tensorValue `json:"loss_fn_outputs"`
		Metrics map[string]number        `json:"metrics"`
	}{out.LossFnOutputType, make([]map[string]tensorValue, len(out.LossFnOutputs)), numbers(metrics)}
	if result.Type == "" {
		result.Type = recordType
	}
	for i, outputs := range out.LossFnOutputs {
		result.Outputs[i] = make(map[string]tensorValue, len(outputs))
		for name, t := range outputs {
			if err := checkTensor(t); err != nil {
				return nil, at(err, "datum %d: loss output %q", i, name)
			}
			result.Outputs[i][name] = tensorValue(t)
		}
	}
	return json.Marshal(result)
}

// tensorValue writes a dense tensor.
type tensorValue api.TensorData

// MarshalJSON writes data, dtype and shape.
func (v tensorValue) MarshalJSON() ([]byte, error) {
	t := api.TensorData(v)
	b := append(make([]byte, 0, 64+12*t.Len()), `{"data":[`...)
	for i, x := range t.Floats {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendNumber(b, float64(x), 32)
	}
	for i, x := range t.Ints {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, x, 10)
	}
	b = append(b, `],"dtype":"`+t.DType()+`","shape":`...)
	shape, err := json.Marshal(t.Dims())
	return append(append(b, shape...), '}'), err
}

// EncodeSampleOutputJSON writes a result of sampling for clients that do not accept [Protobuf]. They cannot ask for what came with 0.38.
func EncodeSampleOutputJSON(out api.SampleOutput) ([]byte, error) {
	if err := checkSampled(out); err != nil {
		return nil, err
	}
	type sequence struct {
		StopReason string    `json:"stop_reason"`
		Tokens     []int32   `json:"tokens"`
		LogProbs   floatList `json:"logprobs,omitempty"`
	}
	result := struct {
		Sequences []sequence           `json:"sequences"`
		Prompt    api.PromptLogProbs   `json:"prompt_logprobs,omitempty"`
		TopK      [][]api.TokenLogProb `json:"topk_prompt_logprobs,omitempty"`
	}{make([]sequence, len(out.Sequences)), out.PromptLogProbs, out.TopKPromptLogProbs}
	for i, s := range out.Sequences {
		result.Sequences[i] = sequence{s.StopReason, append([]int32{}, s.Tokens...), s.LogProbs}
	}
	return json.Marshal(result)
}

// floatList writes floats with their own shortest decimals.
type floatList []float32

// MarshalJSON writes an array.
func (v floatList) MarshalJSON() ([]byte, error) {
	b := append(make([]byte, 0, 2+12*len(v)), '[')
	for i, x := range v {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendNumber(b, float64(x), 32)
	}
	return append(b, ']'), nil
}
