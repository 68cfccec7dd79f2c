package token

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// kinds are the tokenizers in testdata; make_fixtures.py makes them.
var kinds = []string{"qwen3", "llama3", "gpt2", "bytes", "gptoss", "edge", "gemma", "llama2", "mistral3", "unknowns"}

func load(t testing.TB, kind string) *Tokenizer {
	t.Helper()
	return loadFile(t, filepath.Join("testdata", kind+".json"))
}

func loadFile(t testing.TB, name string) *Tokenizer {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// fixture is one line of a .jsonl.gz.
type fixture struct {
	T         *string
	IDs       []int32
	NoSpecial []int32 `json:"ids_nospecial"`
	Keep      string
	Skip      string
}

func lines[T any](t testing.TB, name string) []T {
	t.Helper()
	if !filepath.IsAbs(name) {
		name = filepath.Join("testdata", name)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var all []T
	for s := bufio.NewReader(z); ; {
		line, err := s.ReadBytes('\n')
		if err != nil {
			return all
		}
		var v T
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatalf("%s: line %d: %v", name, len(all)+1, err)
		}
		all = append(all, v)
	}
}

// streamed decodes with a Decoder.
func streamed(tok *Tokenizer, ids []int32, skip bool) string {
	d := tok.NewDecoder(skip)
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(d.Push(id))
	}
	b.WriteString(d.Flush())
	return b.String()
}

// TestReference compares with what the reference library does.
func TestReference(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			compare(t, filepath.Join("testdata", kind+".json"), kind+".jsonl.gz")
		})
	}
}

func compare(t *testing.T, file, fixtures string) {
	tok := loadFile(t, file)
	all := lines[fixture](t, fixtures)
	if len(all) < 400 {
		t.Fatalf("%d fixtures, want at least 400", len(all))
	}
	bad := 0
	fail := func(format string, args ...any) {
		if bad++; bad <= 5 {
			t.Errorf(format, args...)
		}
	}
	for i, f := range all {
		if f.T != nil {
			if got := tok.Encode(*f.T, true); !slices.Equal(got, f.IDs) {
				fail("%d: encode %q with specials:\n got %v\nwant %v", i, *f.T, got, f.IDs)
			}
			if got := tok.Encode(*f.T, false); !slices.Equal(got, f.NoSpecial) {
				fail("%d: encode %q without specials:\n got %v\nwant %v", i, *f.T, got, f.NoSpecial)
			}
		}
		for _, d := range []struct {
			skip bool
			want string
		}{{false, f.Keep}, {true, f.Skip}} {
			if got := tok.Decode(f.IDs, d.skip); got != d.want {
				fail("%d: decode %v, skip %v:\n got %q\nwant %q", i, f.IDs, d.skip, got, d.want)
			}
			if got := streamed(tok, f.IDs, d.skip); got != d.want {
				fail("%d: stream %v, skip %v:\n got %q\nwant %q", i, f.IDs, d.skip, got, d.want)
			}
		}
	}
	if bad > 0 {
		t.Errorf("%d comparisons differ, in %d fixtures", bad, len(all))
	}
}
