package losses

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sums reads SHA256SUMS: the compiler that made the modules, and their digests by path.
func sums(t *testing.T) (compiler string, digests map[string]string) {
	t.Helper()
	raw, err := os.ReadFile("SHA256SUMS")
	if err != nil {
		t.Fatal(err)
	}
	digests = map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(raw)); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "# "); ok {
			compiler, _, _ = strings.Cut(text, ", made by")
			continue
		}
		digest, path, ok := strings.Cut(lines.Text(), "  ")
		if !ok {
			t.Fatalf("SHA256SUMS: line %q", lines.Text())
		}
		digests[path] = digest
	}
	return compiler, digests
}

// compare holds every module below folder to its digest.
func compare(t *testing.T, folder string, digests map[string]string) {
	t.Helper()
	var found []string
	for _, pattern := range []string{"*.wasm", "testdata/*.wasm"} {
		paths, err := filepath.Glob(filepath.Join(folder, pattern))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, paths...)
	}
	if len(found) != len(digests) {
		t.Errorf("%d modules, SHA256SUMS has %d", len(found), len(digests))
	}
	for _, path := range found {
		wasm, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(folder, path)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(wasm)
		if got, want := hex.EncodeToString(sum[:]), digests[filepath.ToSlash(rel)]; got != want {
			t.Errorf("%s has digest %s, SHA256SUMS has %q", rel, got, want)
		}
	}
}

// TestDigests: the committed modules are those that build.sh made last.
func TestDigests(t *testing.T) {
	_, digests := sums(t)
	compare(t, ".", digests)
}

// TestRebuild builds the modules again where the same compiler is at hand.
func TestRebuild(t *testing.T) {
	compiler, digests := sums(t)
	i := slices.IndexFunc([]string{"clang-14", "clang"}, func(name string) bool {
		out, err := exec.Command(name, "--version").Output()
		first, _, _ := strings.Cut(string(out), "\n")
		return err == nil && first == compiler
	})
	if i < 0 {
		t.Skipf("no %s on this machine", compiler)
	}
	name := []string{"clang-14", "clang"}[i]
	if out, err := exec.Command(name, "--print-prog-name=wasm-ld").Output(); err != nil || !filepath.IsAbs(strings.TrimSpace(string(out))) {
		t.Skip("no wasm-ld on this machine")
	}
	folder := t.TempDir()
	cmd := exec.Command("bash", "build.sh", folder)
	cmd.Env = append(os.Environ(), "CLANG="+name)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build.sh: %v\n%s", err, out)
	}
	compare(t, folder, digests)
}
