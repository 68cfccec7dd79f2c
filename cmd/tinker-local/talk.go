package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/chat"
)

// What is done with a model's thoughts.
const thinkShow, thinkHide, thinkOff = "show", "hide", "off"

var thinkModes = []string{thinkShow, thinkHide, thinkOff}

const chatHelp = `  /adapter on|off|DIR      use the adapter, the bare model, or another adapter
  /system TEXT             change the system message; without TEXT: remove it
  /thinking show|hide|off  show, hide or switch off what the model thinks first
  /reset                   forget what was said
  /help                    this list
  /quit                    end the talk, like ctrl-D
  //TEXT                   say a text that begins with a slash
`

// talk is a conversation with a model.
type talk struct {
	model      *opened
	format     *chat.Format
	options    chat.Options
	params     api.SamplingParams
	thinking   string
	out        io.Writer
	interrupts <-chan os.Signal

	messages []chat.Message
	dir      string          // of the adapter; "": none was named yet
	adapter  *engine.Sampler // nil: none is loaded
	on       bool
	replies  int64
}

// errQuit ends a talk in good order.
var errQuit = errors.New("quit")

// begin sets the talk up.
func (t *talk) begin(ctx context.Context, system, adapter string) error {
	t.setSystem(system)
	if adapter == "" {
		return nil
	}
	return t.load(ctx, adapter)
}

// run talks until the lines end.
func (t *talk) run(ctx context.Context, lines lineReader) error {
	for ctx.Err() == nil {
		line, err := t.next(ctx, lines)
		switch {
		case errors.Is(err, io.EOF):
			fmt.Fprintln(t.out)
			return nil
		case err != nil:
			return err
		}
		switch {
		case strings.TrimSpace(line) == "":
			continue
		case strings.HasPrefix(line, "//"):
			err = t.say(ctx, line[1:])
		case strings.HasPrefix(line, "/"):
			err = t.command(ctx, line)
		default:
			err = t.say(ctx, line)
		}
		switch {
		case errors.Is(err, errQuit):
			return nil
		case errors.Is(err, errInterrupted), ctx.Err() != nil:
			return err
		case api.CodeOf(err) == api.DeviceLost, api.CodeOf(err) == api.Closed:
			return err
		case err != nil:
			fmt.Fprintln(t.out, "error:", err)
		}
	}
	return ctx.Err()
}

// next reads a line. An interrupt meanwhile ends the talk, as on a terminal, where ctrl-C comes as a key.
func (t *talk) next(ctx context.Context, lines lineReader) (string, error) {
	type read struct {
		line string
		err  error
	}
	got := make(chan read, 1)
	go func() { // it ends with the line, or with the program
		line, err := lines.readLine("> ")
		got <- read{line, err}
	}()
	select {
	case r := <-got:
		return r.line, r.err
	case <-t.interrupts:
		return "", io.EOF
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// command does what a line that begins with a slash says.
func (t *talk) command(ctx context.Context, line string) error {
	name, rest, _ := strings.Cut(line, " ")
	rest = strings.TrimSpace(rest)
	switch name {
	case "/help":
		fmt.Fprint(t.out, chatHelp)
	case "/quit", "/exit":
		return errQuit
	case "/reset":
		t.setSystem(t.system())
		fmt.Fprintln(t.out, "forgotten")
	case "/system":
		t.changeSystem(rest)
		fmt.Fprintln(t.out, "the system message is set")
	case "/thinking":
		switch rest {
		case thinkShow, thinkHide, thinkOff:
			t.thinking = rest
		default:
			return fmt.Errorf("/thinking %s: wanted show, hide or off", rest)
		}
		fmt.Fprintln(t.out, "thinking:", rest)
	case "/adapter":
		return t.switchAdapter(ctx, rest)
	default:
		return fmt.Errorf("%s is not a command; /help lists them, //… says a text that begins with a slash", name)
	}
	return nil
}

func (t *talk) switchAdapter(ctx context.Context, to string) error {
	switch to {
	case "":
	case "off":
		t.on = false
	case "on":
		if t.adapter == nil {
			return errors.New("/adapter on: no adapter was named yet; wanted /adapter DIR")
		}
		t.on = true
	default:
		if err := t.load(ctx, to); err != nil {
			return err
		}
	}
	fmt.Fprintln(t.out, t.adapterText())
	return nil
}

// load reads an adapter and uses it. The one before stays when that fails.
func (t *talk) load(ctx context.Context, dir string) error {
	s, err := t.model.sampler(ctx, dir)
	if err != nil {
		return err
	}
	if t.adapter != nil {
		t.adapter.Close()
	}
	t.adapter, t.dir, t.on = s, dir, true
	return nil
}

func (t *talk) adapterText() string {
	switch {
	case t.on:
		return "with the adapter " + t.dir
	case t.adapter != nil:
		return "without the adapter " + t.dir
	}
	return "without an adapter"
}

// system is the system message, or "".
func (t *talk) system() string {
	if len(t.messages) > 0 && t.messages[0].Role == chat.System {
		return t.messages[0].Content
	}
	return ""
}

// setSystem begins a new conversation.
func (t *talk) setSystem(text string) {
	t.messages = nil
	if text != "" {
		t.messages = []chat.Message{{Role: chat.System, Content: text}}
	}
}

// changeSystem changes the system message of the conversation.
func (t *talk) changeSystem(text string) {
	said := t.messages
	if t.system() != "" {
		said = said[1:]
	}
	t.setSystem(text)
	t.messages = append(t.messages, said...)
}

// say sends a message and prints the reply. A message that gets no reply is forgotten.
func (t *talk) say(ctx context.Context, text string) error {
	messages := append(t.messages[:len(t.messages):len(t.messages)], chat.Message{Role: chat.User, Content: text})
	o := t.options
	o.NoThinking = t.thinking == thinkOff
	request, stops, err := t.request(messages, o)
	if err != nil {
		return err
	}
	raw, interrupted, err := t.answer(ctx, request, stops)
	if err != nil {
		return err
	}
	reply := t.format.Parse(raw, o)
	if strings.TrimSpace(raw) != "" {
		t.messages = append(messages, reply.Message)
	}
	switch {
	case interrupted:
		fmt.Fprintln(t.out, "(interrupted)")
	case reply.End == chat.EndMalformed && len(reply.Problems) == 0:
		fmt.Fprintln(t.out, "(cut off: the reply has reached its limit of tokens)")
	}
	return nil
}

// request writes the prompt of a conversation and says where the reply ends.
func (t *talk) request(messages []chat.Message, o chat.Options) (r api.SampleRequest, stops []string, err error) {
	segments, err := t.format.Prompt(messages, o)
	if err != nil {
		return r, nil, err
	}
	ids, _, err := chat.Tokens(t.model.tokenizer, segments)
	if err != nil {
		return r, nil, err
	}
	if limit := t.model.facts.Spec.MaxPositions; len(ids) >= limit {
		return r, nil, fmt.Errorf("the conversation has %d tokens, the model's context is %d; /reset forgets what was said", len(ids), limit)
	}
	ends := t.format.Stops(o)
	r = api.SampleRequest{Prompt: api.FromInts(ids), Params: t.params, NumSamples: 1}
	if len(ends.Tokens) > 0 {
		if r.Params.StopTokens, err = ends.TokenIDs(t.model.tokenizer); err != nil {
			return r, nil, err
		}
	}
	r.Params.Stop = ends.Texts
	if t.params.Seed != nil {
		seed := *t.params.Seed + t.replies // each reply draws anew, and the talk can be repeated
		r.Params.Seed = &seed
	}
	t.replies++
	return r, ends.Texts, nil
}

// answer prints a reply as it is made and returns its text, special tokens and end included. An interrupt stops the
// reply and keeps what was said.
func (t *talk) answer(ctx context.Context, r api.SampleRequest, stops []string) (raw string, interrupted bool, err error) {
	sampler := t.model.base
	if t.on {
		sampler = t.adapter
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-t.interrupts:
			cancel(errInterrupted)
		case <-done:
		}
	}()
	stream, err := sampler.Stream(ctx, r)
	if err != nil {
		return "", false, err
	}
	show := reveal{hide: t.thinking == thinkHide, stops: stops}
	live := newLiveText(t.out, t.model.tokenizer)
	var ids []int32
	for {
		token, err := stream.Next(ctx)
		if err != nil {
			live.print(show.push(live.decoder.Flush()) + show.end())
			if failed := live.end(); failed != nil {
				return "", false, failed
			}
			raw = t.model.tokenizer.Decode(ids, false)
			switch {
			case errors.Is(err, io.EOF):
				return raw, false, nil
			case errors.Is(context.Cause(ctx), errInterrupted):
				return raw, true, nil
			}
			return raw, false, err
		}
		ids = append(ids, token.ID)
		live.print(show.push(live.decoder.Push(token.ID)))
	}
}
