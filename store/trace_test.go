package store

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/store/storetest"
)

const traceDir = "TINKER_STORE_TRACE_DIR"

// traced is the child: it saves one checkpoint and says so.
func traced(dir string) error {
	s, err := Open(dir, Options{Interval: -1, Margin: 1})
	if err != nil {
		return err
	}
	fmt.Println("trace: begin")
	if _, err := storetest.Save(s, pathA, api.SaveOptions{}, storetest.Floats("x", 300_000, 1)); err != nil {
		return err
	}
	fmt.Println("trace: saved")
	return s.Close()
}

// TestTrace watches the system calls of a save: before it is reported, the value log and the memory table's log are
// synced after the chunks, and the latter again after the record. Badger writes through memory maps, so msync is the call.
func TestTrace(t *testing.T) {
	if !soak {
		t.Skip("runs with TINKER_SOAK=1")
	}
	strace, err := exec.LookPath("strace")
	if err != nil || runtime.GOOS != "linux" {
		t.Skipf("no strace: %v", err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, "-f", "-e", "trace=msync,fsync,fdatasync,write", "-s", "32", "-o", log, exe)
	cmd.Env = append(os.Environ(), traceDir+"="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		if strings.Contains(string(out), "ptrace") || strings.Contains(string(out), "Operation not permitted") {
			t.Skipf("strace may not trace here: %s", out)
		}
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), `"trace: begin`)
	during, _, ok2 := strings.Cut(rest, `"trace: saved`)
	if !ok || !ok2 {
		t.Fatalf("the trace lacks the child's words:\n%.2000s", text)
	}
	syncs := regexp.MustCompile(`msync\((0x[0-9a-f]+), \d+, MS_SYNC`).FindAllStringSubmatch(during, -1)
	maps := map[string]int{}
	for _, m := range syncs {
		maps[m[1]]++
	}
	twice := 0
	for _, n := range maps {
		if n >= 2 {
			twice++
		}
	}
	t.Logf("%d msync calls on %d maps", len(syncs), len(maps))
	if len(maps) < 2 || twice < 2 || strings.Contains(during, ") = -1") {
		t.Errorf("a save is reported after these calls:\n%s", during)
	}
}
