package chat

import (
	"strings"

	"tinkerlocal/engine/api"
)

// End says how a reply ended. The names are those of the cookbook's ParseTermination.
type End string

// The ends of a reply.
const (
	EndStop      End = "stop_sequence" // the format's own end of a turn
	EndEOS       End = "eos"           // another token that ends a text
	EndMalformed End = "malformed"     // none (the reply was cut off) or more than one
)

// Clean tells whether the turn came to an end.
func (e End) Clean() bool { return e != EndMalformed }

// Problem is a part of a reply that could not be read.
type Problem struct {
	Raw string // as the model wrote it
	Why string
}

// Reply is a sampled turn.
type Reply struct {
	Message  Message // of the assistant; as much as could be read
	End      End
	Problems []Problem // in their order
}

// Parse reads a sampled reply. text is what follows the prompt (with the prefill, if there was one),
// decoded with special tokens kept, up to and with the token or text that stopped it. Whatever the
// model wrote, the result is a message and what is wrong with it: Parse does not fail.
//
// The options are those of the prompt. llama3 writes a call as bare JSON, so that it is read as a call
// only if it names one of o.Tools.
func (f *Format) Parse(text string, o Options) Reply {
	p := &parser{Options: o, format: f, reply: Reply{Message: Message{Role: Assistant}, End: EndMalformed}}
	p.text = p.ending(text)
	f.parse(p)
	return p.reply
}

type parser struct {
	Options
	format *Format
	text   string
	reply  Reply
}

func (p *parser) problem(raw, why string) {
	p.reply.Problems = append(p.reply.Problems, Problem{raw, why})
}

// ending cuts text at the first of the format's stops and notes which it was.
func (p *parser) ending(text string) string {
	stops := p.format.Stops(p.Options)
	at, stop, own := len(text), "", false
	for k, s := range append(stops.Texts, stops.Tokens...) {
		if i := strings.Index(text, s); i >= 0 && i < at {
			at, stop, own = i, s, k == 0
		}
	}
	if stop == "" {
		return text
	}
	p.reply.End = EndEOS
	if own {
		p.reply.End = EndStop
	}
	if rest := text[at+len(stop):]; rest != "" {
		p.reply.End = EndMalformed
		p.problem(rest, "text after the end of the turn, "+Text(stop).String())
	}
	return text[:at]
}

// parseQwen3 and parseQwen3Instruct read <think> and <tool_call> blocks.
func parseQwen3(p *parser)         { p.blocks(true) }
func parseQwen3Instruct(p *parser) { p.blocks(false) }

func (p *parser) blocks(thinks bool) {
	var thoughts, words strings.Builder
	rest, padded := p.text, false // padded: a think block came before, with its blank line
	think := func(s string) {
		thoughts.WriteString(strings.Trim(s, "\n"))
		padded = true
	}
	say := func(s string) {
		if padded {
			s = strings.TrimLeft(s, "\n")
		}
		words.WriteString(s)
		padded = padded && s == ""
	}
	if end := strings.Index(rest, thinkClose); thinks && end >= 0 && !strings.Contains(rest[:end], thinkOpen) {
		think(rest[:end]) // the block was opened in the prompt
		rest = rest[end+len(thinkClose):]
	}
	for {
		open, name := nextBlock(rest, thinks)
		if name == "" {
			break
		}
		before, block := rest[:open], rest[open+len(name):]
		if name == thinkOpen {
			say(before)
			inner, after, closed := strings.Cut(block, thinkClose)
			if !closed {
				p.problem(rest[open:], "<think> without </think>")
			}
			think(inner)
			rest = after
			continue
		}
		say(strings.TrimSuffix(before, "\n")) // the line that parts a call from what is before it
		inner, after, closed := strings.Cut(block, callClose)
		if !closed {
			p.problem(rest[open:], "<tool_call> without </tool_call>")
			words.WriteString(rest[open:])
			rest = ""
			break
		}
		p.call(inner, rest[open:len(rest)-len(after)], "arguments")
		rest = after
	}
	say(rest)
	p.reply.Message.Content = words.String()
	if thoughts.Len() > 0 {
		p.reply.Message.Thinking = Thought(thoughts.String())
	}
}

// nextBlock finds the first block that opens in s.
func nextBlock(s string, thinks bool) (at int, name string) {
	at = strings.Index(s, callOpen)
	if at >= 0 {
		name = callOpen
	}
	if !thinks {
		return at, name
	}
	if i := strings.Index(s, thinkOpen); i >= 0 && (at < 0 || i < at) {
		return i, thinkOpen
	}
	return at, name
}

// call reads one tool call. key is where its arguments stand.
func (p *parser) call(text, raw string, key string) {
	v, err := ParseValue([]byte(text))
	if err == nil {
		var c ToolCall
		if c, err = readCall(v, key); err == nil {
			p.reply.Message.ToolCalls = append(p.reply.Message.ToolCalls, c)
			return
		}
	}
	p.problem(raw, "tool call: "+err.Error())
}

func readCall(v Value, key string) (ToolCall, error) {
	if !v.IsObject() {
		return ToolCall{}, api.Errorf(api.BadRequest, "want a JSON object, got %.60s", v)
	}
	name, _ := v.Get("name")
	if name.Str() == "" {
		return ToolCall{}, api.Errorf(api.BadRequest, `no "name" string in %.60s`, v)
	}
	arguments, _ := v.Get(key)
	if !arguments.IsObject() {
		return ToolCall{}, api.Errorf(api.BadRequest, `no %q object in %.60s`, key, v)
	}
	id, _ := v.Get("id")
	return ToolCall{ID: id.Str(), Name: name.Str(), Arguments: arguments}, nil
}

// parseLlama3 reads a turn, which is words or one call of a tool as bare JSON.
func parseLlama3(p *parser) {
	p.reply.Message.Content = p.text
	body := trim(p.text)
	rest, tagged := strings.CutPrefix(body, llamaPython)
	if !tagged && (len(p.Tools) == 0 || !strings.HasPrefix(body, "{")) {
		return
	}
	v, err := ParseValue([]byte(rest))
	if err == nil {
		key := "parameters"
		if _, ok := v.Get(key); !ok {
			key = "arguments"
		}
		var c ToolCall
		if c, err = readCall(v, key); err == nil && (tagged || p.knows(c.Name)) {
			p.reply.Message.Content = ""
			p.reply.Message.ToolCalls = []ToolCall{c}
			return
		}
	}
	switch {
	case tagged:
		p.problem(body, "tool call: "+err.Error())
	case err == nil:
		p.problem(body, "looks like a tool call, but no tool has that name: taken as text")
	}
}

func (p *parser) knows(name string) bool {
	for _, t := range p.Tools {
		if n, err := toolName(t); err == nil && n == name {
			return true
		}
	}
	return false
}

// parseMistral reads words, or a list of calls after its token.
func parseMistral(p *parser) {
	words, calls, called := strings.Cut(p.text, mistralCalls)
	p.reply.Message.Content = strings.TrimPrefix(words, " ")
	if !called {
		return
	}
	p.reply.Message.Content = trim(words)
	v, err := ParseValue([]byte(calls))
	if err == nil && v.kind != array {
		err = api.Errorf(api.BadRequest, "want a JSON array, got %.60s", v)
	}
	if err != nil {
		p.problem(mistralCalls+calls, "tool calls: "+err.Error())
		return
	}
	for _, item := range v.items {
		c, err := readCall(item, "arguments")
		if err != nil {
			p.problem(item.String(), "tool call: "+err.Error())
			continue
		}
		p.reply.Message.ToolCalls = append(p.reply.Message.ToolCalls, c)
	}
}

func parseRoleColon(p *parser) {
	p.reply.Message.Content = strings.TrimSuffix(strings.TrimPrefix(p.text, " "), "\n\n")
}
