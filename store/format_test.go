package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"io"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/store/storetest"
)

var update = flag.Bool("update", false, "write the newest fixture again")

// fixtures are stores of each format version there has been, and of each kind of record since.
var fixtures = []struct {
	name  string
	notes map[string]string // user metadata of the first checkpoint
}{
	{"v1", nil},
	{"v1-metadata", map[string]string{"note": "kept", "by": "ann"}},
}

// fixture is what the fixtures hold.
func fixture(s *Store, notes map[string]string) error {
	x, y := storetest.Floats("model.layers.0.mlp.up_proj.lora_A.weight", 5000, 1), storetest.Floats("lm_head.lora_B.weight", 7, 2)
	zeros := storetest.Blob{TensorInfo: api.TensorInfo{Name: "adam_m/zeros", DType: "F32", Shape: []int{3, 1000}}, Data: make([]byte, 12000)}
	if err := s.PutRun(ctx, api.RunRecord{ID: "r", Owner: "ann", BaseModel: "org/Base-1B", Lora: api.DefaultLora(), UserMetadata: map[string]string{"k": "v"}}); err != nil {
		return err
	}
	_, err := storetest.Save(s, pathA, api.SaveOptions{UserMetadata: notes}, x, y, zeros)
	_, err2 := storetest.Save(s, pathC, api.SaveOptions{TTL: 1000 * time.Hour}, x)
	p, _ := api.ParsePath(pathC)
	return errors.Join(err, err2, s.Publish(ctx, p))
}

// TestOldFormats reads the fixtures. -update writes the newest one again.
func TestOldFormats(t *testing.T) {
	clock := &storetest.Clock{T: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	if *update {
		newest := fixtures[len(fixtures)-1]
		dir := t.TempDir()
		o := quiet(clock)
		o.valueLog = 2 << 20
		s := reopen(t, dir, o)
		if err := fixture(s, newest.notes); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := pack(dir, "testdata/"+newest.name+".tar.gz"); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range fixtures {
		want := OpenMemory(quiet(clock))
		defer want.Close()
		if err := fixture(want, f.notes); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := unpack("testdata/"+f.name+".tar.gz", dir); err != nil {
			t.Fatal(err)
		}
		s := reopen(t, dir, quiet(clock))
		if bad, err := s.Verify(ctx); err != nil || len(bad) > 0 {
			t.Errorf("%s: %v, %v", f.name, bad, err)
		}
		for _, path := range []string{pathA, pathC} {
			c, blobs, err := storetest.Load(s, path)
			if err != nil {
				t.Fatal(err)
			}
			d, same, _ := storetest.Load(want, path)
			if diff := storetest.Equal(blobs, same); diff != "" || c.SHA256 != d.SHA256 || !c.Expires.Equal(d.Expires) || c.Public != d.Public || !maps.Equal(c.UserMetadata, d.UserMetadata) {
				t.Errorf("%s: %s is %+v, wanted %+v; %s", f.name, path, c, d, diff)
			}
		}
		if r, err := s.Run(ctx, "r"); err != nil || r.UserMetadata["k"] != "v" || r.LastCheckpoint == nil {
			t.Errorf("%s: the run is %+v, %v", f.name, r, err)
		}
		save(t, s, pathD, storetest.Floats("new", 5, 5))
		s.Close()
	}
}

func pack(dir, name string) error {
	var buf bytes.Buffer
	z, _ := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	w := tar.NewWriter(z)
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: f.Name(), Mode: 0o600, Size: int64(len(data))}); err != nil {
			return err
		}
		w.Write(data)
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		return err
	}
	return os.WriteFile(name, buf.Bytes(), 0o644)
}

func unpack(name, dir string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(h.Name)), data, 0o600); err != nil {
			return err
		}
	}
}
