package hf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"tinkerlocal/engine/api"
)

// bad makes the error for a file whose contents are wrong.
func bad(format string, args ...any) error { return api.Errorf(api.BadRequest, format, args...) }

// unsupported makes the error for a file that is right, but asks for what this package does not read.
func unsupported(format string, args ...any) error {
	return api.Errorf(api.Unsupported, format, args...)
}

// in puts the place in front of an error and keeps its code.
func in(place string, err error) error {
	if err == nil {
		return nil
	}
	var e *api.Error
	if !errors.As(err, &e) {
		return bad("%s: %w", place, err)
	}
	return api.Errorf(e.Code, "%s: %w", place, err)
}

// object calls each for every member of the JSON object b, in order. Unlike encoding/json it refuses
// repeated names, text after the object and invalid UTF-8, and names are compared exactly.
func object(b []byte, each func(name string, value json.RawMessage) error) error {
	if !utf8.Valid(b) {
		return bad("invalid json: not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	open, err := dec.Token()
	if err != nil {
		return syntax(err)
	}
	if open != json.Delim('{') {
		return bad("wanted a json object, got %s", clip(string(bytes.TrimSpace(b))))
	}
	seen := map[string]struct{}{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return syntax(err)
		}
		name, ok := token.(string)
		if !ok {
			return bad("invalid json: wanted a name, got %v", token)
		}
		if _, again := seen[name]; again {
			return bad("%s appears twice", quote(name))
		}
		seen[name] = struct{}{}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return syntax(err)
		}
		if err := each(name, value); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return syntax(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return bad("invalid json: more text after the object")
	}
	return nil
}

func syntax(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return bad("invalid json: it ends too early")
	}
	var at *json.SyntaxError
	if errors.As(err, &at) {
		return bad("invalid json near byte %d: %w", at.Offset, err)
	}
	return bad("invalid json: %w", err)
}

// members returns the members of the JSON object b.
func members(b []byte) (map[string]json.RawMessage, error) {
	m := map[string]json.RawMessage{}
	err := object(b, func(name string, value json.RawMessage) error {
		m[name] = value
		return nil
	})
	return m, err
}

func isNull(b []byte) bool { return len(b) == 0 || string(b) == "null" }

// fields reads typed values out of a JSON object. The first value that is not as wanted is kept in err
// and named by its key; later reads give defaults. A null counts as absent, as it does for transformers.
type fields struct {
	all   map[string]json.RawMessage
	under map[string]json.RawMessage // asked for keys that all lacks; may be nil
	err   error
}

func (f *fields) raw(key string) json.RawMessage {
	if v := f.all[key]; !isNull(v) {
		return v
	}
	if v := f.under[key]; !isNull(v) {
		return v
	}
	return nil
}

func (f *fields) has(key string) bool { return f.raw(key) != nil }

func (f *fields) wrong(key, want string) {
	if f.err == nil {
		f.err = bad("%s is %s, wanted %s", key, clip(string(f.raw(key))), want)
	}
}

// integer reads an integer of lo..hi, or gives absent.
func (f *fields) integer(key string, absent, lo, hi int) int {
	raw := f.raw(key)
	if raw == nil {
		return absent
	}
	var n int64
	if json.Unmarshal(raw, &n) != nil || n < int64(lo) || n > int64(hi) {
		f.wrong(key, fmt.Sprintf("an integer of %d to %d", lo, hi))
		return absent
	}
	return int(n)
}

// number reads a number of lo..hi, or gives absent.
func (f *fields) number(key string, absent, lo, hi float64) float64 {
	raw := f.raw(key)
	if raw == nil {
		return absent
	}
	var v float64
	if json.Unmarshal(raw, &v) != nil || !(v >= lo && v <= hi) {
		f.wrong(key, fmt.Sprintf("a number of %g to %g", lo, hi))
		return absent
	}
	return v
}

func (f *fields) boolean(key string) bool {
	raw := f.raw(key)
	if raw == nil {
		return false
	}
	var v bool
	if json.Unmarshal(raw, &v) != nil {
		f.wrong(key, "true or false")
	}
	return v
}

func (f *fields) text(key string) string {
	raw := f.raw(key)
	if raw == nil {
		return ""
	}
	var v string
	if json.Unmarshal(raw, &v) != nil || len(v) > maxText {
		f.wrong(key, fmt.Sprintf("a string of at most %d bytes", maxText))
		return ""
	}
	return v
}

// texts reads a list of at most most strings.
func (f *fields) texts(key string, most int) []string {
	raw := f.raw(key)
	if raw == nil {
		return nil
	}
	var list []*string
	if json.Unmarshal(raw, &list) != nil || len(list) > most {
		f.wrong(key, fmt.Sprintf("a list of at most %d strings", most))
		return nil
	}
	out := make([]string, len(list))
	for i, s := range list {
		if s == nil {
			f.wrong(key, fmt.Sprintf("a list of at most %d strings", most))
			return nil
		}
		out[i] = *s
	}
	return out
}

// ids reads a token id or a list of them.
func (f *fields) ids(key string) []int {
	raw := f.raw(key)
	if raw == nil {
		return nil
	}
	var one *int64
	list := []*int64{nil}
	if json.Unmarshal(raw, &one) == nil {
		list[0] = one
	} else if json.Unmarshal(raw, &list) != nil || len(list) > maxIDs {
		list = []*int64{nil}
	}
	out := make([]int, len(list))
	for i, n := range list {
		if n == nil || *n < 0 || *n > maxVocab {
			f.wrong(key, fmt.Sprintf("a token id of 0 to %d, or a list of at most %d", maxVocab, maxIDs))
			return nil
		}
		out[i] = int(*n)
	}
	return out
}

const (
	maxText = 4096
	maxIDs  = 1024
)

// clip shortens text of a file for an error message, on one line.
func clip(s string) string {
	cut, more := s, ""
	if len(s) > maxClip {
		cut, more = s[:maxClip], "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(cut, "")) + more
}

// quote makes a name of a file fit for an error message.
func quote(name string) string {
	if len(name) > maxClip {
		name = strings.ToValidUTF8(name[:maxClip], "") + "…"
	}
	return strconv.Quote(name)
}

const maxClip = 80 // bytes
