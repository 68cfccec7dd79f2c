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
	for _, message := range checkLibraryUse(projectImports(t), string(doc)) {
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

var (
	userLine = regexp.MustCompile("(?m)^Used by ((?:`[^`]+`(?:, )?)+)")
	backtick = regexp.MustCompile("`([^`]+)`")
)

// checkLibraryUse returns one message per import of a library by a package that the library's heading
// does not name in its "Used by" line.
func checkLibraryUse(imports map[string][]string, doc string) []string {
	users := map[string][]string{}
	heads := libraryHead.FindAllStringSubmatchIndex(doc, -1)
	for i, h := range heads {
		end := len(doc)
		if i+1 < len(heads) {
			end = heads[i+1][0]
		}
		name := doc[h[2]:h[3]]
		users[name] = nil
		if m := userLine.FindStringSubmatch(doc[h[1]:end]); m != nil {
			for _, user := range backtick.FindAllStringSubmatch(m[1], -1) {
				users[name] = append(users[name], user[1])
			}
		}
	}
	var bad []string
	for _, pkg := range sortedKeys(imports) {
		for _, path := range imports[pkg] {
			if first, _, _ := strings.Cut(path, "/"); !strings.Contains(first, ".") {
				continue // ours or the standard library's
			}
			for _, library := range sortedKeys(users) {
				if under(path, library) && !slices.Contains(users[library], pkg) {
					bad = append(bad, "docs/dependencies.md: "+pkg+" imports "+path+", but the heading of "+library+" does not say that it is used there")
				}
			}
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

	const use = "### `example.org/a`\n\nUsed by `store`, `kernels/cpu`. Text.\n\n### `example.org/b`\n\nUsed by `plugins`.\n"
	for _, c := range []struct{ name, pkg, path, want string }{
		{"named", "kernels/cpu", "example.org/a/x", ""},
		{"standard library", "engine", "encoding/json", ""},
		{"named elsewhere", "store", "example.org/b", "store imports example.org/b"},
	} {
		expectOne(t, c.name, checkLibraryUse(map[string][]string{c.pkg: {c.path}}, use), c.want)
	}
}
