package tinkerlocal_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// maxLines is where a file has become more than one idea. Generated files are not read by people.
const maxLines = 700

// vagueNames say nothing about what a package or file holds.
var vagueNames = []string{"util", "utils", "common", "helper", "helpers", "misc"}

// TestStyle holds every Go file to the rules that a reader notices first.
func TestStyle(t *testing.T) {
	sources := map[string][]byte{}
	contract := map[string]bool{}
	for _, name := range wellKnown {
		contract[name] = true
	}
	for _, file := range sourceFiles(t, ".go") {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		sources[file] = src
		if !strings.HasSuffix(file, "_test.go") {
			addInterfaceMethods(contract, src)
		}
	}
	for _, file := range sortedKeys(sources) {
		for _, message := range checkStyle(file, sources[file], contract) {
			t.Error(message)
		}
	}
}

// wellKnown methods mean what the standard library says they mean.
var wellKnown = []string{"String", "Error", "Unwrap", "Is", "Len", "Less", "Swap"}

// addInterfaceMethods adds the names of the methods of src's exported interfaces: their meaning is said
// there, once, and not again at each implementation.
func addInterfaceMethods(contract map[string]bool, src []byte) {
	f, err := parser.ParseFile(token.NewFileSet(), "", src, parser.SkipObjectResolution)
	if err != nil {
		return // checkStyle reports it
	}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok || !spec.Name.IsExported() {
			return true
		}
		if it, ok := spec.Type.(*ast.InterfaceType); ok {
			for _, m := range it.Methods.List {
				for _, id := range m.Names {
					contract[id.Name] = true
				}
			}
		}
		return true
	})
}

// checkStyle returns one message per rule that a file breaks. contract holds the methods that need no
// comment of their own.
func checkStyle(name string, src []byte, contract map[string]bool) []string {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return []string{err.Error()}
	}
	if ast.IsGenerated(f) {
		return nil
	}
	var bad []string
	if lines := strings.Count(string(src), "\n"); lines > maxLines {
		bad = append(bad, fmt.Sprintf("%s: %d lines, want at most %d: split it by idea", name, lines, maxLines))
	}
	if base := strings.TrimSuffix(filepath.Base(name), ".go"); slices.Contains(vagueNames, base) || slices.Contains(vagueNames, f.Name.Name) {
		bad = append(bad, fmt.Sprintf("%s: name the package and the file after what they hold", name))
	}
	if strings.HasSuffix(name, "_test.go") {
		return bad
	}
	for _, spec := range f.Imports {
		if spec.Name != nil && spec.Name.Name == "_" && spec.Path.Value != `"embed"` {
			bad = append(bad, fmt.Sprintf("%s: blank import of %s: nothing registers itself here", fset.Position(spec.Pos()), spec.Path.Value))
		}
	}
	if f.Name.Name != "main" {
		for _, id := range undocumented(f, contract) {
			bad = append(bad, fmt.Sprintf("%s: exported %s has no doc comment", fset.Position(id.Pos()), id.Name))
		}
	}
	return bad
}

// undocumented returns the exported top-level names of f without a comment. A group's comment serves
// all its names, a function's comment also the next function if it names it; methods count when their
// type is exported.
func undocumented(f *ast.File, contract map[string]bool) []*ast.Ident {
	var out []*ast.Ident
	var shared string // the comment above a run of functions
	add := func(id *ast.Ident, comments ...*ast.CommentGroup) {
		if id.IsExported() && !slices.ContainsFunc(comments, func(c *ast.CommentGroup) bool { return c != nil }) {
			out = append(out, id)
		}
	}
	for _, decl := range f.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv != nil && (!ast.IsExported(receiver(d.Recv.List[0].Type)) || contract[d.Name.Name]) {
				continue
			}
			if d.Doc != nil {
				shared = d.Doc.Text()
			}
			if !strings.Contains(shared, d.Name.Name) {
				add(d.Name, d.Doc)
			}
		case *ast.GenDecl:
			shared = ""
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.TypeSpec:
					add(s.Name, d.Doc, s.Doc, s.Comment)
				case *ast.ValueSpec:
					for _, id := range s.Names {
						add(id, d.Doc, s.Doc, s.Comment)
					}
				}
			}
		}
	}
	return out
}

// receiver returns the name of a method's receiver type.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// TestStyleCatches plants one break of each rule.
func TestStyleCatches(t *testing.T) {
	contract := map[string]bool{}
	addInterfaceMethods(contract, []byte("package k\n\ntype Ops interface {\n\tZero()\n}\n\ntype private interface {\n\tM()\n}\n"))
	for _, c := range []struct{ name, file, src, want string }{
		{"good", "a.go", "package a\n\n// F does it.\nfunc F() {}\n\nfunc g() {}\n", ""},
		{"function", "a.go", "package a\n\nfunc F() {}\n", "exported F has no doc comment"},
		{"method", "a.go", "package a\n\n// T is a type.\ntype T[K any] struct{}\n\nfunc (t *T[K]) M() {}\n", "exported M has no doc comment"},
		{"method of a private type", "a.go", "package a\n\ntype t struct{}\n\nfunc (t) String() string { return \"\" }\n", ""},
		{"method of an interface", "a.go", "package a\n\n// T is a type.\ntype T int\n\nfunc (t T) Zero() {}\n", ""},
		{"two functions", "a.go", "package a\n\n// F and G do it.\nfunc F() {}\nfunc G() {}\nfunc H() {}\n", "exported H has no doc comment"},
		{"group comment", "a.go", "package a\n\n// Sizes in bytes.\nconst (\n\tA = 1\n\tB = 2\n)\n", ""},
		{"no comment", "a.go", "package a\n\nconst (\n\ta = 1\n\tB = 2\n)\n", "exported B has no doc comment"},
		{"line comment", "a.go", "package a\n\nconst (\n\tB = 2 // bytes\n)\n", ""},
		{"test", "a_test.go", "package a\n\nfunc F() {}\n", ""},
		{"blank import", "a.go", "package a\n\nimport _ \"image/png\"\n", `blank import of "image/png"`},
		{"embed", "a.go", "package a\n\nimport _ \"embed\"\n", ""},
		{"vague file", "a/util.go", "package a\n", "name the package and the file"},
		{"long", "a.go", "package a\n" + strings.Repeat("\n", maxLines), "701 lines, want at most 700"},
		{"long but generated", "a.go", "// Code generated by x. DO NOT EDIT.\n\npackage a\n" + strings.Repeat("\n", maxLines), ""},
	} {
		expectOne(t, c.name, checkStyle(c.file, []byte(c.src), contract), c.want)
	}
}

var (
	markdownLink  = regexp.MustCompile(`\]\(([^)#\s]+)[^)]*\)`)
	markdownFence = regexp.MustCompile("(?ms)^```.*?^```")
)

// TestDocumentLinks follows each relative link of each document.
func TestDocumentLinks(t *testing.T) {
	for _, document := range sourceFiles(t, ".md") {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, m := range markdownLink.FindAllStringSubmatch(markdownFence.ReplaceAllString(string(text), ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(path.Join(path.Dir(filepath.ToSlash(document)), m[1])); err != nil {
				t.Errorf("%s: link to %s leads nowhere", document, m[1])
			}
		}
	}
}

// TestArchitectureNamesPackages keeps docs/architecture.md true: every package of the project has its
// line there.
func TestArchitectureNamesPackages(t *testing.T) {
	text, err := os.ReadFile("docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, file := range sourceFiles(t, ".go") {
		pkg := filepath.ToSlash(filepath.Dir(file))
		if pkg == "." || seen[pkg] || underAny(pkg, free) {
			continue
		}
		seen[pkg] = true
		if !strings.Contains(string(text), "`"+pkg+"`") {
			t.Errorf("docs/architecture.md does not name the package `%s`", pkg)
		}
	}
}
