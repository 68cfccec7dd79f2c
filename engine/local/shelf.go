package local

import (
	"fmt"
	"hash/crc64"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
)

// shelfFolder is where, in a state directory, weights of idle samplers are set aside. Nothing in it outlives its process.
const shelfFolder = "idle"

// shelf is an engine.Shelf in a folder: a file for each copy, for this user's eyes only.
type shelf struct {
	dir string

	mu   sync.Mutex
	next int64
	sums map[int64]uint64 // of the files' contents
}

var shelfTable = crc64.MakeTable(crc64.ECMA)

// openShelf removes what a process has left behind that was killed. The folder is made when it is needed.
func openShelf(state string) (*shelf, error) {
	s := &shelf{dir: filepath.Join(state, shelfFolder), sums: map[int64]uint64{}}
	return s, s.Close()
}

func (s *shelf) name(at int64) string { return filepath.Join(s.dir, strconv.FormatInt(at, 10)) }

func (s *shelf) Put(b []byte) (int64, error) {
	if err := disk.Room(s.dir, int64(len(b)), disk.Margin); err != nil {
		return 0, err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return 0, disk.Error(err)
	}
	s.mu.Lock()
	at := s.next
	s.next++
	s.mu.Unlock()
	if err := os.WriteFile(s.name(at), b, 0o600); err != nil {
		os.Remove(s.name(at))
		return 0, disk.Error(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sums[at] = crc64.Checksum(b, shelfTable)
	return at, nil
}

func (s *shelf) Get(at int64, b []byte) error {
	data, err := os.ReadFile(s.name(at))
	if err != nil {
		return fmt.Errorf("weights that were set aside: %w", disk.Error(err))
	}
	s.mu.Lock()
	sum, ok := s.sums[at]
	s.mu.Unlock()
	if !ok || len(data) != len(b) || crc64.Checksum(data, shelfTable) != sum {
		return api.Errorf(api.DataLoss, "weights that were set aside: %s is damaged", s.name(at))
	}
	copy(b, data)
	return nil
}

func (s *shelf) Drop(at int64) {
	s.mu.Lock()
	delete(s.sums, at)
	s.mu.Unlock()
	os.Remove(s.name(at)) // what is left goes with the folder
}

func (s *shelf) Close() error { return os.RemoveAll(s.dir) }
