package token

import (
	"os"
	"strings"
	"testing"
)

// benchText is the fixtures' own text: prose in many scripts, code, and a little of everything odd.
func benchText(b *testing.B) string {
	var s strings.Builder
	for _, f := range lines[fixture](b, "bytes.jsonl.gz") {
		if f.T != nil && strings.Count(*f.T, (*f.T)[:min(1, len(*f.T))]) < 60 {
			s.WriteString(*f.T)
		}
	}
	return strings.Repeat(s.String(), 300_000/s.Len()+1)
}

func BenchmarkEncode(b *testing.B) {
	text := benchText(b)
	for _, kind := range kinds {
		b.Run(kind, func(b *testing.B) {
			tok := load(b, kind)
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				tok.Encode(text, true)
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	text := benchText(b)
	for _, kind := range kinds {
		b.Run(kind, func(b *testing.B) {
			tok := load(b, kind)
			ids := tok.Encode(text, true)
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				tok.Decode(ids, false)
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	file, err := os.ReadFile("testdata/qwen3.json")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(file)))
	for b.Loop() {
		if _, err := Parse(file); err != nil {
			b.Fatal(err)
		}
	}
}
