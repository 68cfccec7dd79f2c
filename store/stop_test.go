package store

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/store/storetest"
)

// lossy is a kv on a disk that keeps only what was synced, and loses any part of the rest when the power goes. It stops at its
// stopAt-th write or sync: that one is not done, and nothing works any more.
type lossy struct {
	*memory
	durable map[string][]byte
	pending [][]op
	calls   int
	stopAt  int
	dead    bool
	deaf    func(sync int) bool // syncs that do nothing; nil: none
	syncs   int
	trace   []string
}

var errPower = errors.New("the power is gone")

func newLossy(content map[string][]byte) *lossy {
	d := &lossy{memory: newMemory(), durable: map[string][]byte{}, stopAt: -1}
	maps.Copy(d.m, content)
	maps.Copy(d.durable, content)
	return d
}

func (d *lossy) step() error {
	if d.dead || d.calls == d.stopAt {
		d.dead = true
		return errPower
	}
	d.calls++
	return nil
}

func (d *lossy) apply(ops []op) error {
	d.mu.Lock()
	err := d.step()
	if err == nil {
		d.pending = append(d.pending, ops)
		kind := "write"
		if ops[0].value == nil {
			kind = "delete"
		}
		d.trace = append(d.trace, kind+" "+ops[0].key[:1])
	}
	d.mu.Unlock()
	if err != nil {
		return err
	}
	return d.memory.apply(ops)
}

func (d *lossy) sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	d.trace = append(d.trace, "sync")
	d.syncs++
	if d.deaf != nil && d.deaf(d.syncs) {
		return nil
	}
	for _, ops := range d.pending {
		set(d.durable, ops)
	}
	d.pending = nil
	return nil
}

func set(m map[string][]byte, ops []op) {
	for _, o := range ops {
		if o.value == nil {
			delete(m, o.key)
		} else {
			m[o.key] = o.value
		}
	}
}

// crash is what the disk may hold after the power has gone: all that was synced, and of the rest what rng picks.
func (d *lossy) crash(rng *rand.Rand) map[string][]byte {
	out := maps.Clone(d.durable)
	for _, ops := range d.pending {
		if rng.IntN(2) == 0 {
			set(out, ops)
		}
	}
	return out
}

// scenario is a list of steps with what is there after each.
type scenario []struct {
	do    func(s *Store) error
	after map[string][]storetest.Blob
}

const (
	pathA = "tinker://r/weights/a"
	pathB = "tinker://r/weights/b"
	pathC = "tinker://r/sampler_weights/c"
	pathD = "tinker://r/weights/d"
)

func theScenario() scenario {
	type state = map[string][]storetest.Blob
	x, y, z := storetest.Floats("x", 260_000, 1), storetest.Floats("y", 5000, 2), storetest.Floats("z", 1000, 3)
	save := func(path string, o api.SaveOptions, blobs ...storetest.Blob) func(*Store) error {
		return func(s *Store) error { _, err := storetest.Save(s, path, o, blobs...); return err }
	}
	del := func(path string) func(*Store) error {
		return func(s *Store) error { p, _ := api.ParsePath(path); return s.Delete(ctx, p) }
	}
	collect := func(s *Store) error { _, err := s.Collect(ctx); return err }
	return scenario{
		{save(pathA, api.SaveOptions{}, x, y), state{pathA: {x, y}}},
		{save(pathC, api.SaveOptions{}, x), state{pathA: {x, y}, pathC: {x}}},
		{save(pathB, api.SaveOptions{}, y, z), state{pathA: {x, y}, pathC: {x}, pathB: {y, z}}},
		{save(pathA, api.SaveOptions{Overwrite: true}, z), state{pathA: {z}, pathC: {x}, pathB: {y, z}}},
		{del(pathB), state{pathA: {z}, pathC: {x}}},
		{collect, state{pathA: {z}, pathC: {x}}},
		{save(pathB, api.SaveOptions{KeepLast: 1}, y), state{pathB: {y}, pathC: {x}}},
		{func(s *Store) error { p, _ := api.ParsePath(pathB); return s.Publish(ctx, p) }, state{pathB: {y}, pathC: {x}}},
		{del(pathC), state{pathB: {y}}},
		{collect, state{pathB: {y}}},
		{save(pathD, api.SaveOptions{}, x, y, z), state{pathB: {y}, pathD: {x, y, z}}},
	}
}

// run plays the scenario on a disk that stops, and says what is wrong after the power has come back.
func (sc scenario) run(disk *lossy, rng *rand.Rand) (wrong string, finished bool) {
	done := 0
	s, err := open(disk, Options{Interval: -1, Workers: 1})
	if err == nil {
		for _, step := range sc {
			if err = step.do(s); err != nil {
				break
			}
			done++
		}
		s.Close()
	}
	if err != nil && !errors.Is(err, errPower) {
		return fmt.Sprintf("step %d failed: %v", done, err), false
	}
	allowed := []map[string][]storetest.Blob{{}}
	if done > 0 {
		allowed[0] = sc[done-1].after
	}
	if done < len(sc) {
		allowed = append(allowed, sc[done].after)
	}
	again, err := open(newLossy(disk.crash(rng)), Options{Interval: -1, Workers: 1})
	if err != nil {
		return fmt.Sprintf("after %d steps: open: %v", done, err), false
	}
	defer again.Close()
	if bad, err := again.Verify(ctx); err != nil || len(bad) > 0 {
		return fmt.Sprintf("after %d steps: verify: %v %v", done, bad, err), false
	}
	var diffs []string
	for _, want := range allowed {
		diff := compare(again, want)
		if diff == "" {
			return "", done == len(sc)
		}
		diffs = append(diffs, diff)
	}
	return fmt.Sprintf("after %d steps: %s", done, strings.Join(diffs, "; or ")), false
}

// compare says how the store's checkpoints differ from want.
func compare(s api.Store, want map[string][]storetest.Blob) string {
	page, err := s.List(ctx, api.CheckpointQuery{})
	if err != nil {
		return err.Error()
	}
	if len(page.Checkpoints) != len(want) {
		return fmt.Sprintf("%d checkpoints, wanted %d", len(page.Checkpoints), len(want))
	}
	for path, blobs := range want {
		_, got, err := storetest.Load(s, path)
		if err != nil {
			return err.Error()
		}
		if diff := storetest.Equal(got, blobs); diff != "" {
			return path + ": " + diff
		}
	}
	return ""
}

// TestStopAnywhere stops the store before each of its writes and syncs, loses an arbitrary part of what was not synced,
// and wants every checkpoint whole or absent, and there if its save was reported a success.
func TestStopAnywhere(t *testing.T) {
	sc := theScenario()
	seeds := uint64(3)
	if soak {
		seeds = 100
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 1))
		for n := 0; ; n++ {
			disk := newLossy(nil)
			disk.stopAt = n
			wrong, finished := sc.run(disk, rng)
			if wrong != "" {
				t.Errorf("stopped before write %d, seed %d: %s", n, seed, wrong)
			}
			if finished {
				t.Logf("%d writes and syncs", n)
				break
			}
		}
	}
}

// TestSyncMatters is the test of the test above: with any one kind of sync left out, it must find something wrong.
func TestSyncMatters(t *testing.T) {
	sc := theScenario()
	for name, deaf := range map[string]func(sync int) bool{
		"all":                   func(int) bool { return true },
		"of chunks":             func(n int) bool { return n == 2 }, // 1 is of the format
		"of the first record":   func(n int) bool { return n == 3 },
		"of the chunks of save": func(n int) bool { return n%2 == 0 },
	} {
		found := false
		for seed := uint64(0); seed < 40 && !found; seed++ {
			rng := rand.New(rand.NewPCG(seed, 2))
			for n := 1; n < 12 && !found; n++ {
				disk := newLossy(nil)
				disk.stopAt, disk.deaf = n, deaf
				wrong, _ := sc.run(disk, rng)
				found = wrong != ""
			}
		}
		if !found {
			t.Errorf("a store without the sync %s passes", name)
		}
	}
}

// TestOrder pins the order of writes of one save.
func TestOrder(t *testing.T) {
	disk := newLossy(nil)
	s, err := open(disk, Options{Interval: -1, Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	disk.trace = nil
	if _, err := storetest.Save(s, pathA, api.SaveOptions{}, storetest.Floats("x", 10, 1)); err != nil {
		t.Fatal(err)
	}
	if want := []string{"write c", "sync", "write k", "sync"}; !slices.Equal(disk.trace, want) {
		t.Errorf("a save does %q, wanted %q", disk.trace, want)
	}
	for name, do := range map[string]func(p api.Path) error{
		"publish": func(p api.Path) error { return s.Publish(ctx, p) },
		"ttl":     func(p api.Path) error { return s.SetTTL(ctx, p, 1) },
	} {
		disk.trace = nil
		p, _ := api.ParsePath(pathA)
		if err := do(p); err != nil && api.CodeOf(err) != api.NotFound {
			t.Fatal(err)
		}
		if len(disk.trace) > 0 && disk.trace[len(disk.trace)-1] != "sync" {
			t.Errorf("%s does %q, wanted a sync at the end", name, disk.trace)
		}
	}
}

// TestFailedSync: after a sync that failed, the store takes no writes, and reads go on.
func TestFailedSync(t *testing.T) {
	disk := newLossy(nil)
	s, err := open(disk, Options{Interval: -1, Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	x := storetest.Floats("x", 10, 1)
	if _, err := storetest.Save(s, pathA, api.SaveOptions{}, x); err != nil {
		t.Fatal(err)
	}
	disk.stopAt = disk.calls + 1 // the chunks are written, the sync fails
	if _, err := storetest.Save(s, pathB, api.SaveOptions{}, storetest.Floats("x", 10, 2)); !errors.Is(err, errPower) {
		t.Errorf("a save without sync gave %v", err)
	}
	if _, err := storetest.Save(s, pathD, api.SaveOptions{}, x); api.CodeOf(err) != api.Closed || !strings.Contains(err.Error(), "opened again") {
		t.Errorf("a save after a failed sync gave %v", err)
	}
	if diff := compare(s, map[string][]storetest.Blob{pathA: {x}}); diff != "" {
		t.Error(diff)
	}
}
