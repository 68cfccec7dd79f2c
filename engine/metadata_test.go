package engine_test

import (
	"fmt"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
)

// TestUserMetadata: what people note on checkpoints is kept with them, and what is too much is refused before anything is done.
func TestUserMetadata(t *testing.T) {
	e, s := stored(t, nil)
	r := newRun(t, e.NewSession(), "small", 1)
	notes := map[string]string{"why": "first"}
	f, err := r.SaveState("x", api.SaveOptions{UserMetadata: notes})
	notes["why"] = "changed after the call"
	g, err2 := r.SaveWeightsForSampler("x", api.SaveOptions{UserMetadata: map[string]string{"why": "second"}})
	a, b := wait(t, f, err), wait(t, g, err2)
	if a.UserMetadata["why"] != "first" || b.UserMetadata["why"] != "second" {
		t.Errorf("the notes are %q and %q", a.UserMetadata, b.UserMetadata)
	}
	if c, err := s.Info(ctx, a.Path); err != nil || c.UserMetadata["why"] != "first" {
		t.Errorf("the store has %q, %v", c.UserMetadata, err)
	}
	f, err = r.SaveState("x", api.SaveOptions{Overwrite: true})
	if c := wait(t, f, err); c.UserMetadata != nil {
		t.Errorf("a checkpoint that replaced another has %q", c.UserMetadata)
	}
	_, err = r.SaveState("y", api.SaveOptions{UserMetadata: map[string]string{"k": strings.Repeat("x", api.MaxCheckpointMetadataBytes)}})
	fails(t, err, api.BadRequest, fmt.Sprintf("user_metadata has %d bytes, wanted at most %d", api.MaxCheckpointMetadataBytes+1, api.MaxCheckpointMetadataBytes))

	// The most that a run may have fits its record, also where JSON needs six bytes for one.
	req := create("small", 2)
	req.UserMetadata = map[string]string{"k": strings.Repeat("\x01", api.MaxRunMetadataBytes-1)}
	h, err := e.NewSession().NewRun(req)
	large := wait(t, h, err)
	saveState(t, large, "x")
	if rec, err := s.Run(ctx, large.ID()); err != nil || rec.UserMetadata["k"] != req.UserMetadata["k"] {
		t.Errorf("the run's record has %d bytes of notes, %v", len(rec.UserMetadata["k"]), err)
	}
	req.UserMetadata["l"] = ""
	_, err = e.NewSession().NewRun(req)
	fails(t, err, api.BadRequest, fmt.Sprintf("user_metadata has %d bytes, wanted at most %d", api.MaxRunMetadataBytes+1, api.MaxRunMetadataBytes))
}
