package hub

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSettings(t *testing.T) {
	home := t.TempDir()
	env := map[string]string{}
	get := func(k string) string { return env[k] }
	s, err := FromEnv(get, home, "")
	if err != nil || s.Endpoint.String() != DefaultEndpoint || s.Token.value != "" || s.Offline != "" {
		t.Errorf("nothing set: %v %v", s, err)
	}
	if err := os.WriteFile(filepath.Join(home, "token"), []byte(testToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, _ = FromEnv(get, home, ""); s.Token.value != testToken {
		t.Errorf("the token file was not read: %v", s.Token)
	}
	env["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
	if s, _ = FromEnv(get, home, ""); s.Token.value != "" {
		t.Error("the token file was read although that is switched off")
	}
	env["HF_TOKEN"], env["HF_ENDPOINT"], env["TRANSFORMERS_OFFLINE"] = " other ", "http://mirror.example:8080/hub/", "yes"
	s, err = FromEnv(get, home, "")
	if err != nil || s.Token.value != "other" || s.Endpoint.String() != "http://mirror.example:8080/hub" || s.Offline != "TRANSFORMERS_OFFLINE=yes" {
		t.Errorf("got %v %v", s, err)
	}
	if s.mayCarryToken(s.Endpoint) {
		t.Error("the token may go over plain http")
	}
	if s, _ = FromEnv(get, home, "https://flag.example"); s.Endpoint.Host != "flag.example" {
		t.Errorf("endpoint %s, wanted the flag's", s.Endpoint)
	}
	for _, bad := range []string{"mirror", "ftp://x", "https://u:sesame@x", "https://x?a=b", "https://", "://sesame"} {
		if _, err := FromEnv(get, home, bad); err == nil || strings.Contains(err.Error(), "sesame") && bad[0] == 'h' {
			t.Errorf("endpoint %q: got %v", bad, err)
		}
	}
	env["HF_TOKEN"] = "secret\r\nX-Evil: 1"
	if _, err := FromEnv(get, home, ""); err == nil || strings.Contains(err.Error(), "secret\r") {
		t.Errorf("a token with a line end: got %v", err)
	}
}

// TestTokenIsSilent: no way of printing shows a token.
func TestTokenIsSilent(t *testing.T) {
	s := Settings{Token: NewToken(testToken, "$HF_TOKEN")}
	j, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprint(s), fmt.Sprintf("%+v", s), fmt.Sprintf("%#v", s), fmt.Sprintf("%s %q %x", s.Token, s.Token, s.Token), string(j), s.Token.LogValue().String()} {
		if strings.Contains(text, testToken) || strings.Contains(text, fmt.Sprintf("%x", testToken)) {
			t.Errorf("printed as %s", text)
		}
	}
}

func TestTokenOrigin(t *testing.T) {
	for _, c := range []struct {
		endpoint, to string
		want         bool
	}{
		{"https://hub.example", "https://hub.example/a", true},
		{"https://hub.example", "https://hub.example:443/a", true},
		{"https://hub.example", "https://hub.example:444/a", false},
		{"https://hub.example", "http://hub.example/a", false},
		{"https://hub.example", "https://cdn.hub.example/a", false},
		{"https://hub.example", "https://hub.example.evil/a", false},
		{"http://hub.example", "http://hub.example/a", false},
		{"http://127.0.0.1:8080", "http://127.0.0.1:8080/a", true},
		{"http://localhost", "http://localhost/a", true},
	} {
		e, _ := url.Parse(c.endpoint)
		u, _ := url.Parse(c.to)
		if got := (Settings{Endpoint: e}).mayCarryToken(u); got != c.want {
			t.Errorf("endpoint %s, request to %s: %v, wanted %v", c.endpoint, c.to, got, c.want)
		}
	}
}

func TestContentRange(t *testing.T) {
	for text, want := range map[string]string{
		"bytes 5-9/10": "5 10 true", "bytes 5-9/*": "5 -1 true", "bytes 5-10/10": "0 0 false", "bytes 9-5/10": "0 0 false",
		"bytes */10": "0 0 false", "": "0 0 false", "bytes 5-9": "0 0 false", "bytes -5-9/10": "0 0 false", "items 5-9/10": "0 0 false",
		"bytes 5-99999999999999999999/10": "0 0 false",
	} {
		from, all, ok := contentRange(text)
		if !ok {
			from, all = 0, 0
		}
		if got := fmt.Sprint(from, all, ok); got != want {
			t.Errorf("%q: %s, wanted %s", text, got, want)
		}
	}
}
