package local

import (
	"encoding/json"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/chat"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/model"
	"tinkerlocal/engine/token"
)

// Facts are what the folder of a base model says about text, its weights aside.
type Facts struct {
	Name        string
	Spec        model.Spec
	EosTokenIDs []int32       // end a sampled sequence
	Generation  hf.Generation // what the publisher suggests for sampling
	Tokenizer   *token.Tokenizer
	Template    string // the chat template; "": there is none
	BOS, EOS    string // names of the tokens at the beginning and end of a text; "": there is none
}

// Facts reads a base model's folder. No weights are loaded.
func (m Models) Facts(name string) (*Facts, error) {
	src, err := m.Open(name)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	spec, err := model.NewSpec(src.Config)
	if err != nil {
		return nil, api.Errorf(api.CodeOf(err), "%s: %w", name, err)
	}
	f := &Facts{Name: name, Spec: *spec, Generation: src.Generation}
	for _, id := range src.EndTokens() {
		f.EosTokenIDs = append(f.EosTokenIDs, int32(id))
	}
	if f.Tokenizer, err = loadTokenizer(src); err != nil {
		return nil, err
	}
	if err := f.readTemplate(src); err != nil {
		return nil, api.Errorf(api.CodeOf(err), "%s: %w", name, err)
	}
	return f, nil
}

// readTemplate reads the chat template, which newer folders have in a file of its own, and the names of two tokens.
func (f *Facts) readTemplate(src *hf.Checkpoint) error {
	config, err := src.File("tokenizer_config.json")
	if err != nil {
		if api.CodeOf(err) != api.NotFound {
			return err
		}
		config = []byte("{}")
	}
	var names struct {
		BOS json.RawMessage `json:"bos_token"`
		EOS json.RawMessage `json:"eos_token"`
	}
	if err := json.Unmarshal(config, &names); err != nil {
		return api.Errorf(api.BadRequest, "tokenizer_config.json: %w", err)
	}
	f.BOS, f.EOS = tokenName(names.BOS), tokenName(names.EOS)
	own, err := src.File("chat_template.jinja")
	if err == nil {
		f.Template = string(own)
		return nil
	}
	if api.CodeOf(err) != api.NotFound {
		return err
	}
	f.Template, err = chat.TemplateIn(config)
	return err
}

// tokenName reads a token's name: text, or an object with the text as content.
func tokenName(raw json.RawMessage) string {
	var name string
	if json.Unmarshal(raw, &name) == nil {
		return name
	}
	var token struct{ Content string }
	_ = json.Unmarshal(raw, &token)
	return token.Content
}
