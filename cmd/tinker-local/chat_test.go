package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/chat"
	"tinkerlocal/engine/local"
)

// TestReveal: whatever pieces a reply comes in, what is shown is the same: no end text, thoughts as asked.
func TestReveal(t *testing.T) {
	for _, c := range []struct {
		text, want string
		hide       bool
		stops      []string
	}{
		{"plain text", "plain text", false, nil},
		{"", "", true, nil},
		{"  <b>", "  <b>", true, nil},
		{"<think>\nhm\n</think>\n\nyes", "<think>\nhm\n</think>\n\nyes", false, nil},
		{"<think>\nhm\n</think>\n\nyes", hiddenThoughts + "yes", true, nil},
		{"\n<think>\nhm, </thin no", hiddenThoughts, true, nil},
		{"\n<think>\nhm, </thin no", "<think>\nhm, </thin no", false, nil},
		{"a <think>b</think>", "a <think>b</think>", true, nil},
		{"yes\n\nUser: more", "yes", false, []string{"\n\nUser:"}},
		{"yes\n\nUs", "yes\n\nUs", false, []string{"\n\nUser:"}},
		{"yes\n\n\nUser:", "yes\n", false, []string{"\n\nUser:"}},
		{"<thi", "<thi", true, nil},
	} {
		for size := 1; size <= len(c.text)+1; size++ {
			r := reveal{hide: c.hide, stops: c.stops}
			got := ""
			for i := 0; i < len(c.text); i += size {
				got += r.push(c.text[i:min(i+size, len(c.text))])
			}
			if got += r.end(); got != c.want {
				t.Errorf("%q in pieces of %d: %q, wanted %q", c.text, size, got, c.want)
			}
		}
	}
}

// TestLiveText: what is written at any moment is whole characters, and the end has one line end.
func TestLiveText(t *testing.T) {
	tok, err := local.Models{}.Tokenizer(local.TinyModel)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	l := newLiveText(&b, tok)
	text := "é 船\n\n👍\n\n"
	for _, id := range append(tok.Encode(text, false), 256) {
		l.push(id)
		if got := b.String(); !strings.HasPrefix(text, got) || strings.HasSuffix(got, "\n") {
			t.Errorf("written so far: %q", got)
		}
	}
	if err := l.end(); err != nil || b.String() != "é 船\n\n👍\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
	b.Reset()
	l = newLiveText(&b, tok)
	l.push(0xc3)
	if err := l.end(); err != nil || b.String() != "\uFFFD\n" {
		t.Errorf("half a character at the end: %q, %v", b.String(), err)
	}
}

// TestSampleStreams: the streamed text is that of --json.
func TestSampleStreams(t *testing.T) {
	args := []string{"sample", "--model", tiny, "--prompt", "the old house", "--seed", "5", "--max-tokens", "60"}
	code, streamed, stderr := cli(t.Context(), args...)
	if code != exitOK || stderr != "" {
		t.Fatalf("exit code %d, %q", code, stderr)
	}
	_, whole, _ := cli(t.Context(), append(args, "-n", "2")...)
	if !strings.Contains(whole, "--- sample 1") || !strings.Contains(whole, streamed) {
		t.Errorf("streamed %q, whole %q", streamed, whole)
	}
}

// syncBuffer is written by the talk and read by the test.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// script gives a talk its lines; a line that is a function runs when its turn comes.
type script struct{ lines []any }

func (s *script) close() {}

func (s *script) readLine(string) (string, error) {
	for len(s.lines) > 0 {
		line := s.lines[0]
		s.lines = s.lines[1:]
		if text, ok := line.(string); ok {
			return text, nil
		}
		line.(func())()
	}
	return "", io.EOF
}

// newTalk opens a talk with the embedded model.
func newTalk(t *testing.T) (*talk, *syncBuffer, chan os.Signal) {
	t.Helper()
	a := &app{out: io.Discard, err: io.Discard}
	a.opt.Device, a.opt.DType = "auto", "auto"
	m, err := a.open(t.Context(), tiny)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.close)
	format, err := chat.ByName("qwen3_instruct")
	if err != nil {
		t.Fatal(err)
	}
	out, interrupts := &syncBuffer{}, make(chan os.Signal, 1)
	return &talk{
		model: m, format: format, out: out, interrupts: interrupts, thinking: thinkShow,
		params:  api.SamplingParams{MaxTokens: 40, TopP: 1, TopK: -1},
		options: chat.Options{Generate: true},
	}, out, interrupts
}

// TestTalk: the history reaches the prompt, an adapter is switched in the middle, and mistakes do not end the talk.
func TestTalk(t *testing.T) {
	adapter := filepath.Join(t.TempDir(), "a")
	rows := strings.Repeat(`{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "xyzzy"}]}`+"\n", 4)
	code, _, stderr := cli(t.Context(), "train", "--model", tiny, "--data", write(t, "d.jsonl", rows), "--out", adapter, "--steps", "30", "--batch-size", "4",
		"--rank", "8", "--lr", "1e-2")
	if code != exitOK {
		t.Fatal(stderr)
	}
	k, out, _ := newTalk(t)
	var history [][]chat.Message
	note := func() { history = append(history, append([]chat.Message{}, k.messages...)) }
	s := &script{[]any{
		"hi", note, "/adapter on", "/adapter /no/such/folder", "/adapter " + adapter, "/reset", "hi", note, "/adapter off", "/adapter", "/adapter on",
		"/system be brief", note, "/system", "/thinking loud", "/thinking hide", "/nonsense", "/help", "", "<|im_end|>", strings.Repeat("long ", 1000), note,
		"/reset", "//adapter", note, "/quit", "never",
	}}
	if err := k.run(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	for _, want := range []string{
		"error: /adapter on: no adapter was named yet", "error: ", "/no/such/folder", "with the adapter " + adapter, "forgotten", "\nxyzzy\n",
		"without the adapter " + adapter, "error: /thinking loud: wanted show, hide or off", "thinking: hide", "error: /nonsense is not a command",
		"/adapter on|off|DIR", "error: the conversation has ", "; /reset forgets what was said", "<|im_end|>",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %q", want, text)
		}
	}
	if len(s.lines) != 1 {
		t.Errorf("after /quit %d lines are left", len(s.lines))
	}
	if h := history[0]; len(h) != 2 || h[0].Content != "hi" || h[1].Content == "xyzzy" {
		t.Errorf("history of the bare model: %v", h)
	}
	if h := history[1]; len(h) != 2 || h[1].Role != chat.Assistant || h[1].Content != "xyzzy" {
		t.Errorf("history with the adapter: %v", h)
	}
	if h := history[2]; len(h) != 3 || h[0].Role != chat.System || h[0].Content != "be brief" {
		t.Errorf("history with a system message: %v", h)
	}
	if h := history[3]; len(h) != 2 {
		t.Errorf("messages that got no reply were kept: %v", h)
	}
	if h := history[4]; len(h) != 2 || h[0].Content != "/adapter" {
		t.Errorf("after //adapter: %v", h)
	}
}

// TestTalkInterrupt: an interrupt stops the reply and the talk goes on; one at the prompt ends it.
func TestTalkInterrupt(t *testing.T) {
	k, out, interrupts := newTalk(t)
	k.params.MaxTokens, k.params.Temperature = 0, 100 // nonsense without end
	k.format, _ = chat.ByName("role_colon")
	for seed := int64(0); ; seed++ { // one whose reply is long enough to be interrupted
		k.params.Seed = &seed
		r, _, err := k.request([]chat.Message{{Role: chat.User, Content: "tell me everything"}}, k.options)
		if err != nil {
			t.Fatal(err)
		}
		f, err := k.model.base.Sample(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := f.Wait(t.Context()); err != nil || len(got.Sequences[0].Tokens) > 300 {
			k.replies = 0
			break
		} else if seed == 300 {
			t.Fatal("no long reply")
		}
		k.replies = 0
	}
	stopped := make(chan struct{})
	go func() {
		for len(out.String()) < 5 {
			time.Sleep(time.Millisecond)
		}
		interrupts <- os.Interrupt
		close(stopped)
	}()
	kept := 0
	s := &script{[]any{"tell me everything", func() { <-stopped; kept = len(k.messages) }, "/adapter", func() {
		interrupts <- os.Interrupt
		time.Sleep(time.Hour)
	}}}
	done := make(chan error)
	go func() { done <- k.run(t.Context(), s) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the talk did not end")
	}
	text := out.String()
	if !strings.Contains(text, "(interrupted)\nwithout an adapter\n") || kept != 2 {
		t.Errorf("%d messages kept, output %q", kept, text)
	}
}

// TestChatPiped: lines from a pipe are answered in order, without a prompt; the same seed gives the same talk.
func TestChatPiped(t *testing.T) {
	talk := func() string {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		fmt.Fprint(w, "hello\r\n\nhow are you")
		w.Close()
		var out, errOut bytes.Buffer
		a := &app{in: r, out: &out, err: &errOut}
		a.opt.Device, a.opt.DType = "auto", "auto"
		f := chatFlags{model: tiny, thinking: thinkShow, maxTokens: 20, temperature: 1, topK: -1, topP: 1, seed: 4, given: func(name string) bool { return name == "seed" }}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := talkWith(ctx, a, f); err != nil || errOut.Len() > 0 {
			t.Fatalf("%v, %q", err, errOut.String())
		}
		return out.String()
	}
	a, b := talk(), talk()
	if a != b || strings.Contains(a, "> ") || strings.Count(a, "\n") < 2 {
		t.Errorf("%q and %q", a, b)
	}
}

func TestChatArguments(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"chat"}, "--model is required"},
		{[]string{"chat", "--model", tiny, "--json"}, "chat is a talk and has no --json"},
		{[]string{"chat", "--model", tiny, "--format", "x"}, `--format: chat format "x": no such format`},
		{[]string{"chat", "--model", tiny, "--thinking", "x"}, `"--thinking" flag: wanted one of show, hide, off`},
		{[]string{"chat", "--model", tiny, "--top-p", "0"}, "--top-p is 0, wanted more than 0 and at most 1"},
	} {
		if code, _, stderr := cli(t.Context(), c.args...); code != exitUsage || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: exit code %d, %q", c.args, code, stderr)
		}
	}
}
