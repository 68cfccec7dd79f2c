package chat

import (
	"encoding/json"
	"strings"

	"tinkerlocal/engine/api"
)

// The roles of messages. Published templates know a few more names for the same; these four are the
// ones that every chat data set uses.
const (
	System    = "system"
	User      = "user"
	Assistant = "assistant"
	RoleTool  = "tool"
)

// Message is one turn of a conversation, or a part of one: an assistant's tool calls and its answer
// after them are two messages of one turn.
//
// As JSON it is a message of the chat completions API. content may be a string, null, or a list of
// parts {"type": "text", "text": …} and {"type": "thinking", "thinking": …}; the texts are joined and
// so are the thoughts. Thinking is also read from reasoning_content, reasoning and thinking.
type Message struct {
	Role       string
	Content    string
	Thinking   *string    // what the assistant thought; nil: not said, and templates may look for it in Content
	ToolCalls  []ToolCall // assistant: the tools it calls
	ToolCallID string     // tool: the call that this answers
	Name       string     // tool: the function's name
	Trainable  *bool      // for [TrainCustomized]
}

// ToolCall is an assistant's wish to run a function.
type ToolCall struct {
	ID        string
	Name      string
	Arguments Value // an object, or the text of one in a string, as the chat completions API sends it
}

// Tool says what a function does and takes, as the chat completions API writes it:
// {"type": "function", "function": {"name": …, "description": …, "parameters": JSON schema}}.
// All that is in it reaches the prompt, in its order.
type Tool = Value

// FunctionTool returns the Tool of a function.
func FunctionTool(name, description string, parameters Value) Tool {
	return Object([]string{"type", "function"}, []Value{Text("function"),
		Object([]string{"name", "description", "parameters"}, []Value{Text(name), Text(description), parameters})})
}

// ParseTools reads a JSON array of tools. A tool that is only the inner object (name, description,
// parameters) is put into {"type": "function", "function": …}.
func ParseTools(data []byte) ([]Tool, error) {
	v, err := ParseValue(data)
	if err != nil {
		return nil, api.Errorf(api.BadRequest, "tools: %w", err)
	}
	if v.kind == null {
		return nil, nil
	}
	if v.kind != array {
		return nil, api.Errorf(api.BadRequest, "tools: want a JSON array, got %.40s", v)
	}
	tools := make([]Tool, len(v.items))
	for k, t := range v.items {
		_, inner := t.Get("function")
		if _, named := t.Get("name"); named && !inner {
			t = Object([]string{"type", "function"}, []Value{Text("function"), t})
		}
		if _, err := toolName(t); err != nil {
			return nil, api.Errorf(api.BadRequest, "tool %d: %w", k, err)
		}
		tools[k] = t
	}
	return tools, nil
}

// toolName returns the name of a tool's function, or why it has none.
func toolName(t Tool) (string, error) {
	function, ok := t.Get("function")
	if !ok || !function.IsObject() {
		return "", api.Errorf(api.BadRequest, `want an object with a "function" object, got %.60s`, t)
	}
	name, ok := function.Get("name")
	if !ok || name.Str() == "" {
		return "", api.Errorf(api.BadRequest, `its function has no "name": %.60s`, t)
	}
	return name.Str(), nil
}

// Thought returns a pointer to s for [Message.Thinking].
func Thought(s string) *string { return &s }

// thought is the message's thinking or "".
func (m Message) thought() string {
	if m.Thinking == nil {
		return ""
	}
	return *m.Thinking
}

// object returns a call's arguments as an object, reading the string form.
func (c ToolCall) object() (Value, error) {
	v := c.Arguments
	switch {
	case v.IsNull() || v.IsText() && strings.TrimSpace(v.text) == "":
		return Value{kind: object}, nil
	case v.IsText():
		read, err := ParseValue([]byte(v.text))
		if err != nil {
			return Value{}, err
		}
		v = read
	}
	if !v.IsObject() {
		return Value{}, api.Errorf(api.BadRequest, "want a JSON object, got %.60s", v)
	}
	return v, nil
}

type wireMessage struct {
	Role             string          `json:"role"`
	Content          json.RawMessage `json:"content"`
	ReasoningContent *string         `json:"reasoning_content,omitempty"`
	Reasoning        *string         `json:"reasoning,omitempty"`
	Thinking         *string         `json:"thinking,omitempty"`
	ToolCalls        []wireCall      `json:"tool_calls,omitempty"`
	ToolCallID       string          `json:"tool_call_id,omitempty"`
	Name             string          `json:"name,omitempty"`
	Trainable        *bool           `json:"trainable,omitempty"`
}

type wireCall struct {
	ID       string       `json:"id,omitempty"`
	Type     string       `json:"type,omitempty"`
	Function wireFunction `json:"function"`
}

type wireFunction struct {
	Name      string `json:"name"`
	Arguments Value  `json:"arguments"`
}

// UnmarshalJSON reads a message of the chat completions API.
func (m *Message) UnmarshalJSON(data []byte) error {
	var w wireMessage
	if err := json.Unmarshal(data, &w); err != nil {
		return api.Errorf(api.BadRequest, "message: %w", err)
	}
	*m = Message{Role: w.Role, ToolCallID: w.ToolCallID, Name: w.Name, Trainable: w.Trainable}
	for _, thinking := range []*string{w.ReasoningContent, w.Reasoning, w.Thinking} {
		if m.Thinking == nil {
			m.Thinking = thinking
		}
	}
	for _, c := range w.ToolCalls {
		m.ToolCalls = append(m.ToolCalls, ToolCall{ID: c.ID, Name: c.Function.Name, Arguments: c.Function.Arguments})
	}
	return m.readContent(w.Content)
}

func (m *Message) readContent(data json.RawMessage) error {
	content := Value{}
	if len(data) > 0 {
		var err error
		if content, err = ParseValue(data); err != nil {
			return err
		}
	}
	switch content.kind {
	case null:
		return nil
	case str:
		m.Content = content.text
		return nil
	case array:
	default:
		return api.Errorf(api.BadRequest, "content: want a string or a list of parts, got %.60s", content)
	}
	for k, part := range content.items {
		of, _ := part.Get("type")
		switch text, _ := part.Get(of.Str()); {
		case of.Str() != "text" && of.Str() != "thinking":
			return api.Errorf(api.Unsupported, "content: part %d is of type %q, want text or thinking", k, of.Str())
		case !text.IsText():
			return api.Errorf(api.BadRequest, "content: part %d has no %s string", k, of.Str())
		case of.Str() == "text":
			m.Content += text.text
		default:
			m.Thinking = Thought(m.thought() + text.text)
		}
	}
	return nil
}

// MarshalJSON writes a message of the chat completions API, with thinking as reasoning_content.
func (m Message) MarshalJSON() ([]byte, error) {
	w := wireMessage{Role: m.Role, Content: Text(m.Content).dump(nil, -1, 0), ReasoningContent: m.Thinking,
		ToolCallID: m.ToolCallID, Name: m.Name, Trainable: m.Trainable}
	for _, c := range m.ToolCalls {
		w.ToolCalls = append(w.ToolCalls, wireCall{ID: c.ID, Type: "function", Function: wireFunction{c.Name, c.Arguments}})
	}
	return json.Marshal(w)
}
