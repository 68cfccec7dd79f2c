package data

import (
	"errors"
	"fmt"
	"slices"

	"tinkerlocal/engine/chat"
	"tinkerlocal/engine/sft"
	"tinkerlocal/engine/token"
)

// TooLong says what becomes of examples with more tokens than the limit.
type TooLong string

// The policies for examples that are too long.
const (
	Refuse   TooLong = "error"    // they are bad rows
	Drop     TooLong = "drop"     // they are left out
	Truncate TooLong = "truncate" // their end is cut off, the token that ends them too; without anything left to learn they are left out
)

// TooLongs names them all.
var TooLongs = []string{string(Refuse), string(Drop), string(Truncate)}

// Options say how rows become tokens.
type Options struct {
	Kind      Kind // "": Auto
	Tokenizer *token.Tokenizer
	End       int32 // token that ends a completion, or -1 for none; chat formats have their own

	Format    *chat.Format // of conversations; nil: they are bad rows
	FormatErr error        // why there is none
	Chat      chat.Options // of rendering; Tools and Train are set here
	TrainOn   chat.TrainOn // which turns of a conversation are learned; "": TrainAllAssistant

	MaxTokens int    // the model's input may have so many
	LimitName string // what MaxTokens is, for messages
	TooLong   TooLong

	Numbers []string // names of fields that each row must have, numbers or booleans: see sft.Example.Numbers

	SkipBad  int                     // how many bad rows may be left out
	Progress func(done, total int64) // bytes checked; may be nil
}

// item is what training deals: an example, or with a second one a preference pair.
type item struct {
	first, second sft.Example
	pair          bool
}

// tokens is the number of input tokens, longest that of the longer example.
func (it item) tokens() (sum, longest int) {
	sum = len(it.first.Tokens) - 1
	longest = sum
	if it.pair {
		n := len(it.second.Tokens) - 1
		sum += n
		longest = max(longest, n)
	}
	return sum, longest
}

func (it item) targets() int {
	n := it.first.Targets()
	if it.pair {
		n += it.second.Targets()
	}
	return n
}

// encode makes a row's items, in their order, before any limit.
func (o *Options) encode(r row) ([]item, error) {
	items, err := o.items(r)
	for i := range items {
		items[i].first.Numbers, items[i].second.Numbers = r.numbers, r.numbers
	}
	return items, err
}

func (o *Options) items(r row) ([]item, error) {
	switch {
	case r.kind == Pairs:
		e, err := o.completion(r.prompt, r.completion)
		return []item{{first: e}}, err
	case r.kind == Chat:
		examples, err := o.conversation(r.conversations[0], r.tools, o.TrainOn)
		items := make([]item, len(examples))
		for i, e := range examples {
			items[i].first = e
		}
		return items, err
	}
	it := item{pair: true}
	for i, e := range []*sft.Example{&it.first, &it.second} {
		name := [2]string{"chosen", "rejected"}[i]
		if r.conversations == nil {
			got, err := o.completion(r.prompt, r.answers[i])
			if err != nil {
				return nil, fmt.Errorf("%q: %w", name, err)
			}
			*e = got
			continue
		}
		got, err := o.conversation(r.conversations[i], r.tools, chat.TrainLastAssistant)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		*e = got[0]
	}
	return []item{it}, nil
}

// completion encodes prompt and completion apart, so that the prompt's tokens are the same as at sampling time.
func (o *Options) completion(prompt, completion string) (sft.Example, error) {
	ids, err := o.Tokenizer.TryEncode(prompt, true)
	if err != nil {
		return sft.Example{}, err
	}
	n := len(ids)
	rest, err := o.Tokenizer.TryEncode(completion, false)
	if err != nil {
		return sft.Example{}, err
	}
	ids = append(ids, rest...)
	if o.End >= 0 {
		ids = append(ids, o.End)
	}
	return sft.Completion(ids, n), nil
}

func (o *Options) conversation(messages []chat.Message, tools []chat.Tool, on chat.TrainOn) ([]sft.Example, error) {
	if o.Format == nil {
		return nil, fmt.Errorf("a conversation needs a chat format: %w", o.FormatErr)
	}
	c := o.Chat
	c.Tools, c.Train = tools, on
	if c.Train == "" {
		c.Train = chat.TrainAllAssistant
	}
	rendered, err := o.Format.Examples(messages, c)
	if err != nil {
		return nil, err
	}
	out := make([]sft.Example, len(rendered))
	for i, e := range rendered {
		if out[i].Tokens, out[i].Trained, err = chat.Tokens(o.Tokenizer, e.Segments); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// fate is what the limit does to an item.
type fate int

const (
	kept fate = iota
	cut
	dropped
)

// limit applies the length limit and checks that something is left to learn. An error makes the row a bad one.
func (o *Options) limit(it *item) (fate, error) {
	sides := []*sft.Example{&it.first}
	if it.pair {
		sides = append(sides, &it.second)
	}
	f := kept
	for i, e := range sides {
		side := ""
		if it.pair {
			side = [2]string{`"chosen" with its prompt: `, `"rejected" with its prompt: `}[i]
		}
		if err := e.Check(); err != nil {
			return kept, fmt.Errorf("%s%w", side, err)
		}
		n := len(e.Tokens) - 1
		if o.MaxTokens <= 0 || n <= o.MaxTokens {
			continue
		}
		switch o.TooLong {
		case Drop:
			return dropped, nil
		case Truncate:
			e.Tokens, e.Trained = e.Tokens[:o.MaxTokens+1], e.Trained[:o.MaxTokens+1]
			if e.Targets() == 0 {
				return dropped, nil
			}
			f = cut
		default:
			return kept, fmt.Errorf("%sthe row has %d tokens, %s is %d", side, n, o.LimitName, o.MaxTokens)
		}
	}
	if it.pair && slices.Equal(it.first.Tokens, it.second.Tokens) {
		if f == cut {
			return dropped, nil // the answers differ behind the cut only
		}
		return kept, errors.New(`"chosen" and "rejected" have the same tokens: nothing to prefer`)
	}
	return f, nil
}
