package sdktest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// python is an interpreter with the official packages.
type python struct {
	folder string // of environment.py
	root   string // of the checkout
}

// official installs the official packages, or skips the test.
func official(t *testing.T) python {
	t.Helper()
	p, err := install()
	if err == nil {
		return p
	}
	if os.Getenv("TINKER_REQUIRE_SDK") != "" {
		t.Fatal(err)
	}
	t.Skip(err)
	return p
}

var install = sync.OnceValues(func() (python, error) {
	root, err := filepath.Abs("../../../..")
	if err != nil {
		return python{}, err
	}
	var out, problem bytes.Buffer
	c := exec.Command(cmp.Or(os.Getenv("PYTHON"), "python3"), "environment.py", "--versions", "versions.txt", filepath.Join(root, "build", "sdk"), "requirements.txt")
	c.Stdout, c.Stderr = &out, &problem
	if err := c.Run(); err != nil {
		return python{}, errors.Join(errors.New("the official SDK cannot be installed here: "+strings.TrimSpace(problem.String())), err)
	}
	return python{strings.TrimSpace(out.String()), root}, nil
})

// versions are those of the SDK, oldest first.
func versions(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("versions.txt")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(text))
}

// newest is the last version.
func newest(t *testing.T) string {
	v := versions(t)
	return v[len(v)-1]
}

// command runs Python with one version of the SDK in a folder that has a tokenizer under the embedded model's name, where clients
// look for one before they ask a hub.
func (p python) command(ctx context.Context, t *testing.T, version string, s *server, args ...string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	copyFolder(t, filepath.Join(p.root, "engine", "local", "tiny"), filepath.Join(dir, "tinker-local", "tiny"), ".json")
	c := exec.CommandContext(ctx, filepath.Join(p.folder, "venv", "bin", "python"), args...)
	c.Dir = dir
	c.WaitDelay = 5 * time.Second
	c.Env = append(os.Environ(), "PYTHONPATH="+filepath.Join(p.folder, "tinker-"+version), "PYTHONDONTWRITEBYTECODE=1", "HF_HUB_OFFLINE=1",
		"HOME="+dir, "TINKER_BASE_URL="+s.url, "TINKER_API_KEY=tml-local", "TINKER_LOCAL_ROOT="+p.root)
	return c
}

// copyFolder copies the files of a folder whose names have one of the endings.
func copyFolder(t *testing.T, from, to string, endings ...string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, ending := range endings {
		files, err := filepath.Glob(filepath.Join(from, "*"+ending))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s has no *%s: %v", from, ending, err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err == nil {
				err = os.WriteFile(filepath.Join(to, filepath.Base(file)), b, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}
