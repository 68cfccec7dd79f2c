package chat

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"

	"tinkerlocal/engine/api"
)

// Value is a JSON value that keeps the order of an object's keys. Templates write tools and arguments
// as Python's json.dumps does, so the order, the spaces and the spelling of numbers are part of the
// prompt: [Value.String] gives them. The zero Value is null.
type Value struct {
	kind  kind
	text  string // of a string: itself; of a number or literal: how Python writes it
	keys  []string
	items []Value // of an array, or of an object beside keys
}

type kind uint8

const (
	null kind = iota
	literal
	str
	array
	object
)

// maxDepth bounds nesting: tools and arguments come from strangers.
const maxDepth = 500

// ParseValue reads one JSON value. Of keys that occur twice the last value counts, at the place of
// the first, as in Python.
func ParseValue(data []byte) (Value, error) {
	var whole json.RawMessage
	if err := json.Unmarshal(data, &whole); err != nil { // the decoder below is lenient about commas
		return Value{}, api.Errorf(api.BadRequest, "json: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	v, err := readValue(dec, 0)
	if err != nil {
		return Value{}, api.Errorf(api.BadRequest, "json at byte %d: %w", dec.InputOffset(), err)
	}
	return v, nil
}

// Text returns the Value of a string, Object that of an object with these keys and values in turn.
func Text(s string) Value { return Value{kind: str, text: s} }

func Object(keys []string, values []Value) Value {
	return Value{kind: object, keys: slices.Clone(keys), items: slices.Clone(values)}
}

func readValue(dec *json.Decoder, depth int) (Value, error) {
	t, err := dec.Token()
	if err != nil {
		return Value{}, err
	}
	if depth > maxDepth {
		return Value{}, errors.New("nested more than " + strconv.Itoa(maxDepth) + " deep")
	}
	switch t := t.(type) {
	case string:
		return Value{kind: str, text: t}, nil
	case json.Number:
		return Value{kind: literal, text: pythonNumber(string(t))}, nil
	case bool:
		return Value{kind: literal, text: strconv.FormatBool(t)}, nil
	case json.Delim:
		return readNested(dec, t, depth)
	}
	return Value{}, nil // null
}

func readNested(dec *json.Decoder, open json.Delim, depth int) (Value, error) {
	v := Value{kind: array}
	at := map[string]int{}
	if open == '{' {
		v.kind = object
	}
	for dec.More() {
		key := ""
		if v.kind == object {
			t, err := dec.Token()
			if err != nil {
				return Value{}, err
			}
			key = t.(string) // the decoder has checked it
		}
		item, err := readValue(dec, depth+1)
		if err != nil {
			return Value{}, err
		}
		if v.kind == array {
			v.items = append(v.items, item)
		} else if k, twice := at[key]; twice {
			v.items[k] = item
		} else {
			at[key] = len(v.keys)
			v.keys = append(v.keys, key)
			v.items = append(v.items, item)
		}
	}
	_, err := dec.Token() // the closing bracket
	return v, err
}

// pythonNumber returns a JSON number as Python prints it after reading it: 1.50 is 1.5, 1e5 is 100000.0.
func pythonNumber(s string) string {
	if !strings.ContainsAny(s, ".eE") {
		if s == "-0" {
			return "0"
		}
		return s
	}
	f, _ := strconv.ParseFloat(s, 64) // out of range: an infinity, as in Python
	if math.IsInf(f, 0) {
		if f < 0 {
			return "-Infinity"
		}
		return "Infinity"
	}
	e := strconv.FormatFloat(f, 'e', -1, 64)
	exponent, _ := strconv.Atoi(e[strings.IndexByte(e, 'e')+1:])
	if exponent < -4 || exponent >= 16 {
		return e
	}
	plain := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(plain, ".") {
		plain += ".0"
	}
	return plain
}

// Get returns the value of key in an object.
func (v Value) Get(key string) (Value, bool) {
	if k := slices.Index(v.keys, key); k >= 0 {
		return v.items[k], true
	}
	return Value{}, false
}

// IsObject, IsText and IsNull tell what v is.
func (v Value) IsObject() bool { return v.kind == object }
func (v Value) IsText() bool   { return v.kind == str }
func (v Value) IsNull() bool   { return v.kind == null }

// Str returns the string that v is, or "".
func (v Value) Str() string {
	if v.kind != str {
		return ""
	}
	return v.text
}

// String returns v in one line as Python's json.dumps(v, ensure_ascii=False) does, which is what
// tojson means in a chat template of the transformers library.
func (v Value) String() string { return string(v.dump(nil, -1, 0)) }

// indented returns v as json.dumps(v, ensure_ascii=False, indent=4) does.
func (v Value) indented() string { return string(v.dump(nil, 4, 0)) }

func (v Value) dump(out []byte, indent, depth int) []byte {
	switch v.kind {
	case null:
		return append(out, "null"...)
	case literal:
		return append(out, v.text...)
	case str:
		return quote(out, v.text)
	}
	open, end := byte('['), byte(']')
	if v.kind == object {
		open, end = '{', '}'
	}
	out = append(out, open)
	line := func(depth int) {
		if indent >= 0 {
			out = append(out, '\n')
			out = append(out, strings.Repeat(" ", indent*depth)...)
		}
	}
	for k, item := range v.items {
		if k > 0 && indent >= 0 {
			out = append(out, ',')
		} else if k > 0 {
			out = append(out, ", "...)
		}
		line(depth + 1)
		if v.kind == object {
			out = append(quote(out, v.keys[k]), ": "...)
		}
		out = item.dump(out, indent, depth+1)
	}
	if len(v.items) > 0 {
		line(depth)
	}
	return append(out, end)
}

const hexDigits = "0123456789abcdef"

// quote appends s as a JSON string with only those escapes that Python writes.
func quote(out []byte, s string) []byte {
	out = append(out, '"')
	for k := 0; k < len(s); k++ {
		c := s[k]
		switch {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c >= ' ':
			out = append(out, c)
		case strings.IndexByte("\b\f\n\r\t", c) >= 0:
			out = append(out, '\\', "bfnrt"[strings.IndexByte("\b\f\n\r\t", c)])
		default:
			out = append(out, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return append(out, '"')
}

// MarshalJSON writes v in its own order.
func (v Value) MarshalJSON() ([]byte, error) { return v.dump(nil, -1, 0), nil }

// UnmarshalJSON reads v and keeps the order.
func (v *Value) UnmarshalJSON(data []byte) error {
	read, err := ParseValue(data)
	*v = read
	return err
}
