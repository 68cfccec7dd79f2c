package sdk

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// These tests run each SDK's own tests on this machine, where its compiler is at hand.

func run(t *testing.T, env []string, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

// compiler is the first of names that is on this machine.
func compiler(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err == nil {
			return name
		}
	}
	t.Skipf("none of %v on this machine", names)
	return ""
}

// TestC compares the header's arithmetic with libm.
func TestC(t *testing.T) {
	exe := filepath.Join(t.TempDir(), "math.exe")
	run(t, nil, compiler(t, "clang-14", "clang", "gcc"), "-O2", "-ffp-contract=off", "-std=c11", "-Wall", "-Wextra", "-Werror", "-Ic", "-o", exe, "c/testdata/test_math.c", "-lm")
	run(t, nil, exe)
}

// TestCxx compares tape and dual numbers with difference quotients.
func TestCxx(t *testing.T) {
	exe := filepath.Join(t.TempDir(), "gradients.exe")
	run(t, nil, compiler(t, "clang++-14", "clang++", "g++"), "-O1", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Ic", "-o", exe, "c/testdata/test_gradients.cpp")
	run(t, nil, exe)
}

// TestRust runs the crate's tests, in a copy: cargo writes beside what it builds.
func TestRust(t *testing.T) {
	cargo := compiler(t, "cargo")
	var minor int
	if out, err := exec.Command(cargo, "--version").Output(); err != nil {
		t.Skipf("cargo --version: %v", err)
	} else if _, err := fmt.Sscanf(string(out), "cargo 1.%d.", &minor); err != nil || minor < 68 {
		t.Skipf("the crate needs Rust 1.68, this machine has %s", out)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("rust")); err != nil {
		t.Fatal(err)
	}
	run(t, []string{"CARGO_TARGET_DIR=" + filepath.Join(dir, "target")}, cargo, "test", "--offline", "--quiet", "--manifest-path", filepath.Join(dir, "Cargo.toml"))
}
