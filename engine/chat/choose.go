package chat

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"

	"tinkerlocal/engine/api"
)

var formats = []*Format{
	{name: "qwen3", about: "Qwen3 hybrid models, thinking on or off", controls: qwenControls, stops: qwenStops,
		render: renderQwen3, open: openQwen3, reply: replyQwen3, parse: parseQwen3},
	{name: "qwen3_disable_thinking", about: "the same with thinking off", controls: qwenControls, stops: qwenStops, noThinking: true,
		render: renderQwen3, open: openQwen3, reply: replyQwen3, parse: parseQwen3},
	{name: "qwen3_instruct", about: "Qwen3 Instruct 2507, and ChatML without tools", controls: qwenControls, stops: qwenStops,
		render: renderQwen3Instruct, open: openQwen3Instruct, reply: replyQwen3Instruct, parse: parseQwen3Instruct},
	{name: "llama3", about: "Llama 3.1, 3.2 and 3.3 Instruct", controls: llamaControls, stops: llamaStops,
		render: renderLlama3, open: openLlama3, reply: replyLlama3, parse: parseLlama3},
	{name: "llama3_plain", about: "Llama 3 Instruct of April 2024: no dates, no tools", controls: llamaControls, stops: llamaStops, plain: true,
		render: renderLlama3, open: openLlama3, reply: replyLlama3, parse: parseLlama3},
	{name: "mistral", about: "Mistral 7B Instruct v0.3", controls: mistralControls, stops: mistralStops,
		render: renderMistral, open: openMistral, reply: replyMistral, parse: parseMistral},
	{name: "role_colon", about: "base models", stops: colonStops, overlap: "User:",
		render: renderRoleColon, open: openRoleColon, reply: replyRoleColon, parse: parseRoleColon},
}

// known are the templates that a format is proven equal to, by [TemplateHash]; testdata/make_fixtures.py
// prints the hashes.
var known = map[string]string{
	"a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8": "qwen3",          // Qwen/Qwen3-0.6B … 235B-A22B
	"64f85b198065d0fba2a81f37e10ed68161ce2c19a754c7100e67e0ca2ee9c326": "qwen3_instruct", // Qwen/Qwen3-4B-Instruct-2507 and larger
	"66edfb854931c933d3ac94f507626dd4fa2d5ca0a9b1036b11729d296a7392ac": "qwen3_instruct", // plain ChatML: the same, without tools
	"93c0e9aa3629bbd77e68dbc0f5621f6e6b23aa8d74b932595cdb8d64684526d7": "llama3",         // meta-llama/Llama-3.1-8B-Instruct, Llama-3.3
	"d82792f95932f1c9cef5c4bd992f171225e3bf8c7b609b4557c9e1ec96be819f": "llama3",         // meta-llama/Llama-3.2-1B-Instruct; set Options.Date
	"ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122": "llama3_plain",   // meta-llama/Meta-Llama-3-8B-Instruct
	"cafb64e0e9e5fd2503054b3479593fae39cbdfd52338ce8af9bb4664a8eb05bd": "mistral",        // mistralai/Mistral-7B-Instruct-v0.3
}

// models tells the format of a model by how its name, without organisation, begins and ends. The first
// line that fits counts. As the cookbook's model_info, and for the sizes that it leaves out.
var models = []struct{ begins, ends, format string }{
	{"qwen3-", "-base", "role_colon"},
	{"qwen3-", "-instruct-2507", "qwen3_instruct"},
	{"qwen3-", "-thinking-2507", ""},
	{"qwen3-vl", "", ""},
	{"qwen3-coder", "", ""},
	{"qwen3-next", "", ""},
	{"qwen3-omni", "", ""},
	{"qwen3-embedding", "", ""},
	{"qwen3-reranker", "", ""},
	{"qwen3-guard", "", ""},
	{"qwen3guard", "", ""},
	{"qwen3-", "b", "qwen3"}, // Qwen3-8B, Qwen3-30B-A3B
	{"llama-3.1-", "-instruct", "llama3"},
	{"meta-llama-3.1-", "-instruct", "llama3"},
	{"llama-3.2-11b", "", ""}, // with vision
	{"llama-3.2-90b", "", ""},
	{"llama-3.2-", "-instruct", "llama3"},
	{"llama-3.3-", "-instruct", "llama3"},
	{"meta-llama-3-", "-instruct", "llama3_plain"},
	{"llama-3.1-", "b", "role_colon"},
	{"meta-llama-3.1-", "b", "role_colon"},
	{"llama-3.2-", "b", "role_colon"},
	{"meta-llama-3-", "b", "role_colon"},
	{"mistral-7b-instruct-v0.3", "", "mistral"},
	{"mistral-7b-v0.3", "", "role_colon"},
}

// Names returns the names of all formats.
func Names() []string {
	names := make([]string, len(formats))
	for k, f := range formats {
		names[k] = f.name
	}
	return names
}

// ByName returns the format of that name, one of [Names].
func ByName(name string) (*Format, error) {
	for _, f := range formats {
		if f.name == name {
			return f, nil
		}
	}
	return nil, api.Errorf(api.BadRequest, "chat format %q: no such format, want one of %s", name, strings.Join(Names(), ", "))
}

// For returns the format of a model with this chat template and name; either may be "". A model is
// known by its name, as in the cookbook (base models carry a chat template, too, but are not trained
// for it), as long as its template is a known one or it has none; then by its template. An unknown
// template is an error that names its hash and the formats there are, because guessing would change
// prompts silently: choose one with [ByName].
func For(template, modelName string) (*Format, error) {
	byName := formatOf(modelName)
	if strings.TrimSpace(template) == "" {
		if byName != "" {
			return ByName(byName)
		}
		return nil, api.Errorf(api.BadRequest, "chat format of model %q: it has no chat template and its name is none that I know; name one of %s (base models: role_colon)",
			modelName, strings.Join(Names(), ", "))
	}
	hash := TemplateHash(template)
	switch byTemplate, ok := known[hash]; {
	case ok && byName != "":
		return ByName(byName)
	case ok:
		return ByName(byTemplate)
	}
	hint := ""
	if byName != "" {
		hint = "; models of this name use " + byName
	}
	return nil, api.Errorf(api.Unsupported, "chat format of model %q: its chat template (sha256 %.16s…, %d bytes) is none of the %d that I know; name one of %s%s",
		modelName, hash, len(template), len(known), strings.Join(Names(), ", "), hint)
}

func formatOf(model string) string {
	name := strings.ToLower(strings.TrimRight(model, "/"))
	name = name[strings.LastIndexByte(name, '/')+1:]
	for _, suffix := range []string{"-fp8", "-awq", "-gptq-int4", "-gptq-int8", "-mlx-bf16"} {
		name = strings.TrimSuffix(name, suffix)
	}
	for _, m := range models {
		if strings.HasPrefix(name, m.begins) && strings.HasSuffix(name, m.ends) {
			return m.format
		}
	}
	return ""
}

// TemplateHash returns the SHA-256 of a chat template, in hexadecimal. Line ends count as \n, and white
// space at the end does not count: tools that copy templates into files of their own change both.
func TemplateHash(template string) string {
	template = strings.TrimRight(strings.ReplaceAll(template, "\r\n", "\n"), " \t\n")
	sum := sha256.Sum256([]byte(template))
	return hex.EncodeToString(sum[:])
}

// TemplateIn returns the chat template in the bytes of a tokenizer_config.json, "" if there is none.
// Of several named ones it is that called default.
func TemplateIn(tokenizerConfig []byte) (string, error) {
	var config struct {
		Template json.RawMessage `json:"chat_template"`
	}
	if err := json.Unmarshal(tokenizerConfig, &config); err != nil {
		return "", api.Errorf(api.BadRequest, "tokenizer_config.json: %w", err)
	}
	var one *string
	if len(config.Template) == 0 {
		return "", nil
	}
	if err := json.Unmarshal(config.Template, &one); err == nil {
		if one == nil {
			return "", nil
		}
		return *one, nil
	}
	var several []struct{ Name, Template string }
	if err := json.Unmarshal(config.Template, &several); err != nil {
		return "", api.Errorf(api.BadRequest, "tokenizer_config.json: chat_template: want a string or a list of named ones: %w", err)
	}
	for _, t := range several {
		if t.Name == "default" {
			return t.Template, nil
		}
	}
	return "", nil
}
