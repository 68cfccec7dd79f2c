package token

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// metaspace is the pre-tokenizer (and the decoder's settings) that writes spaces as a mark such as ▁.
type metaspace struct {
	mark    string
	prepend prependScheme
	cut     bool // into words, each with its mark in front
}

type prependScheme int

const (
	prependAlways prependScheme = iota
	prependFirst                // only where the whole input begins
	prependNever
)

var prependSchemes = map[string]prependScheme{"always": prependAlways, "first": prependFirst, "never": prependNever}

func readMetaspace(b []byte) (metaspace, error) {
	m := metaspace{}
	f, err := fields(b, "type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep")
	if err != nil {
		return m, err
	}
	if m.mark, err = f.text("replacement"); err != nil {
		return m, err
	}
	if utf8.RuneCountInString(m.mark) != 1 {
		return m, fmt.Errorf("replacement: want one character, got %q", clip(m.mark))
	}
	if m.cut, err = f.flag("split", true); err != nil {
		return m, err
	}
	// Before prepend_scheme there was add_prefix_space.
	prefix, err := f.flag("add_prefix_space", true)
	if err != nil {
		return m, err
	}
	if !prefix {
		m.prepend = prependNever
	}
	if v := f.value("prepend_scheme"); !isNull(v) {
		name, err := f.text("prepend_scheme")
		if err != nil {
			return m, err
		}
		scheme, ok := prependSchemes[name]
		if !ok {
			return m, unsupported("prepend_scheme %q is not supported", clip(name))
		}
		if !prefix && scheme != prependNever {
			return m, fmt.Errorf("prepend_scheme %q contradicts add_prefix_space false", name)
		}
		m.prepend = scheme
	}
	return m, nil
}

func (m metaspace) split(p piece, emit func(piece)) error {
	p.text = strings.ReplaceAll(p.text, " ", m.mark)
	if (m.prepend == prependAlways || m.prepend == prependFirst && p.first) && !strings.HasPrefix(p.text, m.mark) {
		p.text = m.mark + p.text
	}
	if !m.cut {
		emit(p)
		return nil
	}
	return matchSplit{find: findString(m.mark), what: mergedWithNext}.split(p, emit)
}
