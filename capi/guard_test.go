//go:build cgo && unix

package main

import (
	"errors"
	"fmt"
	"testing"

	"tinkerlocal/capi/handle"
	"tinkerlocal/engine/api"
)

// TestGuard: whatever happens in an exported function, a status comes out.
func TestGuard(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func() error
		want int32
	}{
		{"success", func() error { return nil }, 0},
		{"panic", func() error { var p *api.Path; return errors.New(p.Run) }, 12},
		{"panic with an error", func() error { panic(api.Errorf(api.Busy, "busy")) }, 12},
		{"engine's error", func() error { return fmt.Errorf("here: %w", api.Errorf(api.NoSpace, "full")) }, 10},
		{"another's error", func() error { return errors.New("odd") }, 12},
		{"handle", func() error { return &handle.Error{Msg: "no handle"} }, 13},
		{"pending", func() error { return errPending }, 15},
		{"end", func() error { return errEnd }, 16},
		{"code unknown here", func() error { return api.Errorf("new_code", "from the future") }, 12},
	} {
		if got := int32(guard(c.do)); got != c.want {
			t.Errorf("%s: status %d, wanted %d", c.name, got, c.want)
		}
	}
	for code, status := range statuses {
		if status == 0 || code == "" {
			t.Errorf("%q has status %d", code, status)
		}
	}
	if len(statuses) != 12 {
		t.Errorf("%d codes have a status, wanted one for each of the engine's 12", len(statuses))
	}
}
