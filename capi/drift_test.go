package main

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// find returns what the first group of a pattern matches in a file, sorted.
func find(t *testing.T, pattern, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
		out = append(out, m[1])
	}
	slices.Sort(out)
	return out
}

// declared are the functions of the header.
func declared(t *testing.T) []string {
	t.Helper()
	return find(t, `(?m)^TINKER_API [a-z_ ]+\*?(tinker_\w+)\(`, "../include/tinker.h")
}

// same reports names that only one of two lists has.
func same(t *testing.T, aName string, a []string, bName string, b []string) {
	t.Helper()
	for _, x := range a {
		if !slices.Contains(b, x) {
			t.Errorf("%s is in %s and not in %s", x, aName, bName)
		}
	}
	for _, x := range b {
		if !slices.Contains(a, x) {
			t.Errorf("%s is in %s and not in %s", x, bName, aName)
		}
	}
	if len(a) == 0 || len(slices.Compact(slices.Clone(a))) != len(a) {
		t.Errorf("%s: %d names, some of them twice", aName, len(a))
	}
}

// inC are the functions that need no Go.
var inC = []string{"tinker_status_name", "tinker_last_error", "tinker_version"}

// TestDrift holds header, shim and Go exports together.
func TestDrift(t *testing.T) {
	header := declared(t)
	same(t, "tinker.h", header, "shim.c", find(t, `(?m)^(?:tinker_status|const char \*|void) ?(tinker_\w+)\([^;]*\{`, "shim.c"))
	var exports []string
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f, "_test.go") {
			exports = append(exports, find(t, `(?m)^//export (tinkergo_\w+)$`, f)...)
			for _, name := range find(t, `(?m)^func (tinkergo_\w+)\(`, f) {
				if !slices.Contains(exports, name) {
					t.Errorf("%s: %s is not exported", f, name)
				}
			}
		}
	}
	var want []string
	for _, name := range header {
		if !slices.Contains(inC, name) {
			want = append(want, strings.Replace(name, "tinker_", "tinkergo_", 1))
		}
	}
	same(t, "tinker.h", want, "the Go exports", exports)
	abuse := ""
	for _, f := range []string{"testdata/abuse.c", "testdata/expect.h"} {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		abuse += string(text)
	}
	for _, name := range header {
		if !strings.Contains(abuse, name+"(") {
			t.Errorf("testdata/abuse.c does not try %s", name)
		}
	}
	// A function calls its twin and no other: a slip that the compiler cannot see.
	shim, err := os.ReadFile("shim.c")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?ms)^(?:tinker_status|void) (tinker_\w+)\([^;{]*\{(.*?)^?\}$`).FindAllStringSubmatch(string(shim), -1) {
		for _, call := range regexp.MustCompile(`tinkergo_(\w+)\(`).FindAllStringSubmatch(m[2], -1) {
			if "tinker_"+call[1] != m[1] {
				t.Errorf("shim.c: %s calls tinkergo_%s", m[1], call[1])
			}
		}
	}
}

// TestHeaderComments: above every function of the header stands a comment that ends with the version that had it first.
func TestHeaderComments(t *testing.T) {
	text, err := os.ReadFile("../include/tinker.h")
	if err != nil {
		t.Fatal(err)
	}
	since := regexp.MustCompile(`since: \d+\.\d+ \*/$`)
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "TINKER_API") && !since.MatchString(lines[i-1]) {
			t.Errorf("tinker.h:%d: no comment with since above it: %s", i+1, line)
		}
	}
}

// TestSymbols: the library exposes the header's functions and nothing else.
func TestSymbols(t *testing.T) {
	f, err := elf.Open(filepath.Join(library(t), "libtinker.so"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range symbols {
		if s.Section != elf.SHN_UNDEF && elf.ST_BIND(s.Info) != elf.STB_LOCAL {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	same(t, "tinker.h", declared(t), "libtinker.so", names)

	if _, err := exec.LookPath("nm"); err != nil {
		t.Skip("no nm: the archive is not looked into")
	}
	names = nil
	for _, line := range strings.Split(run(t, nil, nil, "nm", "-g", "--defined-only", filepath.Join(library(t), "libtinker.a")), "\n") {
		if f := strings.Fields(line); len(f) == 3 {
			names = append(names, f[2])
		}
	}
	slices.Sort(names)
	same(t, "tinker.h", declared(t), "libtinker.a", names)
}

// TestHeader compiles the header by itself as C11 and C++17, all structs' macros with it, and the examples.
func TestHeader(t *testing.T) {
	cc := needC(t)
	var src strings.Builder
	src.WriteString("#include \"tinker.h\"\n#include \"tinker.h\"\nint main(void) {\n")
	for _, name := range find(t, `(?m)^#define TINKER_(\w+)_INIT `, "../include/tinker.h") {
		src.WriteString("  { tinker_" + strings.ToLower(name) + " x = TINKER_" + name + "_INIT; (void)x; }\n")
	}
	src.WriteString("  return 0;\n}\n")
	languages := [][]string{{cc, "-x", "c", "-std=c11"}}
	if cxx := compiler("CXX", "g++", "clang++", "c++"); cxx != "" {
		languages = append(languages, []string{cxx, "-x", "c++", "-std=c++17"})
	} else {
		t.Log("no C++ compiler: C alone is tried")
	}
	for _, l := range languages {
		args := append(append(l[1:], warnings...), "-I../include", "-fsyntax-only")
		run(t, []byte(src.String()), nil, l[0], append(args, "-")...)
		examples, err := filepath.Glob("../examples/c/*.c")
		if err != nil || len(examples) == 0 {
			t.Fatal(examples, err)
		}
		run(t, nil, nil, l[0], append(args, examples...)...)
	}
}

// TestShimWarnings compiles the shim against the Go exports with all warnings.
func TestShimWarnings(t *testing.T) {
	cc := needC(t)
	dir := t.TempDir()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"tool", "cgo", "-objdir", dir, "--", "-I../include"}
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.Contains(string(text), "\nimport \"C\"\n") && !strings.HasSuffix(f, "_test.go") {
			args = append(args, f)
		}
	}
	run(t, nil, []string{"CGO_ENABLED=1"}, "go", args...)
	run(t, nil, nil, cc, "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-I../include", "-I"+dir, "-fsyntax-only", "shim.c")
}
