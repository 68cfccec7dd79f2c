package store

import (
	"bufio"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/store/storetest"
)

const (
	killDir  = "TINKER_STORE_KILL_DIR"
	killSeed = "TINKER_STORE_KILL_SEED"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(killDir); dir != "" {
		var seed uint64
		fmt.Sscan(os.Getenv(killSeed), &seed)
		if err := victim(dir, seed); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		return
	}
	if dir := os.Getenv(traceDir); dir != "" {
		if err := traced(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		return
	}
	os.Exit(m.Run())
}

// step is one random operation, the same in parent and child.
type step struct {
	kind  int // 0 save, 1 delete, 2 collect
	path  string
	opt   api.SaveOptions
	blobs []storetest.Blob
}

func nextStep(rng *rand.Rand) step {
	st := step{path: fmt.Sprintf("tinker://r/weights/%d", rng.IntN(5))}
	switch k := rng.IntN(10); {
	case k < 6:
		st.opt = api.SaveOptions{Overwrite: true, KeepLast: 4}
		for i := range 1 + rng.IntN(3) {
			st.blobs = append(st.blobs, storetest.Floats(fmt.Sprint("t", i), 1+rng.IntN(400_000), uint64(rng.IntN(20))))
		}
	case k < 8:
		st.kind = 1
	default:
		st.kind = 2
	}
	return st
}

// world is what the parent knows: the checkpoints, the oldest first.
type world []storedItem

type storedItem struct {
	path  string
	blobs []storetest.Blob
}

func (w world) after(st step) world {
	out := slices.DeleteFunc(slices.Clone(w), func(i storedItem) bool { return st.kind != 2 && i.path == st.path })
	if st.kind == 0 {
		out = append(out, storedItem{st.path, st.blobs})
		out = out[max(0, len(out)-st.opt.KeepLast):]
	}
	return out
}

func (w world) asMap() map[string][]storetest.Blob {
	m := map[string][]storetest.Blob{}
	for _, i := range w {
		m[i.path] = i.blobs
	}
	return m
}

// small value logs, so that they are rewritten and deleted all the time.
func victimOptions() Options {
	return Options{Interval: 20 * time.Millisecond, Margin: 1, valueLog: 2 << 20}
}

// victim is the child: it works until it is killed, and says what it begins and what it has done.
func victim(dir string, seed uint64) error {
	s, err := Open(dir, victimOptions())
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 3))
	fmt.Println("open")
	for {
		st := nextStep(rng)
		fmt.Println("begin")
		switch st.kind {
		case 0:
			_, err = storetest.Save(s, st.path, st.opt, st.blobs...)
		case 1:
			p, _ := api.ParsePath(st.path)
			if err = s.Delete(ctx, p); api.CodeOf(err) == api.NotFound {
				err = nil
			}
		case 2:
			_, err = s.Collect(ctx)
		}
		if err != nil {
			return err
		}
		fmt.Println("done")
	}
}

// TestKill kills a process that saves, overwrites, deletes and collects, at random moments, again and again in one
// folder. What it had reported as done must be there byte for byte; what it was at, whole or not at all.
func TestKill(t *testing.T) {
	rounds := 20
	if soak {
		rounds = 1000
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	var w world
	total := 0
	for round := range rounds {
		seed := rng.Uint64() >> 1
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), killDir+"="+dir, fmt.Sprintf("%s=%d", killSeed, seed))
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(time.Duration(rng.IntN(400))*time.Millisecond, func() { cmd.Process.Kill() })
		begun, done := 0, 0
		for lines := bufio.NewScanner(out); lines.Scan(); {
			switch lines.Text() {
			case "begin":
				begun++
			case "done":
				done++
			}
		}
		err = cmd.Wait()
		kill.Stop()
		if stderr.Len() > 0 {
			t.Fatalf("round %d: the child said: %s (%v)", round, stderr.String(), err)
		}
		steps := rand.New(rand.NewPCG(seed, 3))
		for range done {
			w = w.after(nextStep(steps))
		}
		total += done
		maybe := w
		if begun > done {
			maybe = w.after(nextStep(steps))
		}
		s, err := Open(dir, Options{Interval: -1, Margin: 1, valueLog: 2 << 20})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		diff := compare(s, w.asMap())
		if diff != "" && compare(s, maybe.asMap()) == "" {
			diff, w = "", maybe
		}
		if bad, err := s.Verify(ctx); diff != "" || err != nil || len(bad) > 0 {
			t.Fatalf("round %d, seed %d, %d of %d steps done: %s; verify: %v %v; wanted %v", round, seed, done, begun, diff, bad, err, slices.Sorted(maps.Keys(w.asMap())))
		}
		if err := s.Close(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	t.Logf("%d rounds, %d steps", rounds, total)
}
