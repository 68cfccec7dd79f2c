package token

import "fmt"

// readPostProcessor reads what stands around a text: the prefix and suffix of a template. ByteLevel
// changes offsets only, which we do not compute.
func (t *Tokenizer) readPostProcessor(b []byte) error {
	if isNull(b) {
		return nil
	}
	kind, err := typeOf(b)
	if err != nil {
		return err
	}
	switch kind {
	case "ByteLevel":
		_, err := fields(b, "type", "add_prefix_space", "trim_offsets", "use_regex")
		return err
	case "Sequence":
		return sequence(b, "processors", t.readPostProcessor)
	case "TemplateProcessing":
		return t.readTemplate(b)
	}
	return unsupported("type %q is not supported", clip(kind))
}

// readTemplate reads TemplateProcessing. The template for pairs of texts is not used.
func (t *Tokenizer) readTemplate(b []byte) error {
	f, err := fields(b, "type", "single", "pair", "special_tokens")
	if err != nil {
		return err
	}
	tokens := map[string][]int32{}
	total := 0
	if err := object(f.value("special_tokens"), func(name string, v []byte) error {
		g, err := fields(v, "id", "ids", "tokens")
		if err != nil {
			return fmt.Errorf("special token %q: %w", clip(name), err)
		}
		if _, again := tokens[name]; again {
			return fmt.Errorf("special token %q appears twice", clip(name))
		}
		ids := []int32{}
		err = list(g.value("ids"), func(v []byte) error {
			id, err := number(v, maxTokens)
			if err == nil && !t.shows(int32(id), false) {
				err = fmt.Errorf("no token has id %d", id)
			}
			if total++; total > maxAdded {
				err = fmt.Errorf("more than %d ids", maxAdded)
			}
			ids = append(ids, int32(id))
			return err
		})
		if err != nil {
			return fmt.Errorf("special token %q: ids: %w", clip(name), err)
		}
		tokens[name] = ids
		return nil
	}); err != nil {
		return fmt.Errorf("special_tokens: %w", err)
	}
	var before, after []int32
	text := false
	if err := list(f.value("single"), func(v []byte) error {
		name, isText, err := readTemplateItem(v)
		switch {
		case err != nil:
			return err
		case isText && text:
			return unsupported("a text twice is not supported")
		case isText:
			text = true
			return nil
		}
		ids, ok := tokens[name]
		if !ok {
			return fmt.Errorf("special token %q is not in special_tokens", clip(name))
		}
		if len(before)+len(after)+len(ids) > maxPostToken {
			return fmt.Errorf("more than %d tokens around a text", maxPostToken)
		}
		if text {
			after = append(after, ids...)
		} else {
			before = append(before, ids...)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("single: %w", err)
	}
	if !text {
		return unsupported("single: a template without its text is not supported")
	}
	// In a sequence of templates a later one goes around what the earlier ones made.
	t.prefix = append(before, t.prefix...)
	t.suffix = append(t.suffix, after...)
	if n := len(t.prefix) + len(t.suffix); n > maxPostToken {
		return fmt.Errorf("%d tokens around a text, want at most %d", n, maxPostToken)
	}
	return nil
}

// readTemplateItem reads {"SpecialToken": {"id": name, …}} or {"Sequence": {"id": "A", …}}.
func readTemplateItem(b []byte) (name string, isText bool, err error) {
	f, err := fields(b, "SpecialToken", "Sequence")
	if err != nil {
		return "", false, err
	}
	if len(f) != 1 {
		return "", false, fmt.Errorf("want one of \"SpecialToken\" and \"Sequence\", got %d fields", len(f))
	}
	_, isText = f["Sequence"]
	for _, v := range f {
		g, err := fields(v, "id", "type_id")
		if err != nil {
			return "", false, err
		}
		if name, err = g.text("id"); err != nil {
			return "", false, err
		}
	}
	if isText && name != "A" {
		return "", false, unsupported("text %q is not supported, want \"A\"", clip(name))
	}
	return name, isText, nil
}
