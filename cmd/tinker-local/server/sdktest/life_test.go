package sdktest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// script runs a script to its end, within a time that only a hang exceeds, and gives its output.
func (p python) script(t *testing.T, version string, s *server, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	var out, problem bytes.Buffer
	c := p.command(ctx, t, version, s, append([]string{"-W", "ignore", p.scriptFile(args[0])}, args[1:]...)...)
	c.Stdout, c.Stderr = &out, &problem
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s with SDK %s: %w\n%s", args[0], version, err, problem.String())
	}
	return strings.TrimSpace(out.String()), nil
}

func (p python) scriptFile(name string) string {
	return filepath.Join(p.root, "cmd", "tinker-local", "server", "sdktest", "scripts", name)
}

// TestClientsAtOnce: processes that train and sample at once get the bits that each would get alone.
func TestClientsAtOnce(t *testing.T) {
	p := official(t)
	s := start(t, newFolders(t))
	alone, err := p.script(t, newest(t), s, "one_of_many.py")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 2 {
		for _, version := range versions(t) {
			all.Go(func() {
				got, err := p.script(t, version, s, "one_of_many.py")
				if err != nil || got != alone {
					t.Errorf("process %d with SDK %s: %s (%v), alone: %s", i, version, got, err, alone)
				}
			})
		}
	}
	all.Wait()
}

// TestKilledServer: a server is killed while a client trains, and started again on the same state and address. The client is told, or goes
// on; what was saved is there.
func TestKilledServer(t *testing.T) {
	p := official(t)
	for _, version := range versions(t) {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			f := newFolders(t)
			first := start(t, f)
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
			defer cancel()
			var problem bytes.Buffer
			c := p.command(ctx, t, version, first, "-W", "ignore", p.scriptFile("survivor.py"))
			c.Stderr = &problem
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			said, steps := map[string]string{}, 0
			for lines := bufio.NewScanner(out); lines.Scan(); {
				word, rest, _ := strings.Cut(lines.Text(), " ")
				if word != "step" {
					said[word] = rest
					continue
				}
				if steps++; steps == 3 {
					first.kill(t)
					start(t, f, "--listen", strings.TrimPrefix(first.url, "http://"))
				}
			}
			if err := c.Wait(); err != nil {
				t.Fatalf("%v\n%s", err, problem.String())
			}
			t.Logf("after %d steps: %q", steps, said)
			if e := said["error"]; !strings.Contains(e, "create_training_client_from_state_with_optimizer") && !strings.Contains(e, "started anew") {
				t.Errorf("the client was told %q, wanted how to go on", e)
			}
			if e := said["sampler"]; !strings.Contains(e, "create the sampling client again") {
				t.Errorf("sampling: the client was told %q, wanted how to go on", e)
			}
			for _, what := range []string{"sampled", "loaded", "weights", "listed"} {
				if said[what] != "True" {
					t.Errorf("%s: %q, wanted True", what, said[what])
				}
			}
		})
	}
}

// TestOwners: with a key file, clients with different keys do not see each other's runs and checkpoints, unless they are published or
// the key is lent.
func TestOwners(t *testing.T) {
	p := official(t)
	keys := filepath.Join(t.TempDir(), "keys")
	ann, bob := "tml-ann-00112233445566778899", "tml-bob-00112233445566778899"
	if err := os.WriteFile(keys, []byte("ann "+ann+"\nbob "+bob+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, newFolders(t), "--key-file", keys)
	for _, version := range versions(t)[1:] { // the oldest cannot borrow keys
		if out, err := p.script(t, version, s, "owners.py", ann, bob); err != nil || out != "done" {
			t.Errorf("%s %v", out, err)
		}
	}
	if log := s.log(); strings.Contains(log, ann) || strings.Contains(log, bob) {
		t.Errorf("a key is in the log:\n%s", log)
	}
}
