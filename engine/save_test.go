package engine_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/kernels"
	"tinkerlocal/store"
)

// stored opens an engine with a store in memory.
func stored(t testing.TB, change func(o *engine.Options)) (*engine.Engine, api.Store) {
	t.Helper()
	s := store.OpenMemory(store.Options{Interval: -1})
	return open(t, func(o *engine.Options) {
		o.Checkpoints = s
		if change != nil {
			change(o)
		}
	}), s
}

func saveState(t testing.TB, r *engine.Run, name string) api.Checkpoint {
	t.Helper()
	f, err := r.SaveState(name, api.SaveOptions{})
	return wait(t, f, err)
}

// borrowed is a store that an engine does not close.
type borrowed struct{ api.Store }

func (borrowed) Close() error { return nil }

// TestResume: a run that was saved and resumed, in the same engine or in another one, gives the bits of one that was
// never stopped; with the weights alone it does not, and neither does a cold one.
func TestResume(t *testing.T) {
	e, s := stored(t, nil)
	r := newRun(t, e.NewSession(), "small", 11)
	data := []api.Datum{datum(1, 9), datum(2, 14)}
	train(t, r, 5, data...)
	c := saveState(t, r, "five")
	if c.Path.String() != "tinker://"+r.ID()+"/weights/five" || c.Step != 5 || c.Version != 5 || !c.Optimizer || *c.Lora.Seed != 11 || c.Owner != "local" || c.BaseModel != "small" {
		t.Errorf("the checkpoint is %+v", c)
	}
	follow := func(r *engine.Run) (out [][]float32) {
		for i := range 20 {
			f, err := r.ForwardBackward(batch(datum(i, 7), datum(i+3, 12)))
			if err != nil {
				t.Fatal(err)
			}
			o, err := r.OptimStep(adam(0.01))
			wait(t, o, err)
			out = append(out, logProbs(wait(t, f, nil)))
		}
		return append(out, weights(t, r))
	}
	want := follow(r)
	same := func(name string, got [][]float32, equal bool) {
		t.Helper()
		for i := range want {
			if eq := slices.Equal(got[i], want[i]); !eq && equal {
				t.Fatalf("%s: step %d differs", name, i)
			}
		}
		if !equal && slices.Equal(got[len(got)-1], want[len(want)-1]) {
			t.Errorf("%s: the weights are those of the run that went on", name)
		}
	}
	path := c.Path.String()

	another, _ := stored(t, func(o *engine.Options) { o.Checkpoints = borrowed{s} })
	for name, eng := range map[string]*engine.Engine{"same engine": e, "another engine": another} {
		f, err := eng.NewSession().NewRunFrom(engine.RunSource{Path: path, Optimizer: true, UserMetadata: map[string]string{"why": "test"}})
		resumed := wait(t, f, err)
		if info := resumed.Info(); info.Step != 5 || info.UserMetadata["why"] != "test" || *info.Lora.Seed != 11 {
			t.Errorf("%s: %+v", name, info)
		}
		same(name, follow(resumed), true)
	}

	loadedRun := newRun(t, another.NewSession(), "small", 99)
	train(t, loadedRun, 2, data...)
	if _, err := loadedRun.ForwardBackward(batch(data...)); err != nil { // a gradient that the load drops
		t.Fatal(err)
	}
	l, err := loadedRun.LoadStateWithOptimizer(path)
	if got := wait(t, l, err); got.SHA256 != c.SHA256 {
		t.Errorf("loaded %+v", got)
	}
	same("load into a run", follow(loadedRun), true)

	f, err := another.NewSession().NewRunFrom(engine.RunSource{Path: path})
	warm := wait(t, f, err)
	if warm.Info().Step != 0 {
		t.Errorf("a run with the weights alone is at step %d", warm.Info().Step)
	}
	got := follow(warm)
	same("weights alone", got, false)
	if !slices.Equal(got[0], want[0]) {
		t.Error("weights alone: the first forward differs")
	}
	cold := newRun(t, another.NewSession(), "small", 11)
	if got := follow(cold); slices.Equal(got[0], want[0]) {
		t.Error("a cold run gives the logprobs of the saved one")
	}
}

// TestSaveOrder: saves and loads have their place among the run's operations, without anybody waiting between.
func TestSaveOrder(t *testing.T) {
	e, s := stored(t, nil)
	r := newRun(t, e.NewSession(), "small", 1)
	path := "tinker://" + r.ID() + "/x"
	var futures []*engine.Future[api.Checkpoint]
	var before [][]float32
	for i := range 6 {
		train(t, r, 1, datum(i, 8))
		before = append(before, weights(t, r))
		f, err := r.SaveState("x", api.SaveOptions{Overwrite: true})
		if err != nil {
			t.Fatal(err)
		}
		futures = append(futures, f)
		if _, err := r.OptimStep(adam(0.5)); err != nil { // must not reach the copy
			t.Fatal(err)
		}
	}
	l, err := r.LoadState(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range futures {
		if c := wait(t, f, nil); c.Step != int64(2*i+1) {
			t.Errorf("save %d is of step %d", i, c.Step)
		}
	}
	wait(t, l, nil)
	if !slices.Equal(weights(t, r), before[5]) {
		t.Error("the load did not see the last save")
	}
	rec, err := s.Run(ctx, r.ID())
	if err != nil || rec.BaseModel != "small" || rec.Owner != engine.LocalOwner || rec.LastCheckpoint == nil || rec.LastCheckpoint.Step != 11 {
		t.Errorf("the run's record is %+v, %v", rec, err)
	}
}

// TestSamplerFrom: a sampler on saved weights draws what one on a copy in memory draws.
func TestSamplerFrom(t *testing.T) {
	e, _ := stored(t, nil)
	s := e.NewSession()
	r := newRun(t, s, "small", 1)
	train(t, r, 3, datum(1, 9))
	copyInMemory := sampler(t, r)
	f, err := r.SaveWeightsForSampler("w", api.SaveOptions{TTL: time.Hour})
	c := wait(t, f, err)
	if c.Path.Kind != api.KindSampler || c.Optimizer || c.Expires.IsZero() {
		t.Errorf("the checkpoint is %+v", c)
	}
	state := saveState(t, r, "w")
	if state.Written >= state.Stored {
		t.Errorf("the state after the weights wrote %d of %d bytes", state.Written, state.Stored)
	}
	for _, path := range []string{c.Path.String(), state.Path.String()} {
		f, err := s.NewSamplerFrom(path)
		p := wait(t, f, err)
		if p.Version() != copyInMemory.Version() {
			t.Errorf("version %d, wanted %d", p.Version(), copyInMemory.Version())
		}
		seed := int64(3)
		q := api.SampleRequest{Prompt: api.FromInts([]int32{1, 2, 3}), NumSamples: 2, Params: api.DefaultSampling()}
		q.Params.Seed, q.Params.MaxTokens = &seed, 12
		var out [2]api.SampleOutput
		for i, x := range []*engine.Sampler{copyInMemory, p} {
			f, err := x.Sample(ctx, q)
			out[i] = wait(t, f, err)
		}
		for i := range out[0].Sequences {
			if !slices.Equal(out[0].Sequences[i].Tokens, out[1].Sequences[i].Tokens) || !slices.Equal(out[0].Sequences[i].LogProbs, out[1].Sequences[i].LogProbs) {
				t.Errorf("%s: sequence %d differs", path, i)
			}
		}
	}
}

func TestSaveRefusals(t *testing.T) {
	e, s := stored(t, nil)
	session := e.NewSessionFor("ann")
	r := newRun(t, session, "small", 1)
	c := saveState(t, r, "x")
	path := c.Path.String()
	_, err := r.SaveState("a/b", api.SaveOptions{})
	fails(t, err, api.BadRequest, `the name "a/b" has the character '/', wanted ASCII letters, digits and . _ - : + = @ , ~`)
	f, err := r.SaveState("x", api.SaveOptions{})
	if _, err = result(f, err); api.CodeOf(err) != api.BadRequest || !strings.Contains(err.Error(), "exists since") {
		t.Errorf("a second save of one name: %v", err)
	}
	_, err = r.LoadState("/etc/passwd")
	fails(t, err, api.BadRequest, `path "/etc/passwd": wanted tinker://RUN/weights/NAME or tinker://RUN/sampler_weights/NAME`)
	f, err = r.LoadState("tinker://nobody/weights/x")
	_, err = result(f, err)
	fails(t, err, api.NotFound, "there is no checkpoint tinker://nobody/weights/x")

	narrow := api.DefaultLora()
	narrow.Rank = 2
	n, err := session.NewRun(api.CreateModelRequest{BaseModel: "small", Lora: narrow})
	small := wait(t, n, err)
	f, err = small.LoadState(path)
	if _, err = result(f, err); api.CodeOf(err) != api.BadRequest || !strings.Contains(err.Error(), "rank 4") {
		t.Errorf("another rank: %v", err)
	}
	o := newRun(t, session, "other", 1)
	f, err = o.LoadState(path)
	if _, err = result(f, err); api.CodeOf(err) != api.BadRequest || !strings.Contains(err.Error(), "lm_head") {
		t.Errorf("another base: %v", err)
	}
	train(t, o, 1, datum(1, 3)) // a failed load leaves the run alone

	w, err := r.SaveWeightsForSampler("w", api.SaveOptions{})
	weightsOnly := wait(t, w, err)
	f, err = r.LoadStateWithOptimizer(weightsOnly.Path.String())
	_, err = result(f, err)
	fails(t, err, api.BadRequest, fmt.Sprintf("checkpoint %v has weights only, no optimizer state: load it without", weightsOnly.Path))
	g, err := session.NewRunFrom(engine.RunSource{Path: weightsOnly.Path.String(), Optimizer: true})
	if _, err = result(g, err); api.CodeOf(err) != api.BadRequest {
		t.Errorf("a run from weights with optimizer: %v", err)
	}
	if len(session.Runs()) != 3 {
		t.Errorf("%d runs are open, wanted 3", len(session.Runs()))
	}

	stranger := e.NewSessionFor("bob")
	_, err = stranger.NewSamplerFrom(path)
	fails(t, err, api.NotFound, "there is no checkpoint "+path)
	b := newRun(t, stranger, "small", 1)
	f, err = b.LoadState(path)
	_, err = result(f, err)
	fails(t, err, api.NotFound, "there is no checkpoint "+path)
	if err := s.Publish(ctx, c.Path); err != nil {
		t.Fatal(err)
	}
	f, err = b.LoadState(path)
	wait(t, f, err)

	without := open(t, nil)
	_, err = newRun(t, without.NewSession(), "small", 1).SaveState("x", api.SaveOptions{})
	fails(t, err, api.Unsupported, "this engine was opened without a checkpoint store")
}

// slowStore holds up every Create until it is let go.
type slowStore struct {
	api.Store
	gate chan struct{}
}

func (s *slowStore) Create(ctx context.Context, c api.Checkpoint, o api.SaveOptions) (api.CheckpointWriter, error) {
	select {
	case <-s.gate:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return s.Store.Create(ctx, c, o)
}

// TestSaveInBackground: training goes on while a save waits for the disk; a third save waits for its turn; and
// Close fails what is not done, without leaving device memory behind.
func TestSaveInBackground(t *testing.T) {
	slow := &slowStore{Store: store.OpenMemory(store.Options{Interval: -1}), gate: make(chan struct{})}
	e, _ := stored(t, func(o *engine.Options) { o.Checkpoints = slow })
	r := newRun(t, e.NewSession(), "small", 1)
	var saves []*engine.Future[api.Checkpoint]
	for i := range 2 {
		f, err := r.SaveState(fmt.Sprint(i), api.SaveOptions{})
		if err != nil {
			t.Fatal(err)
		}
		saves = append(saves, f)
	}
	train(t, newRun(t, e.NewSession(), "small", 2), 2, datum(1, 5)) // another run
	third, err := r.SaveState("third", api.SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stuck, err := r.OptimStep(adam(0.1))
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-stuck.Done():
		t.Error("a step behind a third pending save has run")
	case <-time.After(30 * time.Millisecond):
	}
	close(slow.gate)
	wait(t, stuck, nil)
	for _, f := range append(saves, third) {
		wait(t, f, nil)
	}
	slow.gate = make(chan struct{})
	last, err := r.SaveState("last", api.SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	train(t, r, 1, datum(1, 5))
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = result(last, nil)
	fails(t, err, api.Closed, "the engine is closed")
}

// tight is a device that has no memory for copies.
type tight struct {
	kernels.Device
	full *atomic.Bool
}

func (d tight) Info() kernels.Info {
	i := d.Device.Info()
	if d.full.Load() {
		i.Free = 1
	}
	return i
}

// TestSaveWithoutRoom: without device memory for a copy, a save reads the adapter itself.
func TestSaveWithoutRoom(t *testing.T) {
	var full atomic.Bool
	e, _ := stored(t, func(o *engine.Options) { o.Device = tight{o.Device, &full} })
	r := newRun(t, e.NewSession(), "small", 1)
	train(t, r, 2, datum(1, 5))
	want := saveState(t, r, "copy")
	full.Store(true)
	got := saveState(t, r, "direct")
	full.Store(false)
	if got.SHA256 != want.SHA256 || got.Written != 0 {
		t.Errorf("saved %+v, wanted the content of %+v", got, want)
	}
}

// TestSaveExternal: weights for other programs are a checkpoint of a kind of their own, with the tensors of those for sampling.
func TestSaveExternal(t *testing.T) {
	e, s := stored(t, nil)
	r := newRun(t, e.NewSession(), "small", 1)
	f, err := r.SaveWeightsExternal("w", api.SaveOptions{TTL: time.Hour})
	c := wait(t, f, err)
	g, err := r.SaveWeightsForSampler("w", api.SaveOptions{})
	if same := wait(t, g, err); c.SHA256 != same.SHA256 || c.Optimizer || c.Expires.IsZero() {
		t.Errorf("saved %+v, wanted the tensors of %+v", c, same)
	}
	if want := "tinker://" + r.ID() + "/external_weights/w"; c.Path.String() != want {
		t.Errorf("saved %v, wanted %s", c.Path, want)
	}
	if page, err := s.List(ctx, api.CheckpointQuery{Kind: api.KindExternal}); err != nil || len(page.Checkpoints) != 1 || page.Checkpoints[0].Path != c.Path {
		t.Errorf("listed %+v (%v)", page, err)
	}
	two := api.Path{Run: r.ID(), Name: "w"} // sampler weights come first
	if found, err := s.Info(ctx, two); err != nil || found.Path.Kind != api.KindSampler {
		t.Errorf("%v is %v (%v)", two, found.Path, err)
	}
}

// leaving is a store whose first writer loses its store at one place, as if a process had died.
type leaving struct {
	api.Store
	at   string // "tensor", "commit", or "committed": the answer is lost
	left *atomic.Int64
}

type leavingWriter struct {
	api.CheckpointWriter
	s leaving
}

func (s leaving) Create(ctx context.Context, c api.Checkpoint, o api.SaveOptions) (api.CheckpointWriter, error) {
	w, err := s.Store.Create(ctx, c, o)
	if err != nil {
		return nil, err
	}
	return leavingWriter{w, s}, nil
}

func (w leavingWriter) gone(at string) error {
	if w.s.at == at && w.s.left.Add(-1) >= 0 {
		w.CheckpointWriter.Abort()
		return api.Errorf(api.Closed, "gone")
	}
	return nil
}

func (w leavingWriter) Tensor(ctx context.Context, t api.TensorInfo, data []byte) error {
	if err := w.gone("tensor"); err != nil {
		return err
	}
	return w.CheckpointWriter.Tensor(ctx, t, data)
}

func (w leavingWriter) Commit(ctx context.Context) (api.Checkpoint, error) {
	if err := w.gone("commit"); err != nil {
		return api.Checkpoint{}, err
	}
	c, err := w.CheckpointWriter.Commit(ctx)
	if err == nil {
		err = w.gone("committed")
	}
	return c, err
}

// TestSaveAgain: a save whose store goes away in the middle and comes back is done; one whose store does not is told, and the run goes on.
func TestSaveAgain(t *testing.T) {
	for _, at := range []string{"tensor", "commit", "committed"} {
		for times, want := range map[int64]api.Code{1: "", 2: api.Closed} {
			var s leaving
			e, _ := stored(t, func(o *engine.Options) {
				s = leaving{o.Checkpoints, at, &atomic.Int64{}}
				s.left.Store(times)
				o.Checkpoints = s
			})
			r := newRun(t, e.NewSession(), "small", 1)
			train(t, r, 1, datum(1, 9))
			f, err := r.SaveState("x", api.SaveOptions{})
			if err != nil {
				t.Fatal(err)
			}
			c, err := f.Wait(t.Context())
			if want != "" {
				if api.CodeOf(err) != want || err == nil {
					t.Errorf("%s %d times: got %v, wanted %s", at, times, err, want)
				}
			} else if info, bad := s.Info(t.Context(), c.Path); err != nil || bad != nil || info.SHA256 != c.SHA256 || info.Step != 1 {
				t.Errorf("%s %d times: %+v, %v, %v", at, times, info, err, bad)
			}
			if saveState(t, r, "y").Step != 1 {
				t.Errorf("%s %d times: the run does not go on", at, times)
			}
		}
	}
}
