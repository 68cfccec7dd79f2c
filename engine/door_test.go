package engine_test

import (
	"testing"

	"tinkerlocal/engine/api"
)

// TestSessionAs: a door may name a session; its runs begin with the name, and two open ones never share it.
func TestSessionAs(t *testing.T) {
	e := open(t, nil)
	s, err := e.NewSessionAs("ann", "kept-id")
	if err != nil {
		t.Fatal(err)
	}
	if r := newRun(t, s, "small", 1); r.ID() != "kept-id:train:0" {
		t.Errorf("the run is %s", r.ID())
	}
	_, err = e.NewSessionAs("ann", "kept-id")
	fails(t, err, api.BadRequest, "session kept-id is open already")
	_, err = e.NewSessionAs("ann", "../x")
	fails(t, err, api.BadRequest, `the session id "../x" begins with '.', wanted an ASCII letter, a digit or _`)
	s.Close()
	if _, err := e.NewSessionAs("bob", "kept-id"); err != nil {
		t.Errorf("after the first was closed: %v", err)
	}
	e.Close()
	_, err = e.NewSessionAs("ann", "late")
	fails(t, err, api.Closed, "the engine is closed")
}

// TestRefusePlace: a request that a door could not read uses its number up; what follows does not wait for it.
func TestRefusePlace(t *testing.T) {
	r := newRun(t, open(t, nil).NewSession(), "small", 1)
	next, err := r.At(2).OptimStep(adam(0.01))
	if err != nil {
		t.Fatal(err)
	}
	r.At(1).Refuse(api.Errorf(api.BadRequest, "no protobuf"))
	wait(t, next, nil)
	_, err = r.At(1).OptimStep(adam(0.01))
	fails(t, err, api.BadRequest, "no protobuf")
	r.At(2).Refuse(api.Errorf(api.BadRequest, "too late"))
	again, err := r.At(2).OptimStep(adam(0.01))
	if err != nil || again != next {
		t.Errorf("number 2 answers %v, %v", again, err)
	}
}

// TestPlaceZero: number 0 is none: such operations come behind all others and never answer for one another.
func TestPlaceZero(t *testing.T) {
	r := newRun(t, open(t, nil).NewSession(), "small", 1)
	a, err := r.At(0).OptimStep(adam(0.01))
	b, err2 := r.At(0).OptimStep(adam(0.01))
	wait(t, a, err)
	wait(t, b, err2)
	if a == b || r.Info().Step != 2 {
		t.Errorf("one future is the other's: %t; step %d, want 2", a == b, r.Info().Step)
	}
}

// TestLoadStateAs: a run loads what another owner lent it, and nothing else of theirs.
func TestLoadStateAs(t *testing.T) {
	e, _ := stored(t, nil)
	r := newRun(t, e.NewSessionFor("ann"), "small", 1)
	path := saveState(t, r, "mine").Path.String()
	bob := newRun(t, e.NewSessionFor("bob"), "small", 2)
	_, err := result(bob.LoadState(path))
	fails(t, err, api.NotFound, "there is no checkpoint "+path)
	f, err := bob.At(2).LoadStateAs("ann", path, true)
	wait(t, f, err)
	if a, b := weights(t, r), weights(t, bob); a[0] != b[0] {
		t.Errorf("weights begin with %v, want %v", b[0], a[0])
	}
}
