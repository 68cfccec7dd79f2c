package engine_test

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
)

// crowd is an engine whose memory holds three of its bases, which have one shape, and something more.
type crowd struct {
	*engine.Engine
	clock atomic.Int64
	log   bytes.Buffer // read it when the engine is closed
}

// crowdBase is what one of the bases takes.
const crowdBase = 242_816

func openCrowd(t *testing.T, more int64) *crowd {
	big := enginetest.Small
	big.Vocab = 2000
	c := &crowd{}
	c.Engine = open(t, func(o *engine.Options) {
		o.Models = enginetest.Models{"a": big, "b": big, "c": big, "d": big}
		o.Limits = engine.Limits{Memory: 3*crowdBase + more, KVPositions: 256, DecodeSequences: 4, PrefillTokens: 16}
		o.Now = func() time.Time { return time.Unix(1e9+c.clock.Add(1), 0) }
		o.Log = slog.New(slog.NewTextHandler(&c.log, nil))
	})
	return c
}

// visit opens and closes a sampler on each base.
func (c *crowd) visit(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		s := c.NewSession()
		f, err := s.NewSampler(name)
		if p := wait(t, f, err); p.Base().Bytes != crowdBase {
			t.Fatalf("the base has %d bytes", p.Base().Bytes)
		}
		s.Close()
	}
	f, err := c.NewSession().Accounts() // the queue is empty when this has ended
	wait(t, f, err)
}

// newHeadRun opens a run whose adapter has rank x 2024 parameters.
func (c *crowd) newHeadRun(base string, rank int) (*engine.Run, error) {
	return result(c.NewSession().NewRun(api.CreateModelRequest{BaseModel: base, Lora: api.LoraConfig{Rank: rank, TrainUnembed: true}}))
}

func (c *crowd) has(t *testing.T, want string) {
	t.Helper()
	f, err := c.NewSession().Accounts()
	wait(t, f, err)
	var names []string
	for _, b := range c.Status().Bases {
		names = append(names, b.Name)
	}
	if got := strings.Join(names, " "); got != want {
		t.Errorf("bases %s are loaded, wanted %s", got, want)
	}
}

// TestUnload: a base that nobody uses makes room for whatever needs memory: the one that was used longest ago, and no more of them than
// are needed. It is loaded again when somebody wants it, with the same bits.
func TestUnload(t *testing.T) {
	for _, k := range []struct {
		name string
		more int64 // memory beside the three bases
		use  func(t *testing.T, c *crowd) error
		left string
	}{
		{"nothing", 0, func(t *testing.T, c *crowd) error { c.visit(t, "b", "a"); return nil }, "a b c"},
		{"load", 0, func(t *testing.T, c *crowd) error { c.visit(t, "d"); return nil }, "a c d"},
		{"adapter", 50_000, func(t *testing.T, c *crowd) error { // 161920 bytes
			_, err := c.newHeadRun("a", 4)
			return err
		}, "a c"},
		{"large adapter", 50_000, func(t *testing.T, c *crowd) error { // 323840 bytes
			_, err := c.newHeadRun("a", 8)
			return err
		}, "a"},
		{"adapter that fits", 170_000, func(t *testing.T, c *crowd) error {
			_, err := c.newHeadRun("a", 4)
			return err
		}, "a b c"},
		{"adapter and its base", 50_000, func(t *testing.T, c *crowd) error {
			_, err := c.newHeadRun("d", 4)
			return err
		}, "a d"},
		{"snapshot", 170_000, func(t *testing.T, c *crowd) error {
			r, err := c.newHeadRun("a", 4)
			if err == nil {
				_, err = result(r.SaveForSampler()) // 32384 bytes
			}
			return err
		}, "a c"},
		{"key/value pool", 50_000, func(t *testing.T, c *crowd) error {
			f, err := c.NewSession().NewSampler("a")
			draw(t, wait(t, f, err), ask(tokens(1, 9), 1, 3, 1))
			if n := c.Status().Bases[0].Sampling.Positions; n != 256 {
				t.Errorf("the pool has %d positions", n)
			}
			return err
		}, "a c"},
		{"batch", 170_000, func(t *testing.T, c *crowd) error {
			r, err := c.newHeadRun("a", 4)
			train(t, r, 1, datum(1, 20))
			return err
		}, "a c"},
		{"whole-batch loss", 170_000, func(t *testing.T, c *crowd) error {
			r, err := c.newHeadRun("a", 4)
			f, _ := r.ForwardBackwardCustom([]api.Datum{datum(1, 20)}, squares{}, nil)
			wait(t, f, nil)
			return err
		}, "a c"},
	} {
		t.Run(k.name, func(t *testing.T) {
			c := openCrowd(t, k.more)
			c.visit(t, "a", "b", "c", "a")
			c.has(t, "a b c")
			if err := k.use(t, c); err != nil {
				t.Fatal(err)
			}
			c.has(t, k.left)
			c.Close()
			if n := strings.Count(c.log.String(), `msg="base unloaded: the memory is needed" model=b idle=`); (n == 1) != (k.left != "a b c") {
				t.Errorf("it is logged %d times:\n%s", n, &c.log)
			}
		})
	}
}

// TestUnloadInUse: a base with a run or an open sampler stays; what does not fit beside it is refused. One that went is loaded
// again, with the same bits.
func TestUnloadInUse(t *testing.T) {
	c := openCrowd(t, 30_000)
	s := c.NewSession()
	look := func(name string) api.SampleOutput {
		f, err := c.NewSession().NewSampler(name)
		p := wait(t, f, err)
		defer p.Close()
		return draw(t, p, ask(tokens(1, 9), 1, 3, 1))
	}
	before := look("b")
	r, err := c.newHeadRun("a", 2) // in the place of b and its pool
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.NewSampler("c")
	p := wait(t, f, err)
	first := forwardBits(t, r)
	if _, err := c.newHeadRun("c", 12); api.CodeOf(err) != api.OutOfMemory {
		t.Errorf("an adapter that does not fit gave %v", err)
	}
	c.has(t, "a c")
	if again := forwardBits(t, r); !slices.Equal(first, again) {
		t.Error("the run gives other bits than before")
	}
	draw(t, p, ask(tokens(1, 9), 1, 3, 1))
	p.Close()
	r.Close()
	if after := look("b"); !slices.Equal(after.Sequences[0].RawLogProbs, before.Sequences[0].RawLogProbs) {
		t.Error("a base that was loaded again gives other bits")
	}
}

// forwardBits are the log-probabilities of a forward.
func forwardBits(t *testing.T, r *engine.Run) []float32 {
	t.Helper()
	f, err := r.Forward(batch(datum(1, 20)))
	return logProbs(wait(t, f, err))
}

// TestUnloadPool: a key/value pool on which no sampler is left goes before any base does; one with an open sampler stays.
func TestUnloadPool(t *testing.T) {
	for _, left := range []string{"a b c", "b c"} {
		c := openCrowd(t, 400_000)
		if _, err := c.newHeadRun("b", 2); err != nil {
			t.Fatal(err)
		}
		f, err := c.NewSession().NewSampler("b")
		p := wait(t, f, err)
		draw(t, p, ask(tokens(1, 9), 1, 3, 1))
		c.visit(t, "a", "c")
		pool := c.Status().Bases[1].Sampling.Bytes
		if left == "a b c" {
			p.Close()
		}
		rank := 1 // whose adapter takes a bit more than there is
		for int64(rank)*40_480 <= 3*crowdBase+400_000-c.Status().Memory.Used {
			rank++
		}
		if _, err := c.newHeadRun("b", rank); err != nil {
			t.Fatal(err)
		}
		c.has(t, left)
		i := slices.IndexFunc(c.Status().Bases, func(b api.BaseStatus) bool { return b.Name == "b" })
		if now := c.Status().Bases[i].Sampling.Bytes; pool == 0 || left == "b c" && now != pool || left == "a b c" && now != 0 {
			t.Errorf("%s are left; the pool of %d bytes has %d", left, pool, now)
		}
	}
}
