package hub

import (
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"tinkerlocal/engine/api"
)

var (
	namePart   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}$`)
	commitText = regexp.MustCompile(`^[0-9a-f]{40,64}$`)
)

// checkName takes ORG/NAME with the characters that the hub allows; such a name cannot leave a folder.
func checkName(name string) error {
	parts := strings.Split(name, "/")
	ok := len(parts) == 2
	for _, p := range parts {
		ok = ok && namePart.MatchString(p) && !strings.Contains(p, "..") && !strings.Contains(p, "--") && !strings.HasSuffix(p, ".")
	}
	if !ok || !filepath.IsLocal(filepath.FromSlash(name)) {
		return api.Errorf(api.BadRequest, "model name is %q, wanted ORG/NAME of letters, digits, '-', '_' and '.'", name)
	}
	return nil
}

func checkRevision(r string) error {
	if len(r) > 256 || !fs.ValidPath(r) || strings.HasPrefix(r, ".") || strings.Contains(r, "/.") || strings.Contains(r, "..") ||
		strings.ContainsFunc(r, func(c rune) bool { return c <= ' ' || c == 0x7f || c == '\\' }) {
		return api.Errorf(api.BadRequest, "revision is %q, wanted a branch, a tag or a commit", r)
	}
	return nil
}

// checkPath refuses a file name of the server that would leave the model's folder, or that some system
// cannot have.
func checkPath(name string) error {
	bad := !fs.ValidPath(name) || name == "." || len(name) > 512 || !filepath.IsLocal(filepath.FromSlash(name)) ||
		strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c == 0x7f || strings.ContainsRune(`\:*?"<>|`, c) })
	for part := range strings.SplitSeq(name, "/") {
		bad = bad || strings.HasPrefix(part, ".") || strings.HasSuffix(part, ".") || strings.HasSuffix(part, " ") || len(part) > 200
	}
	if bad {
		return api.Errorf(api.BadRequest, "the server lists a file %q, which is not a name that stays inside the model's folder on every system", clip(name))
	}
	return nil
}

func checkPatterns(lists ...[]string) error {
	for _, list := range lists {
		for _, p := range list {
			if _, err := path.Match(p, ""); err != nil || p == "" {
				return api.Errorf(api.BadRequest, "pattern %q is malformed; wanted something like *.txt or onnx/*", p)
			}
		}
	}
	return nil
}

// matches reports whether one of the patterns fits a file. A pattern without a slash looks at the last
// element of the name.
func matches(patterns []string, name string) bool {
	for _, p := range patterns {
		target := name
		if !strings.Contains(p, "/") {
			target = path.Base(name)
		}
		if ok, _ := path.Match(p, target); ok {
			return true
		}
	}
	return false
}

// clip shortens text of the server for a message.
func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
