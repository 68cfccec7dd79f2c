package chat

import "strings"

// The formats of Qwen3. Sources: the chat template that Qwen/Qwen3-8B and its siblings publish in
// tokenizer_config.json (testdata/qwen3.jinja), that of Qwen/Qwen3-4B-Instruct-2507
// (testdata/qwen3_instruct_2507.jinja), and for what is trained, how a reply is read and the names
// thinking-machines-lab/tinker-cookbook, tinker_cookbook/renderers/qwen3.py.
//
//	<|im_start|>system
//	…<|im_end|>
//	<|im_start|>user
//	…<|im_end|>
//	<|im_start|>assistant
//	<think>
//	…
//	</think>
//
//	…<|im_end|>
//
// A hybrid model's turn is framed with a think block, empty if need be, when it is the one being made:
// it comes after the last question, and it is the last message or has thoughts. Earlier turns lose
// theirs. With thinking off the prompt writes the empty block itself. Tools stand in the system
// message, results in a user turn.

const (
	imStart = "<|im_start|>"
	imEnd   = "<|im_end|>"

	thinkOpen, thinkClose   = "<think>", "</think>"
	callOpen, callClose     = "<tool_call>", "</tool_call>"
	resultOpen, resultClose = "<tool_response>", "</tool_response>"
	noThoughts              = thinkOpen + "\n\n" + thinkClose + "\n\n"
)

const (
	qwenTools = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n" +
		"You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
	qwenCalls = "\n</tools>\n\nFor each function call, return a json object with function name and arguments within " +
		"<tool_call></tool_call> XML tags:\n<tool_call>\n" +
		`{"name": <function-name>, "arguments": <args-json-object>}` + "\n</tool_call>"
)

var qwenControls = []string{imStart, imEnd, "<|endoftext|>"}

var qwenStops = Stops{Tokens: []string{imEnd, "<|endoftext|>"}}

func renderQwen3(w *writer)         { renderQwen(w, true) }
func renderQwen3Instruct(w *writer) { renderQwen(w, false) }

func renderQwen(w *writer, thinks bool) {
	qwenSystem(w)
	question := qwenQuestion(w.messages)
	for i, m := range w.messages {
		switch {
		case m.Role == User || m.Role == System && i > 0:
			qwenOpen(w, i, m.Role)
			w.output(i)
			w.free(m.Content)
			qwenEnd(w, i)
		case m.Role == Assistant:
			qwenOpen(w, i, Assistant)
			switch {
			case !thinks:
				qwenPlain(w, i)
			case w.KeepThinking || i > question && (i == len(w.messages)-1 || qwenThought(m) != ""):
				qwenFramed(w, i)
			default:
				_, text := qwenSplit(m)
				qwenText(w, i, text)
			}
			w.header(i)
			w.own("\n")
		case m.Role == RoleTool:
			qwenResult(w, i)
		}
	}
}

// qwenSystem writes the first turn, if there is a system message or tools.
func qwenSystem(w *writer) {
	first, has := -1, w.messages[0].Role == System
	if has {
		first = 0
	}
	if !has && len(w.Tools) == 0 {
		return
	}
	qwenOpen(w, first, System)
	w.output(first)
	if has {
		w.free(w.messages[0].Content)
	}
	if len(w.Tools) > 0 {
		if has {
			w.own("\n\n")
		}
		w.own(qwenTools)
		for _, t := range w.Tools {
			w.own("\n")
			w.free(t.String())
		}
		w.own(qwenCalls)
	}
	qwenEnd(w, first)
}

func qwenOpen(w *writer, i int, role string) {
	w.header(i)
	w.special(imStart)
	w.own(role + "\n")
}

func qwenEnd(w *writer, i int) {
	w.special(imEnd)
	w.header(i)
	w.own("\n")
}

// qwenResult writes a tool's answer; those that follow each other share a turn.
func qwenResult(w *writer, i int) {
	role := func(k int) string {
		if k < 0 || k >= len(w.messages) {
			return ""
		}
		return w.messages[k].Role
	}
	if role(i-1) != RoleTool {
		w.header(i)
		w.special(imStart)
		w.own(User)
	}
	w.output(i)
	w.own("\n" + resultOpen + "\n")
	w.free(w.messages[i].Content)
	w.own("\n" + resultClose)
	if role(i+1) != RoleTool {
		qwenEnd(w, i)
	}
}

// qwenQuestion is the index of the last user message that is not a tool's answer written as one, or
// of the last message if there is none.
func qwenQuestion(messages []Message) int {
	for i := len(messages) - 1; i >= 0; i-- {
		m := messages[i]
		if m.Role == User && (!strings.HasPrefix(m.Content, resultOpen) || !strings.HasSuffix(m.Content, resultClose)) {
			return i
		}
	}
	return len(messages) - 1
}

// qwenSplit returns an assistant's thoughts and words. Thoughts that are not said apart are looked for
// in the words, as the template does.
func qwenSplit(m Message) (thought, text string) {
	if m.Thinking != nil || !strings.Contains(m.Content, thinkClose) {
		return m.thought(), m.Content
	}
	before, _, _ := strings.Cut(m.Content, thinkClose)
	thought = strings.TrimRight(before, "\n")
	if at := strings.LastIndex(thought, thinkOpen); at >= 0 {
		thought = thought[at+len(thinkOpen):]
	}
	text = m.Content[strings.LastIndex(m.Content, thinkClose)+len(thinkClose):]
	return strings.TrimLeft(thought, "\n"), strings.TrimLeft(text, "\n")
}

func qwenThought(m Message) string {
	thought, _ := qwenSplit(m)
	return thought
}

// qwenFramed writes a turn with its think block, which is the prompt's when thinking is off.
func qwenFramed(w *writer, i int) {
	thought, text := qwenSplit(w.messages[i])
	thought = strings.Trim(thought, "\n")
	if w.NoThinking && thought == "" {
		w.header(i)
		w.own(noThoughts)
	} else {
		w.output(i)
		qwenBlock(w, thought)
	}
	qwenTurn(w, i, strings.TrimLeft(text, "\n"), text != "")
}

func qwenBlock(w *writer, thought string) {
	if w.NoThinking && w.trained {
		w.fail("thinking is off, so the prompt says not to think, but this turn has thoughts to be trained on: " +
			"turn thinking on or remove them")
	}
	w.own(thinkOpen + "\n")
	w.free(thought)
	w.own("\n" + thinkClose + "\n\n")
}

func qwenPlain(w *writer, i int) {
	w.output(i)
	w.noThought(i)
	qwenTurn(w, i, w.messages[i].Content, w.messages[i].Content != "")
}

// qwenText writes a turn without its thoughts.
func qwenText(w *writer, i int, text string) {
	w.output(i)
	qwenTurn(w, i, text, text != "")
}

// qwenTurn writes the words and calls of a turn and its end. A line parts the first call from words.
func qwenTurn(w *writer, i int, text string, words bool) {
	w.output(i)
	w.free(text)
	for k, c := range w.messages[i].ToolCalls {
		if k > 0 || words {
			w.own("\n")
		}
		w.own(callOpen + "\n" + `{"name": "`)
		w.free(c.Name)
		w.own(`", "arguments": `)
		switch {
		case c.Arguments.IsText():
			w.free(c.Arguments.Str())
		case c.Arguments.IsNull():
			w.own("{}")
		default:
			w.free(c.Arguments.String())
		}
		w.own("}\n" + callClose)
	}
	w.special(imEnd)
}

func openQwen3(w *writer) {
	openQwen3Instruct(w)
	if w.NoThinking {
		w.own(noThoughts)
	}
}

func openQwen3Instruct(w *writer) {
	w.special(imStart)
	w.own(Assistant + "\n")
}

// replyQwen3 writes message i as the turn that a prompt opened.
func replyQwen3(w *writer, i int) {
	thought, text := qwenSplit(w.messages[i])
	if thought = strings.Trim(thought, "\n"); !w.NoThinking || thought != "" {
		qwenBlock(w, thought)
	}
	qwenTurn(w, i, strings.TrimLeft(text, "\n"), text != "")
}

func replyQwen3Instruct(w *writer, i int) { qwenPlain(w, i) }
