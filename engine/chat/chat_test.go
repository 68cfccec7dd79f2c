package chat

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
)

func TestRenderRefuses(t *testing.T) {
	user := Message{Role: User, Content: "a"}
	call := ToolCall{ID: CallID(1), Name: "f"}
	tool, _ := ParseValue([]byte(`{"type": "function", "function": {"name": "f"}}`))
	for _, c := range []struct {
		name, format string
		messages     []Message
		o            Options
		want         string
	}{
		{"nothing", "qwen3", nil, Options{}, "no messages"},
		{"role", "qwen3", []Message{user, {Role: "developer"}}, Options{}, `message 1: role is "developer", want system, user, assistant or tool`},
		{"calls of a user", "qwen3", []Message{{Role: User, ToolCalls: []ToolCall{call}}}, Options{}, "message 0: a message of role user has tool calls"},
		{"call without a name", "qwen3", []Message{user, {Role: Assistant, ToolCalls: []ToolCall{{}}}}, Options{}, "message 1: tool call 0 has no function name"},
		{"tool", "qwen3", []Message{user}, Options{Tools: []Tool{Text("f")}}, `tool 0: want an object with a "function" object, got "f"`},
		{"prefill", "qwen3", []Message{user}, Options{Prefill: "Sure"}, "prefill without generate"},
		{"control", "qwen3", conversation("user:a", "user:x<|im_end|>"), Options{}, "message 1: the text holds the control token <|im_end|> at byte 1"},
		{"control in a tool", "qwen3", []Message{user}, Options{Tools: []Tool{FunctionTool("f", "</s><|im_end|>", Value{})}}, "control token <|im_end|>"},
		{"control, llama3", "llama3", conversation("user:<|eot_id|>"), Options{}, "message 0: the text holds the control token <|eot_id|>"},
		{"control, mistral", "mistral", conversation("user:a[/INST]"), Options{}, "message 0: the text holds the control token [/INST]"},
		{"two calls", "llama3", []Message{user, {Role: Assistant, ToolCalls: []ToolCall{call, call}}}, Options{}, "message 1: 2 tool calls, but the model makes one"},
		{"arguments", "llama3", []Message{user, {Role: Assistant, ToolCalls: []ToolCall{{Name: "f", Arguments: Text("[1]")}}}}, Options{},
			"message 1: arguments of the call of f: want a JSON object, got [1]"},
		{"tools for no user", "llama3", conversation("assistant:hi"), Options{Tools: []Tool{tool}}, "tools stand in the first user message"},
		{"tools, plain", "llama3_plain", []Message{user}, Options{Tools: []Tool{tool}}, "format llama3_plain has no tools"},
		{"result, plain", "llama3_plain", []Message{user, {Role: RoleTool}}, Options{}, "message 1: format llama3_plain has no tools"},
		{"turns", "mistral", conversation("user:a", "user:b"), Options{}, "message 1: role is user, want assistant: after an optional system message"},
		{"late system", "mistral", conversation("user:a", "system:b"), Options{}, "message 1: a system message after the first"},
		{"id", "mistral", []Message{user, {Role: Assistant, ToolCalls: []ToolCall{{ID: "1", Name: "f"}}}}, Options{}, `message 1: id of a tool call is "1", want 9 letters`},
		{"tools, role_colon", "role_colon", []Message{user}, Options{Tools: []Tool{tool}}, "format role_colon has no tools"},
	} {
		_, err := named(t, c.format).Render(c.messages, c.o)
		expectError(t, c.name, err, c.want)
		if err != nil && api.CodeOf(err) != api.BadRequest {
			t.Errorf("%s: code %s, want %s", c.name, api.CodeOf(err), api.BadRequest)
		}
	}
}

func TestPrefill(t *testing.T) {
	segments, err := named(t, "qwen3").Prompt(conversation("user:a"), Options{Prefill: "<think>\nSo", Train: TrainAllTokens})
	if want := "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\nSo"; err != nil || String(segments) != want || marked(segments) != want {
		t.Errorf("got %q, %v, want %q, nothing trained", marked(segments), err, want)
	}
}

func TestMessageJSON(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{"role":"user","content":"a"}`, `{"role":"user","content":"a"}`},
		{`{"role":"assistant","content":null,"reasoning":"r"}`, `{"role":"assistant","content":"","reasoning_content":"r"}`},
		{`{"role":"assistant","content":[{"type":"thinking","thinking":"t"},{"type":"text","text":"a"},{"type":"text","text":"b"}]}`,
			`{"role":"assistant","content":"ab","reasoning_content":"t"}`},
		{`{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f","arguments":{"z":1,"a":2}}}],"trainable":false}`,
			`{"role":"assistant","content":"","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":{"z":1,"a":2}}}],"trainable":false}`},
		{`{"role":"tool","content":"x","tool_call_id":"1","name":"f"}`, `{"role":"tool","content":"x","tool_call_id":"1","name":"f"}`},
	} {
		var m Message
		if err := json.Unmarshal([]byte(c.in), &m); err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if out, err := json.Marshal(m); err != nil || string(out) != c.want {
			t.Errorf("%s: got %s, %v, want %s", c.in, out, err, c.want)
		}
	}
	for in, want := range map[string]string{
		`{"role":1}`:                     "message:",
		`{"role":"user","content":1}`:    "content: want a string or a list of parts, got 1",
		`{"content":[{"type":"image"}]}`: `content: part 0 is of type "image", want text or thinking`,
		`{"content":[{"type":"text"}]}`:  "content: part 0 has no text string",
	} {
		expectError(t, in, json.Unmarshal([]byte(in), new(Message)), want)
	}
}

// TestValue checks the spelling of Python's json module: each want is what python3 prints for
// json.dumps(json.loads(in), ensure_ascii=False).
func TestValue(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{"b":1,"a":[],"c":{},"b":2}`, `{"b": 2, "a": [], "c": {}}`},
		{`[1.50,1e5,1E+2,-0,-0.0,1e16,123456789012345678901234567890,1e-5,0.0001,1e22,12345678.9e3,5e-324,1e400,-1e400]`,
			`[1.5, 100000.0, 100.0, 0, -0.0, 1e+16, 123456789012345678901234567890, 1e-05, 0.0001, 1e+22, 12345678900.0, 5e-324, Infinity, -Infinity]`},
		{`["\u00e9\u2028<>&'/\/\b\f\n\r\t\u0001\u007f\"\\"]`, "[\"é\u2028<>&'//\\b\\f\\n\\r\\t\\u0001\u007f\\\"\\\\\"]"},
		{` [ true , false , null ] `, `[true, false, null]`},
		{`9007199254740993.0`, `9007199254740992.0`},
		{`999999999999999.9`, `999999999999999.9`},
		{`9999999999999998.0`, `9999999999999998.0`},
	} {
		v, err := ParseValue([]byte(c.in))
		if err != nil || v.String() != c.want {
			t.Errorf("%s: got %s, %v, want %s", c.in, v, err, c.want)
		}
	}
	v, _ := ParseValue([]byte(`{"a":[1,{"b":"c"}],"d":{},"e":[]}`))
	if want := "{\n    \"a\": [\n        1,\n        {\n            \"b\": \"c\"\n        }\n    ],\n    \"d\": {},\n    \"e\": []\n}"; v.indented() != want {
		t.Errorf("indented: got %s, want %s", v.indented(), want)
	}
	for _, in := range []string{"", "{", `{"a":1,}`, "[1,]", "1 2", "nul", "'a'", "NaN", strings.Repeat("[", 600) + strings.Repeat("]", 600)} {
		if v, err := ParseValue([]byte(in)); err == nil {
			t.Errorf("%.20q: got %s, want an error", in, v)
		}
	}
}

func TestParseTools(t *testing.T) {
	tools, err := ParseTools([]byte(`[{"name":"f","description":"d"},{"type":"function","function":{"name":"g"}}]`))
	if err != nil || len(tools) != 2 || tools[0].String() != `{"type": "function", "function": {"name": "f", "description": "d"}}` {
		t.Errorf("got %v, %v", tools, err)
	}
	for in, want := range map[string]string{`{}`: "tools: want a JSON array", `[1]`: "tool 0: want an object", `[{"function":{}}]`: `tool 0: its function has no "name"`, `[`: "tools:"} {
		_, err := ParseTools([]byte(in))
		expectError(t, in, err, want)
	}
}

func TestFor(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	qwen3, instruct, mistral := read("qwen3.jinja"), read("qwen3_instruct_2507.jinja"), read("mistral_v0.3.jinja")
	for _, c := range []struct{ template, model, want string }{
		{qwen3, "", "qwen3"},
		{strings.ReplaceAll(qwen3, "\n", "\r\n") + "\n", "my/model", "qwen3"},
		{qwen3, "Qwen/Qwen3-8B", "qwen3"},
		{qwen3, "Qwen/Qwen3-8B-Base", "role_colon"}, // as the cookbook, though the file has a template
		{instruct, "", "qwen3_instruct"},
		{mistral, "", "mistral"},
		{"", "Qwen/Qwen3-30B-A3B", "qwen3"},
		{"", "/models/Qwen3-0.6B-FP8/", "qwen3"},
		{"", "Qwen/Qwen3-235B-A22B-Instruct-2507", "qwen3_instruct"},
		{"", "meta-llama/Llama-3.1-8B-Instruct", "llama3"},
		{"", "meta-llama/Llama-3.3-70B-Instruct", "llama3"},
		{"", "meta-llama/Llama-3.2-1B", "role_colon"},
		{"", "meta-llama/Llama-3.2-3B-Instruct", "llama3"},
		{"", "meta-llama/Meta-Llama-3-8B-Instruct", "llama3_plain"},
		{"", "mistralai/Mistral-7B-Instruct-v0.3", "mistral"},
	} {
		f, err := For(c.template, c.model)
		if err != nil || f.Name() != c.want {
			t.Errorf("%.20q %s: got %v, %v, want %s", c.template, c.model, f, err, c.want)
		}
	}
	for _, c := range []struct{ template, model, want string }{
		{"", "gpt2", `chat format of model "gpt2": it has no chat template and its name is none that I know; name one of qwen3,`},
		{"", "Qwen/Qwen3-4B-Thinking-2507", "name one of"},
		{"", "Qwen/Qwen3-VL-30B-A3B-Instruct", "name one of"},
		{"{{ x }}", "a", "its chat template (sha256 e52c737297f7dad6…, 7 bytes) is none of the 7 that I know; name one of qwen3,"},
		{"{{ x }}", "Qwen/Qwen3-8B", "; models of this name use qwen3"},
	} {
		_, err := For(c.template, c.model)
		expectError(t, c.model, err, c.want)
	}
	for _, name := range Names() {
		if f := named(t, name); f.About() == "" {
			t.Errorf("%s: says nothing about itself", name)
		}
	}
	for _, name := range known {
		named(t, name)
	}
	for _, m := range models {
		if m.format != "" {
			named(t, m.format)
		}
	}
	_, err := ByName("qwen4")
	expectError(t, "qwen4", err, `chat format "qwen4": no such format, want one of qwen3, qwen3_disable_thinking,`)
}

// TestEmbedded: the model in the program has a template that is known.
func TestEmbedded(t *testing.T) {
	config, err := os.ReadFile("../local/tiny/tokenizer_config.json")
	if err != nil {
		t.Fatal(err)
	}
	template, err := TemplateIn(config)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := For(template, "tinker-local/tiny"); err != nil || f.Name() != "qwen3_instruct" {
		t.Errorf("got %v, %v, want qwen3_instruct", f, err)
	}
}

func TestTemplateIn(t *testing.T) {
	for in, want := range map[string]string{
		`{}`:                      "",
		`{"chat_template": null}`: "",
		`{"chat_template": "x"}`:  "x",
		`{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}`: "d",
	} {
		if got, err := TemplateIn([]byte(in)); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", `{"chat_template": 1}`} {
		if _, err := TemplateIn([]byte(in)); err == nil {
			t.Errorf("%q: want an error", in)
		}
	}
}

// characters is a tokenizer of bytes and of the tokens it was given.
type characters []string

func (c characters) TryEncode(text string, special bool) ([]int32, error) {
	if special {
		return nil, errors.New("the format writes its own special tokens")
	}
	var out []int32
next:
	for k := 0; k < len(text); {
		for id, token := range c {
			if strings.HasPrefix(text[k:], token) {
				out = append(out, 1000+int32(id))
				k += len(token)
				continue next
			}
		}
		out = append(out, int32(text[k]))
		k++
	}
	return out, nil
}

func (c characters) ID(content string) (int32, bool) {
	k := slices.Index(c, content)
	return 1000 + int32(k), k >= 0
}

func TestTokens(t *testing.T) {
	f, tok := named(t, "qwen3_instruct"), characters{imStart, imEnd}
	examples, err := f.Examples(conversation("user:a", "assistant:b"), Options{Train: TrainAllAssistant})
	if err != nil {
		t.Fatal(err)
	}
	ids, trained, err := Tokens(tok, examples[0].Segments)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := tok.TryEncode("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>", false)
	if !slices.Equal(ids, want) {
		t.Errorf("ids %d, want %d", ids, want)
	}
	first := slices.Index(trained, true)
	if len(trained) != len(ids) || first != len(ids)-2 || !trained[len(ids)-1] {
		t.Errorf("trained %v, want the last two of %d", trained, len(ids))
	}
	_, _, err = Tokens(characters{imStart}, examples[0].Segments)
	expectError(t, "tokens", err, "the tokenizer has no token <|im_end|>")
	_, err = f.Stops(Options{}).TokenIDs(characters{"<|endoftext|>"})
	expectError(t, "stops", err, "the tokenizer has no token <|im_end|>, which ends a turn")
	if ids, err := f.Stops(Options{}).TokenIDs(tok); err != nil || !slices.Equal(ids, []int32{1001}) {
		t.Errorf("stops: got %d, %v, want 1001", ids, err)
	}
	if s := named(t, "role_colon").Stops(Options{EOS: "</s>"}); !slices.Equal(s.Tokens, []string{"</s>"}) || !slices.Equal(s.Texts, []string{"\n\nUser:"}) {
		t.Errorf("role_colon stops at %+v", s)
	}
}
