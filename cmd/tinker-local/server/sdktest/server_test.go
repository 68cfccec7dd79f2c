package sdktest

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a server may take to be ready, and to end.
const patience = time.Minute

// program builds the program that is tested, once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sdktest-*")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "tinker-local")
	c := exec.Command("go", "build", "-o", file, "tinkerlocal/cmd/tinker-local")
	c.Stderr = os.Stderr
	return file, c.Run()
})

func TestMain(m *testing.M) {
	code := m.Run()
	if file, err := program(); err == nil {
		os.RemoveAll(filepath.Dir(file))
	}
	os.Exit(code)
}

// server is a running tinker-local serve.
type server struct {
	url string
	cmd *exec.Cmd

	mu     sync.Mutex
	stderr []string
	ended  chan struct{} // closed when the process has ended
	err    error         // how
}

// folders are where a server finds models and keeps its state.
type folders struct{ models, state string }

func newFolders(t *testing.T) folders {
	dir := t.TempDir()
	return folders{filepath.Join(dir, "models"), filepath.Join(dir, "state")}
}

// run runs another command of the program to its end.
func (f folders) run(t *testing.T, args ...string) string {
	t.Helper()
	file, err := program()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(file, append(args, "--models", f.models, "--state", f.state)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// start starts a server and waits until it is ready. It is stopped, and has to end well, when the test ends.
func start(t *testing.T, f folders, args ...string) *server {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("signals of Unix end the server")
	}
	file, err := program()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{ended: make(chan struct{})}
	s.cmd = exec.Command(file, append([]string{"serve", "--listen", "127.0.0.1:0", "--models", f.models, "--state", f.state}, args...)...)
	s.cmd.Env = append(os.Environ(), "HF_HUB_CACHE="+f.models) // no model of whoever runs the test
	out, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			s.mu.Lock()
			s.stderr = append(s.stderr, lines.Text())
			s.mu.Unlock()
			if _, url, ok := strings.Cut(lines.Text(), "ready on "); ok {
				ready <- url
			}
		}
		s.err = s.cmd.Wait()
		close(s.ended)
	}()
	t.Cleanup(func() { s.stop(t) })
	select {
	case s.url = <-ready:
	case <-s.ended:
		t.Fatalf("the server has ended: %v\n%s", s.err, s.log())
	case <-time.After(patience):
		t.Fatalf("the server is not ready after %v\n%s", patience, s.log())
	}
	return s
}

// stop asks the server to end, which it has to do without complaint. A server that has been stopped is left alone.
func (s *server) stop(t *testing.T) {
	t.Helper()
	select {
	case <-s.ended:
	default:
		s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.ended:
			if s.err != nil {
				t.Errorf("SIGTERM: the server ended with %v\n%s", s.err, s.log())
			}
		case <-time.After(patience):
			s.cmd.Process.Kill()
			t.Errorf("SIGTERM: the server runs on after %v\n%s", patience, s.log())
		}
	}
	if t.Failed() {
		t.Logf("the server said:\n%s", s.log())
	}
}

// kill ends the server as a crash does.
func (s *server) kill(t *testing.T) {
	t.Helper()
	s.cmd.Process.Kill()
	<-s.ended
}

// log is the last of what the server wrote.
func (s *server) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.stderr[max(0, len(s.stderr)-60):], "\n")
}
