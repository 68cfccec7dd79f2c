package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// warnings are what C programs that use the header must compile without.
var warnings = []string{"-Wall", "-Wextra", "-Werror", "-pedantic"}

// compilers are a C and a C++ compiler, found in the environment or by their usual names.
func compiler(variable string, names ...string) string {
	if cc := os.Getenv(variable); cc != "" {
		names = []string{cc}
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// needC finds the C compiler, or skips the test.
func needC(t testing.TB) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("libtinker is built on Linux only")
	}
	cc := compiler("CC", "gcc", "clang", "cc")
	if cc == "" {
		t.Skip("no C compiler: set CC, or install gcc or clang")
	}
	return cc
}

var libraryFolder string // of the libraries that the tests built; "": not yet

func TestMain(m *testing.M) {
	code := m.Run()
	if libraryFolder != "" {
		os.RemoveAll(libraryFolder)
	}
	os.Exit(code)
}

var buildLibrary = sync.OnceValue(func() error {
	var err error
	if libraryFolder, err = os.MkdirTemp("", "libtinker-"); err != nil {
		return err
	}
	if out, err := exec.Command("./build.sh", libraryFolder).CombinedOutput(); err != nil {
		return fmt.Errorf("build.sh: %w\n%s", err, out)
	}
	return nil
})

// library builds libtinker.so and libtinker.a, once, as make build does, and returns their folder.
func library(t testing.TB) string {
	t.Helper()
	needC(t)
	if err := buildLibrary(); err != nil {
		t.Fatal(err)
	}
	return libraryFolder
}

// run runs a command under a deadline and returns its output; it must succeed.
func run(t testing.TB, stdin []byte, env []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin, cmd.Env = bytes.NewReader(stdin), append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s\n%s", filepath.Base(name), err, out.String(), errs.String())
	}
	return out.String()
}

// compile builds a C program against the shared library and returns its path.
func compile(t testing.TB, source string, flags ...string) string {
	t.Helper()
	lib := library(t)
	out := filepath.Join(t.TempDir(), strings.TrimSuffix(filepath.Base(source), ".c"))
	args := append([]string{"-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-I../include"}, warnings...)
	args = append(append(args, flags...), source, "-o", out, "-L"+lib, "-ltinker", "-Wl,-rpath,"+lib, "-lm", "-lpthread", "-ldl")
	run(t, nil, nil, needC(t), args...)
	return out
}

// sanitizer are the flags for programs under AddressSanitizer, none where the compiler does not have it.
func sanitizer(t *testing.T) []string {
	t.Helper()
	flags := []string{"-fsanitize=address", "-fno-omit-frame-pointer"}
	src := filepath.Join(t.TempDir(), "probe.c")
	if err := os.WriteFile(src, []byte("int main(void) { return 0; }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(t.TempDir(), "probe")
	if exec.Command(needC(t), append(flags, src, "-o", exe)...).Run() != nil || exec.Command(exe).Run() != nil {
		t.Log("this compiler has no AddressSanitizer: the program runs without")
		return nil
	}
	return flags
}

// TestAbuse: wrong calls get an error code each, and nothing is left.
func TestAbuse(t *testing.T) {
	exe := compile(t, "testdata/abuse.c", sanitizer(t)...)
	run(t, nil, nil, exe, t.TempDir())
}

// TestChaos: many threads call at random; the program says when something is left.
func TestChaos(t *testing.T) {
	exe := compile(t, "testdata/chaos.c", sanitizer(t)...)
	seeds := 2
	if os.Getenv("TINKER_SOAK") != "" {
		seeds = 200
	}
	for seed := range seeds {
		run(t, nil, nil, exe, fmt.Sprint(seed+1))
	}
}

// TestLoadedLate: the library is loaded by a program that has other libraries and signal handlers already, unloaded, and loaded again.
func TestLoadedLate(t *testing.T) {
	lib := library(t)
	out := filepath.Join(t.TempDir(), "late")
	run(t, nil, nil, needC(t), append([]string{"-std=c11", "-D_GNU_SOURCE", "-I../include", "testdata/late.c", "-o", out, "-ldl", "-lpthread"}, warnings...)...)
	run(t, nil, nil, out, filepath.Join(lib, "libtinker.so"))
}

// TestStatic: a program links the archive, which exposes no other symbols than the shared library.
func TestStatic(t *testing.T) {
	lib := library(t)
	out := filepath.Join(t.TempDir(), "finetune")
	run(t, nil, nil, needC(t), "-std=c11", "-I../include", "../examples/c/finetune.c", filepath.Join(lib, "libtinker.a"), "-o", out, "-lpthread", "-lresolv", "-lm")
	run(t, nil, nil, out)
}

// TestExamples builds each example as its Makefile does, and runs it.
func TestExamples(t *testing.T) {
	lib := library(t)
	out := t.TempDir()
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("no make")
	}
	run(t, nil, nil, "make", "-C", "../examples/c", "OUT="+out, "LIB="+lib, "CC="+needC(t), "CFLAGS=-O1 -g "+strings.Join(sanitizer(t), " "), "run")
}

// TestExamplesCMake builds the examples with CMake.
func TestExamplesCMake(t *testing.T) {
	lib := library(t)
	if _, err := exec.LookPath("cmake"); err != nil {
		t.Skip("no cmake")
	}
	out := t.TempDir()
	run(t, nil, nil, "cmake", "-S", "../examples/c", "-B", out, "-DTINKER_LIB="+lib, "-DCMAKE_C_COMPILER="+needC(t))
	run(t, nil, nil, "cmake", "--build", out)
	run(t, nil, nil, filepath.Join(out, "dpo"))
}

// TestAbuseRace is TestAbuse and TestChaos on a library with Go's race detector in it: the archive, in a program at a fixed address, since the detector
// finds no room for its shadow memory when it comes with a shared library.
func TestAbuseRace(t *testing.T) {
	if os.Getenv("TINKER_SOAK") == "" {
		t.Skip("set TINKER_SOAK=1: the whole engine is compiled once more")
	}
	cc, dir := needC(t), t.TempDir()
	lib := filepath.Join(dir, "libtinker.a")
	run(t, nil, []string{"CGO_ENABLED=1"}, "go", "build", "-race", "-buildmode=c-archive", "-o", lib, ".")
	for name, arg := range map[string]string{"abuse": t.TempDir(), "chaos": "1"} {
		exe := filepath.Join(dir, name)
		run(t, nil, nil, cc, "-std=c11", "-no-pie", "-D_GNU_SOURCE", "-I../include", "testdata/"+name+".c", "-o", exe, lib, "-lpthread", "-lresolv", "-lm")
		run(t, nil, []string{"GORACE=halt_on_error=1 exitcode=66"}, exe, arg)
	}
}
