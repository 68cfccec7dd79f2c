//go:build cgo && unix

package main

/*
#include "tinker.h"
*/
import "C"

import (
	"encoding/json"
	"math"
	"strings"
	"sync"
	"unsafe"

	"tinkerlocal/capi/handle"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/chat"
	"tinkerlocal/engine/local"
)

//export tinkergo_tokenizer_open
func tinkergo_tokenizer_open(h C.uint64_t, model *C.char, out *C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindEngine, func(ref *handle.Ref, e *engineObject) error {
			name, err := text("model", model)
			if err != nil {
				return err
			}
			facts, err := e.models.Facts(name)
			if err != nil {
				return err
			}
			return give(out, kindTokenizer, facts, ref, nil)
		})
	})
}

//export tinkergo_tokenizer_free
func tinkergo_tokenizer_free(h C.uint64_t) C.int32_t { return drop(h, kindTokenizer) }

// withTokenizer is with for a tokenizer.
func withTokenizer(h C.uint64_t, f func(facts *local.Facts) error) C.int32_t {
	return guard(func() error {
		return with(h, kindTokenizer, func(_ *handle.Ref, facts *local.Facts) error { return f(facts) })
	})
}

//export tinkergo_tokenizer_info
func tinkergo_tokenizer_info(h C.uint64_t, out **C.char) C.int32_t {
	return withTokenizer(h, func(f *local.Facts) error {
		name := ""
		if format, err := chat.For(f.Template, f.Name); err == nil {
			name = format.Name()
		}
		eos := f.EosTokenIDs
		if eos == nil {
			eos = []int32{}
		}
		return giveJSON(out, map[string]any{
			"model": f.Name, "size": f.Tokenizer.Size(), "eos_token_ids": eos, "bos_token": f.BOS, "eos_token": f.EOS,
			"has_chat_template": f.Template != "", "chat_format": name, "chat_formats": chat.Names(),
		})
	})
}

//export tinkergo_tokenizer_encode
func tinkergo_tokenizer_encode(h C.uint64_t, s *C.char, bytes C.int64_t, special C.int32_t, ids **C.int32_t, count *C.int64_t) C.int32_t {
	return withTokenizer(h, func(f *local.Facts) error {
		src, err := array("text", (*byte)(unsafe.Pointer(s)), bytes, maxText)
		if err != nil {
			return err
		}
		list, err := f.Tokenizer.TryEncode(string(src), special != 0)
		if err != nil {
			return err
		}
		*ids, *count = (*C.int32_t)(ownArray(list)), C.int64_t(len(list))
		return nil
	})
}

// ownArray copies v into C memory that the caller will own; it is never nil.
func ownArray[T any](v []T) *T { return cArray(&arena{}, v) }

func ownText(s string) *C.char { return cText(&arena{}, s) }

//export tinkergo_tokenizer_decode
func tinkergo_tokenizer_decode(h C.uint64_t, ids *C.int32_t, count C.int64_t, skip C.int32_t, out **C.char, bytes *C.int64_t) C.int32_t {
	return withTokenizer(h, func(f *local.Facts) error {
		list, err := array("ids", (*int32)(ids), count, maxValues)
		if err != nil {
			return err
		}
		s := f.Tokenizer.Decode(list, skip != 0)
		*out = ownText(s)
		if bytes != nil {
			*bytes = C.int64_t(len(s))
		}
		return nil
	})
}

//export tinkergo_tokenizer_id
func tinkergo_tokenizer_id(h C.uint64_t, token *C.char, id *C.int32_t) C.int32_t {
	return withTokenizer(h, func(f *local.Facts) error {
		name, err := text("token", token)
		if err != nil {
			return err
		}
		n, ok := f.Tokenizer.ID(name)
		if !ok {
			return api.Errorf(api.NotFound, "%s has no token %.100q", f.Name, name)
		}
		*id = C.int32_t(n)
		return nil
	})
}

// decoder is what a tinker_decoder stands for.
type decoder struct {
	mu  sync.Mutex
	new func() tokenDecoder
	now tokenDecoder
}

type tokenDecoder interface {
	Push(id int32) string
	Flush() string
}

//export tinkergo_decoder_open
func tinkergo_decoder_open(h C.uint64_t, skip C.int32_t, out *C.uint64_t) C.int32_t {
	return guard(func() error {
		return with(h, kindTokenizer, func(ref *handle.Ref, f *local.Facts) error {
			d := &decoder{new: func() tokenDecoder { return f.Tokenizer.NewDecoder(skip != 0) }}
			d.now = d.new()
			return give(out, kindDecoder, d, ref, nil)
		})
	})
}

//export tinkergo_decoder_free
func tinkergo_decoder_free(h C.uint64_t) C.int32_t { return drop(h, kindDecoder) }

//export tinkergo_decoder_push
func tinkergo_decoder_push(h C.uint64_t, ids *C.int32_t, count C.int64_t, last C.int32_t, out **C.char) C.int32_t {
	return guard(func() error {
		return with(h, kindDecoder, func(_ *handle.Ref, d *decoder) error {
			list, err := array("ids", (*int32)(ids), count, maxValues)
			if err != nil {
				return err
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			var s strings.Builder
			for _, id := range list {
				s.WriteString(d.now.Push(id))
			}
			if last != 0 {
				s.WriteString(d.now.Flush())
				d.now = d.new()
			}
			*out = ownText(s.String())
			return nil
		})
	})
}

// chatRequest is the JSON of tinker_chat_render.
type chatRequest struct {
	Messages      []chat.Message  `json:"messages"`
	Tools         json.RawMessage `json:"tools"`
	Format        string          `json:"format"`
	Generate      bool            `json:"generate"`
	Prefill       string          `json:"prefill"`
	TrainOn       chat.TrainOn    `json:"train_on"`
	NoThinking    bool            `json:"no_thinking"`
	KeepThinking  bool            `json:"keep_thinking"`
	Date          string          `json:"date"`
	ToolsInSystem bool            `json:"tools_in_system"`
	AllowControl  bool            `json:"allow_control"`
}

func readChat(f *local.Facts, p *C.char) (q chatRequest, format *chat.Format, o chat.Options, err error) {
	s, err := boundedText("request", p, maxJSON)
	if err == nil {
		err = decode("request", s, &q)
	}
	if err != nil {
		return q, nil, o, err
	}
	if q.Format != "" {
		format, err = chat.ByName(q.Format)
	} else {
		format, err = chat.For(f.Template, f.Name)
	}
	o = chat.Options{
		Generate: q.Generate, Prefill: q.Prefill, Train: q.TrainOn, NoThinking: q.NoThinking, KeepThinking: q.KeepThinking,
		Date: q.Date, ToolsInSystem: q.ToolsInSystem, BOS: f.BOS, EOS: f.EOS, AllowControl: q.AllowControl,
	}
	if err == nil && len(q.Tools) > 0 {
		o.Tools, err = chat.ParseTools(q.Tools)
	}
	return q, format, o, err
}

//export tinkergo_chat_render
func tinkergo_chat_render(h C.uint64_t, request *C.char, ids **C.int32_t, trained **C.uint8_t, count *C.int64_t, out **C.char) C.int32_t {
	return withTokenizer(h, func(f *local.Facts) error {
		q, format, o, err := readChat(f, request)
		if err != nil {
			return err
		}
		segments, err := format.Render(q.Messages, o)
		if err != nil {
			return err
		}
		list, marks, err := chat.Tokens(f.Tokenizer, segments)
		if err != nil {
			return err
		}
		stops := format.Stops(o)
		stopIDs, err := stops.TokenIDs(f.Tokenizer)
		if err != nil && len(stops.Tokens) > 0 {
			return err
		}
		if out != nil {
			if err := giveJSON(out, map[string]any{
				"format": format.Name(), "text": chat.String(segments), "stop_tokens": append([]int32{}, stopIDs...), "stop": append([]string{}, stops.Texts...),
			}); err != nil {
				return err
			}
		}
		if trained != nil {
			bytes := make([]byte, len(marks))
			for i, m := range marks {
				if m {
					bytes[i] = 1
				}
			}
			*trained = (*C.uint8_t)(ownArray(bytes))
		}
		*ids, *count = (*C.int32_t)(ownArray(list)), C.int64_t(len(list))
		return nil
	})
}

//export tinkergo_chat_parse
func tinkergo_chat_parse(h C.uint64_t, request, reply *C.char, out **C.char) C.int32_t {
	return withTokenizer(h, func(f *local.Facts) error {
		_, format, o, err := readChat(f, request)
		if err != nil {
			return err
		}
		s, err := boundedText("text", reply, math.MaxInt32-1)
		if err != nil {
			return err
		}
		type problem struct {
			Raw string `json:"raw"`
			Why string `json:"why"`
		}
		r := format.Parse(s, o)
		problems := []problem{}
		for _, p := range r.Problems {
			problems = append(problems, problem{p.Raw, p.Why})
		}
		return giveJSON(out, map[string]any{"message": r.Message, "end": r.End, "problems": problems})
	})
}
