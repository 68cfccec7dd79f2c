package chat

import "slices"

// The format of Mistral 7B Instruct v0.3 (tokenizer v3). Sources: the chat template that
// mistralai/Mistral-7B-Instruct-v0.3 publishes in tokenizer_config.json
// (testdata/mistral_v0.3.jinja), and mistralai/cookbook, concept-deep-dive/tokenization.
//
//	<s>[INST] …[/INST] …</s>[AVAILABLE_TOOLS] […][/AVAILABLE_TOOLS][INST] …[/INST][TOOL_CALLS] […]</s>[TOOL_RESULTS] {…}[/TOOL_RESULTS] …</s>
//
// User and assistant take turns. The system message opens the last user message, and only while that
// is the last message of all; tools stand before the last user message. A text beside tool calls is
// left out. Calls have ids of nine letters or digits: see [CallID].

const (
	mistralBOS     = "<s>"
	mistralEOS     = "</s>"
	mistralAsk     = "[INST]"
	mistralAskEnd  = "[/INST]"
	mistralTools   = "[AVAILABLE_TOOLS]"
	mistralEnd     = "[/AVAILABLE_TOOLS]"
	mistralCalls   = "[TOOL_CALLS]"
	mistralResult  = "[TOOL_RESULTS]"
	mistralResults = "[/TOOL_RESULTS]"
)

var mistralControls = []string{mistralBOS, mistralEOS, mistralAsk, mistralAskEnd, mistralTools, mistralEnd,
	mistralCalls, mistralResult, mistralResults}

var mistralStops = Stops{Tokens: []string{mistralEOS}}

// callIDLen is how long Mistral's call ids are.
const callIDLen = 9

// CallID returns an id for the n-th call of a conversation that every format takes.
func CallID(n int) string {
	const letters = "0123456789abcdefghijklmnopqrstuvwxyz"
	id := []byte("call00000")
	for k := callIDLen - 1; k >= 4 && n > 0; k-- {
		id[k] = letters[n%len(letters)]
		n /= len(letters)
	}
	return string(id)
}

func renderMistral(w *writer) {
	from := 0
	if w.messages[0].Role == System {
		from = 1
	}
	last := mistralOrder(w, from)
	w.message = -1
	w.special(mistralBOS)
	for i := from; i < len(w.messages) && w.err == nil; i++ {
		switch m := w.messages[i]; m.Role {
		case User:
			// As in the template, an earlier message with the same words counts as the last one.
			if len(w.Tools) > 0 && m.Content == w.messages[last].Content && m.Name == w.messages[last].Name {
				mistralSpecs(w, i)
			}
			w.header(i)
			w.special(mistralAsk)
			w.own(" ")
			if from == 1 && i == len(w.messages)-1 {
				w.output(0)
				w.free(w.messages[0].Content)
				w.own("\n\n")
			}
			w.output(i)
			w.free(m.Content)
			w.special(mistralAskEnd)
		case Assistant:
			w.output(i)
			replyMistral(w, i)
		case RoleTool:
			w.header(i)
			w.special(mistralResult)
			w.output(i)
			w.own(` {"content": `)
			w.free(m.Content)
			w.own(`, "call_id": "`)
			mistralID(w, m.ToolCallID)
			w.own(`"}`)
			w.special(mistralResults)
		}
	}
}

// mistralOrder checks that turns alternate and returns the index of the last user message.
func mistralOrder(w *writer, from int) (last int) {
	turn := 0
	for i := from; i < len(w.messages); i++ {
		m := w.messages[i]
		w.message = i
		if m.Role == System {
			w.fail("a system message after the first message; this format has one place for it")
		}
		if m.Role == User {
			last = i
		}
		if m.Role == RoleTool || len(m.ToolCalls) > 0 {
			continue
		}
		if want := []string{User, Assistant}[turn%2]; m.Role != want {
			w.fail("role is %s, want %s: after an optional system message, user and assistant must take turns", m.Role, want)
		}
		turn++
	}
	return last
}

// mistralSpecs writes the tools before the user message i. Strings of a function are written without
// escapes, as in the template.
func mistralSpecs(w *writer, i int) {
	w.header(i)
	w.special(mistralTools)
	w.own(" [")
	for k, t := range w.Tools {
		if k > 0 {
			w.own(", ")
		}
		w.own(`{"type": "function", "function": {`)
		function, _ := t.Get("function")
		keys := slices.DeleteFunc(slices.Clone(function.keys), func(key string) bool { return key == "return" })
		for n, key := range keys {
			if n > 0 {
				w.own(", ")
			}
			w.free(`"` + key + `": `)
			if v, _ := function.Get(key); v.IsText() {
				w.free(`"` + v.text + `"`)
			} else {
				w.free(v.String())
			}
		}
		w.own("}}")
	}
	w.own("]")
	w.special(mistralEnd)
}

func mistralID(w *writer, id string) {
	letters := 0
	for range id {
		letters++
	}
	if letters != callIDLen {
		w.fail("id of a tool call is %q, want %d letters or digits", id, callIDLen)
	}
	w.free(id)
}

// openMistral writes nothing: what ends a user's turn opens the assistant's.
func openMistral(*writer) {}

func replyMistral(w *writer, i int) {
	m := w.messages[i]
	w.noThought(i)
	if len(m.ToolCalls) == 0 {
		w.own(" ")
		w.free(trim(m.Content))
		w.special(mistralEOS)
		return
	}
	w.special(mistralCalls)
	w.own(" [")
	for k, c := range m.ToolCalls {
		if k > 0 {
			w.own(", ")
		}
		w.free(`{"name": ` + Text(c.Name).String() + `, "arguments": ` + w.object(c).String())
		w.own(`, "id": "`)
		mistralID(w, c.ID)
		w.own(`"}`)
	}
	w.own("]")
	w.special(mistralEOS)
}
