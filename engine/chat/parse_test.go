package chat

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// show writes a reply in one line.
func show(r Reply) string {
	s := fmt.Sprintf("%s %q", r.End, r.Message.Content)
	if r.Message.Thinking != nil {
		s += fmt.Sprintf(" thinks %q", *r.Message.Thinking)
	}
	for _, c := range r.Message.ToolCalls {
		s += fmt.Sprintf(" calls %s%s id %q", c.Name, c.Arguments, c.ID)
	}
	for _, p := range r.Problems {
		s += fmt.Sprintf(" problem %q: %s", p.Raw, p.Why)
	}
	return s
}

func TestParse(t *testing.T) {
	tools, _ := ParseTools([]byte(`[{"name": "f"}]`))
	for _, c := range []struct {
		format, in, want string
		o                Options
	}{
		{"qwen3", "<think>\na\n</think>\n\nb<|im_end|>", `stop_sequence "b" thinks "a"`, Options{}},
		{"qwen3", "b<|endoftext|>", `eos "b"`, Options{}},
		{"qwen3", "a\n</think>\n\nb<|im_end|>", `stop_sequence "b" thinks "a"`, Options{}},
		{"qwen3", "<think>\nso far", `malformed "" thinks "so far" problem "<think>\nso far": <think> without </think>`, Options{}},
		{"qwen3", "b<|im_end|>\n<|im_start|>user\n", `malformed "b" problem "\n<|im_start|>user\n": text after the end of the turn, "<|im_end|>"`, Options{}},
		{"qwen3", "Look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"z\": 1.50, \"a\": \"é\"}}\n</tool_call><|im_end|>",
			`stop_sequence "Look." calls f{"z": 1.5, "a": "é"} id ""`, Options{}},
		{"qwen3", "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"<|x\"}\n</tool_call>ok<|im_end|>",
			"stop_sequence \"ok\" problem \"<tool_call>\\n{\\\"name\\\": \\\"f\\\", \\\"arguments\\\": {\\\"<|x\\\"}\\n</tool_call>\": tool call: json: invalid character '}' after object key", Options{}},
		{"qwen3", "a<tool_call>{}<|im_end|>", `stop_sequence "a<tool_call>{}" problem "<tool_call>{}": <tool_call> without </tool_call>`, Options{}},
		{"qwen3_instruct", "<think>a</think>b<|im_end|>", `stop_sequence "<think>a</think>b"`, Options{}},
		{"llama3", "hi<|eot_id|>", `stop_sequence "hi"`, Options{}},
		{"llama3", "hi<|eom_id|>", `eos "hi"`, Options{}},
		{"llama3", `{"name": "f", "parameters": {"x": 1}}<|eot_id|>`, `stop_sequence "{\"name\": \"f\", \"parameters\": {\"x\": 1}}"`, Options{}},
		{"llama3", `{"name": "f", "parameters": {"x": 1}}<|eot_id|>`, `stop_sequence "" calls f{"x": 1} id ""`, Options{Tools: tools}},
		{"llama3", `{"name": "g", "parameters": {}}<|eot_id|>`,
			`stop_sequence "{\"name\": \"g\", \"parameters\": {}}" problem "{\"name\": \"g\", \"parameters\": {}}": looks like a tool call, but no tool has that name: taken as text`, Options{Tools: tools}},
		{"llama3", `{"x": 1}<|eot_id|>`, `stop_sequence "{\"x\": 1}"`, Options{Tools: tools}},
		{"llama3", `<|python_tag|>{"name": "g", "arguments": {}}<|eom_id|>`, `eos "" calls g{} id ""`, Options{}},
		{"llama3", `<|python_tag|>print(1)<|eom_id|>`,
			`eos "<|python_tag|>print(1)" problem "<|python_tag|>print(1)": tool call: json: invalid character 'p' looking for beginning of value`, Options{}},
		{"mistral", " hi</s>", `stop_sequence "hi"`, Options{}},
		{"mistral", `[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "call00001"}, {"name": "g", "arguments": {"a": 1}}]</s>`,
			`stop_sequence "" calls f{} id "call00001" calls g{"a": 1} id ""`, Options{}},
		{"mistral", ` So: [TOOL_CALLS][{"name": "f"}]</s>`, `stop_sequence "So:" problem "{\"name\": \"f\"}": tool call: no "arguments" object in {"name": "f"}`, Options{}},
		{"mistral", `[TOOL_CALLS] {}</s>`, `stop_sequence "" problem "[TOOL_CALLS] {}": tool calls: want a JSON array, got {}`, Options{}},
		{"role_colon", " hi\n\nUser:", `stop_sequence "hi"`, Options{}},
		{"role_colon", " hi</s>", `malformed "hi</s>"`, Options{}},
		{"role_colon", " hi</s>", `eos "hi"`, Options{EOS: "</s>"}},
	} {
		if got := show(named(t, c.format).Parse(c.in, c.o)); got != c.want {
			t.Errorf("%s %q:\n got %s\nwant %s", c.format, c.in, got, c.want)
		}
	}
}

// TestRoundTrip renders a turn, parses it, and wants the message back.
func TestRoundTrip(t *testing.T) {
	arguments, err := ParseValue([]byte(`{"z": [1, 2.5, null], "a": {"ü": "\"<|x\n"}}`))
	if err != nil {
		t.Fatal(err)
	}
	call := ToolCall{ID: CallID(7), Name: "f", Arguments: arguments}
	tools := []Tool{FunctionTool("f", "d", Value{kind: object})}
	user := Message{Role: User, Content: "q"}
	for _, name := range Names() {
		f := named(t, name)
		messages := []Message{{}, {Content: "plain"}, {Content: "a\n\nb 🚀 {\"x\": 1}"}}
		if name == "qwen3" {
			messages = append(messages, Message{Content: "b", Thinking: Thought("a\n\nc")}, Message{Thinking: Thought("only")},
				Message{Thinking: Thought("t"), Content: "x", ToolCalls: []ToolCall{call, call}})
		}
		switch name {
		case "role_colon", "llama3_plain":
		case "llama3", "mistral":
			messages = append(messages, Message{ToolCalls: []ToolCall{call}})
		default:
			messages = append(messages, Message{Content: "x\ny", ToolCalls: []ToolCall{call}}, Message{ToolCalls: []ToolCall{call, call}})
		}
		for _, m := range messages {
			m.Role = Assistant
			o := Options{Train: TrainLastAssistant, Tools: tools}
			if name == "role_colon" || name == "llama3_plain" {
				o.Tools = nil
			}
			examples, err := f.Examples([]Message{user, m}, o)
			if err != nil {
				t.Errorf("%s %+v: %v", name, m, err)
				continue
			}
			all := runs(examples[0].Segments)
			r := f.Parse(all[len(all)-1].Text, o)
			if name != "mistral" { // elsewhere ids are not written
				for k := range m.ToolCalls {
					m.ToolCalls[k].ID = ""
				}
			}
			if !r.End.Clean() || len(r.Problems) > 0 || !reflect.DeepEqual(r.Message, m) {
				t.Errorf("%s:\n got %s\nwant %s", name, show(r), show(Reply{Message: m, End: EndStop}))
			}
			call.ID = CallID(7)
			for k := range m.ToolCalls {
				m.ToolCalls[k].ID = call.ID
			}
		}
	}
}

func TestCallID(t *testing.T) {
	for n, want := range map[int]string{0: "call00000", 1: "call00001", 35: "call0000z", 36: "call00010", 1 << 30: "callrsglk"} {
		got := CallID(n)
		if n < 1<<20 && got != want || len(got) != 9 {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}

// FuzzParse: no reply stops Parse; what it reads is UTF-8 where the reply is, can be rendered again, and
// is read the same once more.
func FuzzParse(f *testing.F) {
	seeds := []string{"<think>\na\n</think>\n\nb<|im_end|>", "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call><|im_end|>",
		`[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "123456789"}]</s>`, `{"name": "f", "parameters": {}}<|eot_id|>`, " a\n\nUser:",
		"</think><think><tool_call></tool_call>", "<|python_tag|>{}", "\xff<think>\xfe", "<tool_call>" + strings.Repeat("[", 2000)}
	for _, s := range seeds {
		for k := range formats {
			f.Add(uint8(k), s)
		}
	}
	tools := []Tool{FunctionTool("f", "d", Value{})}
	f.Fuzz(func(t *testing.T, which uint8, text string) {
		format := formats[int(which)%len(formats)]
		o := Options{Tools: tools, EOS: "</s>", AllowControl: true, Train: TrainLastAssistant}
		r := format.Parse(text, o)
		if utf8.ValidString(text) && !utf8.ValidString(r.Message.Content+r.Message.thought()) {
			t.Errorf("%s %q: not UTF-8: %s", format.name, text, show(r))
		}
		if len(r.Message.Content)+len(r.Message.thought()) > len(text) {
			t.Errorf("%s %q: more than was written: %s", format.name, text, show(r))
		}
		for k := range r.Message.ToolCalls {
			r.Message.ToolCalls[k].ID = CallID(k)
		}
		if len(r.Problems) > 0 || len(r.Message.ToolCalls) > 0 && (format.plain || format.name == "role_colon") {
			return
		}
		if format.plain || format.name == "role_colon" {
			o.Tools = nil
		}
		examples, err := format.Examples([]Message{{Role: User, Content: "q"}, r.Message}, o)
		if err != nil {
			if !strings.Contains(err.Error(), "thinking is off") {
				t.Errorf("%s %q: read as %s, which cannot be rendered: %v", format.name, text, show(r), err)
			}
			return
		}
		all := runs(examples[0].Segments)
		o.Tools = tools
		again := format.Parse(all[len(all)-1].Text, o)
		if len(again.Message.ToolCalls) != len(r.Message.ToolCalls) && len(again.Problems) == 0 {
			t.Errorf("%s %q: read as %s and again as %s", format.name, text, show(r), show(again))
		}
	})
}
