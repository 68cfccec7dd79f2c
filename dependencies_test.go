package tinkerlocal_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDependencies holds go.mod and docs/dependencies.md together: each library that we require by
// ourselves has a reason beside it in go.mod and a heading of its own in the document, and no more.
func TestDependencies(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, message := range checkDependencies(string(mod), string(doc)) {
		t.Error(message)
	}
}

var (
	requireLine = regexp.MustCompile(`^(?:require\s+)?([\w.-]+\.[\w.-]+(?:/[\w.~-]+)*)\s+v\S+\s*(?://\s*(.*))?$`)
	libraryHead = regexp.MustCompile("(?m)^### `([^`]+)`$")
)

func checkDependencies(mod, doc string) []string {
	var bad, required, described []string
	for _, m := range libraryHead.FindAllStringSubmatch(doc, -1) {
		described = append(described, m[1])
	}
	for line := range strings.Lines(mod) {
		m := requireLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || strings.HasPrefix(m[2], "indirect") {
			continue
		}
		required = append(required, m[1])
		if m[2] == "" {
			bad = append(bad, "go.mod: "+m[1]+" has no reason beside it: add one after //")
		}
		if !slices.Contains(described, m[1]) {
			bad = append(bad, "docs/dependencies.md: no heading for "+m[1]+", which go.mod requires")
		}
	}
	for _, name := range described {
		if !slices.Contains(required, name) {
			bad = append(bad, "docs/dependencies.md: heading for "+name+", which go.mod does not require")
		}
	}
	return bad
}

// TestDependenciesCatch plants one break of each rule.
func TestDependenciesCatch(t *testing.T) {
	const doc = "# Dependencies\n\n### `example.org/a/b`\n\nText.\n"
	for _, c := range []struct{ name, mod, want string }{
		{"good", "module x\n\ngo 1.26\n\nrequire (\n\texample.org/a/b v1.2.3 // reads b\n\texample.org/c v0.1.0 // indirect\n)\n", ""},
		{"single line", "require example.org/a/b v1.2.3 // reads b\n", ""},
		{"no reason", "require example.org/a/b v1.2.3\n", "example.org/a/b has no reason"},
		{"undescribed", "require (\n\texample.org/a/b v1.2.3 // reads b\n\texample.org/d v1.0.0 // does d\n)\n", "no heading for example.org/d"},
		{"gone", "module x\n", "heading for example.org/a/b, which go.mod does not require"},
	} {
		expectOne(t, c.name, checkDependencies(c.mod, doc), c.want)
	}
}
