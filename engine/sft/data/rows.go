package data

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"tinkerlocal/engine/chat"
)

// Kind is a kind of rows.
type Kind string

// The kinds of rows.
const (
	Auto       Kind = "auto"       // each row is what its fields say
	Pairs      Kind = "pairs"      // {"prompt": text, "completion": text}
	Chat       Kind = "chat"       // {"messages": [{"role": …, "content": …}, …], "tools": […]}
	Preference Kind = "preference" // {"prompt": text or messages, "chosen": text or messages, "rejected": text or messages}
)

// Kinds names them all.
var Kinds = []string{string(Auto), string(Pairs), string(Chat), string(Preference)}

// fieldsOf are the fields that each kind reads.
var fieldsOf = map[Kind][]string{
	Pairs:      {"prompt", "completion"},
	Chat:       {"messages", "tools"},
	Preference: {"prompt", "chosen", "rejected", "tools"},
}

// wanted says in the words of an error what a row looks like.
const wanted = `wanted {"prompt": …, "completion": …}, {"messages": …} or {"prompt": …, "chosen": …, "rejected": …}`

// row is one parsed line.
type row struct {
	kind               Kind
	prompt, completion string
	conversations      [][]chat.Message // of chat: one; of preference in messages: chosen, rejected
	answers            [2]string        // of preference in text
	tools              []chat.Tool
	numbers            []float64 // of the fields that Options.Numbers names
	ignored            []string  // fields that nobody reads
}

// parse reads a line. kind other than Auto refuses rows of another kind; numbers are fields that it must have besides.
func parse(line []byte, kind Kind, numbers ...string) (row, error) {
	var fields map[string]json.RawMessage
	if at := invalidUTF8(line); at >= 0 {
		return row{}, fmt.Errorf("byte %d of the line is not UTF-8", at)
	}
	d := json.NewDecoder(bytes.NewReader(line))
	if err := d.Decode(&fields); err != nil || fields == nil {
		if err == nil {
			err = errors.New("null")
		}
		return row{}, fmt.Errorf("not a row: %w; %s", err, wanted)
	}
	if d.More() {
		return row{}, errors.New("more than one JSON value on the line")
	}
	r := row{kind: kindOf(fields)}
	if kind != Auto && kind != "" && r.kind != kind {
		return row{}, fmt.Errorf("a row of the kind %s, wanted %s; its fields are %s", r.kind, kind, names(fields))
	}
	var err error
	switch r.kind {
	case Pairs:
		err = r.readPair(fields)
	case Chat:
		err = r.readChat(fields)
	case Preference:
		err = r.readPreference(fields)
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains(fieldsOf[r.kind], name) && !slices.Contains(numbers, name) {
			r.ignored = append(r.ignored, name)
		}
	}
	for _, name := range numbers {
		if err != nil {
			break
		}
		var n float64
		n, err = number(fields, name)
		r.numbers = append(r.numbers, n)
	}
	return r, err
}

// number reads a field that must be a number; true is 1 and false is 0.
func number(fields map[string]json.RawMessage, name string) (float64, error) {
	raw, ok := fields[name]
	if !ok {
		return 0, fmt.Errorf("%q is missing, a number that the loss needs; the row's fields are %s", name, names(fields))
	}
	switch string(raw) {
	case "true":
		return 1, nil
	case "false":
		return 0, nil
	}
	var n *float64
	if err := json.Unmarshal(raw, &n); err != nil || n == nil {
		return 0, fmt.Errorf("%q is %s, wanted a number", name, clip(raw))
	}
	return *n, nil
}

// kindOf tells a row's kind by the fields that only one kind has.
func kindOf(fields map[string]json.RawMessage) Kind {
	switch {
	case hasAny(fields, []string{"chosen", "rejected"}):
		return Preference
	case hasAny(fields, []string{"messages"}):
		return Chat
	}
	return Pairs
}

func hasAny(fields map[string]json.RawMessage, any []string) bool {
	return slices.ContainsFunc(any, func(name string) bool { _, ok := fields[name]; return ok })
}

func names(fields map[string]json.RawMessage) string {
	if len(fields) == 0 {
		return "none"
	}
	all := slices.Sorted(maps.Keys(fields))
	if len(all) > 8 {
		all = append(all[:8], "…")
	}
	return strings.Join(all, ", ")
}

func invalidUTF8(b []byte) int {
	if utf8.Valid(b) {
		return -1
	}
	for i := 0; ; {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
}

// text reads a field that must be a string.
func text(fields map[string]json.RawMessage, name string) (string, error) {
	raw, ok := fields[name]
	if !ok {
		return "", fmt.Errorf("%q is missing; the row's fields are %s", name, names(fields))
	}
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil || s == nil {
		return "", fmt.Errorf("%q is %s, wanted a string", name, clip(raw))
	}
	return *s, nil
}

func clip(raw []byte) string {
	const most = 24
	if len(raw) <= most {
		return string(raw)
	}
	return strings.ToValidUTF8(string(raw[:most]), "") + "…"
}

func (r *row) readPair(fields map[string]json.RawMessage) (err error) {
	if r.prompt, err = text(fields, "prompt"); err != nil {
		return err
	}
	if r.completion, err = text(fields, "completion"); err != nil {
		return err
	}
	if r.completion == "" {
		return errors.New(`"completion" is empty: nothing to learn`)
	}
	return nil
}

func (r *row) readTools(fields map[string]json.RawMessage) (err error) {
	raw, ok := fields["tools"]
	if !ok || string(raw) == "null" {
		return nil
	}
	var quoted string // some data sets keep the list as JSON text
	if json.Unmarshal(raw, &quoted) == nil {
		raw = []byte(quoted)
	}
	if r.tools, err = chat.ParseTools(raw); err != nil {
		return fmt.Errorf(`"tools": %w`, err)
	}
	return nil
}

func (r *row) readChat(fields map[string]json.RawMessage) error {
	raw, ok := fields["messages"]
	if !ok {
		return fmt.Errorf(`"messages" is missing; the row's fields are %s`, names(fields))
	}
	messages, err := conversation("messages", raw)
	if err != nil {
		return err
	}
	r.conversations = [][]chat.Message{messages}
	return r.readTools(fields)
}

// conversation reads a field that is a list of messages.
func conversation(name string, raw []byte) ([]chat.Message, error) {
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("%q is %s, wanted a list of messages", name, clip(raw))
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%q is empty", name)
	}
	out := make([]chat.Message, len(list))
	for i, m := range list {
		if err := json.Unmarshal(m, &out[i]); err != nil {
			return nil, fmt.Errorf("%q, message %d: %w", name, i, err)
		}
	}
	return out, nil
}

// readPreference reads the two answers. As text, each goes on from the text of the prompt. As messages,
// each goes on from the prompt's messages, or, as some data sets have it, is the whole conversation with the prompt
// beside it as text or not at all.
func (r *row) readPreference(fields map[string]json.RawMessage) error {
	answers := []string{"chosen", "rejected"}
	lists := 0
	for _, name := range answers {
		raw, ok := fields[name]
		if !ok {
			return fmt.Errorf("%q is missing; the row's fields are %s", name, names(fields))
		}
		if bytes.HasPrefix(raw, []byte("[")) {
			lists++
		}
	}
	if lists == 1 {
		return errors.New(`of "chosen" and "rejected" one is text and one is messages, wanted both alike`)
	}
	if lists == 2 {
		return r.readPreferenceMessages(fields)
	}
	var err error
	for i, name := range answers {
		if r.answers[i], err = text(fields, name); err != nil {
			return err
		}
		if r.answers[i] == "" {
			return fmt.Errorf("%q is empty", name)
		}
	}
	if r.answers[0] == r.answers[1] {
		return errors.New(`"chosen" and "rejected" are the same: nothing to prefer`)
	}
	if raw, ok := fields["prompt"]; ok && bytes.HasPrefix(raw, []byte("[")) {
		prompt, err := conversation("prompt", raw)
		if err != nil {
			return err
		}
		for _, a := range r.answers {
			answer := chat.Message{Role: chat.Assistant, Content: a}
			r.conversations = append(r.conversations, append(slices.Clone(prompt), answer))
		}
		return r.readTools(fields)
	}
	r.prompt, err = text(fields, "prompt")
	return err
}

func (r *row) readPreferenceMessages(fields map[string]json.RawMessage) error {
	var prompt []chat.Message
	raw, given := fields["prompt"]
	if given && bytes.HasPrefix(raw, []byte("[")) {
		var err error
		if prompt, err = conversation("prompt", raw); err != nil {
			return err
		}
	}
	var said []string
	for _, name := range []string{"chosen", "rejected"} {
		m, err := conversation(name, fields[name])
		if err != nil {
			return err
		}
		if last := m[len(m)-1]; last.Role != chat.Assistant {
			return fmt.Errorf("%q ends with a message of the role %q, wanted %q", name, last.Role, chat.Assistant)
		}
		switch {
		case prompt != nil:
			m = append(slices.Clone(prompt), m...)
		case m[0].Role == chat.Assistant && given:
			p, err := text(fields, "prompt")
			if err != nil {
				return err
			}
			m = append([]chat.Message{{Role: chat.User, Content: p}}, m...)
		case m[0].Role == chat.Assistant:
			return fmt.Errorf(`"prompt" is missing, and %q is not a whole conversation`, name)
		}
		r.conversations = append(r.conversations, m)
		b, err := json.Marshal(m)
		if err != nil {
			return err
		}
		said = append(said, string(b))
	}
	if said[0] == said[1] {
		return errors.New(`"chosen" and "rejected" are the same: nothing to prefer`)
	}
	return r.readTools(fields)
}
