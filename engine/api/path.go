package api

import (
	"strings"
	"unicode/utf8"
)

// The kinds of checkpoints: the middle part of a path.
const (
	KindState    = "weights"          // training state: adapter, moments, step
	KindSampler  = "sampler_weights"  // adapter only
	KindExternal = "external_weights" // adapter only, to be taken elsewhere as a PEFT folder
)

// MaxNameBytes bounds a run id and a checkpoint name.
const MaxNameBytes = 128

const pathScheme = "tinker://"

// Path names a checkpoint: tinker://RUN/KIND/NAME, with one of the kinds above. Kind is empty in a path that was given in two
// parts, tinker://RUN/NAME; a store looks such a name up among the kinds in their order here.
//
// A run id and a name have 1 to 128 bytes: ASCII letters, digits and the characters . _ - : + = @ , ~
// of which the first is a letter, a digit or an underscore. So neither can be a hidden file, leave a folder, or be
// taken for an option. Upper and lower case differ.
type Path struct {
	Run, Kind, Name string
}

// ParsePath reads a path of three parts, or of two.
func ParsePath(s string) (Path, error) {
	rest, ok := strings.CutPrefix(s, pathScheme)
	if !ok {
		return Path{}, Errorf(BadRequest, "path %s: wanted tinker://RUN/weights/NAME or tinker://RUN/sampler_weights/NAME", quoted(s))
	}
	var p Path
	switch parts := strings.Split(rest, "/"); len(parts) {
	case 2:
		p = Path{Run: parts[0], Name: parts[1]}
	case 3:
		p = Path{parts[0], parts[1], parts[2]}
		if p.Kind == "" {
			return Path{}, Errorf(BadRequest, "path %s: the kind is empty, wanted %s, %s or %s", quoted(s), KindState, KindSampler, KindExternal)
		}
	default:
		return Path{}, Errorf(BadRequest, "path %s has %d parts after tinker://, wanted 3: RUN/weights/NAME or RUN/sampler_weights/NAME", quoted(s), len(parts))
	}
	if err := p.Check(); err != nil {
		return Path{}, Errorf(BadRequest, "path %s: %w", quoted(s), err)
	}
	return p, nil
}

// Check says whether p follows the rules. An empty Kind is allowed.
func (p Path) Check() error {
	if err := CheckName("run id", p.Run); err != nil {
		return err
	}
	switch p.Kind {
	case "", KindState, KindSampler, KindExternal:
	default:
		return Errorf(BadRequest, "the kind is %s, wanted %s, %s or %s", quoted(p.Kind), KindState, KindSampler, KindExternal)
	}
	return CheckName("name", p.Name)
}

// String is the path as ParsePath reads it.
func (p Path) String() string {
	if p.Kind == "" {
		return pathScheme + p.Run + "/" + p.Name
	}
	return pathScheme + p.Run + "/" + p.Kind + "/" + p.Name
}

// ID is the checkpoint's id within its run, KIND/NAME, as the wire's listings have it.
func (p Path) ID() string { return p.Kind + "/" + p.Name }

// MarshalText is String.
func (p Path) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParsePath.
func (p *Path) UnmarshalText(b []byte) error {
	q, err := ParsePath(string(b))
	if err != nil {
		return err
	}
	*p = q
	return nil
}

// CheckName says whether s can be a run id or a checkpoint's name: see [Path]. what names it in the error.
func CheckName(what, s string) error {
	switch {
	case s == "":
		return Errorf(BadRequest, "the %s is empty", what)
	case len(s) > MaxNameBytes:
		return Errorf(BadRequest, "the %s has %d bytes, wanted at most %d", what, len(s), MaxNameBytes)
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_':
		case strings.IndexByte(".-:+=@,~", c) >= 0 && i > 0:
		case i == 0:
			return Errorf(BadRequest, "the %s %s begins with %q, wanted an ASCII letter, a digit or _", what, quoted(s), firstRune(s))
		default:
			return Errorf(BadRequest, "the %s %s has the character %q, wanted ASCII letters, digits and . _ - : + = @ , ~", what, quoted(s), firstRune(s[i:]))
		}
	}
	return nil
}

func firstRune(s string) rune {
	r, _ := utf8.DecodeRuneInString(s)
	return r
}
