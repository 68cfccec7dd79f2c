package chat

import (
	"slices"
	"strconv"
	"strings"

	"tinkerlocal/engine/api"
)

// TrainOn names the parts of a conversation that a loss is taken on. The names are those of the
// cookbook's TrainOnWhat (tinker_cookbook/renderers/base.py).
type TrainOn string

// The modes of TrainOn. Unset, nothing is trained. Headers are trained only by TrainAllTokens, and the
// token at the beginning of a text by none.
const (
	TrainLastAssistant TrainOn = "last_assistant_message"       // the last message, if it is an assistant's
	TrainLastTurn      TrainOn = "last_assistant_turn"          // the assistant's messages after the last user message
	TrainAllAssistant  TrainOn = "all_assistant_messages"       // every message of the assistant
	TrainAllMessages   TrainOn = "all_messages"                 // every message, whoever wrote it
	TrainAllTokens     TrainOn = "all_tokens"                   // everything, headers too
	TrainUserAndSystem TrainOn = "all_user_and_system_messages" // what the model is asked, not what it says
	TrainCustomized    TrainOn = "customized"                   // messages with Trainable true
)

// trained tells for each message whether its output is trained.
func (t TrainOn) trained(messages []Message) ([]bool, error) {
	out := make([]bool, len(messages))
	turn := 0 // after the last user message before the last message
	for i, m := range messages[:len(messages)-1] {
		if m.Role == User {
			turn = i + 1
		}
	}
	for i, m := range messages {
		if t == TrainCustomized && m.Trainable == nil {
			return nil, api.Errorf(api.BadRequest, "message %d: trainable is not set, as training on %q wants for every message", i, t)
		}
		if t != TrainCustomized && t != "" && m.Trainable != nil {
			return nil, api.Errorf(api.BadRequest, "message %d: trainable is set, which only training on %q reads; got %q", i, TrainCustomized, t)
		}
		assistant := m.Role == Assistant
		switch t {
		case "":
		case TrainLastAssistant:
			out[i] = assistant && i == len(messages)-1
		case TrainLastTurn:
			out[i] = assistant && i >= turn
		case TrainAllAssistant:
			out[i] = assistant
		case TrainAllMessages, TrainAllTokens:
			out[i] = true
		case TrainUserAndSystem:
			out[i] = m.Role == User || m.Role == System
		case TrainCustomized:
			out[i] = *m.Trainable
		default:
			return nil, api.Errorf(api.BadRequest, "train on %q: no such mode, want %s, %s, %s, %s, %s, %s or %s", t, TrainLastAssistant,
				TrainLastTurn, TrainAllAssistant, TrainAllMessages, TrainAllTokens, TrainUserAndSystem, TrainCustomized)
		}
	}
	return out, nil
}

// Example is one training text: the prompt as the model would get it, and the turn that it should
// make of it.
type Example struct {
	Segments []Segment
	Messages []int // the messages that are trained, ascending
}

// Examples returns the training texts of a conversation. In the modes that train assistant messages,
// each trained message stands after exactly the prompt that sampling it would get, and ends with the
// token that stops it. Formats write a turn in one way when it is made and in another when it is
// history (qwen3 drops thoughts, mistral moves the system message), so that a conversation may need
// several texts; turns share one wherever a prompt goes on from the text before it.
//
// The other modes give one text: that of [Format.Render], up to the last trained segment.
func (f *Format) Examples(messages []Message, o Options) ([]Example, error) {
	if o.Generate || o.Prefill != "" {
		return nil, api.Errorf(api.BadRequest, "examples: generate and prefill are for prompts")
	}
	w, err := f.writer(messages, o)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(w.trains, true) {
		return nil, api.Errorf(api.BadRequest, "nothing to train on: mode %q finds none of the %d messages", o.Train, len(messages))
	}
	segments, err := f.Render(messages, o)
	if err != nil {
		return nil, err
	}
	switch o.Train {
	case TrainLastAssistant, TrainLastTurn, TrainAllAssistant:
		return f.turns(messages, o, w.trains)
	}
	for len(segments) > 0 && !segments[len(segments)-1].Trained {
		segments = segments[:len(segments)-1]
	}
	e := Example{Segments: segments}
	for i, trained := range w.trains {
		if trained {
			e.Messages = append(e.Messages, i)
		}
	}
	return []Example{e}, nil
}

func (f *Format) turns(messages []Message, o Options, trains []bool) ([]Example, error) {
	var out []Example
	for i, trained := range trains {
		if !trained {
			continue
		}
		if i == 0 {
			return nil, api.Errorf(api.BadRequest, "message 0: an assistant's turn with nothing before it cannot be trained on")
		}
		segments, err := f.Prompt(messages[:i], o)
		if err != nil {
			return nil, err
		}
		w, err := f.writer(messages[:i+1], o)
		if err != nil {
			return nil, err
		}
		w.trains = trains
		w.output(i)
		f.reply(w, i)
		if w.err != nil {
			return nil, w.err
		}
		e := Example{Messages: []int{i}}
		if n := len(out); n > 0 {
			if rest, ok := after(out[n-1].Segments, segments); ok {
				e.Messages = append(slices.Clone(out[n-1].Messages), i)
				segments = append(slices.Clone(out[n-1].Segments), rest...)
				out = out[:n-1]
			}
		}
		e.Segments = append(segments, w.segments...)
		out = append(out, e)
	}
	if f.overlap != "" {
		for k, e := range out {
			last := e.Messages[len(e.Messages)-1]
			out[k].Segments = append(e.Segments, Segment{Text: f.overlap, Trained: true, Message: last})
		}
	}
	return out, nil
}

// after returns what follows in whole when its text begins with that of start.
func after(start, whole []Segment) ([]Segment, bool) {
	n := len(String(start))
	if !strings.HasPrefix(String(whole), String(start)) {
		return nil, false
	}
	for k, s := range whole {
		if n < len(s.Text) {
			rest := slices.Clone(whole[k:])
			rest[0].Text = s.Text[n:]
			return rest, n == 0 || !s.Special
		}
		n -= len(s.Text)
	}
	return nil, n == 0
}

func itoa(n int) string { return strconv.Itoa(n) }
