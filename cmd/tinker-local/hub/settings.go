package hub

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"tinkerlocal/engine/api"
)

// DefaultEndpoint is the public hub.
const DefaultEndpoint = "https://huggingface.co"

// Settings are what the Hugging Face programs take from the environment.
type Settings struct {
	Endpoint *url.URL // of the hub or a mirror; nil: DefaultEndpoint
	Token    Token    // zero: no token
	Offline  string   // the setting that forbids downloads, as NAME=VALUE; "": none
}

// FromEnv reads $HF_ENDPOINT, $HF_TOKEN (or the token file), $HF_HUB_OFFLINE and their relatives. home is
// the folder of the token file. endpoint, when not "", stands above $HF_ENDPOINT.
func FromEnv(getenv func(string) string, home, endpoint string) (Settings, error) {
	var s Settings
	var err error
	if endpoint == "" {
		endpoint = getenv("HF_ENDPOINT")
	}
	if s.Endpoint, err = parseEndpoint(endpoint); err != nil {
		return s, err
	}
	for _, name := range []string{"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} {
		if v := getenv(name); truth(v) {
			s.Offline = name + "=" + v
			break
		}
	}
	s.Token, err = findToken(getenv, home)
	return s, err
}

func truth(v string) bool {
	switch strings.ToUpper(v) {
	case "1", "ON", "YES", "TRUE":
		return true
	}
	return false
}

func (s Settings) endpointText() string {
	if s.Endpoint == nil {
		return ""
	}
	return s.Endpoint.String()
}

// parseEndpoint takes an http or https address without user, query or fragment; "" is DefaultEndpoint.
func parseEndpoint(text string) (*url.URL, error) {
	if text == "" {
		text = DefaultEndpoint
	}
	u, err := url.Parse(text)
	if err != nil { // its message would repeat the text, which may hold a password
		return nil, api.Errorf(api.BadRequest, "the hub's endpoint is not an address; wanted something like %s", DefaultEndpoint)
	}
	if u.User != nil {
		return nil, api.Errorf(api.BadRequest, "endpoint %s has a user name or password in it, wanted none; use $HF_TOKEN", u.Host)
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		return nil, api.Errorf(api.BadRequest, "endpoint is %q, wanted something like %s", text, DefaultEndpoint)
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
	return u, nil
}

// Token is an access token. It prints as its source, never as itself.
type Token struct {
	value  string
	source string
}

// NewToken returns a token; source says, in messages, where it is from.
func NewToken(value, source string) Token { return Token{value, source} }

func (t Token) String() string {
	if t.value == "" {
		return "no token"
	}
	return "token from " + t.source
}

// GoString is String: also %#v does not print the token.
func (t Token) GoString() string { return t.String() }

// Format is String for every verb.
func (t Token) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, t.String()) }

// LogValue is String.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText is String.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

const maxTokenBytes = 4 << 10

// findToken looks where `hf auth login` and its users put tokens.
func findToken(getenv func(string) string, home string) (Token, error) {
	for _, name := range []string{"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} {
		if v := strings.TrimSpace(getenv(name)); v != "" {
			return checkToken(v, "$"+name)
		}
	}
	if truth(getenv("HF_HUB_DISABLE_IMPLICIT_TOKEN")) {
		return Token{}, nil
	}
	path := getenv("HF_TOKEN_PATH")
	if path == "" {
		if home == "" {
			return Token{}, nil
		}
		path = filepath.Join(home, "token")
	}
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return Token{}, nil
	}
	if err != nil {
		return Token{}, api.Errorf(api.BadRequest, "token file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxTokenBytes+1))
	if err != nil {
		return Token{}, api.Errorf(api.BadRequest, "token file: %w", err)
	}
	v := strings.TrimSpace(string(text))
	if v == "" {
		return Token{}, nil
	}
	return checkToken(v, path)
}

func checkToken(v, source string) (Token, error) {
	printable := func(r rune) bool { return r > ' ' && r < 0x7f }
	if len(v) > maxTokenBytes || strings.IndexFunc(v, func(r rune) bool { return !printable(r) }) >= 0 {
		return Token{}, api.Errorf(api.BadRequest, "the access token from %s is longer than %d bytes or has spaces or special characters in it", source, maxTokenBytes)
	}
	return Token{v, source}, nil
}

// mayCarryToken reports whether a request to u may have the token: to the endpoint itself, and encrypted
// unless it stays on this machine.
func (s Settings) mayCarryToken(u *url.URL) bool {
	e := s.Endpoint
	if u.Scheme != e.Scheme || u.Hostname() != e.Hostname() || port(u) != port(e) {
		return false
	}
	return u.Scheme == "https" || loopback(u.Hostname())
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}
