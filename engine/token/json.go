package token

import (
	"errors"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// A small strict reader of JSON. It works on slices of the file: object and list hand out the raw
// bytes of each element, checked for syntax, and the caller decides what each must be. So a field may
// come in any order, nothing is built that nobody asked for, and memory stays proportional to what is
// kept. Unlike encoding/json it refuses repeated keys (its callers do), other spellings of a key,
// invalid UTF-8 and lone surrogates.

const maxDepth = 64

var errSyntax = errors.New("invalid json")

func syntax(b []byte, i int, want string) error {
	got := "the end"
	if i < len(b) {
		got = strconv.QuoteToASCII(string(b[i : i+1]))
	}
	return fmt.Errorf("%w: want %s, got %s", errSyntax, want, got)
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// skipValue returns the end of the value that starts at b[i] (no white space before it).
func skipValue(b []byte, i, depth int) (int, error) {
	if i >= len(b) {
		return i, syntax(b, i, "a value")
	}
	switch c := b[i]; {
	case c == '{' || c == '[':
		if depth == 0 {
			return i, fmt.Errorf("%w: more than %d levels deep", errSyntax, maxDepth)
		}
		return walk(b, i, depth, nil)
	case c == '"':
		return skipString(b, i)
	case c == '-' || c >= '0' && c <= '9':
		return skipNumber(b, i)
	}
	for _, word := range []string{"true", "false", "null"} {
		if len(b)-i >= len(word) && string(b[i:i+len(word)]) == word {
			return i + len(word), nil
		}
	}
	return i, syntax(b, i, "a value")
}

func skipString(b []byte, i int) (int, error) {
	for j := i + 1; j < len(b); j++ {
		switch c := b[j]; {
		case c == '"':
			return j + 1, nil
		case c == '\\':
			j++
		case c < 0x20:
			return j, syntax(b, j, "a string without control characters")
		}
	}
	return len(b), syntax(b, len(b), `"`)
}

func skipNumber(b []byte, i int) (int, error) {
	digits := func() bool {
		from := i
		for i < len(b) && b[i] >= '0' && b[i] <= '9' {
			i++
		}
		return i > from
	}
	if b[i] == '-' {
		i++
	}
	if i < len(b) && b[i] == '0' {
		i++
	} else if !digits() {
		return i, syntax(b, i, "a digit")
	}
	if i < len(b) && b[i] == '.' {
		i++
		if !digits() {
			return i, syntax(b, i, "a digit")
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if !digits() {
			return i, syntax(b, i, "a digit")
		}
	}
	return i, nil
}

// walk goes through the object or list at b[i], calls each (when not nil) with the raw key (nil in a
// list) and raw value of every element, and returns its end.
func walk(b []byte, i, depth int, each func(key, value []byte) error) (int, error) {
	end, isObject := byte(']'), b[i] == '{'
	if isObject {
		end = '}'
	}
	i = skipSpace(b, i+1)
	if i < len(b) && b[i] == end {
		return i + 1, nil
	}
	for {
		var key []byte
		if isObject {
			if i >= len(b) || b[i] != '"' {
				return i, syntax(b, i, "a key")
			}
			j, err := skipString(b, i)
			if err != nil {
				return j, err
			}
			key = b[i:j]
			if i = skipSpace(b, j); i >= len(b) || b[i] != ':' {
				return i, syntax(b, i, ":")
			}
			i = skipSpace(b, i+1)
		}
		j, err := skipValue(b, i, depth-1)
		if err != nil {
			return j, err
		}
		if each != nil {
			if err := each(key, b[i:j]); err != nil {
				return j, err
			}
		}
		i = skipSpace(b, j)
		if i < len(b) && b[i] == end {
			return i + 1, nil
		}
		if i >= len(b) || b[i] != ',' {
			return i, syntax(b, i, ", or "+string(end))
		}
		i = skipSpace(b, i+1)
	}
}

// object calls each for the members of the raw value b, which must be an object.
func object(b []byte, each func(key string, value []byte) error) error {
	if len(b) == 0 || b[0] != '{' {
		return wrongKind(b, "an object")
	}
	_, err := walk(b, 0, maxDepth, func(k, v []byte) error {
		key, err := str(k)
		if err != nil {
			return err
		}
		return each(key, v)
	})
	return err
}

// list calls each for the elements of the raw value b, which must be a list.
func list(b []byte, each func(value []byte) error) error {
	if len(b) == 0 || b[0] != '[' {
		return wrongKind(b, "a list")
	}
	_, err := walk(b, 0, maxDepth, func(_, v []byte) error { return each(v) })
	return err
}

func wrongKind(b []byte, want string) error {
	const most = 40
	if len(b) > most {
		return fmt.Errorf("want %s, got %q…", want, b[:most])
	}
	return fmt.Errorf("want %s, got %q", want, b)
}

func isNull(b []byte) bool { return string(b) == "null" }

func boolean(b []byte) (bool, error) {
	switch string(b) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, wrongKind(b, "true or false")
}

// number reads an integer of 0..limit.
func number(b []byte, limit int) (int, error) {
	n, err := strconv.ParseUint(string(b), 10, 31)
	if err != nil || n > uint64(limit) {
		return 0, wrongKind(b, fmt.Sprintf("an integer of 0..%d", limit))
	}
	return int(n), nil
}

// str reads a JSON string.
func str(b []byte) (string, error) {
	if len(b) < 2 || b[0] != '"' {
		return "", wrongKind(b, "a string")
	}
	in := b[1 : len(b)-1]
	plain := true
	for _, c := range in {
		if c == '\\' {
			plain = false
			break
		}
	}
	if !utf8.Valid(in) {
		return "", fmt.Errorf("%w: a string is not UTF-8: %q", errSyntax, clip(string(in)))
	}
	if plain {
		return string(in), nil
	}
	out := make([]byte, 0, len(in))
	for i := 0; i < len(in); i++ {
		if in[i] != '\\' {
			out = append(out, in[i])
			continue
		}
		i++
		if i >= len(in) {
			return "", fmt.Errorf("%w: a string ends in \\", errSyntax)
		}
		switch c := in[i]; c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r := hex4(in, i+1)
			i += 4
			if utf16.IsSurrogate(r) {
				low := rune(-1)
				if i+2 < len(in) && in[i+1] == '\\' && in[i+2] == 'u' {
					low = hex4(in, i+3)
				}
				r = utf16.DecodeRune(r, low)
				if i += 6; r == utf8.RuneError {
					return "", fmt.Errorf("%w: a lone surrogate in %q", errSyntax, clip(string(in)))
				}
			}
			if r < 0 {
				return "", fmt.Errorf("%w: \\u without four hexadecimal digits in %q", errSyntax, clip(string(in)))
			}
			out = utf8.AppendRune(out, r)
		default:
			return "", fmt.Errorf("%w: unknown escape \\%c", errSyntax, c)
		}
	}
	return string(out), nil
}

// hex4 reads four hexadecimal digits at b[i], or returns -1.
func hex4(b []byte, i int) rune {
	if i+4 > len(b) {
		return -1
	}
	r := rune(0)
	for _, c := range b[i : i+4] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			r = r<<4 | rune(c|0x20-'a'+10)
		default:
			return -1
		}
	}
	return r
}

// clip shortens s for an error message.
func clip(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	i := most
	for i > 0 && !utf8.RuneStart(s[i]) {
		i--
	}
	return s[:i] + "…"
}
