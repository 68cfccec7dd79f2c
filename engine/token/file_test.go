package token

import (
	"strings"
	"testing"

	"tinkerlocal/engine/api"
)

// tiny is a whole file in which the tests below replace one part.
const tiny = `{"version":"1.0","truncation":null,"padding":null,
"added_tokens":[{"id":3,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
"normalizer":{"type":"NFC"},
"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{L}+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":false,"use_regex":false}]},
"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"<s>":{"id":"<s>","ids":[3],"tokens":["<s>"]}}},
"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}}`

// tinyText is the same for the kinds whose symbols are characters.
const tinyText = `{"version":"1.0","truncation":null,"padding":null,
"added_tokens":[{"id":0,"content":"<unk>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},
"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":true},
"post_processor":null,
"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Metaspace","replacement":"▁"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},
"model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,"vocab":{"<unk>":0,"▁":1,"a":2,"▁a":3,"<0xE8>":4,"<0x88>":5,"<0xB9>":6,"b":7},"merges":["▁ a"]}}`

func TestParseRefusesText(t *testing.T) {
	if tok, err := Parse([]byte(tinyText)); err != nil {
		t.Fatal(err)
	} else if got := tok.Decode(tok.Encode(" ab船 a", true), false); got != " ab船 a" {
		t.Fatalf("got %q", got)
	}
	refuses(t, tinyText, []refusal{
		{`"prepend":"▁"`, `"prepend":"▁▁"`, api.Unsupported, "normalizer: normalizers 0: prepend of 6 bytes"},
		{`"pattern":{"String":" "},"content":"▁"`, `"pattern":{"Regex":" "},"content":"▁"`, api.Unsupported, "Replace with a regular expression"},
		{`"pattern":{"String":" "},"content":"▁"`, `"pattern":{"String":" "},"content":"aaaaa"`, api.Unsupported, "content of 5 bytes"},
		{`"replacement":"▁"`, `"replacement":""`, api.BadRequest, "want one character"},
		{`"first"`, `"last"`, api.Unsupported, `prepend_scheme "last"`},
		{`"split":true`, `"split":true,"add_prefix_space":false`, api.BadRequest, "contradicts"},
		{`{"type":"ByteFallback"},`, `{"type":"ByteFallback"},{"type":"ByteFallback"},`, api.Unsupported, "ByteFallback twice"},
		{`{"type":"ByteFallback"},`, `{"type":"Fuse"},`, api.Unsupported, "a step after Fuse"},
		{`{"type":"ByteFallback"},`, `{"type":"ByteLevel"},`, api.Unsupported, `decoders 1: type "ByteLevel"`},
		{`"stop":0`, `"stop":1`, api.Unsupported, "Strip with stop 1"},
		{`"type":"Metaspace","replacement":"▁","prepend_scheme"`, `"type":"ByteLevel","replacement":"▁","prepend_scheme"`, api.Unsupported, `pre_tokenizer: field "replacement"`},
		{`"decoder":{"type":"Sequence"`, `"decoder":{"type":"ByteLevel"},"x":{"type":"Sequence"`, api.Unsupported, `field "x"`},
		{`"id":0`, `"id":1`, api.BadRequest, "the reference library gives it 0"},
	})
}

// refusal replaces old by new in a good file; the error has the code and says want.
type refusal struct {
	old, new string
	code     api.Code
	want     string
}

// TestParseRefuses: each file differs from a good one in one place; the error says where and what.
func TestParseRefuses(t *testing.T) {
	if tok, err := Parse([]byte(tiny)); err != nil {
		t.Fatal(err)
	} else if got := tok.Decode(tok.Encode("<s>ab?ba", true), false); got != "<s><s>abba" {
		t.Fatalf("got %q", got)
	}
	refuses(t, tiny, []refusal{
		{tiny, ``, api.BadRequest, "want a value, got the end"},
		{tiny, `[1]`, api.BadRequest, "want an object"},
		{tiny, `{}`, api.Unsupported, "no decoder"},
		{`"merges":[["a","b"]]}}`, `"merges":[["a","b"]]}`, api.BadRequest, "got the end"},
		{`"merges":[["a","b"]]}}`, `"merges":[["a","b"]]}}x`, api.BadRequest, `want the end, got "x"`},
		{`"version":"1.0"`, `"version":"2.0"`, api.Unsupported, `version "2.0"`},
		{`"version":"1.0"`, `"Version":"1.0"`, api.Unsupported, `field "Version"`},
		{`"version":"1.0"`, `"version":"1.0","version":"1.0"`, api.BadRequest, `"version" appears twice`},
		{`"type":"NFC"`, `"type":"NFKC"`, api.Unsupported, `normalizer: type "NFKC"`},
		{`"type":"NFC"`, `"type":"NFC","x":1`, api.Unsupported, `normalizer: field "x"`},
		{`"type":"NFC"`, `"kind":"NFC"`, api.BadRequest, `normalizer: field "type" is missing`},
		{`"type":"NFC"`, `"type":"NFC","type":"NFC"`, api.BadRequest, `normalizer: field "type" appears twice`},
		{`"type":"Split"`, `"type":"Digits"`, api.Unsupported, `pre_tokenizer: pretokenizers 0: type "Digits"`},
		{`"Isolated"`, `"Sometimes"`, api.Unsupported, `behavior "Sometimes"`},
		{`"Isolated"`, `"MergedWithNext"`, api.Unsupported, `behavior "MergedWithNext" with a regular expression`},
		{`{"Regex":"\\p{L}+"}`, `{"Regex":"\\p{L}+","String":"a"}`, api.BadRequest, "2 fields"},
		{`{"Regex":"\\p{L}+"}`, `{"String":""}`, api.BadRequest, "String is empty"},
		{`\\p{L}+`, `(a+)+`, api.Unsupported, "exponential"},
		{`\\p{L}+`, `a++`, api.Unsupported, "possessive"},
		{`\\p{L}+`, `a{1,2000}`, api.Unsupported, "repeat count"},
		{`\\p{L}+`, `\\w+`, api.Unsupported, `the escape \w`},
		{`\\p{L}+`, `[a-z&&b]`, api.Unsupported, "inside a set"},
		{`\\p{L}+`, `[[:alpha:]]`, api.Unsupported, "inside a set"},
		{`\\p{L}+`, `\\p{Han}`, api.Unsupported, `\p{Han}`},
		{`\\p{L}+`, `(?i:straße)`, api.Unsupported, `a group that begins with "(?i:st"`},
		{`\\p{L}+`, `(?<n>a)`, api.Unsupported, `a group that begins with "(?<n>`},
		{`\\p{L}+`, `^a$`, api.Unsupported, `'^' at 0`},
		{`\\p{L}+`, `(a`, api.Unsupported, "a group without an end"},
		{`\\p{L}+`, `a)`, api.Unsupported, "a closing parenthesis"},
		{`\\p{L}+`, `(?=a)+`, api.Unsupported, "a repeat of a look-around"},
		{`"invert":false}`, `"invert":0}`, api.BadRequest, "invert: want true or false"},
		{`"use_regex":false}]`, `"use_regex":false},{"type":"ByteLevel"}]`, api.Unsupported, "a step after ByteLevel"},
		{`"type":"TemplateProcessing"`, `"type":"BertProcessing"`, api.Unsupported, `post_processor: type "BertProcessing"`},
		{`"ids":[3]`, `"ids":[4]`, api.BadRequest, "no token has id 4"},
		{`"Sequence":{"id":"A"`, `"Sequence":{"id":"B"`, api.Unsupported, `text "B"`},
		{`{"id":"<s>","type_id":0}`, `{"id":"<t>","type_id":0}`, api.BadRequest, `special token "<t>" is not in special_tokens`},
		{`"decoder":{"type":"ByteLevel"`, `"decoder":{"type":"WordPiece"`, api.Unsupported, `decoder: type "WordPiece"`},
		{`"type":"BPE"`, `"type":"Unigram"`, api.Unsupported, `model: type "Unigram"`},
		{`"dropout":null`, `"dropout":0.1`, api.Unsupported, "dropout 0.1"},
		{`"end_of_word_suffix":null`, `"end_of_word_suffix":"</w>"`, api.Unsupported, `end_of_word_suffix "</w>"`},
		{`"unk_token":null`, `"unk_token":"?"`, api.BadRequest, `unk_token "?" is not in the vocabulary`},
		{`"byte_fallback":false`, `"byte_fallback":true`, api.Unsupported, "lacks byte 0x00"},
		{`"ab":2`, `"ab":1`, api.BadRequest, `tokens "b" and "ab" have the same id 1`},
		{`"ab":2`, `"ab":2,"a":4`, api.BadRequest, `token "a" appears twice`},
		{`"ab":2`, `"ab":-2`, api.BadRequest, `token "ab": id: want an integer`},
		{`"ab":2`, `"ab":2e0`, api.BadRequest, `token "ab": id: want an integer`},
		{`"ab":2`, `"ab":2147483647`, api.BadRequest, `token "ab": id: want an integer`},
		{`"ab":2`, `"a\ud800":2`, api.BadRequest, "lone surrogate"},
		{`"ab":2`, "\"a\xff\":2", api.BadRequest, "not UTF-8"},
		{`"ab":2`, "\"a\n\":2", api.BadRequest, "control characters"},
		{`{"a":0,"b":1,"ab":2}`, `{}`, api.BadRequest, "no tokens"},
		{`["a","b"]`, `["a","c"]`, api.BadRequest, `merge 0: "c" is not in the vocabulary`},
		{`["a","b"]`, `["b","a"]`, api.BadRequest, `merge 0: "ba" is not in the vocabulary`},
		{`["a","b"]`, `["a","b","c"]`, api.BadRequest, "want two tokens, got 3"},
		{`["a","b"]`, `"a b c"`, api.BadRequest, "one space between"},
		{`"id":3`, `"id":4`, api.BadRequest, `token "<s>" has id 4 in the file, but the reference library gives it 3`},
		{`"content":"<s>"`, `"content":""`, api.BadRequest, "has no content"},
		{`"content":"<s>"`, `"content":"` + strings.Repeat("x", 2000) + `"`, api.BadRequest, "2000 bytes, want at most 1024"},
		{`"NFC"`, strings.Repeat("[", 100_000), api.BadRequest, "levels deep"},
	})
}

func refuses(t *testing.T, good string, cases []refusal) {
	t.Helper()
	for _, c := range cases {
		file := strings.Replace(good, c.old, c.new, 1)
		if file == good {
			t.Fatalf("%q is not in the file", c.old)
		}
		tok, err := Parse([]byte(file))
		switch {
		case err == nil:
			t.Errorf("%s → %s: accepted", clip(c.old), clip(c.new))
		case tok != nil:
			t.Errorf("%s → %s: both a tokenizer and an error", clip(c.old), clip(c.new))
		case !strings.Contains(err.Error(), c.want) || api.CodeOf(err) != c.code:
			t.Errorf("%s → %s: got %s %q, want %s with %q", clip(c.old), clip(c.new), api.CodeOf(err), err, c.code, c.want)
		case len(err.Error()) > 400:
			t.Errorf("%s → %s: the error has %d bytes", clip(c.old), clip(c.new), len(err.Error()))
		}
	}
}

// TestParseAccepts are other spellings that the reference reads, too.
func TestParseAccepts(t *testing.T) {
	for _, c := range []struct{ old, new string }{
		{`"type":"BPE",`, ``},
		{`"merges":[["a","b"]]`, `"merges":["#version: 0.2","a b"]`},
		{`"continuing_subword_prefix":null`, `"continuing_subword_prefix":""`},
		{`"truncation":null`, `"truncation":{"max_length":3}`},
		{`"normalizer":{"type":"NFC"}`, `"normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"}]}`},
		{`"ab":2`, `"\u0061b":2`},
		{`\\p{L}+`, `(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+(?!\\S)|(?<!a)b{1,3}|\\[\\-x-z`},
	} {
		file := strings.Replace(tiny, c.old, c.new, 1)
		if _, err := Parse([]byte(file)); err != nil || file == tiny {
			t.Errorf("%s → %s: %v", c.old, c.new, err)
		}
	}
}

// TestParseEveryPrefix: a file cut anywhere is an error, not a panic.
func TestParseEveryPrefix(t *testing.T) {
	for n := range len(tiny) {
		if _, err := Parse([]byte(tiny[:n])); err == nil {
			t.Errorf("the first %d bytes are accepted", n)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(tiny))
	f.Add([]byte(tinyText))
	f.Add([]byte(strings.NewReplacer(`"merges":[["a","b"]]`, `"merges":["a b"]`, `"ignore_merges":false`, `"ignore_merges":true`,
		`"single_word":false,"lstrip":false,"rstrip":false,"normalized":false`, `"single_word":true,"lstrip":true,"rstrip":true,"normalized":true`,
		`"type":"NFC"`, `"type":"Sequence","normalizers":[{"type":"NFC"}]`, `\\p{L}+`, `(?i:[sdmt]|ll|ve|re)|[^\\r\\n]?\\s{1,3}(?!\\S)`).Replace(tiny)))
	f.Fuzz(func(t *testing.T, b []byte) {
		tok, err := Parse(b)
		if err != nil {
			if tok != nil || err.Error() == "" {
				t.Fatal("no error text")
			}
			return
		}
		ids, err := tok.TryEncode("ab <s> b船\n", true)
		if err != nil {
			return
		}
		for _, id := range ids {
			if id < 0 || int(id) >= tok.Size() {
				t.Fatalf("id %d of %d", id, tok.Size())
			}
		}
		if tok.Decode(ids, false) != streamed(tok, ids, false) {
			t.Fatal("streaming differs")
		}
	})
}

func FuzzEncodeDecode(f *testing.F) {
	var toks []*Tokenizer
	for _, kind := range []string{"bytes", "gpt2", "llama3", "gptoss"} { // without a normaliser
		toks = append(toks, load(f, kind))
	}
	for _, s := range []string{"", "Hello  船\r\n<|endoftext|>", "a\xff\xf0\x9f", "'S 1234 e\u0301"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want := validUTF8(s)
		for i, tok := range toks {
			ids := tok.Encode(s, false)
			if got := tok.Decode(ids, false); got != want {
				t.Fatalf("%d: %q comes back as %q", i, s, got)
			}
			for _, skip := range []bool{false, true} {
				if got := streamed(tok, ids, skip); got != tok.Decode(ids, skip) {
					t.Fatalf("%d: %q streams as %q", i, s, got)
				}
			}
		}
	})
}
