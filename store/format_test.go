package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/store/storetest"
)

var update = flag.Bool("update", false, "write the fixture of the newest format again")

// fixture is what the fixtures hold.
func fixture(s *Store) error {
	x, y := storetest.Floats("model.layers.0.mlp.up_proj.lora_A.weight", 5000, 1), storetest.Floats("lm_head.lora_B.weight", 7, 2)
	zeros := storetest.Blob{TensorInfo: api.TensorInfo{Name: "adam_m/zeros", DType: "F32", Shape: []int{3, 1000}}, Data: make([]byte, 12000)}
	if err := s.PutRun(ctx, api.RunRecord{ID: "r", Owner: "ann", BaseModel: "org/Base-1B", Lora: api.DefaultLora(), UserMetadata: map[string]string{"k": "v"}}); err != nil {
		return err
	}
	_, err := storetest.Save(s, pathA, api.SaveOptions{}, x, y, zeros)
	_, err2 := storetest.Save(s, pathC, api.SaveOptions{TTL: 1000 * time.Hour}, x)
	p, _ := api.ParsePath(pathC)
	return errors.Join(err, err2, s.Publish(ctx, p))
}

// TestOldFormats reads a store of each format version there has been.
func TestOldFormats(t *testing.T) {
	clock := &storetest.Clock{T: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	want := OpenMemory(quiet(clock))
	defer want.Close()
	if err := fixture(want); err != nil {
		t.Fatal(err)
	}
	if *update {
		dir := t.TempDir()
		o := quiet(clock)
		o.valueLog = 2 << 20
		s := reopen(t, dir, o)
		if err := fixture(s); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := pack(dir, fmt.Sprintf("testdata/v%d.tar.gz", format)); err != nil {
			t.Fatal(err)
		}
	}
	for version := 1; version <= format; version++ {
		dir := t.TempDir()
		if err := unpack(fmt.Sprintf("testdata/v%d.tar.gz", version), dir); err != nil {
			t.Fatal(err)
		}
		s := reopen(t, dir, quiet(clock))
		if bad, err := s.Verify(ctx); err != nil || len(bad) > 0 {
			t.Errorf("version %d: %v, %v", version, bad, err)
		}
		for _, path := range []string{pathA, pathC} {
			c, blobs, err := storetest.Load(s, path)
			if err != nil {
				t.Fatal(err)
			}
			d, same, _ := storetest.Load(want, path)
			if diff := storetest.Equal(blobs, same); diff != "" || c.SHA256 != d.SHA256 || !c.Expires.Equal(d.Expires) || c.Public != d.Public {
				t.Errorf("version %d: %s is %+v, wanted %+v; %s", version, path, c, d, diff)
			}
		}
		if r, err := s.Run(ctx, "r"); err != nil || r.UserMetadata["k"] != "v" || r.LastCheckpoint == nil {
			t.Errorf("version %d: the run is %+v, %v", version, r, err)
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
