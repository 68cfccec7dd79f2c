package interchange

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/engine/hf"
)

// FuzzArchive: an archive that is accepted holds no more than its bytes, and its adapter is sound.
func FuzzArchive(f *testing.F) {
	sites := sitesOf(f, experts)
	st := memory(f)
	c := saved(f, st, sites, state("run-1", seeded(1, false, true, false)))
	for _, o := range []ArchiveOptions{{}, {Optimizer: true}} {
		b := archiveOf(f, st, c.Path, o)
		f.Add(b)
		f.Add(packed(f, "gzip", b))
		f.Add(packed(f, "zstd", b))
	}
	f.Add(tarOf(f, plainFile(configFile, plainConfig), plainFile(weightsFile, small(f)), plainFile(completeFile, "")))
	f.Add(tarOf(f, plainFile("../x", "")))
	temp := f.TempDir()
	const limit = 1 << 20
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ReadArchive(context.Background(), bytes.NewReader(b), ReadOptions{Temp: temp, MaxBytes: limit})
		if left := files(t, temp); err != nil && len(left) != 0 {
			t.Fatalf("%d temporary files are left", len(left))
		}
		if err != nil {
			if api.CodeOf(err) == api.Internal {
				t.Fatal(err)
			}
			return
		}
		total := 0
		for _, t := range s.factors {
			total += length(api.TensorInfo{Shape: t.shape})
		}
		if total *= 2; total > limit || packing(b) == "" && total > len(b) { // two bytes are the least a value takes
			t.Fatalf("%d bytes of factors in an archive of %d", total, len(b))
		}
		if s.Optimizer && len(s.moments) != 2*len(s.factors) {
			t.Fatalf("%d moments of %d factors", len(s.moments), len(s.factors))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if left := files(t, temp); len(left) != 0 {
			t.Fatalf("%d temporary files are left", len(left))
		}
	})
}

// FuzzImport: a PEFT folder is refused, or becomes a checkpoint that is complete for its base.
func FuzzImport(f *testing.F) {
	sites := sitesOf(f, experts)
	st := memory(f)
	for i, c := range []api.LoraConfig{seeded(1, false, true, true), seeded(2, true, false, false)} {
		was := state("seed", c)
		was.Path.Name, was.Optimizer = string(rune('a'+i)), false
		x, err := PlanPEFT(FromCheckpoint(opened(f, st, saved(f, st, sites, was).Path)), PEFTOptions{})
		if err != nil {
			f.Fatal(err)
		}
		dir := filepath.Join(f.TempDir(), "a")
		if err := x.Write(context.Background(), dir, WriteOptions{}); err != nil {
			f.Fatal(err)
		}
		both := files(f, dir)
		f.Add([]byte(both[configFile]), []byte(both[weightsFile]))
		f.Add([]byte(`{"r":2,"lora_alpha":7,"use_rslora":true}`), []byte(both[weightsFile]))
	}
	f.Add([]byte(plainConfig), []byte(small(f)))
	f.Add([]byte(plainConfig), []byte(safetensors(f, hf.Floats(q0+"A.weight", []int{2, 8}, ramp(16, 1)), hf.Floats(q0+"B.weight", []int{12, 2}, ramp(24, 1)))))
	dir := f.TempDir()
	to := api.Checkpoint{Path: api.Path{Run: "r", Kind: api.KindSampler, Name: "n"}, Owner: "me"}
	f.Fuzz(func(t *testing.T, config, weights []byte) {
		for name, b := range map[string][]byte{configFile: config, weightsFile: weights} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		src, err := OpenPEFT(dir)
		if err != nil {
			if api.CodeOf(err) == api.Internal {
				t.Fatal(err)
			}
			return
		}
		defer src.Close()
		for _, shape := range []enginetest.Shape{experts, enginetest.Small} {
			c, err := Import(context.Background(), src, sitesOf(t, shape), st, to, ImportOptions{Save: api.SaveOptions{Overwrite: true}})
			if err != nil {
				if api.CodeOf(err) == api.Internal {
					t.Fatal(err)
				}
				continue
			}
			if c.Tensors == 0 || c.Optimizer || c.Lora.Rank != src.Lora.Rank {
				t.Fatalf("%+v", c)
			}
		}
	})
}
