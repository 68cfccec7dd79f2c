package store

import (
	"context"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/store/storetest"
)

// full makes the benchmarks use a state of the size that rank 32 has on Qwen3-8B: 1.1 GB, of which up to three are on
// the disk of the temporary folder at a time. Otherwise it is a thirtieth of that.
var full = flag.Bool("full", false, "benchmark with a state of 1.1 GB")

func state8B() ([]storetest.Blob, int64) {
	if *full {
		return storetest.State8B(32)
	}
	return storetest.State8B(1)
}

// BenchmarkState saves and loads a whole training state: in the store, and as a plain safetensors file that is synced.
func BenchmarkState(b *testing.B) {
	blobs, bytes := state8B()
	b.Run("save/store", func(b *testing.B) {
		b.SetBytes(bytes)
		for b.Loop() {
			b.StopTimer()
			dir := b.TempDir()
			s := reopen(b, dir, quiet(nil))
			b.StartTimer()
			c, err := storetest.Save(s, pathA, api.SaveOptions{}, blobs...)
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			b.ReportMetric(float64(c.Written)/float64(bytes), "stored/raw")
			s.Close()
			os.RemoveAll(dir)
			b.StartTimer()
		}
	})
	b.Run("save/store again", func(b *testing.B) {
		s := reopen(b, b.TempDir(), quiet(nil))
		if _, err := storetest.Save(s, pathA, api.SaveOptions{}, blobs...); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(bytes)
		for b.Loop() {
			if _, err := storetest.Save(s, pathB, api.SaveOptions{Overwrite: true}, blobs...); err != nil {
				b.Fatal(err)
			}
		}
	})
	file := filepath.Join(b.TempDir(), "state.safetensors")
	b.Run("save/safetensors", func(b *testing.B) {
		b.SetBytes(bytes)
		for b.Loop() {
			if err := writePlain(file, blobs); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("load/store", func(b *testing.B) {
		s := reopen(b, b.TempDir(), quiet(nil))
		if _, err := storetest.Save(s, pathA, api.SaveOptions{}, blobs...); err != nil {
			b.Fatal(err)
		}
		p, _ := api.ParsePath(pathA)
		b.SetBytes(bytes)
		for b.Loop() {
			r, err := s.Open(context.Background(), p)
			if err != nil {
				b.Fatal(err)
			}
			for _, x := range blobs {
				if err := r.Read(ctx, x.Name, make([]byte, len(x.Data))); err != nil {
					b.Fatal(err)
				}
			}
			r.Close()
		}
	})
	b.Run("load/safetensors", func(b *testing.B) {
		b.SetBytes(bytes)
		for b.Loop() {
			if _, err := os.ReadFile(file); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func writePlain(name string, blobs []storetest.Blob) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	var sources []hf.Source
	for _, x := range blobs {
		sources = append(sources, hf.Source{Name: x.Name, Stored: x.DType, Shape: x.Shape, Write: func(w io.Writer) error {
			_, err := w.Write(x.Data)
			return err
		}})
	}
	if err := hf.WriteSafetensors(f, sources, nil); err != nil {
		return err
	}
	return f.Sync()
}
