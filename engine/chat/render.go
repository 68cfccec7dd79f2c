package chat

import (
	"strings"

	"tinkerlocal/engine/api"
)

// Segment is a piece of a rendered conversation.
type Segment struct {
	Text    string
	Special bool // Text is one token of the tokenizer's special vocabulary, by its name
	Trained bool // a loss is taken on what this becomes
	Message int  // index of the message it belongs to; -1: to none
}

// Options say how a conversation is rendered. The zero value renders it as the published template does
// with no arguments.
type Options struct {
	Tools    []Tool // functions that the model may call
	Generate bool   // end with what opens an assistant's turn, for the model to go on
	Prefill  string // with Generate: what its turn begins with
	Train    TrainOn

	NoThinking   bool // hybrid models: ask for no thoughts (enable_thinking=false)
	KeepThinking bool // hybrid models: earlier turns keep their thoughts, so that each prompt extends the last

	Date          string // llama3: "Today Date"; "" is the template's own fallback, 26 Jul 2024
	ToolsInSystem bool   // llama3: tools stand in the system message instead of the first user message

	BOS string // role_colon: the tokenizer's token at the beginning of a text, if it has one
	EOS string // role_colon: the token that ends one; a reply may end with it

	// AllowControl lets messages hold the format's own tokens, such as <|im_end|>, as text. They become
	// those tokens, as in the transformers library: whoever wrote the message can end its turn.
	AllowControl bool
}

// Stops are the ends of a reply: ask the sampler to stop at any of them.
type Stops struct {
	Tokens []string // by name; the first is the format's own, the others end a text altogether
	Texts  []string // when the decoded text contains one
}

// Format is one chat format. The value is immutable and any number of goroutines may use it.
type Format struct {
	name       string
	about      string
	controls   []string // tokens that must not stand in messages
	noThinking bool
	plain      bool   // llama3: without the header of dates
	overlap    string // what ends a reply but belongs to the next turn's header
	stops      Stops
	render     func(*writer)
	open       func(*writer)      // what a prompt ends with
	reply      func(*writer, int) // message i as the turn that follows such a prompt
	parse      func(*parser)
}

// Name is the name of f for [ByName].
func (f *Format) Name() string { return f.name }

// About says in a few words which models use f.
func (f *Format) About() string { return f.about }

// Stops returns where replies end. Those of role_colon depend on o.EOS.
func (f *Format) Stops(o Options) Stops {
	s := Stops{append([]string(nil), f.stops.Tokens...), append([]string(nil), f.stops.Texts...)}
	if o.EOS != "" && f.name == "role_colon" {
		s.Tokens = append(s.Tokens, o.EOS)
	}
	return s
}

// Render writes a whole conversation. With o.Train unset nothing is trained; with it set, those parts
// are that the mode names, in the text as the template writes it: where the template writes an earlier
// turn in another way than it was sampled (see [Format.Examples]), that is what would be trained.
func (f *Format) Render(messages []Message, o Options) ([]Segment, error) {
	w, err := f.writer(messages, o)
	if err != nil {
		return nil, err
	}
	f.render(w)
	if o.Generate {
		w.header(len(messages))
		f.open(w)
		w.own(o.Prefill)
	} else if last := len(messages) - 1; o.Train != "" && messages[last].Role == Assistant {
		w.output(last)
		w.own(f.overlap)
	}
	return w.segments, w.err
}

// Prompt writes a conversation for the model to answer: Render with Generate, and nothing trained.
func (f *Format) Prompt(messages []Message, o Options) ([]Segment, error) {
	o.Generate, o.Train = true, ""
	return f.Render(messages, o)
}

func (f *Format) writer(messages []Message, o Options) (*writer, error) {
	o.NoThinking = o.NoThinking || f.noThinking
	w := &writer{format: f, messages: messages, Options: o, message: -1}
	if o.Prefill != "" && !o.Generate {
		return nil, api.Errorf(api.BadRequest, "prefill without generate: there is no open turn that %.40q could begin", o.Prefill)
	}
	if len(messages) == 0 {
		return nil, api.Errorf(api.BadRequest, "no messages: want at least one")
	}
	for i, m := range messages {
		switch m.Role {
		case System, User, Assistant, RoleTool:
		default:
			return nil, api.Errorf(api.BadRequest, "message %d: role is %q, want system, user, assistant or tool", i, m.Role)
		}
		if len(m.ToolCalls) > 0 && m.Role != Assistant {
			return nil, api.Errorf(api.BadRequest, "message %d: a message of role %s has tool calls, only an assistant's may", i, m.Role)
		}
		for k, c := range m.ToolCalls {
			if c.Name == "" {
				return nil, api.Errorf(api.BadRequest, "message %d: tool call %d has no function name", i, k)
			}
		}
	}
	for k, t := range o.Tools {
		if _, err := toolName(t); err != nil {
			return nil, api.Errorf(api.BadRequest, "tool %d: %w", k, err)
		}
	}
	var err error
	w.trains, err = o.Train.trained(messages)
	return w, err
}

// writer collects segments. A renderer says where it is (header or output of a message) and what it
// writes; the first error stays and ends the rendering.
type writer struct {
	Options
	format   *Format
	messages []Message
	segments []Segment
	trains   []bool // by message: its output is trained
	message  int
	trained  bool
	err      error
}

// header says that what follows is supplied by the prompt, and belongs to message i.
func (w *writer) header(i int) {
	w.message = i
	if i >= len(w.messages) {
		w.message = -1
	}
	w.trained = w.Train == TrainAllTokens && w.message >= 0
}

// output says that what follows is what the author of message i wrote.
func (w *writer) output(i int) {
	w.message = i
	w.trained = i >= 0 && i < len(w.trains) && w.trains[i] || w.Train == TrainAllTokens
}

// special writes a token by its name.
func (w *writer) special(token string) {
	w.segments = append(w.segments, Segment{Text: token, Special: true, Trained: w.trained, Message: w.message})
}

// own writes the format's own words.
func (w *writer) own(text string) {
	if text == "" {
		return
	}
	if n := len(w.segments); n > 0 {
		if last := &w.segments[n-1]; !last.Special && last.Trained == w.trained && last.Message == w.message {
			last.Text += text
			return
		}
	}
	w.segments = append(w.segments, Segment{Text: text, Trained: w.trained, Message: w.message})
}

// free writes a person's words, a model's, or a tool's.
func (w *writer) free(text string) {
	if !w.AllowControl {
		for _, c := range w.format.controls {
			if at := strings.Index(text, c); at >= 0 {
				w.fail("the text holds the control token %s at byte %d, which would end or open a turn", c, at)
			}
		}
	}
	w.own(text)
}

// fail keeps the first error.
func (w *writer) fail(format string, args ...any) {
	if w.err != nil {
		return
	}
	where := "conversation"
	if w.message >= 0 {
		where = "message " + itoa(w.message)
	}
	w.err = api.Errorf(api.BadRequest, "%s: %w", where, api.Errorf(api.BadRequest, format, args...))
}

// object returns the arguments of a call as an object.
func (w *writer) object(c ToolCall) Value {
	v, err := c.object()
	if err != nil {
		w.fail("arguments of the call of %s: %w", c.Name, err)
	}
	return v
}

// noThought refuses to train on thoughts that the format has no place for.
func (w *writer) noThought(i int) {
	if w.trained && strings.Trim(w.messages[i].thought(), "\n") != "" {
		w.fail("its thinking cannot be trained on: format %s leaves it out; remove it, or name a format with thinking", w.format.name)
	}
}

// String is the text of segments, as a template would have written it.
func String(segments []Segment) string {
	var b strings.Builder
	for _, s := range segments {
		b.WriteString(s.Text)
	}
	return b.String()
}
