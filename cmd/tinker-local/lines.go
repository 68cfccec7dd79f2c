package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// lineReader reads what a person types, a message at a time. io.EOF is the end.
type lineReader interface {
	readLine(prompt string) (string, error)
	close() // leaves the terminal as it was, also while a line is read
}

// newLineReader edits lines when in and out are a terminal, and else takes them as they come, without a prompt.
func newLineReader(in io.Reader, out io.Writer) (_ lineReader, interactive bool) {
	inFile, ok := in.(*os.File)
	outFile, ok2 := out.(*os.File)
	if ok && ok2 && term.IsTerminal(int(inFile.Fd())) && term.IsTerminal(int(outFile.Fd())) {
		t := term.NewTerminal(struct {
			io.Reader
			io.Writer
		}{in, out}, "")
		return &typedLines{fd: int(inFile.Fd()), size: int(outFile.Fd()), terminal: t}, true
	}
	return &pipedLines{bufio.NewReader(in)}, false
}

// typedLines edits lines on a terminal, with history. The terminal is in raw mode only while a line is read, so that
// ctrl-C is a signal while the model talks.
type typedLines struct {
	fd, size int
	terminal *term.Terminal

	mu     sync.Mutex
	old    *term.State // to go back to; nil: the terminal is not in raw mode
	closed bool
}

// raw puts the terminal into raw mode.
func (t *typedLines) raw() (err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return io.EOF
	}
	t.old, err = term.MakeRaw(t.fd)
	return err
}

// cooked leaves raw mode.
func (t *typedLines) cooked() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.old != nil {
		_ = term.Restore(t.fd, t.old)
		t.old = nil
	}
}

func (t *typedLines) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cooked()
}

func (t *typedLines) readLine(prompt string) (string, error) {
	if err := t.raw(); err != nil {
		return "", err
	}
	defer t.cooked()
	if w, h, err := term.GetSize(t.size); err == nil && w > 0 && h > 0 {
		_ = t.terminal.SetSize(w, h)
	}
	t.terminal.SetPrompt(prompt)
	t.terminal.SetBracketedPasteMode(true)
	defer t.terminal.SetBracketedPasteMode(false)
	var pasted []string
	for {
		line, err := t.terminal.ReadLine()
		if errors.Is(err, term.ErrPasteIndicator) {
			pasted = append(pasted, line) // the lines of a pasted text are one message, which enter sends
			continue
		}
		return strings.Join(append(pasted, line), "\n"), err
	}
}

// pipedLines takes lines from a pipe or a file.
type pipedLines struct{ r *bufio.Reader }

func (p *pipedLines) close() {}

func (p *pipedLines) readLine(string) (string, error) {
	line, err := p.r.ReadString('\n')
	if err == io.EOF && line != "" {
		err = nil
	}
	return strings.TrimRight(line, "\r\n"), err
}
