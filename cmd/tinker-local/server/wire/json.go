package wire

import (
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"unicode/utf8"

	"tinkerlocal/engine/api"
)

// Request is a JSON body that a client sends.
type Request interface {
	// name is the last part of the path that it is posted to.
	name() string
	// check says what is wrong with values that could be read.
	check() error
}

// DecodeRequest reads a JSON body into r, a pointer to a zero value, and checks it. Names that r does not know are skipped,
// null counts as absent, and what is absent has the client's default.
func DecodeRequest(body []byte, r Request) error {
	if !utf8.Valid(body) {
		return api.Errorf(api.BadRequest, "%s: the body is no UTF-8", r.name())
	}
	err := json.Unmarshal(body, r)
	if err == nil {
		err = r.check()
	}
	if err != nil {
		return at(plain(err), "%s", r.name())
	}
	return nil
}

// Operation is a Request that has a place in the order of a model's requests.
type Operation interface {
	Request
	place() (model string, seq int64)
}

// DecodeOperation is DecodeRequest that also tells the request's place. With an error it is what can be read of it: "" and 0 when that is nothing.
func DecodeOperation(body []byte, r Operation) (model string, seq int64, err error) {
	if err := DecodeRequest(body, r); err != nil {
		model, seq = placeOfJSON(body)
		return model, seq, err
	}
	model, seq = r.place()
	return model, seq, nil
}

// placeOfJSON is the place that a body names that cannot be decoded.
func placeOfJSON(body []byte) (model string, seq int64) {
	var r struct {
		ModelID json.RawMessage `json:"model_id"`
		SeqID   json.RawMessage `json:"seq_id"`
	}
	_ = json.Unmarshal(body, &r)
	_ = json.Unmarshal(r.ModelID, &model)
	_ = json.Unmarshal(r.SeqID, &seq)
	return model, seq
}

// plain says in the words of JSON what encoding/json says in those of Go.
func plain(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	var known *api.Error
	switch {
	case errors.As(err, &known):
		return err
	case errors.As(err, &syntax):
		return api.Errorf(api.BadRequest, "the body is no JSON at byte %d: %w", syntax.Offset, err)
	case errors.As(err, &kind):
		place := kind.Field
		if place == "" {
			place = "the body"
		}
		return api.Errorf(api.BadRequest, "%s is %s, wanted %s", place, article(clip(kind.Value)), article(jsonKind(kind.Type.Kind().String(), kind.Type.String())))
	}
	return api.Errorf(api.BadRequest, "%w", err)
}

// jsonKind names the JSON that a Go type is read from.
func jsonKind(kind, name string) string {
	switch kind {
	case "string", "bool":
		return kind
	case "struct", "map":
		return "object"
	case "slice", "array":
		return "array"
	case "float32", "float64":
		return "number"
	case "int", "int32", "int64", "uint32", "uint64":
		return "integer"
	}
	return name
}

func article(noun string) string {
	switch noun[0] {
	case 'a', 'e', 'i', 'o', 'u':
		return "an " + noun
	}
	return "a " + noun
}

// required refuses the first empty one of pairs of name and value.
func required(pairs ...string) error {
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			return api.Errorf(api.BadRequest, "%s is missing or empty", pairs[i])
		}
	}
	return nil
}

// sequence checks a client's counter. Absent is 0 where low is 0.
func sequence(name string, v, low int64) error {
	if v < low || v > math.MaxInt64/2 {
		return api.Errorf(api.BadRequest, "%s is %d, wanted %d or more", name, v, low)
	}
	return nil
}

// texts are a client's own notes. The wire allows any JSON as values; what is not text is kept as its JSON.
type texts map[string]string

// UnmarshalJSON reads an object; entries that are null are left out.
func (t *texts) UnmarshalJSON(b []byte) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return api.Errorf(api.BadRequest, "user_metadata is %s, wanted an object", clip(string(b)))
	}
	*t = nil
	for key, value := range raw {
		if string(value) == "null" {
			continue
		}
		if *t == nil {
			*t = texts{}
		}
		var s string
		if json.Unmarshal(value, &s) != nil {
			s = string(value)
		}
		(*t)[key] = s
	}
	return nil
}

// number is a JSON number that may be NaN or infinite. JSON has no such numbers; pydantic reads them from strings.
type number float64

// MarshalJSON writes a number, or a string for what JSON has not.
func (n number) MarshalJSON() ([]byte, error) { return appendNumber(nil, float64(n), 64), nil }

// appendNumber writes the shortest decimal that gives v again with that many bits.
func appendNumber(b []byte, v float64, bits int) []byte {
	switch {
	case v != v:
		return append(b, `"NaN"`...)
	case math.IsInf(v, 1):
		return append(b, `"Infinity"`...)
	case math.IsInf(v, -1):
		return append(b, `"-Infinity"`...)
	}
	return strconv.AppendFloat(b, v, 'g', -1, bits)
}

// numbers is metrics with values that JSON can hold.
func numbers(metrics map[string]float64) map[string]number {
	if metrics == nil {
		return nil
	}
	out := make(map[string]number, len(metrics))
	for name, v := range metrics {
		out[name] = number(v)
	}
	return out
}
