package chat

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fixture is one conversation and what the published template makes of it; Want is nil where the
// template raises an error.
type fixture struct {
	Name     string
	Messages []Message
	Tools    []Tool
	Options  Options
	Want     *string
}

func (f fixture) String() string { return fmt.Sprintf("%s %+v", f.Name, f.Options) }

func fixtures(tb testing.TB, format string) []fixture {
	tb.Helper()
	f, err := os.Open(filepath.Join("testdata", format+".jsonl.gz"))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		tb.Fatal(err)
	}
	var out []fixture
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c fixture
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			tb.Fatalf("%s line %d: %v", format, len(out)+1, err)
		}
		c.Options.Tools = c.Tools
		out = append(out, c)
	}
	if err := lines.Err(); err != nil {
		tb.Fatal(err)
	}
	return out
}

var published = []string{"qwen3", "qwen3_instruct", "llama3", "llama3_plain", "mistral", "role_colon"}

func named(tb testing.TB, name string) *Format {
	tb.Helper()
	f, err := ByName(name)
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

// TestTemplates compares each format with the published template.
func TestTemplates(t *testing.T) {
	for _, name := range published {
		t.Run(name, func(t *testing.T) {
			f, wrong, refused := named(t, name), 0, 0
			cases := fixtures(t, name)
			for _, c := range cases {
				segments, err := f.Render(c.Messages, c.Options)
				got := String(segments)
				switch {
				case c.Want == nil && err == nil:
					t.Errorf("%s: the template refuses it, Render gives %q", c, got)
				case c.Want == nil:
					refused++
					continue
				case err != nil:
					t.Errorf("%s: %v", c, err)
				case got != *c.Want:
					t.Errorf("%s:\n got %q\nwant %q", c, got, *c.Want)
				default:
					continue
				}
				wrong++
			}
			if len(cases) < 60 {
				t.Errorf("%d cases, want at least 60", len(cases))
			}
			t.Logf("%d of %d cases differ; %d are refused by both", wrong, len(cases), refused)
		})
	}
}

// TestSegments checks what every rendering promises, whatever the format: segments are not empty, are
// merged, name special tokens only, and nothing is trained unasked.
func TestSegments(t *testing.T) {
	for _, name := range published {
		f := named(t, name)
		for _, c := range fixtures(t, name) {
			segments, err := f.Render(c.Messages, c.Options)
			if err != nil {
				continue
			}
			for k, s := range segments {
				if s.Text == "" || s.Trained || s.Message < -1 || s.Message >= len(c.Messages) {
					t.Fatalf("%s: %s: segment %d: %+v", name, c, k, s)
				}
				if special := strings.HasPrefix(s.Text, "<|") && strings.HasSuffix(s.Text, "|>") && !strings.Contains(s.Text, " "); special && !s.Special {
					t.Fatalf("%s: %s: segment %d is a token but not special: %+v", name, c, k, s)
				}
				if k > 0 && !s.Special && !segments[k-1].Special && s.Message == segments[k-1].Message {
					t.Fatalf("%s: %s: segments %d and %d are not merged", name, c, k-1, k)
				}
			}
		}
	}
}
