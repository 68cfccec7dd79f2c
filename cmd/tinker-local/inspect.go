package main

import (
	"fmt"
	"strings"

	"tinkerlocal/engine/sft"
	"tinkerlocal/engine/sft/data"
	"tinkerlocal/engine/token"
)

// inspected is an example as --inspect shows it.
type inspected struct {
	Line    int        `json:"line"`           // of the row in the file
	Side    string     `json:"side,omitempty"` // "chosen" or "rejected" of a preference pair
	Tokens  int        `json:"tokens"`         // input tokens
	Targets int        `json:"targets"`        // of them predict something that is learned
	At      []position `json:"positions"`
}

// position is one position of an example: the model sees Input and learns, by Weight, to say Target.
type position struct {
	Input      int32   `json:"input"`
	InputText  string  `json:"input_text"` // its bytes; part of a character becomes U+FFFD in JSON
	Target     int32   `json:"target"`
	TargetText string  `json:"target_text"`
	Weight     float32 `json:"weight"`
}

// printExamples prints the first n examples position by position, as the engine will get them. The weights are those
// before a batch is averaged: 1 where the loss is, 0 elsewhere.
func (a *app) printExamples(s *data.Set, t *token.Tokenizer, n int) error {
	var list []inspected
	for i := range min(n, s.Len()) {
		if !s.Prefers() {
			e, err := s.Example(i)
			if err != nil {
				return err
			}
			list = append(list, inspectExample(t, e, s.Line(i), ""))
			continue
		}
		p, err := s.Pair(i)
		if err != nil {
			return err
		}
		list = append(list, inspectExample(t, p.Chosen, s.Line(i), "chosen"), inspectExample(t, p.Rejected, s.Line(i), "rejected"))
	}
	if a.json {
		return a.printJSON(map[string]any{"examples": list})
	}
	for _, e := range list {
		side := ""
		if e.Side != "" {
			side = ", " + e.Side
		}
		a.say("\nline %d%s: %d tokens, %d of them learned", e.Line, side, e.Tokens, e.Targets)
		a.say("%-30s %-30s %s", "input", "target", "weight")
		for _, p := range e.At {
			a.say("%-30s %-30s %g", tokenCell(p.Input, p.InputText), tokenCell(p.Target, p.TargetText), p.Weight)
		}
	}
	return nil
}

func inspectExample(t *token.Tokenizer, e sft.Example, line int, side string) inspected {
	d := e.Datum(1)
	targets, weights := d.LossInputs["target_tokens"].Ints, d.LossInputs["weights"].Floats
	out := inspected{Line: line, Side: side, Tokens: len(targets), Targets: e.Targets()}
	for i, target := range targets {
		out.At = append(out.At, position{
			Input: e.Tokens[i], InputText: t.Piece(e.Tokens[i]),
			Target: int32(target), TargetText: t.Piece(int32(target)), Weight: weights[i],
		})
	}
	return out
}

// tokenCell is a token's id and its text, quoted and short enough for its column.
func tokenCell(id int32, text string) string {
	s := fmt.Sprintf("%q", text)
	if r := []rune(s); len(r) > 22 {
		s = string(r[:20]) + "…\""
	}
	return strings.TrimRight(fmt.Sprintf("%7d %s", id, s), " ")
}
