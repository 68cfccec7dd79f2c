package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/store/storetest"
)

// memoryStore is a store over a map that the test can reach into.
func memoryStore(t *testing.T, o Options) (*Store, *memory) {
	t.Helper()
	m := newMemory()
	o.Interval = -1
	s, err := open(m, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, m
}

func save(t *testing.T, s api.Store, path string, blobs ...storetest.Blob) api.Checkpoint {
	t.Helper()
	c, err := storetest.Save(s, path, api.SaveOptions{}, blobs...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wantError(t *testing.T, err error, code api.Code, parts ...string) {
	t.Helper()
	if err == nil || api.CodeOf(err) != code {
		t.Fatalf("got error %v (%s), wanted %s", err, api.CodeOf(err), code)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q lacks %q", err, p)
		}
	}
}

// TestFlippedBytes flips each byte of the header, and some of the payload, of each stored chunk and each record, and wants
// every read to give the right bytes or an error that names checkpoint, tensor and chunk.
func TestFlippedBytes(t *testing.T) {
	s, m := memoryStore(t, Options{})
	x, y := storetest.Floats("model.x", 250_000, 1), storetest.Floats("model.y", 3, 2)
	save(t, s, pathA, x, y)
	save(t, s, pathB, y)
	for key, value := range m.m {
		step := max(1, len(value)/50)
		for at := 0; at < len(value); at++ {
			if at > 40 && at%step != 0 {
				continue
			}
			m.m[key] = slices.Clone(value)
			m.m[key][at] ^= 1 << (at % 8)
			if key[0] == 'c' {
				checkDamage(t, s, at)
			} else {
				again, err := open(m, Options{Interval: -1})
				if key == formatKey {
					wantError(t, err, api.CodeOf(err))
				} else if err != nil {
					t.Fatal(err)
				} else {
					path := "tinker://" + key[2:]
					_, _, err = storetest.Load(again, path)
					wantError(t, err, api.DataLoss, path, "record")
					bad, err := again.Verify(ctx)
					if err != nil || len(bad) != 1 || bad[0].Checkpoint != path {
						t.Fatalf("verify: %v, %v", bad, err)
					}
					if _, err := again.Collect(ctx); api.CodeOf(err) != api.DataLoss {
						t.Fatalf("collect beside a damaged record: %v", err)
					}
				}
			}
			m.m[key] = value
		}
	}
	if bad, err := s.Verify(ctx); err != nil || len(bad) > 0 {
		t.Errorf("after all: %v, %v", bad, err)
	}
	// A chunk that is gone; and deleting what is damaged makes collection possible again.
	p, _ := api.ParsePath(pathA)
	r, err := s.open(p)
	if err != nil {
		t.Fatal(err)
	}
	delete(m.m, r.list[0].Chunks[1].key())
	r.Close()
	_, _, err = storetest.Load(s, pathA)
	wantError(t, err, api.DataLoss, pathA, `tensor "model.x": chunk 2 of 2`, "is missing")
	delete(m.m, r.rec.Table[0].key())
	_, err = s.Collect(ctx)
	wantError(t, err, api.DataLoss, pathA, "table of tensors", "is missing")
	if err := s.Delete(ctx, p); err != nil {
		t.Fatal(err)
	}
	if out, err := s.Collect(ctx); err != nil || out.Deleted != 1 || out.Kept != 2 {
		t.Errorf("collected %+v, %v", out, err)
	}
	if _, got, err := storetest.Load(s, pathB); err != nil || storetest.Equal(got, []storetest.Blob{y}) != "" {
		t.Errorf("the other checkpoint: %v", err)
	}
}

// checkDamage wants verify to name one damaged chunk, and reads not to give wrong bytes.
func checkDamage(t *testing.T, s *Store, at int) {
	t.Helper()
	bad, err := s.Verify(ctx)
	if err != nil || len(bad) > 2 {
		t.Fatalf("byte %d: verify: %v, %v", at, bad, err)
	}
	if len(bad) == 0 {
		t.Fatalf("byte %d: verify finds nothing", at)
	}
	for _, d := range bad {
		if !strings.Contains(d.Msg, d.Checkpoint) || !strings.Contains(d.Msg, "chunk ") || d.Tensor != "" && !strings.Contains(d.Msg, fmt.Sprintf("%q", d.Tensor)) || d.Tensor == "" && !strings.Contains(d.Msg, "table") {
			t.Fatalf("byte %d: %+v", at, d)
		}
		_, _, err := storetest.Load(s, d.Checkpoint)
		wantError(t, err, api.DataLoss, d.Checkpoint)
	}
}

// fill saves some checkpoints in a folder and closes it.
func fill(t *testing.T, dir string, valueLog int64) (blobs []storetest.Blob) {
	t.Helper()
	s, err := Open(dir, Options{Interval: -1, Margin: 1, valueLog: valueLog})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		b := storetest.Floats("x", 500_000, uint64(i))
		blobs = append(blobs, b)
		save(t, s, fmt.Sprintf("tinker://r/weights/%d", i), b)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return blobs
}

// TestTruncatedLog cuts Badger's files. The store says what is lost, or does not open; what it reads is right.
func TestTruncatedLog(t *testing.T) {
	origin := t.TempDir()
	blobs := fill(t, origin, 2<<20)
	files, err := filepath.Glob(filepath.Join(origin, "*.vlog"))
	if err != nil || len(files) < 3 {
		t.Fatalf("value logs: %v, %v", files, err)
	}
	for _, file := range files {
		for _, keep := range []float64{0, 0.3, 0.9} {
			dir := filepath.Join(t.TempDir(), "s")
			if err := os.CopyFS(dir, os.DirFS(origin)); err != nil {
				t.Fatal(err)
			}
			name := filepath.Join(dir, filepath.Base(file))
			info, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(name, int64(float64(info.Size())*keep)); err != nil {
				t.Fatal(err)
			}
			s, err := Open(dir, Options{Interval: -1, Margin: 1, valueLog: 2 << 20})
			if err != nil {
				if !strings.Contains(err.Error(), dir) {
					t.Errorf("open: %v", err)
				}
				continue
			}
			readable := 0
			for i, b := range blobs {
				path := fmt.Sprintf("tinker://r/weights/%d", i)
				_, got, err := storetest.Load(s, path)
				if err != nil {
					wantError(t, err, api.DataLoss, path, "chunk ")
					continue
				}
				readable++
				if diff := storetest.Equal(got, []storetest.Blob{b}); diff != "" {
					t.Errorf("%s: %s", path, diff)
				}
			}
			bad, err := s.Verify(ctx)
			if err != nil || (len(bad) == 0) != (readable == len(blobs)) {
				t.Errorf("%s cut to %v: %d readable, verify says %v, %v", filepath.Base(file), keep, readable, bad, err)
			}
			if readable == 0 && info.Size() > 1<<20 && len(files) > 3 {
				t.Errorf("%s cut to %v: nothing is readable", filepath.Base(file), keep)
			}
			s.Close()
		}
	}
}

// TestSecondOpener is told who has the folder; and the folder is free when it was closed.
func TestSecondOpener(t *testing.T) {
	dir := t.TempDir()
	s := reopen(t, dir, quiet(nil))
	_, err := Open(dir, quiet(nil))
	wantError(t, err, api.Busy, dir, fmt.Sprintf("process %d", os.Getpid()), filepath.Base(os.Args[0]))
	s.Close()
	if _, err := os.Stat(filepath.Join(dir, ownerFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a closed store leaves its owner file: %v", err)
	}
	os.WriteFile(filepath.Join(dir, ownerFile), []byte(`{"pid":1,"command":"gone"}`), 0o600) // of a process that was killed
	reopen(t, dir, quiet(nil)).Close()
}

func TestFolders(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(file, quiet(nil))
	if err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file: %v", err)
	}
	_, err = Open(filepath.Dir(file), quiet(nil))
	wantError(t, err, api.BadRequest, `holds "file" and no store`)
	if os.Getuid() == 0 {
		t.Log("the test of a read-only folder is skipped: root may write anywhere")
		return
	}
	dir := filepath.Join(t.TempDir(), "s")
	if err := os.Mkdir(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	_, err = Open(dir, quiet(nil))
	wantError(t, err, api.BadRequest, dir, "permission denied")
}

// TestSpace: too little space is refused before anything is written, with numbers; space that other writers will need counts.
func TestSpace(t *testing.T) {
	s, m := memoryStore(t, Options{Margin: 1000})
	free := int64(5000)
	s.free, s.dir = func() (int64, error) { return free, nil }, "/state"
	keys := len(m.m)
	c := storetest.Describe(pathA, nil)
	c.Bytes = 4001
	_, err := s.Create(ctx, c, api.SaveOptions{})
	wantError(t, err, api.NoSpace, "the disk of /state", "5001 bytes needed, 5000 free", pathA)
	c.Bytes = 4000
	w, err := s.Create(ctx, c, api.SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.Path.Name, c.Bytes = "b", 1
	_, err = s.Create(ctx, c, api.SaveOptions{})
	wantError(t, err, api.NoSpace, "1001 bytes needed, 1000 free")
	w.Abort()
	if w, err = s.Create(ctx, c, api.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if len(m.m) != keys {
		t.Error("something was written")
	}
}

// fullDisk has no room for chunks.
type fullDisk struct {
	*memory
	full bool
}

func (d *fullDisk) apply(ops []op) error {
	if d.full {
		return noSpace(os.TempDir(), 1, nil)
	}
	return d.memory.apply(ops)
}

// TestFullDisk: a disk that fills up while a checkpoint is written fails that save alone.
func TestFullDisk(t *testing.T) {
	d := &fullDisk{memory: newMemory()}
	s, err := open(d, Options{Interval: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	x, y := storetest.Floats("x", 10, 1), storetest.Floats("y", 10, 1)
	save(t, s, pathA, x)
	d.full = true
	_, err = storetest.Save(s, pathB, api.SaveOptions{}, y)
	wantError(t, err, api.NoSpace, pathB, "too little space")
	p, _ := api.ParsePath(pathA)
	wantError(t, s.Publish(ctx, p), api.NoSpace, pathA)
	d.full = false
	save(t, s, pathB, y)
	if diff := compare(s, map[string][]storetest.Blob{pathA: {x}, pathB: {y}}); diff != "" {
		t.Error(diff)
	}
}

// TestSmallDisk fills a real file system of 100 MB.
func TestSmallDisk(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=120m", "none", dir).CombinedOutput(); err != nil {
		t.Skipf("no small file system: mount: %v: %s", err, bytes.TrimSpace(out))
	}
	defer exec.Command("umount", dir).Run()
	s, err := Open(filepath.Join(dir, "s"), Options{Interval: -1, Margin: 1, valueLog: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.free = nil // the check at the beginning would refuse: this is about a disk that fills up meanwhile
	saved := map[string][]storetest.Blob{}
	for i := range 60 {
		x := storetest.Floats("x", 1_000_000, uint64(i))
		path := fmt.Sprintf("tinker://r/weights/%d", i)
		_, err := storetest.Save(s, path, api.SaveOptions{}, x)
		if err != nil {
			wantError(t, err, api.NoSpace, path, "needed", "free")
			break
		}
		saved[path] = []storetest.Blob{x}
	}
	if len(saved) < 5 || len(saved) > 40 {
		t.Errorf("%d checkpoints fit", len(saved))
	}
	if diff := compare(s, saved); diff != "" {
		t.Error(diff)
	}
}

// TestSpaceComesBack: deleted checkpoints leave the disk.
func TestSpaceComesBack(t *testing.T) {
	dir := t.TempDir()
	s := reopen(t, dir, Options{Interval: -1, Margin: 1, valueLog: 2 << 20})
	used := func() (n int64) {
		files, err := filepath.Glob(filepath.Join(dir, "*.vlog"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if info, err := os.Stat(f); err == nil {
				n += info.Size()
			}
		}
		return n
	}
	x := storetest.Floats("x", 100_000, 99)
	save(t, s, pathA, x)
	empty := used()
	for i := range 8 {
		save(t, s, fmt.Sprintf("tinker://r/sampler_weights/%d", i), storetest.Floats("x", 1_000_000, uint64(i)))
	}
	full := used()
	for i := range 8 {
		p, _ := api.ParsePath(fmt.Sprintf("tinker://r/sampler_weights/%d", i))
		if err := s.Delete(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("value logs: %d bytes, %d with the checkpoints, %d after", empty, full, used())
	if full-empty < 20<<20 || used() > empty+8<<20 {
		t.Errorf("value logs: %d bytes, %d with the checkpoints, %d after", empty, full, used())
	}
	if diff := compare(s, map[string][]storetest.Blob{pathA: {x}}); diff != "" {
		t.Error(diff)
	}
}

// TestNewerFormat is refused by its number, and left alone.
func TestNewerFormat(t *testing.T) {
	m := newMemory()
	m.m[formatKey] = []byte("tinker-local store 2")
	_, err := open(m, Options{Interval: -1})
	wantError(t, err, api.Unsupported, "format version 2", "up to version 1")
	m.m[formatKey] = []byte("something else")
	_, err = open(m, Options{Interval: -1})
	wantError(t, err, api.DataLoss, "something else")
}

// TestCodec: what is encoded comes back, compressed where it shrinks; hostile bytes are refused.
func TestCodec(t *testing.T) {
	c, err := newCodec(1)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for _, elem := range []int{1, 2, 4, 8} {
		for _, n := range []int{0, 1, 7, 8, 9, 4096, chunkBytes} {
			x := storetest.Floats("", n/4+1, uint64(n)).Data[:n]
			stored := c.encode(x, elem)
			if len(stored) > chunkHeader+n {
				t.Errorf("%d bytes take %d", n, len(stored))
			}
			dst := make([]byte, n)
			if err := c.decode(dst, stored, hash(x)); err != nil || !bytes.Equal(dst, x) {
				t.Errorf("%d bytes of %d: %v", n, elem, err)
			}
		}
	}
	bomb := c.encode(make([]byte, chunkBytes), 1)
	binary.LittleEndian.PutUint32(bomb[2:], 10)
	binary.LittleEndian.PutUint32(bomb[6:], checksum(bomb))
	if err := c.decode(make([]byte, 10), bomb, hash(make([]byte, 10))); err == nil {
		t.Error("a chunk that decompresses to more than it says is accepted")
	}
}
