package remote

import (
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/store"
	"tinkerlocal/store/storetest"
)

const key = "tml-test"

// serving is a real server of a store, and where it is.
func serving(t *testing.T, s api.StateStore) (*Handler, *httptest.Server, Address) {
	t.Helper()
	h := NewHandler(s)
	web := httptest.NewUnstartedServer(http.StripPrefix(Path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(keyHeader) != key {
			http.Error(w, "no key", http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})))
	web.Start()
	t.Cleanup(func() {
		h.Close()
		web.Close()
	})
	return h, web, Address{URL: web.URL, Key: key, Protocol: Protocol}
}

// dial opens a store at the other end.
func dial(t *testing.T, at Address) *Store {
	t.Helper()
	s, err := Open(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestSuite: a store at the other end is a store like every other one.
func TestSuite(t *testing.T) {
	soak := os.Getenv("TINKER_SOAK") != ""
	options := func(c *storetest.Clock) store.Options { return store.Options{Interval: -1, Margin: 1, Now: c.Now} }
	collector := func(t *testing.T, s **Store) func() {
		return func() {
			if _, err := (*s).Collect(t.Context()); err != nil {
				t.Errorf("collect: %v", err)
			}
		}
	}
	t.Run("memory", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T, c *storetest.Clock) (api.Store, func() api.Store, func()) {
			behind := store.OpenMemory(options(c))
			t.Cleanup(func() { behind.Close() })
			_, _, at := serving(t, behind)
			s := dial(t, at)
			return s, nil, collector(t, &s)
		}, soak)
	})
	t.Run("folder", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T, c *storetest.Clock) (api.Store, func() api.Store, func()) {
			dir := t.TempDir()
			var behind *store.Store
			var h *Handler
			open := func() *Store {
				var err error
				if behind, err = store.Open(dir, options(c)); err != nil {
					t.Fatal(err)
				}
				var at Address
				h, _, at = serving(t, behind)
				return dial(t, at)
			}
			s := open()
			t.Cleanup(func() { h.Close(); behind.Close() })
			return s, func() api.Store {
				s.Close()
				h.Close()
				if err := behind.Close(); err != nil {
					t.Fatal(err)
				}
				s = open()
				return s
			}, collector(t, &s)
		}, soak)
	})
}
