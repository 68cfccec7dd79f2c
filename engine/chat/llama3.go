package chat

// The formats of Llama 3. Sources: the chat templates that meta-llama/Llama-3.1-8B-Instruct,
// Llama-3.3-70B-Instruct (the same text) and Llama-3.2-1B-Instruct publish in tokenizer_config.json;
// for llama3_plain that of Meta-Llama-3-8B-Instruct and thinking-machines-lab/tinker-cookbook,
// tinker_cookbook/renderers/llama3.py, which writes no dates either (but does not trim contents).
//
//	<|begin_of_text|><|start_header_id|>system<|end_header_id|>
//
//	Cutting Knowledge Date: December 2023
//	Today Date: 26 Jul 2024
//
//	…<|eot_id|><|start_header_id|>user<|end_header_id|>
//
//	…<|eot_id|><|start_header_id|>assistant<|end_header_id|>
//
//	…<|eot_id|>
//
// The system turn is there without a system message, too. Its date is the caller's affair: 3.1 and 3.3
// write 26 Jul 2024 for ever, 3.2 the day of the call. Contents lose the white space around them.
// Tools stand in the first user message or, by an option, in the system message. One call a turn.

const (
	llamaBOS         = "<|begin_of_text|>"
	llamaHeaderOpen  = "<|start_header_id|>"
	llamaHeaderClose = "<|end_header_id|>"
	llamaEnd         = "<|eot_id|>"
	llamaPython      = "<|python_tag|>"
	llamaDate        = "26 Jul 2024"

	llamaCallFormat = `Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.` +
		"Do not use variables.\n\n"
)

var llamaControls = []string{llamaBOS, llamaHeaderOpen, llamaHeaderClose, llamaEnd, llamaPython, "<|eom_id|>", "<|end_of_text|>"}

var llamaStops = Stops{Tokens: []string{llamaEnd, "<|eom_id|>", "<|end_of_text|>"}}

func renderLlama3(w *writer) {
	w.special(llamaBOS)
	if w.format.plain {
		if len(w.Tools) > 0 {
			w.fail("format %s has no tools", w.format.name)
		}
		llamaTurns(w, 0)
		return
	}
	next := llamaSystem(w)
	if len(w.Tools) > 0 && !w.ToolsInSystem {
		if next >= len(w.messages) || w.messages[next].Role != User {
			w.fail("tools stand in the first user message, and message %d is none; there is the option of tools in the system message", next)
			return
		}
		llamaOpen(w, next, User)
		w.output(next)
		w.own("Given the following functions, please respond with a JSON for a function call with its proper arguments " +
			"that best answers the given prompt.\n\n" + llamaCallFormat)
		llamaTools(w)
		w.free(trim(w.messages[next].Content))
		w.special(llamaEnd)
		next++
	}
	llamaTurns(w, next)
}

// llamaSystem writes the system turn and returns the index of the first message after it.
func llamaSystem(w *writer) int {
	first, next := -1, 0
	if w.messages[0].Role == System {
		first, next = 0, 1
	}
	llamaOpen(w, first, System)
	if len(w.Tools) > 0 {
		w.own("Environment: ipython\n")
	}
	date := w.Date
	if date == "" {
		date = llamaDate
	}
	w.own("Cutting Knowledge Date: December 2023\nToday Date: ")
	w.free(date)
	w.own("\n\n")
	w.output(first)
	if len(w.Tools) > 0 && w.ToolsInSystem {
		w.own("You have access to the following functions. To call a function, please respond with JSON for a function call." +
			llamaCallFormat)
		llamaTools(w)
	}
	if first == 0 {
		w.free(trim(w.messages[0].Content))
	}
	w.special(llamaEnd)
	return next
}

func llamaTools(w *writer) {
	for _, t := range w.Tools {
		w.free(t.indented())
		w.own("\n\n")
	}
}

func llamaTurns(w *writer, from int) {
	for i := from; i < len(w.messages); i++ {
		m := w.messages[i]
		if m.Role == RoleTool && w.format.plain {
			w.message = i
			w.fail("format %s has no tools", w.format.name)
		}
		if m.Role == RoleTool {
			llamaOpen(w, i, "ipython")
			w.output(i)
			w.free(Text(m.Content).String())
			w.special(llamaEnd)
			continue
		}
		llamaOpen(w, i, m.Role)
		w.output(i)
		replyLlama3(w, i)
	}
}

func llamaOpen(w *writer, i int, role string) {
	w.header(i)
	w.special(llamaHeaderOpen)
	w.own(role)
	w.special(llamaHeaderClose)
	w.own("\n\n")
}

func openLlama3(w *writer) {
	llamaOpen(w, len(w.messages), Assistant)
}

// replyLlama3 writes what stands in a turn.
func replyLlama3(w *writer, i int) {
	m := w.messages[i]
	w.noThought(i)
	switch {
	case len(m.ToolCalls) == 0:
		w.free(trim(m.Content))
	case w.format.plain:
		w.fail("format %s has no tools", w.format.name)
	case len(m.ToolCalls) > 1:
		w.fail("%d tool calls, but the model makes one at a time", len(m.ToolCalls))
	default:
		w.own(`{"name": "`)
		w.free(m.ToolCalls[0].Name)
		w.own(`", "parameters": `)
		w.free(w.object(m.ToolCalls[0]).String())
		w.own("}")
	}
	w.special(llamaEnd)
}
