package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// memoryShelf is a shelf that can fail and that can hold up.
type memoryShelf struct {
	mu     sync.Mutex
	kept   map[int64][]byte
	puts   int
	broken error         // of Put
	lost   error         // of Get
	hold   chan struct{} // Get waits for it to be closed; nil: it does not
	closed bool
}

func newShelf() *memoryShelf { return &memoryShelf{kept: map[int64][]byte{}} }

func (s *memoryShelf) Put(b []byte) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.puts++
	if s.broken != nil {
		return 0, s.broken
	}
	s.kept[int64(s.puts)] = bytes.Clone(b)
	return int64(s.puts), nil
}

func (s *memoryShelf) Get(at int64, b []byte) error {
	s.mu.Lock()
	hold := s.hold
	s.mu.Unlock()
	if hold != nil {
		<-hold
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost != nil {
		return s.lost
	}
	if len(s.kept[at]) != len(b) {
		return fmt.Errorf("at %d are %d bytes, wanted %d", at, len(s.kept[at]), len(b))
	}
	copy(b, s.kept[at])
	return nil
}

func (s *memoryShelf) Drop(at int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.kept, at)
}

func (s *memoryShelf) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (s *memoryShelf) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.kept)
}

// crammed is an engine with a run whose samplers do not all fit on the device.
type crammed struct {
	*engine.Engine
	session  *engine.Session
	run      *engine.Run
	samplers []*engine.Sampler
	log      *bytes.Buffer // read it when the engine is closed
}

// sampledBytes is what a sampler of the run takes on the device.
const sampledBytes = 14_032

// room for some samplers beside a base, a run and a pool; 0: as much as is wanted.
func openCrammed(t testing.TB, some int64, change func(o *engine.Options)) *crammed {
	x := &crammed{log: &bytes.Buffer{}}
	x.Engine = open(t, func(o *engine.Options) {
		o.Limits = engine.Limits{KVPositions: 256, DecodeSequences: 4, PrefillTokens: 16}
		if some > 0 {
			o.Limits.Memory = 200_000 + some*sampledBytes
		}
		o.Log = slog.New(slog.NewTextHandler(x.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		if change != nil {
			change(o)
		}
	})
	x.session = x.NewSession()
	x.run = newRun(t, x.session, "small", 3)
	return x
}

// save takes a step and makes a sampler of the weights.
func (x *crammed) save(t testing.TB) *engine.Sampler {
	t.Helper()
	train(t, x.run, 1, datum(len(x.samplers), 8))
	p := sampler(t, x.run)
	x.samplers = append(x.samplers, p)
	return p
}

func (x *crammed) accounts(t testing.TB) engine.Accounts {
	t.Helper()
	f, err := x.session.Accounts()
	return wait(t, f, err)
}

// shelved waits until no copy is in memory any more.
func (x *crammed) shelved(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(time.Minute); x.accounts(t).InMemory > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the copies are not on the shelf")
		}
	}
}

func (x *crammed) draw(t testing.TB, i int) api.SampleOutput {
	t.Helper()
	return draw(t, x.samplers[i], ask(tokens(i, 5), 2, 6, int64(i)))
}

// TestIdleSamplers: samplers of every step of a run, of which few fit on the device, draw the same bits at any time as they do when there is
// room for all.
func TestIdleSamplers(t *testing.T) {
	const steps = 14
	plenty := openCrammed(t, 0, nil)
	var want []api.SampleOutput
	for i := range steps {
		plenty.save(t)
		want = append(want, plenty.draw(t, i))
	}
	if a := plenty.accounts(t); a.Aside != 0 {
		t.Errorf("with room for all, %d samplers are set aside", a.Aside)
	}
	for name, shelf := range map[string]*memoryShelf{"host": nil, "shelf": newShelf(), "a shelf that takes nothing": {broken: errors.New("full")}} {
		t.Run(name, func(t *testing.T) {
			x := openCrammed(t, 3, func(o *engine.Options) {
				if shelf != nil {
					o.Shelf = shelf
				}
			})
			for i := range steps {
				x.save(t)
				if got := x.draw(t, i); !reflect.DeepEqual(got, want[i]) {
					t.Errorf("step %d: %v, wanted %v", i, got, want[i])
				}
			}
			if a := x.accounts(t); a.Aside < steps-6 || a.Aside > steps-2 {
				t.Errorf("%d of %d samplers are set aside", a.Aside, steps)
			}
			rng := rand.New(rand.NewPCG(1, 1))
			for range 40 {
				i := rng.IntN(steps)
				if got := x.draw(t, i); !reflect.DeepEqual(got, want[i]) {
					t.Fatalf("sampler %d: %v, wanted %v", i, got, want[i])
				}
			}
			// All at once: some wait until others have ended.
			var all sync.WaitGroup
			for range 3 {
				for i := range steps {
					all.Go(func() {
						f, err := x.samplers[i].Sample(ctx, ask(tokens(i, 5), 2, 6, int64(i)))
						if got, err := result(f, err); err != nil || !reflect.DeepEqual(got, want[i]) {
							t.Errorf("sampler %d at once with others: %v (%v), wanted %v", i, got, err, want[i])
						}
					})
				}
			}
			all.Wait()
			sameBits(t, x.run, tokens(steps-1, 5), want[steps-1].Sequences[0]) // the latest has the run's weights
			before := x.accounts(t)
			for _, p := range x.samplers {
				p.Close()
			}
			if a := x.accounts(t); a.Aside != 0 || a.Used != before.Used-int64(steps-before.Aside)*sampledBytes {
				t.Errorf("when all are closed: %+v, before %+v with %d set aside", a, before, before.Aside)
			}
			if shelf != nil && shelf.len() != 0 {
				t.Errorf("%d copies are left on the shelf", shelf.len())
			}
			if shelf != nil && shelf.broken == nil && shelf.puts != steps && shelf.puts > 3*steps {
				t.Errorf("%d copies were made of %d samplers", shelf.puts, steps)
			}
			x.Close()
			if shelf != nil && !shelf.closed {
				t.Error("the shelf is open")
			}
		})
	}
}

// TestIdleOrder: the sampler that was used longest ago goes first.
func TestIdleOrder(t *testing.T) {
	x := openCrammed(t, 5, nil)
	for i := range 4 {
		x.save(t)
		x.draw(t, i)
	}
	if a := x.accounts(t); a.Aside != 0 {
		t.Fatalf("%d samplers are set aside", a.Aside)
	}
	x.draw(t, 0) // now 1 is the one
	for range 8 {
		x.save(t)
	}
	x.Close()
	var versions []string
	for _, m := range regexp.MustCompile(`set aside.* version=(\d+)`).FindAllStringSubmatch(x.log.String(), -1) {
		versions = append(versions, m[1])
	}
	if got := strings.Join(versions, " "); !strings.HasPrefix(got, "2 3 4 1") {
		t.Errorf("versions %s are set aside in this order, wanted 2 3 4 1 ...", got)
	}
}

// TestIdleGivenUp: what is set aside is bounded; beyond it, samplers that were used longest ago are closed, and say so.
func TestIdleGivenUp(t *testing.T) {
	shelf := newShelf()
	x := openCrammed(t, 2, func(o *engine.Options) { o.Shelf, o.Limits.IdleBytes = shelf, 3*sampledBytes })
	for range 12 {
		x.save(t)
	}
	x.shelved(t)
	gone := 0
	for i, p := range x.samplers {
		f, err := p.Sample(ctx, ask(tokens(i, 5), 1, 3, 1))
		if _, err = result(f, err); err != nil {
			if api.CodeOf(err) != api.Stale || !strings.HasPrefix(err.Error(), "the sampler was given up: nobody has drawn from it since ") {
				t.Errorf("sampler %d: %v", i, err)
			}
			if gone++; i >= gone {
				t.Errorf("sampler %d is given up and an older one is not", i)
			}
		}
		p.Close()
	}
	if gone < 3 || gone > 9 {
		t.Errorf("%d of 12 are given up", gone)
	}
	if shelf.len() > 3 {
		t.Errorf("%d copies are on the shelf", shelf.len())
	}
}

// TestIdleLost: a copy that cannot be read fails the requests for it, and nothing else.
func TestIdleLost(t *testing.T) {
	shelf := newShelf()
	x := openCrammed(t, 2, func(o *engine.Options) { o.Shelf = shelf })
	for range 8 {
		x.save(t)
	}
	x.shelved(t)
	shelf.mu.Lock()
	shelf.lost = api.Errorf(api.DataLoss, "the copy is damaged")
	shelf.mu.Unlock()
	f, err := x.samplers[0].Sample(ctx, ask(tokens(1, 3), 1, 3, 1))
	if _, err = result(f, err); api.CodeOf(err) != api.DataLoss {
		t.Errorf("a damaged copy: %v", err)
	}
	x.draw(t, 7)
	x.save(t)
	x.draw(t, 8)
	shelf.mu.Lock()
	shelf.lost = nil
	shelf.mu.Unlock()
	x.draw(t, 0)
}

// TestIdleCancel: requests that wait for weights can be given up, and end with the engine.
func TestIdleCancel(t *testing.T) {
	shelf := newShelf()
	x := openCrammed(t, 2, func(o *engine.Options) { o.Shelf = shelf })
	for range 8 {
		x.save(t)
	}
	x.shelved(t)
	hold := make(chan struct{})
	shelf.mu.Lock()
	shelf.hold = hold
	shelf.mu.Unlock()
	c, cancel := context.WithCancel(ctx)
	left, err := x.samplers[0].Sample(c, ask(tokens(1, 3), 1, 3, 1))
	if err != nil {
		t.Fatal(err)
	}
	goes, err := x.samplers[0].Sample(ctx, ask(tokens(1, 3), 1, 3, 1))
	if err != nil {
		t.Fatal(err)
	}
	x.draw(t, 7) // others go on meanwhile
	train(t, x.run, 1, datum(1, 5))
	cancel()
	if _, err := result(left, nil); api.CodeOf(err) != api.Cancelled {
		t.Errorf("a request that was given up: %v", err)
	}
	close(hold)
	wait(t, goes, nil)

	hold = make(chan struct{})
	shelf.mu.Lock()
	shelf.hold = hold
	shelf.mu.Unlock()
	ends, err := x.samplers[1].Sample(ctx, ask(tokens(1, 3), 1, 3, 1))
	if err != nil {
		t.Fatal(err)
	}
	x.accounts(t)
	time.AfterFunc(20*time.Millisecond, func() { close(hold) })
	x.Close()
	if _, err := result(ends, nil); api.CodeOf(err) != api.Closed {
		t.Errorf("a request when the engine is closed: %v", err)
	}
}
