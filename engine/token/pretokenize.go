package token

import "fmt"

// readPreTokenizer reads the pre_tokenizer field into steps, a Sequence flattened. byteLevel tells
// whether it ends in ByteLevel, which makes the model's symbols bytes.
func readPreTokenizer(b []byte) (steps []splitter, byteLevel bool, err error) {
	if isNull(b) {
		return nil, false, nil
	}
	kind, err := typeOf(b)
	if err != nil {
		return nil, false, err
	}
	switch kind {
	case "Sequence":
		err := sequence(b, "pretokenizers", func(v []byte) error {
			if byteLevel {
				return unsupported("a step after ByteLevel is not supported")
			}
			more, ends, err := readPreTokenizer(v)
			if steps, byteLevel = append(steps, more...), ends; err == nil && len(steps) > maxSteps {
				err = fmt.Errorf("more than %d steps", maxSteps)
			}
			return err
		})
		return steps, byteLevel, err
	case "ByteLevel":
		steps, err := readByteLevel(b)
		return steps, true, err
	case "Split":
		step, err := readSplit(b)
		return []splitter{step}, false, err
	case "Metaspace":
		step, err := readMetaspace(b)
		return []splitter{step}, false, err
	}
	return nil, false, unsupported("type %q is not supported", clip(kind))
}

func readByteLevel(b []byte) ([]splitter, error) {
	f, err := fields(b, "type", "add_prefix_space", "trim_offsets", "use_regex")
	if err != nil {
		return nil, err
	}
	var steps []splitter
	prefix, err := f.flag("add_prefix_space", true)
	if err != nil {
		return nil, err
	}
	if prefix {
		steps = append(steps, prefixSpace{})
	}
	regex, err := f.flag("use_regex", true)
	if err != nil {
		return nil, err
	}
	if regex {
		steps = append(steps, scanSplit{scannerFor(patternGPT2)})
	}
	_, err = f.flag("trim_offsets", true) // offsets are not computed
	return steps, err
}

func readSplit(b []byte) (splitter, error) {
	f, err := fields(b, "type", "pattern", "behavior", "invert")
	if err != nil {
		return nil, err
	}
	invert, err := f.flag("invert", false)
	if err != nil {
		return nil, err
	}
	name, err := f.text("behavior")
	if err != nil {
		return nil, err
	}
	what, ok := behaviors[name]
	if !ok {
		return nil, unsupported("behavior %q is not supported", clip(name))
	}
	regex, literal, err := readPattern(f.value("pattern"))
	if err != nil {
		return nil, fmt.Errorf("pattern: %w", err)
	}
	if literal != "" {
		return matchSplit{findString(literal), invert, what}, nil
	}
	// The known patterns match everywhere: nothing lies between matches, and nothing is left to join.
	scan := scannerFor(regex)
	switch {
	case scan != nil && (what == isolated || what == removed && invert):
		return scanSplit{scan}, nil
	case what != isolated && what != removed:
		return nil, unsupported("behavior %q with a regular expression is not supported", name)
	case scan != nil:
		return nil, unsupported("behavior %q with a pattern that matches everything is not supported", name)
	}
	find, err := findRegex(regex)
	if err != nil {
		return nil, err
	}
	return matchSplit{find, invert, what}, nil
}

// readPattern reads {"Regex": "…"} or {"String": "…"}.
func readPattern(b []byte) (regex, literal string, err error) {
	f, err := fields(b, "Regex", "String")
	if err != nil {
		return "", "", err
	}
	if len(f) != 1 {
		return "", "", fmt.Errorf("want one of \"Regex\" and \"String\", got %d fields", len(f))
	}
	for name := range f {
		s, err := f.text(name)
		if err != nil {
			return "", "", err
		}
		if s == "" {
			return "", "", fmt.Errorf("%s is empty", name)
		}
		if name == "Regex" {
			return s, "", nil
		}
		return "", s, nil
	}
	return "", "", nil
}
