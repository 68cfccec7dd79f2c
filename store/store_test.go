package store

import (
	"context"
	"os"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/store/storetest"
)

var (
	ctx  = context.Background()
	soak = os.Getenv("TINKER_SOAK") != ""
)

// quiet are options without a goroutine of its own.
func quiet(c *storetest.Clock) Options {
	o := Options{Interval: -1, Margin: 1}
	if c != nil {
		o.Now = c.Now
	}
	return o
}

func collector(t *testing.T, s **Store) func() {
	return func() {
		if _, err := (*s).Collect(ctx); err != nil {
			t.Errorf("collect: %v", err)
		}
	}
}

func TestMemory(t *testing.T) {
	storetest.Run(t, func(t *testing.T, c *storetest.Clock) (api.Store, func() api.Store, func()) {
		s := OpenMemory(quiet(c))
		t.Cleanup(func() { s.Close() })
		return s, nil, collector(t, &s)
	}, soak)
}

func TestFolder(t *testing.T) {
	storetest.Run(t, func(t *testing.T, c *storetest.Clock) (api.Store, func() api.Store, func()) {
		dir := t.TempDir()
		s := reopen(t, dir, quiet(c))
		return s, func() api.Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = reopen(t, dir, quiet(c))
			return s
		}, collector(t, &s)
	}, soak)
}

func reopen(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
