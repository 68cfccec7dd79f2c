package token

import (
	"errors"
	"fmt"
	"slices"

	"tinkerlocal/engine/api"
)

// Limits of a tokenizer.json, each well above what published models have.
const (
	maxFile      = 256 << 20 // bytes; the largest seen are below 40 MB
	maxTokens    = 4 << 20   // vocabulary entries and added tokens; the largest seen is 262,144
	maxHoles     = 1 << 16   // ids that no token has
	maxAdded     = 1 << 16   // added tokens; Gemma has 6,415
	maxContent   = 1 << 10   // bytes of one added token: bounds the time that matching takes
	maxPostToken = 64        // tokens that the post-processor puts around a text
)

// Parse reads a tokenizer.json. Anything in it that this package does not implement exactly is an
// error of code Unsupported that names it; anything malformed one of code BadRequest. json is not kept.
//
// The fields truncation and padding are settings of the last program that saved the file and have no
// effect here.
func Parse(json []byte) (*Tokenizer, error) {
	t, err := parse(json)
	if err != nil {
		code := api.BadRequest
		if e := (*api.Error)(nil); errors.As(err, &e) {
			code = e.Code
		}
		return nil, api.Errorf(code, "tokenizer.json: %w", err)
	}
	return t, nil
}

// unsupported is the error for what the format allows and this package does not implement.
func unsupported(format string, args ...any) error {
	return api.Errorf(api.Unsupported, format, args...)
}

func parse(b []byte) (*Tokenizer, error) {
	if len(b) > maxFile {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(b), maxFile)
	}
	from := skipSpace(b, 0)
	end, err := skipValue(b, from, maxDepth)
	if err != nil {
		return nil, fmt.Errorf("at byte %d: %w", end, err)
	}
	if rest := skipSpace(b, end); rest != len(b) {
		return nil, fmt.Errorf("at byte %d: %w", rest, syntax(b, rest, "the end"))
	}
	f, err := fields(b[from:end], "version", "truncation", "padding", "added_tokens", "normalizer",
		"pre_tokenizer", "post_processor", "decoder", "model")
	if err != nil {
		return nil, err
	}
	if v := f.value("version"); string(v) != `"1.0"` && !isNull(v) {
		return nil, unsupported("version %s is not supported, want \"1.0\"", clip(string(v)))
	}
	t := &Tokenizer{}
	t.scratch.New = func() any { return &merger{} }

	var byteLevel bool
	if t.normalize, err = readNormalizers(f.value("normalizer")); err != nil {
		return nil, fmt.Errorf("normalizer: %w", err)
	}
	if t.split, byteLevel, err = readPreTokenizer(f.value("pre_tokenizer")); err != nil {
		return nil, fmt.Errorf("pre_tokenizer: %w", err)
	}
	if t.dec, err = readDecoder(f.value("decoder")); err != nil {
		return nil, fmt.Errorf("decoder: %w", err)
	}
	if byteLevel != t.dec.byteLevel {
		return nil, unsupported("ByteLevel in only one of pre_tokenizer and decoder is not supported")
	}
	v := &vocabulary{model: &bpe{byteLevel: byteLevel}}
	if err := v.readModel(f.value("model")); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	added, err := v.readAdded(f.value("added_tokens"))
	if err != nil {
		return nil, fmt.Errorf("added_tokens: %w", err)
	}
	if err := v.finish(t, added); err != nil {
		return nil, fmt.Errorf("added_tokens: %w", err)
	}
	if err := t.readPostProcessor(f.value("post_processor")); err != nil {
		return nil, fmt.Errorf("post_processor: %w", err)
	}
	return t, nil
}

// members are the fields of one object, as raw values.
type members map[string][]byte

// fields reads an object that may have these fields and no others, each once.
func fields(b []byte, names ...string) (members, error) {
	f := members{}
	return f, object(b, func(key string, v []byte) error {
		if !slices.Contains(names, key) {
			return unsupported("field %q is not supported here", clip(key))
		}
		if _, again := f[key]; again {
			return fmt.Errorf("field %q appears twice", key)
		}
		f[key] = v
		return nil
	})
}

// value returns the raw value of a field, null if it is not there.
func (f members) value(name string) []byte {
	if v, ok := f[name]; ok {
		return v
	}
	return []byte("null")
}

// flag reads a boolean field; null and a missing field are the default.
func (f members) flag(name string, byDefault bool) (bool, error) {
	v := f.value(name)
	if isNull(v) {
		return byDefault, nil
	}
	on, err := boolean(v)
	if err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	return on, nil
}

// flags reads several boolean fields that are false by default.
func (f members) flags(into map[string]*bool) error {
	for name, p := range into {
		on, err := f.flag(name, false)
		if err != nil {
			return err
		}
		*p = on
	}
	return nil
}

// text reads a string field, which must be there.
func (f members) text(name string) (string, error) {
	s, err := str(f.value(name))
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// typeOf returns the field that tells the kinds of normaliser, pre-tokenizer and so on apart.
func typeOf(b []byte) (string, error) {
	kind, found := "", false
	err := object(b, func(key string, v []byte) error {
		if key != "type" {
			return nil
		}
		if found {
			return fmt.Errorf("field \"type\" appears twice")
		}
		found = true
		var err error
		if kind, err = str(v); err != nil {
			return fmt.Errorf("type: %w", err)
		}
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("field \"type\" is missing")
	}
	return kind, err
}

// sequence calls each for the elements of a Sequence's list.
func sequence(b []byte, name string, each func(v []byte) error) error {
	f, err := fields(b, "type", name)
	if err != nil {
		return err
	}
	i := 0
	return list(f.value(name), func(v []byte) error {
		if err := each(v); err != nil {
			return fmt.Errorf("%s %d: %w", name, i, err)
		}
		i++
		return nil
	})
}
