package token

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"slices"
	"strings"
	"testing"
)

// patterns are the hand-scanned ones by their names in sweep.jsonl.gz.
var patterns = map[string]string{
	"gpt2": patternGPT2, "qwen2": patternQwen2, "qwen35": patternQwen35, "llama3": patternLlama3, "o200k": patternO200k,
}

func cut(t testing.TB, s splitter, text string) []string {
	var out []string
	if err := s.split(piece{text: text}, func(p piece) { out = append(out, p.text) }); err != nil {
		t.Fatal(err)
	}
	return out
}

func digest(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil))[:16] }

// TestSweep compares the pieces of every splitting pattern, and NFC, over all code points with the
// reference, by digests of blocks. It holds the pinned tables: a newer Go must not change a piece.
func TestSweep(t *testing.T) {
	rows := lines[map[string]json.RawMessage](t, "sweep.jsonl.gz")
	if len(rows) < 270 {
		t.Fatalf("%d blocks, want all of Unicode", len(rows))
	}
	bad := map[string]int{}
	for _, row := range rows {
		var first rune
		if err := json.Unmarshal(row["from"], &first); err != nil {
			t.Fatal(err)
		}
		var points []string
		for r := first; r < first+4096; r++ {
			if r > 1 && (r < 0xD800 || r > 0xDFFF) {
				points = append(points, string(r))
			}
		}
		check := func(name string, h hash.Hash) {
			if want := string(row[name]); want != `"`+digest(h)+`"` {
				if bad[name]++; bad[name] <= 3 {
					t.Errorf("%s: code points from %#x differ", name, first)
				}
			}
		}
		var texts []string
		for part := range slices.Chunk(points, 32) {
			var b strings.Builder
			for _, c := range part {
				b.WriteString("A" + c + "b" + c + "1 " + c + "!" + c + "\n" + c)
			}
			texts = append(texts, b.String())
		}
		for name, pattern := range patterns {
			h, scan := sha256.New(), scanSplit{scannerFor(pattern)}
			for _, text := range texts {
				h.Write([]byte(strings.Join(cut(t, scan, text), "\x01") + "\n"))
			}
			check(name, h)
		}
		h := sha256.New()
		for _, c := range points {
			h.Write([]byte(nfc(c+"a\u0323"+c+"\u0301\u0345"+c) + "\n"))
		}
		check("nfc", h)
	}
}

// TestScannersAreThePatterns compares the scanners with the patterns that they stand for.
func TestScannersAreThePatterns(t *testing.T) {
	var texts []string
	for _, kind := range kinds {
		for _, f := range lines[fixture](t, kind+".jsonl.gz") {
			if f.T != nil {
				texts = append(texts, *f.T)
			}
		}
	}
	for name, pattern := range patterns {
		find, err := findRegex(pattern)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		slow, fast := matchSplit{find: find}, scanSplit{scannerFor(pattern)}
		for _, text := range texts {
			if got, want := fmt.Sprintf("%q", cut(t, fast, text)), fmt.Sprintf("%q", cut(t, slow, text)); got != want {
				t.Fatalf("%s: %q:\n got %s\nwant %s", name, text, got, want)
			}
		}
	}
}

func FuzzScanners(f *testing.F) {
	f.Add("I'LL've ſ's x\u0301 12345 \r\n /\n  ABcDǅʰ")
	slow := map[string]matchSplit{}
	for name, pattern := range patterns {
		find, err := findRegex(pattern)
		if err != nil {
			f.Fatal(err)
		}
		slow[name] = matchSplit{find: find}
	}
	f.Fuzz(func(t *testing.T, text string) {
		text = validUTF8(text)
		for name, pattern := range patterns {
			got, want := cut(t, scanSplit{scannerFor(pattern)}, text), cut(t, slow[name], text)
			if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
				t.Fatalf("%s: %q:\n got %q\nwant %q", name, text, got, want)
			}
		}
	})
}
