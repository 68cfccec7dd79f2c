package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/sft"
	"tinkerlocal/engine/token"
)

const maxLine = 16 << 20 // bytes of one JSONL row: far above any context, far below any machine's memory

// row is one line of a training file.
type row struct {
	Prompt     *string `json:"prompt"`
	Completion *string `json:"completion"`
}

// readRows reads a prompt/completion JSONL file. Every error names the file and the line.
func readRows(path string) ([]pairText, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, api.Errorf(api.NotFound, "--data: %w", err)
	}
	defer f.Close()
	var out []pairText
	r := bufio.NewReaderSize(f, 1<<16)
	for line := 1; ; line++ {
		text, err := readLine(r)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, api.Errorf(api.BadRequest, "%s:%d: %w", path, line, err)
		}
		if text = bytes.TrimSpace(text); len(text) == 0 {
			continue
		}
		p, err := parseRow(text)
		if err != nil {
			return nil, api.Errorf(api.BadRequest, "%s:%d: %w", path, line, err)
		}
		p.line = line
		out = append(out, p)
	}
	if len(out) == 0 {
		return nil, api.Errorf(api.BadRequest, "%s: no rows; wanted lines of {\"prompt\": …, \"completion\": …}", path)
	}
	return out, nil
}

// pairText is one row's texts and where it stood.
type pairText struct {
	prompt, completion string
	line               int
}

func parseRow(text []byte) (pairText, error) {
	var r row
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return pairText{}, fmt.Errorf("not a row: %w; wanted {\"prompt\": …, \"completion\": …}", err)
	}
	switch {
	case d.More():
		return pairText{}, errors.New("more than one JSON value on the line")
	case r.Prompt == nil:
		return pairText{}, errors.New("\"prompt\" is missing")
	case r.Completion == nil:
		return pairText{}, errors.New("\"completion\" is missing")
	case *r.Completion == "":
		return pairText{}, errors.New("\"completion\" is empty: nothing to learn")
	}
	return pairText{prompt: *r.Prompt, completion: *r.Completion}, nil
}

// readLine returns the next line without its end, however long up to maxLine.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, more, err := r.ReadLine()
		if err != nil {
			return nil, err
		}
		line = append(line, part...)
		if len(line) > maxLine {
			return nil, fmt.Errorf("the line is longer than %d bytes", maxLine)
		}
		if !more {
			return line, nil
		}
	}
}

// encode turns a prompt and its completion into one training sequence. end is the token that closes it (the model's end
// of text), or -1 for none. Prompt and completion are encoded apart, so that the prompt's tokens are
// the same as at sampling time.
func encode(t *token.Tokenizer, prompt, completion string, end int32) sft.Example {
	ids := t.Encode(prompt, true)
	n := len(ids)
	ids = append(ids, t.Encode(completion, false)...)
	if end >= 0 {
		ids = append(ids, end)
	}
	return sft.Example{Tokens: ids, Prompt: n}
}
