package chat

import "strings"

// The format for base models. Source: thinking-machines-lab/tinker-cookbook,
// tinker_cookbook/renderers/role_colon.py. No model publishes a template for it.
//
//	System: …
//
//	User: …
//
//	Assistant: …
//
//	User:
//
// The blank line and the next "User:" end a reply; in training they are a trained end of the last
// message. A tokenizer with a token for the beginning of a text has it first (Options.BOS).

const colonStop = "\n\nUser:"

var colonStops = Stops{Texts: []string{colonStop}}

func renderRoleColon(w *writer) {
	if w.BOS != "" {
		w.special(w.BOS)
	}
	if len(w.Tools) > 0 {
		w.fail("format %s has no tools", w.format.name)
	}
	for i, m := range w.messages {
		w.header(i)
		w.own(strings.ToUpper(m.Role[:1]) + m.Role[1:] + ":")
		w.output(i)
		replyRoleColon(w, i)
	}
}

func openRoleColon(w *writer) { w.own("Assistant:") }

func replyRoleColon(w *writer, i int) {
	w.noThought(i)
	if len(w.messages[i].ToolCalls) > 0 {
		w.fail("format %s has no tools", w.format.name)
	}
	w.own(" ")
	w.free(w.messages[i].Content)
	w.own("\n\n")
}
