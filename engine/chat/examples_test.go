package chat

import (
	"slices"
	"strings"
	"testing"
)

// marked writes runs with what is trained between ⟦ and ⟧.
func marked(segments []Segment) string {
	var b strings.Builder
	for _, r := range runs(segments) {
		if r.Trained {
			b.WriteString("⟦" + r.Text + "⟧")
		} else {
			b.WriteString(r.Text)
		}
	}
	return b.String()
}

func conversation(turns ...string) []Message {
	var out []Message
	for _, s := range turns {
		role, content, _ := strings.Cut(s, ":")
		out = append(out, Message{Role: role, Content: content})
	}
	return out
}

func thinking(m Message, thought string) Message {
	m.Thinking = &thought
	return m
}

func TestExamples(t *testing.T) {
	weather, err := ParseTools([]byte(`[{"name": "f", "parameters": {}}]`))
	if err != nil {
		t.Fatal(err)
	}
	plain := conversation("system:s", "user:a", "assistant:b", "user:c", "assistant:d")
	thought := slices.Clone(plain)
	thought[2], thought[4] = thinking(plain[2], "B"), thinking(plain[4], "D")
	call := Message{Role: Assistant, ToolCalls: []ToolCall{{ID: CallID(1), Name: "f", Arguments: Value{kind: object}}}}
	loop := []Message{plain[1], thinking(call, "look"), {Role: RoleTool, Content: "1", ToolCallID: CallID(1)}, thinking(plain[4], "D")}

	for _, c := range []struct {
		name, format string
		messages     []Message
		o            Options
		want         []string
	}{
		{"shared text", "qwen3_instruct", plain, Options{Train: TrainAllAssistant}, []string{
			"<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦b<|im_end|>⟧\n" +
				"<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧"}},
		{"last turn", "qwen3_instruct", plain[1:], Options{Train: TrainLastTurn}, []string{
			"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧"}},
		{"thoughts part the texts", "qwen3", thought[1:], Options{Train: TrainAllAssistant}, []string{
			"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦<think>\nB\n</think>\n\nb<|im_end|>⟧",
			"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦<think>\nD\n</think>\n\nd<|im_end|>⟧"}},
		{"thoughts kept", "qwen3", thought[1:], Options{Train: TrainAllAssistant, KeepThinking: true}, []string{
			"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦<think>\nB\n</think>\n\nb<|im_end|>⟧\n" +
				"<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦<think>\nD\n</think>\n\nd<|im_end|>⟧"}},
		{"thinking off", "qwen3", plain[1:3], Options{Train: TrainLastAssistant, NoThinking: true}, []string{
			"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n⟦b<|im_end|>⟧"}},
		{"thinking off, kept", "qwen3_disable_thinking", plain[1:], Options{Train: TrainAllAssistant, KeepThinking: true}, []string{
			"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n⟦b<|im_end|>⟧\n" +
				"<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n⟦d<|im_end|>⟧"}},
		{"tools in one turn", "qwen3", loop, Options{Train: TrainLastTurn}, []string{
			"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦<think>\nlook\n</think>\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call><|im_end|>⟧\n" +
				"<|im_start|>user\n<tool_response>\n1\n</tool_response><|im_end|>\n<|im_start|>assistant\n⟦<think>\nD\n</think>\n\nd<|im_end|>⟧"}},
		{"all messages", "qwen3_instruct", plain[:3], Options{Train: TrainAllMessages}, []string{
			"<|im_start|>system\n⟦s<|im_end|>⟧\n<|im_start|>user\n⟦a<|im_end|>⟧\n<|im_start|>assistant\n⟦b<|im_end|>⟧"}},
		{"questions", "qwen3_instruct", plain[:3], Options{Train: TrainUserAndSystem}, []string{
			"<|im_start|>system\n⟦s<|im_end|>⟧\n<|im_start|>user\n⟦a<|im_end|>⟧"}},
		{"llama3", "llama3_plain", plain[1:], Options{Train: TrainAllAssistant}, []string{
			"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦b<|eot_id|>⟧" +
				"<|start_header_id|>user<|end_header_id|>\n\nc<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦d<|eot_id|>⟧"}},
		{"mistral without system", "mistral", plain[1:], Options{Train: TrainAllAssistant}, []string{
			"<s>[INST] a[/INST]⟦ b</s>⟧[INST] c[/INST]⟦ d</s>⟧"}},
		{"mistral moves the system message", "mistral", plain, Options{Train: TrainAllAssistant}, []string{
			"<s>[INST] s\n\na[/INST]⟦ b</s>⟧", "<s>[INST] a[/INST] b</s>[INST] s\n\nc[/INST]⟦ d</s>⟧"}},
		{"mistral tools", "mistral", []Message{plain[1], call}, Options{Train: TrainLastAssistant, Tools: weather}, []string{
			`<s>[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "f", "parameters": {}}}][/AVAILABLE_TOOLS][INST] a[/INST]` +
				`⟦[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "call00001"}]</s>⟧`}},
		{"role_colon", "role_colon", plain, Options{Train: TrainAllAssistant}, []string{
			"System: s\n\nUser: a\n\nAssistant:⟦ b\n\n⟧User: c\n\nAssistant:⟦ d\n\nUser:⟧"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			examples, err := named(t, c.format).Examples(c.messages, c.o)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range examples {
				got = append(got, marked(e.Segments))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("\n got %q\nwant %q", got, c.want)
			}
		})
	}
}

// TestExamplesFollowPrompts: for every conversation of the fixtures, a trained message stands after the
// prompt that sampling it gets, and is what the format writes for it.
func TestExamplesFollowPrompts(t *testing.T) {
	for _, name := range append([]string{"qwen3_disable_thinking"}, published...) {
		f, count := named(t, name), 0
		from := strings.Replace(name, "_disable_thinking", "", 1)
		for _, c := range fixtures(t, from) {
			o := c.Options
			if o.Generate {
				continue
			}
			o.Train = TrainAllAssistant
			examples, err := f.Examples(c.Messages, o)
			if err != nil {
				continue
			}
			for _, e := range examples {
				whole, last := String(e.Segments), ""
				if strings.Count(marked(e.Segments), "⟦") != len(e.Messages) {
					t.Errorf("%s: %s: messages %d in %q", name, c, e.Messages, marked(e.Segments))
				}
				for _, i := range e.Messages {
					prompt, err := f.Prompt(c.Messages[:i], o)
					if err != nil {
						t.Fatal(err)
					}
					last = String(prompt)
					if !strings.HasPrefix(whole, last) {
						t.Errorf("%s: %s: message %d does not follow its prompt:\n%q\n%q", name, c, i, last, whole)
					}
					count++
				}
				reply := f.Parse(strings.TrimPrefix(whole, last), o)
				if !reply.End.Clean() || len(reply.Problems) > 0 && !strings.Contains(whole, "<think> is") && !strings.Contains(c.Name, "not closed") && !strings.Contains(c.Name, "two opened") && !strings.Contains(c.Name, "json") {
					t.Errorf("%s: %s: the reply does not parse: %+v", name, c, reply)
				}
			}
		}
		if count < 30 {
			t.Errorf("%s: %d trained messages, want at least 30", name, count)
		}
	}
}

func TestExamplesRefuse(t *testing.T) {
	plain := conversation("user:a", "assistant:b")
	thought := []Message{plain[0], thinking(plain[1], "hm")}
	yes := true
	marked := []Message{{Role: User, Content: "a", Trainable: &yes}, plain[1]}
	for _, c := range []struct {
		format   string
		messages []Message
		o        Options
		want     string
	}{
		{"qwen3", plain[:1], Options{Train: TrainAllAssistant}, "nothing to train on"},
		{"qwen3", plain, Options{}, "nothing to train on"},
		{"qwen3", plain, Options{Train: "most"}, `train on "most": no such mode`},
		{"qwen3", plain, Options{Train: TrainAllAssistant, Generate: true}, "generate and prefill are for prompts"},
		{"qwen3", plain[1:], Options{Train: TrainAllAssistant}, "message 0: an assistant's turn with nothing before it"},
		{"qwen3", marked, Options{Train: TrainCustomized}, "message 1: trainable is not set"},
		{"qwen3", marked, Options{Train: TrainAllAssistant}, "message 0: trainable is set"},
		{"qwen3_disable_thinking", thought, Options{Train: TrainAllAssistant}, "message 1: thinking is off"},
		{"qwen3_instruct", thought, Options{Train: TrainAllAssistant}, "message 1: its thinking cannot be trained on"},
		{"llama3", thought, Options{Train: TrainAllAssistant}, "message 1: its thinking cannot be trained on"},
		{"mistral", thought, Options{Train: TrainAllAssistant}, "message 1: its thinking cannot be trained on"},
		{"role_colon", thought, Options{Train: TrainAllAssistant}, "message 1: its thinking cannot be trained on"},
	} {
		_, err := named(t, c.format).Examples(c.messages, c.o)
		expectError(t, c.format, err, c.want)
	}
}

func expectError(t *testing.T, name string, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: error %v, want one with %q", name, err, want)
	}
}
