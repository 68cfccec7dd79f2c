package local

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
)

// typeWords are words of model names that publishers use for one kind of training.
var typeWords = []struct {
	training string
	words    []string
}{
	{"Base", []string{"base", "pt"}},
	{"Reasoning", []string{"thinking", "reasoning", "reasoner", "r1", "qwq"}},
	{"Instruction", []string{"instruct", "chat", "it"}},
}

// TrainingType says what a model was trained for: Base, Instruction, Reasoning (always thinks before it answers), Hybrid (thinks when it is
// told to) or Unknown. No file says so outright; the first of these that holds decides:
//
//  1. a word of the name's last part: base, pt → Base; thinking, reasoning, reasoner, r1, qwq → Reasoning; instruct, chat, it → Instruction
//  2. tokenizer_config.json cannot be read → Unknown
//  3. there is no chat template → Base
//  4. the template ends its turns with none of the tokens that end the model's texts → Base: the template came with the tokenizer of a
//     family (Qwen2.5)
//  5. the template has the switch enable_thinking → Hybrid (Qwen3)
//  6. otherwise → Instruction
func TrainingType(name string, src *hf.Checkpoint) string {
	words := strings.FieldsFunc(strings.ToLower(filepath.Base(filepath.FromSlash(name))), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r)
	})
	for _, t := range typeWords {
		if slices.ContainsFunc(t.words, func(w string) bool { return slices.Contains(words, w) }) {
			return t.training
		}
	}
	template, ends, ok := chatTemplate(src)
	switch {
	case !ok:
		return "Unknown"
	case template == "":
		return "Base"
	case len(ends) > 0 && !slices.ContainsFunc(append(ends, "eos_token"), func(e string) bool { return strings.Contains(template, e) }):
		return "Base"
	case strings.Contains(template, "enable_thinking"):
		return "Hybrid"
	}
	return "Instruction"
}

// chatTemplate returns the chat template, "" when there is none, and the text of the tokens that end the model's texts, as far
// as tokenizer_config.json tells. ok is false when a file is there and cannot be read.
func chatTemplate(src *hf.Checkpoint) (template string, ends []string, ok bool) {
	var c struct {
		Template json.RawMessage `json:"chat_template"`
		Added    map[string]struct {
			Content string `json:"content"`
		} `json:"added_tokens_decoder"`
	}
	text, err := src.File("tokenizer_config.json")
	switch {
	case err != nil && !missing(err), err == nil && json.Unmarshal(text, &c) != nil:
		return "", nil, false
	}
	ids := src.Generation.EosTokenIDs
	if len(ids) == 0 {
		ids = src.Config.EosTokenIDs
	}
	for _, id := range ids {
		if t := c.Added[strconv.Itoa(id)].Content; t != "" {
			ends = append(ends, t)
		}
	}
	// transformers keeps the template in a file of its own since version 4.51, and before that in the tokenizer's configuration: one, or a list with names.
	own, err := src.File("chat_template.jinja")
	if err == nil {
		return string(own), ends, true
	}
	if !missing(err) {
		return "", nil, false
	}
	var named []struct {
		Template string `json:"template"`
	}
	if len(c.Template) == 0 || json.Unmarshal(c.Template, &template) == nil {
		return template, ends, true
	}
	if json.Unmarshal(c.Template, &named) != nil {
		return "", nil, false
	}
	for _, n := range named {
		template += n.Template
	}
	return template, ends, true
}

func missing(err error) bool { return api.CodeOf(err) == api.NotFound }
