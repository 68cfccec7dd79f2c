package token

import (
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

func TestIDs(t *testing.T) {
	tok := load(t, "bytes")
	if tok.Size() != 259 {
		t.Errorf("size %d, want 259", tok.Size())
	}
	for content, want := range map[string]int32{"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258, "A": 'A', "Ġ": ' ', "Ċ": '\n'} {
		if id, ok := tok.ID(content); !ok || id != want {
			t.Errorf("ID(%q) = %d, %v, want %d", content, id, ok, want)
		}
		if tok.IsSpecial(want) != (want >= 256) {
			t.Errorf("IsSpecial(%d) = %v", want, tok.IsSpecial(want))
		}
	}
	for _, content := range []string{"", "AB", "<|im_end|", " ", "船"} {
		if id, ok := tok.ID(content); ok {
			t.Errorf("ID(%q) = %d, want none", content, id)
		}
	}
	if tok.IsSpecial(-1) || tok.IsSpecial(259) || tok.IsSpecial(1<<31-1) {
		t.Error("an id out of range is special")
	}
	think, _ := load(t, "qwen3").ID("<think>")
	if think == 0 || load(t, "qwen3").IsSpecial(think) {
		t.Errorf("<think> (id %d) is special or absent", think)
	}
}

// TestEveryByte holds the bytes vocabulary: id b is byte b.
func TestEveryByte(t *testing.T) {
	tok := load(t, "bytes")
	for b := range 256 {
		if tok.out[b] != string([]byte{byte(b)}) {
			t.Errorf("id %d is %q", b, tok.out[b])
		}
	}
	if got := tok.Encode("hé<|im_end|>", true); !slices.Equal(got, []int32{'h', 0xC3, 0xA9, 258}) {
		t.Errorf("got %v", got)
	}
}

// TestAddedTokensAreNotVocabulary: an added token that its own rules refuse is not found by the model.
func TestAddedTokensAreNotVocabulary(t *testing.T) {
	tok := load(t, "edge") // the ids are the reference's; "word" has single_word
	for text, want := range map[string][]int32{
		"word": {1203}, "wordabc": {276, 278, 67, 1209, 272}, "aword": {268, 86, 278, 67}, "worda b": {276, 278, 413, 303},
	} {
		if got := tok.Encode(text, false); !slices.Equal(got, want) {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
	file := strings.NewReplacer(`"ignore_merges":false`, `"ignore_merges":true`,
		`"content":"<s>","single_word":false`, `"content":"ba","single_word":true`).Replace(tiny)
	tok, err := Parse([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	if got := tok.Encode("ba ba_", false); !slices.Equal(got, []int32{3, 1, 0}) {
		t.Errorf("got %v, want [3 1 0]", got)
	}
	if id, ok := tok.ID("ba"); !ok || id != 3 {
		t.Errorf("ID: got %d, %v", id, ok)
	}
}

func TestUnknownIDsAreLeftOut(t *testing.T) {
	tok := load(t, "bytes")
	ids := []int32{-1, 'a', 259, 1 << 30, 'b', -1 << 31, 1<<31 - 1}
	if got := tok.Decode(ids, false); got != "ab" {
		t.Errorf("decode: got %q, want \"ab\"", got)
	}
	if got := streamed(tok, ids, true); got != "ab" {
		t.Errorf("stream: got %q, want \"ab\"", got)
	}
}

// TestIllFormedInput: each maximal ill-formed part is one U+FFFD, as for bytes.decode("utf-8", "replace").
func TestIllFormedInput(t *testing.T) {
	for _, kind := range kinds {
		tok := load(t, kind)
		for in, want := range map[string]string{
			"a\xffb":                   "a\uFFFDb",
			"\xe4\xbd":                 "\uFFFD",
			"\xe4\xbdx\xbd":            "\uFFFDx\uFFFD",
			"\xf0\x9f\x98\xf0\x9f":     "\uFFFD\uFFFD",
			"\xed\xa0\x80":             "\uFFFD\uFFFD\uFFFD",
			"\xc0\x80\xf5\x80":         "\uFFFD\uFFFD\uFFFD\uFFFD",
			"\xf4\x90\x80\x80\xe0\x80": "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD",
		} {
			if got := tok.Encode(in, true); !slices.Equal(got, tok.Encode(want, true)) {
				t.Errorf("%s: %q is not encoded as %q", kind, in, want)
			}
		}
	}
}

// TestDecoderNeverShowsHalfACharacter also checks that it does not hold more than it must.
func TestDecoderNeverShowsHalfACharacter(t *testing.T) {
	tok := load(t, "bytes")
	d := tok.NewDecoder(true)
	text := "aé船😀z"
	shown := ""
	for i, id := range tok.Encode(text, false) {
		got := d.Push(id)
		if !utf8.ValidString(got) || strings.Contains(got, "\uFFFD") {
			t.Fatalf("push %d shows %q", i, got)
		}
		shown += got
		if missing := i + 1 - len(shown); missing > 3 || missing > 0 && utf8.RuneStart(text[i+1]) {
			t.Fatalf("after %d bytes only %q is shown", i+1, shown)
		}
	}
	if shown != text || d.Flush() != "" {
		t.Errorf("got %q", shown)
	}
	// The end of a text, and the next one after it.
	if got := d.Push(0xE8) + d.Push(0x88) + d.Flush() + d.Push('x') + d.Flush(); got != "\uFFFDx" {
		t.Errorf("got %q", got)
	}
	// A skipped token does not end a character.
	if got := d.Push(0xC3) + d.Push(256) + d.Push(0xA9); got != "é" {
		t.Errorf("got %q", got)
	}
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	tok := load(t, "qwen3")
	text := strings.Repeat("The boats, 船 and é\u0323 were home by 10:45.\n", 20)
	want := load(t, "qwen3").Encode(text, true)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				if got := tok.Encode(text, true); !slices.Equal(got, want) {
					t.Error("another result")
				}
				if tok.Decode(want, true) != nfc(text) {
					t.Error("another text")
				}
			}
		})
	}
	wg.Wait()
}

// TestLongRuns: no input takes time that grows with the square of its length.
func TestLongRuns(t *testing.T) {
	for _, kind := range kinds {
		tok := load(t, kind)
		for _, unit := range []string{"a", " ", "\n", "ab ", "\u0301", "船", "=", "<", " \n", "1", "e\u0301"} {
			text := strings.Repeat(unit, 100_000/len(unit))
			begin := time.Now()
			ids := tok.Encode(text, false)
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("%s: 100 kB of %q took %v", kind, unit, took)
			}
			if len(ids) == 0 {
				t.Errorf("%s: 100 kB of %q gave no ids", kind, unit)
			}
		}
	}
}

// TestPublishedFile compares with a real tokenizer.json, which is too large for this repository:
// TINKER_TOKENIZER names it, and TINKER_TOKENIZER_FIXTURES a .jsonl.gz as make_fixtures.py writes.
func TestPublishedFile(t *testing.T) {
	file, fixtures := os.Getenv("TINKER_TOKENIZER"), os.Getenv("TINKER_TOKENIZER_FIXTURES")
	if file == "" || fixtures == "" {
		t.Skip("skipped: TINKER_TOKENIZER and TINKER_TOKENIZER_FIXTURES are not set")
	}
	compare(t, file, fixtures)
}

// TestEmbeddedModel loads the tokenizer of the model inside the program.
func TestEmbeddedModel(t *testing.T) {
	tok := loadFile(t, "../local/tiny/tokenizer.json")
	if text := "Hello, 船!\r\n<|im_end|>"; tok.Decode(tok.Encode(text, true), false) != text {
		t.Error("the text does not come back")
	}
}

// TestPiece: the pieces of a text's ids are its bytes.
func TestPiece(t *testing.T) {
	for _, name := range []string{"bytes", "qwen3"} {
		tok := load(t, name)
		const text = "héllo 船\n👍<|im_end|>"
		got := ""
		for _, id := range tok.Encode(text, false) {
			got += tok.Piece(id)
		}
		if got != text {
			t.Errorf("%s: %q, wanted %q", name, got, text)
		}
		if tok.Piece(-1) != "" || tok.Piece(1<<30) != "" {
			t.Errorf("%s: an unknown id has a piece", name)
		}
	}
}
