package local

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
)

// TestShelf: what is put on the shelf comes back to the bit, damage is told, and nothing outlives the process that put it there.
func TestShelf(t *testing.T) {
	state := t.TempDir()
	left := filepath.Join(state, shelfFolder, "0")
	if err := os.MkdirAll(filepath.Dir(left), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(left, []byte("of a process that was killed"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := openShelf(state)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(left)); !os.IsNotExist(err) {
		t.Errorf("what was left behind is there: %v", err)
	}
	weights := [][]byte{{}, {1}, bytes.Repeat([]byte{7, 9}, 100_000)}
	var at []int64
	for _, w := range weights {
		k, err := s.Put(w)
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, k)
	}
	for i, w := range weights {
		b := make([]byte, len(w))
		if err := s.Get(at[i], b); err != nil || !bytes.Equal(b, w) {
			t.Errorf("%d: %v", i, err)
		}
		if st, err := os.Stat(s.name(at[i])); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%d: mode %v (%v)", i, st.Mode(), err)
		}
	}
	large := s.name(at[2])
	data, _ := os.ReadFile(large)
	for name, damage := range map[string][]byte{"a bit": append(bytes.Clone(data[:len(data)-1]), data[len(data)-1]^1), "the end": data[:1000], "more": append(bytes.Clone(data), 0)} {
		if err := os.WriteFile(large, damage, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Get(at[2], make([]byte, len(data))); api.CodeOf(err) != api.DataLoss {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.Drop(at[2])
	s.Drop(at[2])
	if err := s.Get(at[2], make([]byte, len(data))); err == nil || !strings.Contains(err.Error(), "set aside") {
		t.Errorf("what was dropped: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.dir); !os.IsNotExist(err) {
		t.Errorf("the folder is there after Close: %v", err)
	}
}
