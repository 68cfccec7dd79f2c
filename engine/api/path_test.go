package api

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestParsePath(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Path
	}{
		{"tinker://0123456789abcdef:train:0/weights/step-000010", Path{"0123456789abcdef:train:0", KindState, "step-000010"}},
		{"tinker://r/sampler_weights/_final.v2", Path{"r", KindSampler, "_final.v2"}},
		{"tinker://r/external_weights/x", Path{"r", KindExternal, "x"}},
		{"tinker://r/x", Path{"r", "", "x"}},
		{"tinker://r/" + strings.Repeat("x", 128), Path{"r", "", strings.Repeat("x", 128)}},
	} {
		got, err := ParsePath(c.in)
		if err != nil || got != c.want || got.String() != c.in {
			t.Errorf("%s is %+v (%v), wanted %+v", c.in, got, err, c.want)
		}
	}
	for in, part := range map[string]string{
		"":                            `path "": wanted tinker://RUN/weights/NAME`,
		"/a/b":                        "wanted tinker://",
		"TINKER://r/weights/x":        "wanted tinker://",
		"tinker://r":                  "has 1 parts",
		"tinker://r/weights/a/b":      "has 4 parts",
		"tinker://r/weights/":         "the name is empty",
		"tinker:///weights/x":         "the run id is empty",
		"tinker://r//x":               "the kind is empty",
		"tinker://r/optimizer/x":      `the kind is "optimizer", wanted weights, sampler_weights or external_weights`,
		"tinker://r/weights/..":       `begins with '.'`,
		"tinker://../weights/x":       `begins with '.'`,
		"tinker://r/weights/-rf":      `begins with '-'`,
		"tinker://r/weights/a b":      "has the character ' '",
		"tinker://r/weights/a\\b":     `has the character '\\'`,
		"tinker://r/weights/a\x00":    `has the character '\x00'`,
		"tinker://r/weights/a\xff":    "has the character",
		"tinker://r/weights/naïve":    "has the character 'ï'",
		"tinker://r/weights/a%2fb":    "has the character '%'",
		"tinker://r/weights/\u202eab": `begins with '\u202e'`,
		"tinker://r/weights/" + strings.Repeat("x", 129): "has 129 bytes, wanted at most 128",
	} {
		_, err := ParsePath(in)
		if err == nil || CodeOf(err) != BadRequest || !strings.Contains(err.Error(), part) {
			t.Errorf("%q gives %v, wanted %s", in, err, part)
		}
	}
}

func TestPathJSON(t *testing.T) {
	b, err := json.Marshal(Checkpoint{Path: Path{"r", KindState, "x"}})
	if err != nil || !strings.Contains(string(b), `"tinker_path":"tinker://r/weights/x"`) || strings.Contains(string(b), "expires_at") {
		t.Errorf("%s, %v", b, err)
	}
	var c Checkpoint
	if err := json.Unmarshal(b, &c); err != nil || c.Path.ID() != "weights/x" {
		t.Errorf("%+v, %v", c, err)
	}
	if err := json.Unmarshal([]byte(`{"tinker_path":"x"}`), &c); err == nil {
		t.Error("a wrong path is accepted")
	}
}

// FuzzPath: what is accepted follows the rules and comes back as it went in.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"tinker://r/weights/x", "tinker://r/x", "tinker://r:0/sampler_weights/a.b", "tinker://../..", "tinker://a/b/c/d", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePath(s)
		if err != nil {
			if CodeOf(err) != BadRequest || len(err.Error()) > 2000 {
				t.Errorf("error %v", err)
			}
			return
		}
		if p.String() != s || p.Check() != nil {
			t.Errorf("%q becomes %q", s, p)
		}
		for _, part := range []string{p.Run, p.Name} {
			if len(part) == 0 || len(part) > MaxNameBytes || strings.ContainsAny(part, "/\\\x00 \n%") || strings.HasPrefix(part, ".") || strings.HasPrefix(part, "-") {
				t.Errorf("%q has the part %q", s, part)
			}
		}
	})
}
