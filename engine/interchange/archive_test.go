package interchange

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
)

// archiveOf is the archive of a checkpoint in the store, whose size was known before.
func archiveOf(t testing.TB, st api.Store, p api.Path, o ArchiveOptions) []byte {
	t.Helper()
	r := opened(t, st, p)
	size, err := ArchiveBytes(r, o)
	if err != nil {
		t.Fatal(err)
	}
	var b, again bytes.Buffer
	for _, w := range []*bytes.Buffer{&b, &again} {
		if err := WriteArchive(context.Background(), w, r, o); err != nil {
			t.Fatal(err)
		}
	}
	if int64(b.Len()) != size || !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Fatalf("archive of %d bytes and then %d, %d were announced", b.Len(), again.Len(), size)
	}
	return b.Bytes()
}

func packed(t testing.TB, kind string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	switch kind {
	case "":
		return b
	case "gzip":
		w = gzip.NewWriter(&out)
	case "zstd":
		var err error
		if w, err = zstd.NewWriter(&out); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestArchiveRoundTrip: a checkpoint goes through an archive into another store and is the same there, bit for bit.
func TestArchiveRoundTrip(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name      string
		shape     enginetest.Shape
		c         api.LoraConfig
		optimizer bool
		packing   string
	}{
		{"dense", enginetest.Small, seeded(3, true, true, true), false, ""},
		{"dense with optimizer", enginetest.Small, seeded(3, true, true, true), true, "zstd"},
		{"attention", enginetest.Small, seeded(49, true, false, false), true, ""}, // 32/49·49 is not 32
		{"unembedding", enginetest.Small, seeded(1, false, false, true), false, "gzip"},
		{"experts", experts, seeded(2, true, true, true), true, "gzip"},
		{"experts alone", experts, seeded(2, false, true, false), false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			sites := sitesOf(t, c.shape)
			st, other := memory(t), memory(t)
			was := saved(t, st, sites, state("run-1", c.c))
			b := packed(t, c.packing, archiveOf(t, st, was.Path, ArchiveOptions{Optimizer: c.optimizer}))
			path := filepath.Join(t.TempDir(), "archive.tar")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			temp := t.TempDir()
			for _, open := range []func() (*Source, error){
				func() (*Source, error) {
					return OpenArchive(ctx, path, ReadOptions{Temp: temp, MaxBytes: LargestArchive(sites)})
				},
				func() (*Source, error) { return ReadArchive(ctx, bytes.NewReader(b), ReadOptions{Temp: temp}) },
			} {
				src, err := open()
				if err != nil {
					t.Fatal(err)
				}
				to := api.Checkpoint{Path: api.Path{Run: "imported", Kind: api.KindState, Name: "y"}, Owner: "you"}
				got, err := Import(ctx, src, sites, other, to, ImportOptions{Save: api.SaveOptions{Overwrite: true}})
				if err != nil {
					t.Fatal(err)
				}
				// The tensors are compared without the moments where those did not come along.
				want := was
				if !c.optimizer {
					alone := state("alone", c.c)
					alone.Optimizer = false
					want = saved(t, memory(t), sites, alone)
					want.Lora.Seed, want.Version, want.Step = nil, 0, 0
				}
				if got.SHA256 != want.SHA256 || got.Optimizer != c.optimizer || got.Version != want.Version || got.Step != want.Step || got.BaseModel != "Org/Name" || got.Owner != "you" {
					t.Errorf("came back as %+v, was %+v", got, want)
				}
				notes := was.UserMetadata // beside the optimizer's state
				if !c.optimizer {
					notes = nil
				}
				if !maps.Equal(got.UserMetadata, notes) {
					t.Errorf("the notes came back as %q, wanted %q", got.UserMetadata, notes)
				}
				if a, b := asJSON(t, got.Lora), asJSON(t, want.Lora); a != b {
					t.Errorf("lora config came back as %s, was %s", a, b)
				}
				if err := src.Close(); err != nil {
					t.Error(err)
				}
				if left := files(t, temp); len(left) != 0 {
					t.Errorf("%d temporary files are left", len(left))
				}
			}
		})
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestArchiveContents looks at an archive as a tar reader does.
func TestArchiveContents(t *testing.T) {
	st := memory(t)
	c := saved(t, st, sitesOf(t, experts), state("run-1", seeded(2, true, true, true)))
	r := tar.NewReader(bytes.NewReader(archiveOf(t, st, c.Path, ArchiveOptions{Optimizer: true})))
	var names []string
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if h.Typeflag != tar.TypeReg || h.Mode != 0o644 || h.ModTime.Unix() != 0 || h.Uname != "" || h.Uid != 0 {
			t.Errorf("header %+v", h)
		}
		if h.Name == configFile {
			b, err := io.ReadAll(r)
			var config map[string]any
			if err == nil {
				err = json.Unmarshal(b, &config)
			}
			if err != nil || config["r"] != 2.0 || config["lora_alpha"] != 32.0 || config["peft_type"] != "LORA" || config["base_model_name_or_path"] != "Org/Name" ||
				asJSON(t, config["target_modules"]) != `["down_proj","gate_proj","k_proj","o_proj","q_proj","unembed_tokens","up_proj","v_proj","w1","w2","w3"]` {
				t.Errorf("%s, %v", b, err)
			}
		}
	}
	if want := []string{configFile, weightsFile, optimizerFile, stateFile, completeFile}; !slices.Equal(names, want) {
		t.Errorf("files %v, wanted %v", names, want)
	}
	without := state("run-2", c.Lora)
	without.Optimizer = false
	without = saved(t, st, sitesOf(t, experts), without)
	_, err := ArchiveBytes(opened(t, st, without.Path), ArchiveOptions{Optimizer: true})
	expect(t, "no moments", err, api.BadRequest, "archive of tinker://run-2/weights/x: checkpoint tinker://run-2/weights/x has weights only, no optimizer state")
}

// TestArchiveFiles: files that are sent one by one are those of the archive.
func TestArchiveFiles(t *testing.T) {
	for shape, many := range map[string]bool{"experts": true, "dense": false} {
		st, sites := memory(t), sitesOf(t, enginetest.Small)
		if many {
			sites = sitesOf(t, experts)
		}
		c := saved(t, st, sites, state("run-1", seeded(2, true, true, true)))
		if got := FromCheckpoint(opened(t, st, c.Path)).ExpertFactors(); got != many {
			t.Errorf("%s: there are factors of experts: %v", shape, got)
		}
		sent, err := ArchiveFiles(opened(t, st, c.Path), ArchiveOptions{Optimizer: true})
		if err != nil {
			t.Fatal(err)
		}
		r := tar.NewReader(bytes.NewReader(archiveOf(t, st, c.Path, ArchiveOptions{Optimizer: true})))
		for _, f := range sent {
			h, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			want, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := f.Write(context.Background(), &b); err != nil || f.Name != h.Name || f.Bytes != h.Size || !bytes.Equal(b.Bytes(), want) {
				t.Errorf("%s: %s has %d bytes (%v), announced %d; the archive has %s with %d", shape, f.Name, b.Len(), err, f.Bytes, h.Name, h.Size)
			}
		}
		if _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: the archive has more: %v", shape, err)
		}
	}
}

// TestPlanArchive: an archive in a file is there whole or not at all.
func TestPlanArchive(t *testing.T) {
	st := memory(t)
	c := saved(t, st, sitesOf(t, enginetest.Small), state("run-1", seeded(3, true, false, true)))
	x, err := PlanArchive(opened(t, st, c.Path), ArchiveOptions{Optimizer: true})
	if err != nil || x.Format != "archive" || len(x.Notes) != 0 {
		t.Fatalf("%+v, %v", x, err)
	}
	holdsOnDisk(t, x, "a.tar")
	path := filepath.Join(t.TempDir(), "a.tar")
	var last, total int64
	err = x.Write(context.Background(), path, WriteOptions{Progress: func(d, n int64) { last, total = d, n }})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, archiveOf(t, st, c.Path, ArchiveOptions{Optimizer: true})) || int64(len(b)) != x.Bytes {
		t.Errorf("file of %d bytes, %d were announced: %v", len(b), x.Bytes, err)
	}
	if last != total || total < x.Bytes || total > 2*x.Bytes {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	expect(t, "again", x.Write(context.Background(), path, WriteOptions{}), api.BadRequest, "it is there already")
	if x, err := PlanArchive(opened(t, st, c.Path), ArchiveOptions{}); err != nil || len(x.Notes) != 1 {
		t.Errorf("%+v, %v", x, err)
	}
}
