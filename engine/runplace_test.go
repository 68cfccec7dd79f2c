package engine_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
)

func create(model string, seed int64) api.CreateModelRequest {
	c := api.DefaultLora()
	c.Rank, c.Seed = 2, &seed
	return api.CreateModelRequest{BaseModel: model, Lora: c}
}

// TestRunNumbers: a caller's numbers make the ids, in any order and from many goroutines at once; a repeat gets the first future
// whatever it asks for, also of a run that failed or was closed.
func TestRunNumbers(t *testing.T) {
	e, _ := stored(t, nil)
	s := e.NewSession()
	var mu sync.Mutex
	got := map[int64]*engine.Future[*engine.Run]{}
	var work sync.WaitGroup
	order := rand.New(rand.NewPCG(1, 2)).Perm(24)
	for _, i := range order {
		work.Go(func() {
			n := int64(i % 8)
			f, err := s.At(n).NewRun(create("small", int64(i)))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if first, ok := got[n]; ok && first != f {
				t.Errorf("number %d has two futures", n)
			}
			got[n] = f
		})
	}
	work.Wait()
	for n, f := range got {
		if r := wait(t, f, nil); r.ID() != fmt.Sprintf("%s:train:%d", s.ID(), n) {
			t.Errorf("run %d is %s", n, r.ID())
		}
	}
	if n := len(s.Runs()); n != 8 {
		t.Fatalf("%d runs are open", n)
	}
	next := newRun(t, s, "small", 1)
	if next.ID() != s.ID()+":train:8" {
		t.Errorf("a run without a number is %s", next.ID())
	}
	_, err := s.At(8).NewRun(create("small", 1))
	fails(t, err, api.BadRequest, "run number 8 was used by a call without a number")
	_, err = s.At(-1).NewRun(create("small", 1))
	fails(t, err, api.BadRequest, "run number is -1, wanted 0..9007199254740992")

	// What is refused at once leaves the number free; what fails later does not.
	_, err = s.At(20).NewRun(create("", 1))
	fails(t, err, api.BadRequest, "create model: base_model is empty")
	bad, err := s.At(20).NewRun(create("nobody", 1))
	_, failed := result(bad, err)
	fails(t, failed, api.NotFound, `no model "nobody"`)
	if again, err := s.At(20).NewRun(create("small", 1)); again != bad || err != nil {
		t.Errorf("the repeat of a failed number got %v, %v", again, err)
	}
	first := wait(t, got[0], nil)
	first.Close()
	if again, err := s.At(0).NewRunFrom(engine.RunSource{Path: "nonsense"}); again != got[0] || err != nil {
		t.Errorf("the repeat of a closed run's number got %v, %v", again, err)
	}

	// A run from a checkpoint has a number, too, and what failed of it is no run.
	path := saveState(t, next, "x").Path.String()
	from, err := s.At(30).NewRunFrom(engine.RunSource{Path: path, Optimizer: true, UserMetadata: map[string]string{"a": "b"}})
	if again, err := s.At(30).NewRunFrom(engine.RunSource{Path: "elsewhere", Optimizer: true}); again != from || err != nil {
		t.Errorf("the repeat got %v, %v", again, err)
	}
	if r := wait(t, from, err); r.ID() != s.ID()+":train:30" || !slices.Equal(weights(t, r), weights(t, next)) {
		t.Errorf("run %s has other weights than the checkpoint", r.ID())
	}
	_, err = s.At(31).NewRunFrom(engine.RunSource{Path: "tinker://none/weights/x", Optimizer: true})
	fails(t, err, api.NotFound, "there is no checkpoint tinker://none/weights/x")
	if r := ready(t)(s.At(31).NewRunFrom(engine.RunSource{Path: path})); r.ID() != s.ID()+":train:31" {
		t.Errorf("run %s took the number that was refused", r.ID())
	}
}

func ready(t testing.TB) func(*engine.Future[*engine.Run], error) *engine.Run {
	return func(f *engine.Future[*engine.Run], err error) *engine.Run { t.Helper(); return wait(t, f, err) }
}

// TestRunNumbersForgotten: ended runs are remembered up to a limit, open ones always.
func TestRunNumbersForgotten(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.Runs, o.Limits.Remembered = 2, 3 })
	s := e.NewSession()
	open := ready(t)(s.At(0).NewRun(create("small", 1)))
	var futures []*engine.Future[*engine.Run]
	for n := int64(1); n <= 6; n++ {
		f, err := s.At(n).NewRun(create("small", n))
		wait(t, f, err).Close()
		futures = append(futures, f)
	}
	if f, err := s.At(0).NewRun(create("small", 1)); err != nil || wait(t, f, nil) != open {
		t.Errorf("the open run was forgotten: %v", err)
	}
	_, err := s.At(1).NewRun(create("small", 1))
	fails(t, err, api.BadRequest, "run number 1 has passed: runs that ended before number 3 are forgotten")
	for n := int64(3); n <= 6; n++ {
		if f, err := s.At(n).NewRun(create("small", n)); f != futures[n-1] {
			t.Errorf("number %d answered with another future: %v", n, err)
		}
	}
}

// TestOpeningRunsCount: runs that are being opened count for the limit, and those that fail make room.
func TestOpeningRunsCount(t *testing.T) {
	loading, goOn := make(chan struct{}, 100), make(chan struct{})
	e := open(t, func(o *engine.Options) {
		o.Limits.Runs = 2
		o.Progress = func(string, int64, int64) { loading <- struct{}{}; <-goOn }
	})
	s := e.NewSession()
	a, err := s.NewRun(create("small", 1))
	if err != nil {
		t.Fatal(err)
	}
	<-loading
	b, err := s.NewRun(create("nobody", 1))
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.At(7).NewRun(create("small", 1))
	fails(t, err, api.Busy, "2 runs are open, the limit is 2")
	close(goOn)
	wait(t, a, nil)
	_, err = result(b, nil)
	fails(t, err, api.NotFound, `no model "nobody"`)
	if r := ready(t)(s.At(7).NewRun(create("small", 1))); r.ID() != s.ID()+":train:7" {
		t.Errorf("run %s took the number that was refused", r.ID())
	}
}

// slowRecords is a store that takes its time for a run's record.
type slowRecords struct{ api.Store }

func (s slowRecords) PutRun(ctx context.Context, r api.RunRecord) error {
	time.Sleep(20 * time.Millisecond)
	return s.Store.PutRun(ctx, r)
}

// TestNewRunIsListed: who has been given a run finds it in the store.
func TestNewRunIsListed(t *testing.T) {
	e, s := stored(t, func(o *engine.Options) { o.Checkpoints = slowRecords{o.Checkpoints} })
	for range 3 {
		r := newRun(t, e.NewSession(), "small", 1)
		if _, err := s.Run(ctx, r.ID()); err != nil {
			t.Error(err)
		}
	}
}

// TestLastRequest: the store knows when a run was last asked for something: within a minute, at every save, and exactly when the run or
// the engine has been closed.
func TestLastRequest(t *testing.T) {
	var mu sync.Mutex
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	after := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); now = now.Add(d) }
	e, s := stored(t, func(o *engine.Options) {
		o.Now = clock
		o.Checkpoints = borrowed{o.Checkpoints}
	})
	r, other := newRun(t, e.NewSession(), "small", 1), newRun(t, e.NewSession(), "small", 2)
	start := clock()
	want := func(what, id string, at time.Time) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			rec, err := s.Run(ctx, id)
			if err == nil && rec.LastRequest.Equal(at) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: the record is %+v (%v), wanted a last request at %v", what, rec, err, at)
			}
		}
	}
	want("open", r.ID(), start)
	after(59 * time.Second)
	train(t, r, 1, datum(1, 4))
	after(time.Second)
	train(t, r, 1, datum(1, 4))
	want("a minute", r.ID(), start.Add(time.Minute)) // and never 59 s: nothing was written then
	after(5 * time.Second)
	saveState(t, r, "x")
	if rec, err := s.Run(ctx, r.ID()); err != nil || !rec.LastRequest.Equal(clock()) || rec.LastCheckpoint == nil {
		t.Errorf("after a save the record is %+v, %v", rec, err)
	}
	after(time.Second)
	train(t, r, 1, datum(1, 4))
	train(t, other, 1, datum(1, 4))
	last := clock()
	after(time.Second)
	r.Close()
	want("closed", r.ID(), last)
	e.Close()
	want("engine closed", other.ID(), last)
}

// TestRunFromNumbers: the load of a run that begins with a checkpoint takes none of the caller's numbers. The checkpoint may be one
// that another owner has lent, and the base another one with the same modules.
func TestRunFromNumbers(t *testing.T) {
	twin := enginetest.Small
	twin.Seed = 7
	e, _ := stored(t, func(o *engine.Options) {
		o.Models = enginetest.Models{"small": enginetest.Small, "twin": twin, "other": other()}
	})
	r := newRun(t, e.NewSessionFor("ann"), "small", 1)
	f, err := r.OptimStep(adam(0.01))
	wait(t, f, err)
	path := saveState(t, r, "x").Path.String()

	bob := e.NewSessionFor("bob")
	_, err = bob.NewRunFrom(engine.RunSource{Path: path})
	fails(t, err, api.NotFound, "there is no checkpoint "+path)
	got := ready(t)(bob.At(0).NewRunFrom(engine.RunSource{Path: path, Optimizer: true, Reader: "ann", BaseModel: "twin"}))
	if i := got.Info(); i.BaseModel != "twin" || i.Step != 1 || i.Lora.Rank != 4 {
		t.Errorf("the run has base %s, step %d and rank %d", i.BaseModel, i.Step, i.Lora.Rank)
	}
	second, err := got.At(2).OptimStep(adam(0.01))
	if err != nil {
		t.Fatal(err)
	}
	first, err := got.At(1).OptimStep(adam(0.01))
	wait(t, first, err)
	wait(t, second, nil)
	for range 2 {
		f, err := r.OptimStep(adam(0.01))
		wait(t, f, err)
	}
	if step := got.Info().Step; step != 3 || !slices.Equal(weights(t, got), weights(t, r)) {
		t.Errorf("after two steps the run is at %d, wanted 3, with the weights of the run that was saved", step)
	}

	// A base whose modules have other shapes is refused, and leaves nothing behind.
	_, err = result(bob.NewRunFrom(engine.RunSource{Path: path, Reader: "ann", BaseModel: "other"}))
	if code := api.CodeOf(err); err == nil || code != api.BadRequest {
		t.Errorf("a base of other shapes gives %v (%s)", err, code)
	}
	if n := len(bob.Runs()); n != 1 {
		t.Errorf("%d runs are open, wanted 1", n)
	}
}
